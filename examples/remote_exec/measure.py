"""How long a round trip takes, from enqueue to the result: `python -m examples.remote_exec.measure 500`."""

from __future__ import annotations

import os
import sys
from statistics import quantiles
from time import perf_counter

from examples.remote_exec.submit import run
from pgqueue import Client


def measure(client: Client, count: int) -> list[float]:
    """Return the milliseconds of so many round trips, one after the other; the first ones, which connect, left out."""
    times = []
    for number in range(count + 10):
        began = perf_counter()
        assert run(client, "echo", value=number) == number
        times.append((perf_counter() - began) * 1000)
    return times[10:]


def main() -> None:
    """Measure and print."""
    with Client(os.environ["PGQUEUE_DSN"]) as client:
        times = measure(client, int(sys.argv[1]))
    percentiles = quantiles(times, n=100)
    print(f"{len(times)} round trips: p50 {percentiles[49]:.1f} ms, p99 {percentiles[98]:.1f} ms")


if __name__ == "__main__":
    main()
