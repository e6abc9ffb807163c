"""Throughput while somebody else's long transaction pins a snapshot, so that no dead row can be cleaned up.

A producer keeps a second's worth of jobs in the queue, one worker works them off, and what it has done is noted several
times a second. It begins before the snapshot is pinned, so that the first seconds under it are those of a warm worker.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from tests.bench.background import pinned_snapshot

from ..program import PeerError, Program
from ..server import Database
from ..system import System
from ..turns import Bench, Found, enqueuing, working
from ..usage import Space

LOOK_EVERY = 0.05
FEWEST_WAITING = 1000

Points = Sequence[tuple[float, int]]  # when, and how many had been done by then


def pinned(bench: Bench, system: System) -> Found:
    return _throughput(bench, system, lambda database: pinned_snapshot(database.connect()))


def unpinned(bench: Bench, system: System) -> Found:
    """The same without a snapshot: what of the course is not the snapshot's doing."""
    return _throughput(bench, system, lambda database: nullcontext())


def _throughput(bench: Bench, system: System, beside: Callable[[Database], AbstractContextManager[None]]) -> Found:
    plan = bench.plan
    with (
        bench.database(system) as database,
        working(system, database) as worker,
        enqueuing(system, database, plan="feed") as producer,
    ):
        feeder = Feeder(worker, producer, max(int(bench.rate(system)), FEWEST_WAITING))
        feeder.run(plan.settle_seconds)
        with beside(database):
            began = time.time()
            feeder.run(plan.pinned_seconds)
            space = Space.now(database, system.schemas)
        points = [(report["at"], report["runs"]) for report in worker.reports]
    first = rate(points, began, began + plan.edge_seconds)
    last = rate(points, began + plan.pinned_seconds - plan.edge_seconds, began + plan.pinned_seconds)
    if not first:
        raise PeerError("nothing was done")
    seconds = range(-int(plan.settle_seconds), int(plan.pinned_seconds))
    figures = {"first": first, "last": last, "ratio": last / first, "dead": space.dead, "bytes": space.bytes}
    return figures, {
        "from": seconds.start,
        "per_second": [round(rate(points, began + second, began + second + 1)) for second in seconds],
        "waiting": feeder.waiting,
    }


class Feeder:
    """Asks the producer for more whenever the worker has worked off some."""

    def __init__(self, worker: Program, producer: Program, waiting: int) -> None:
        self.waiting = waiting
        self._worker = worker
        self._producer = producer
        self._asked = 0

    def run(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            missing = self.waiting - (self._asked - self._worker.runs)
            if missing >= self.waiting / 10:
                self._producer.send(str(missing))
                self._asked += missing
            time.sleep(LOOK_EVERY)


def rate(points: Points, since: float, until: float) -> float:
    """Jobs/s between two times, between the reports on a straight line."""
    return (_done(points, until) - _done(points, since)) / (until - since)


def _done(points: Points, at: float) -> float:
    after = bisect_left(points, at, key=lambda point: point[0])
    if after == 0:
        return 0
    if after == len(points):
        return points[-1][1]
    (t0, n0), (t1, n1) = points[after - 1], points[after]
    return n0 + (n1 - n0) * (at - t0) / (t1 - t0)
