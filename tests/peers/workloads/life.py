"""What a job costs over its whole life: enqueued in bulk, worked off, tidied up, and vacuumed.

The upkeep that a system tells to run is in it, and so is a VACUUM of the whole database at the end: what some do while
jobs run and others leave to later counts for all. Dead rows and bytes are read between the two.
"""

from __future__ import annotations

from ..system import System
from ..turns import Bench, Found, enqueuing, wait_done, working
from ..usage import Space, Usage, vacuum

FEWEST = 2000


def life(bench: Bench, system: System) -> Found:
    plan = bench.plan
    jobs = min(max(int(bench.rate(system) * plan.life_seconds), FEWEST), plan.life_jobs)
    with bench.database(system) as database:
        before = Usage.now(database)
        with enqueuing(system, database, plan="flood", batch=system.bulk, jobs=jobs) as producer:
            client = producer.result()["cpu"]
        with working(system, database) as worker:
            worker.wait_runs(jobs)
            wait_done(system, database, 60)
            client += worker.cpu_seconds()
        system.tidy(database)
        space = Space.now(database, system.schemas)
        vacuum(database)
        used = Usage.now(database).since(before)
    return {
        "wal": used.wal / jobs,
        "commits": used.commits / jobs,
        "server_us": used.cpu / jobs * 1e6,
        "client_us": client / jobs * 1e6,
        "versions": space.versions / jobs,
        "dead": space.dead / jobs,
        "bytes": space.bytes / jobs,
    }, {"jobs": jobs, "wal": used.wal, "commits": used.commits, "schema_bytes": space.bytes, "dead": space.dead}
