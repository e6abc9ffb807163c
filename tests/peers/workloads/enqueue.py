"""How many jobs one producer commits: one in each call, and many."""

from __future__ import annotations

from ..program import PeerError
from ..system import System
from ..turns import Bench, Found, enqueuing


def single(bench: Bench, system: System) -> Found:
    return _enqueue(bench, system, 1)


def bulk(bench: Bench, system: System) -> Found:
    return _enqueue(bench, system, system.bulk)


def _enqueue(bench: Bench, system: System, batch: int) -> Found:
    with bench.database(system) as database:
        with enqueuing(system, database, plan="flood", batch=batch, seconds=bench.plan.enqueue_seconds) as producer:
            done = producer.result()
        arrived = system.count(database)
    if arrived != done["jobs"]:
        raise PeerError(f"{done['jobs']} jobs were enqueued, {arrived} arrived")
    return {"rate": done["jobs"] / done["seconds"]}, {**done, "batch": batch}
