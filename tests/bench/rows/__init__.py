"""What is measured, one file a subject. Each measurement yields the rows it has to tell about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..report import Row
from ..server import Server


@dataclass(frozen=True)
class Bench:
    """The server and how long to measure."""

    server: Server
    seconds: int = 5  # of one turn
    rounds: int = 5
    pinned_seconds: int = 60
    deep_jobs: int = 10_000_000
    life_jobs: int = 500_000
    wakes: int = 500
    drain_jobs: int = 300_000

    @property
    def more_rounds(self) -> int:
        """For what commits each job by itself: it moves with the disk."""
        return 2 * self.rounds - 1


Measurement = Callable[[Bench], Iterator[Row]]


def measurements() -> dict[str, Measurement]:
    """All of them by the name that --only takes, in the order of the report."""
    from . import claims, depth, drain, enqueue, latency, life, pinned, wakeups

    return {
        "enqueue-1": enqueue.single,
        "enqueue-100": enqueue.hundred,
        "enqueue-idle-worker": wakeups.idle_worker,
        "claim-ack-1": claims.single,
        "bare-rows": claims.bare_rows,
        "claim-ack-100": claims.hundred,
        "no-archive": claims.no_archive,
        "whole-life": life.throughput,
        "wal": life.wal,
        "pinned": pinned.pinned,
        "depth": depth.depth,
        "latency": latency.latency,
        "round-trip": latency.round_trip,
        "drain": drain.drain,
    }
