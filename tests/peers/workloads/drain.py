"""How fast one worker empties a queue of jobs that do nothing, until the database says that all are done."""

from __future__ import annotations

from ..server import Database
from ..system import System
from ..turns import Bench, Found, load, wait_done, working

FEWEST = 500
PATIENCE = 120


def drain(bench: Bench, system: System) -> Found:
    jobs = max(int(bench.rate(system) * bench.plan.drain_seconds), FEWEST)
    with bench.database(system) as database:
        load(system, database, jobs)
        rate = emptied(system, database, jobs)
    bench.rates[system.name] = rate
    return {"rate": rate}, {"jobs": jobs}


def emptied(system: System, database: Database, jobs: int) -> float:
    """Jobs/s, from the first handler's beginning to the last job's durable end."""
    with working(system, database) as worker:
        worker.wait_runs(jobs)
        done = wait_done(system, database, PATIENCE)
        return jobs / (done - worker.first)
