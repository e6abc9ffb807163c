"""What a claim, and a look at the queue, costs when ten million jobs are waiting, against ten thousand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from ..compare import compare
from ..pgbench import BenchmarkError
from ..report import Row, at_most
from ..systems import Queue
from . import Bench

SHALLOW = 10_000
LOOKS = ("activity()", "jobs('bench')", "workers()", "failures()", "queues()", "stats()")
CLAIMS = 4_000  # in one turn, so that the shallow queue keeps more than half of its jobs


def depth(bench: Bench) -> Iterator[Row]:
    """Claims as a worker makes them: with synchronous_commit off, which leaves out the disk."""
    with bench.server.database() as small, bench.server.database() as large:
        shallow = Queue(small, "pgq").create(lease="1 day")
        deep = Queue(large, "pgq").create(lease="1 day")
        deep.load(bench.deep_jobs)
        deep.tidy()
        large.run("CHECKPOINT")  # what was loaded is not written while it is measured
        for clients, wanted in ((1, at_most(1.3)), (8, None)):
            medians: dict[Queue | str, list[float]] = {"deep": [], "shallow": []}

            def turn(queue: Queue, name: str, clients: int = clients) -> float:
                queue.load_up_to(SHALLOW)
                with queue.turn():
                    run, missing = queue.measured(
                        "claim_1.sql",
                        clients=clients,
                        transactions=CLAIMS // clients,
                        log=True,
                        synchronous_commit=False,
                    )
                if missing > run.transactions / 100:
                    raise BenchmarkError(f"{missing} of {run.transactions} claims were empty")
                medians[name].append(run.percentile(50))  # noqa: B023
                return run.percentile(99)

            result = compare(lambda: turn(deep, "deep"), lambda: turn(shallow, "shallow"), bench.more_rounds)
            plural = "s"[: clients > 1]
            yield Row(
                name=f"claim p99 at {bench.deep_jobs:,} ready jobs, {clients} client{plural}",
                unit="ms",
                pgq=result.our_median,
                against=f"the same at {SHALLOW:,}",
                other=result.their_median,
                ratio=result.ratio,
                wanted=wanted,
                raw=result.raw() | {f"p50_{k}": median(v) for k, v in medians.items()},
            )
        for look in LOOKS:
            slow, fast = (_milliseconds(queue, look) for queue in (deep, shallow))
            yield Row(
                name=f"  pgq.{look} there",
                unit="ms",
                pgq=median(slow),
                against=f"the same at {SHALLOW:,}",
                other=median(fast),
                ratio=median(slow) / median(fast),
                raw={"deep": slow, "shallow": fast},
            )


def _milliseconds(queue: Queue, look: str) -> list[float]:
    """How long five looks take, after a first one."""
    times = []
    with queue.database.connect() as db:
        for _ in range(6):
            began = time.perf_counter()
            db.execute(f"SELECT count(*) FROM pgq.{look}".encode())
            times.append((time.perf_counter() - began) * 1000)
    return times[1:]
