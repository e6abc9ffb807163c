"""The drain again, with a million finished and a million scheduled jobs lying around."""

from __future__ import annotations

from statistics import median

from psycopg import sql

from ..program import PeerError
from ..server import Database
from ..system import System
from ..turns import Bench, Found, load, wait_done, working
from .drain import FEWEST, emptied

MONTH = 30 * 86400
TIMES = 2


def around(bench: Bench, system: System) -> Found:
    jobs = max(int(bench.rate(system) * bench.plan.drain_seconds), FEWEST)
    with bench.database(system) as database:
        _finish(system, database, bench.plan.around)
        _schedule(system, database, bench.plan.around)
        if left := system.count(database):
            raise PeerError(f"{left} jobs are due that should not be")
        database.run(sql.SQL("VACUUM ANALYZE"), sql.SQL("CHECKPOINT"))
        rates = []
        for _ in range(TIMES):
            load(system, database, jobs)
            rates.append(emptied(system, database, jobs))
    bare = bench.rates.get(system.name)
    return {"rate": median(rates), "share": None if bare is None else median(rates) / bare}, {
        "rates": rates,
        "around": bench.plan.around,
        "jobs": jobs,
    }


def _finish(system: System, database: Database, count: int) -> None:
    """So many finished jobs: one by its worker and copies of what that leaves, or all by its worker if it is fast."""
    first = 1 if system.kept else count
    load(system, database, first)
    with working(system, database) as worker:
        worker.wait_runs(first, 600)
        wait_done(system, database, 600)
    for statement in system.kept:
        database.run(sql.SQL(statement).format(count=sql.Literal(count)))


def _schedule(system: System, database: Database, count: int) -> None:
    """So many jobs that are due in a month, by the same two ways."""
    if not system.kept_for_later:
        load(system, database, count, delay=MONTH)
        return
    load(system, database, 1, delay=MONTH)
    for statement in system.kept_for_later:
        database.run(sql.SQL(statement).format(count=sql.Literal(count)))
