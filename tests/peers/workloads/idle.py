"""How long a job waits for an idle worker: from before the call that enqueues it until its handler begins."""

from __future__ import annotations

from statistics import quantiles

from .. import kit
from ..system import System
from ..turns import Bench, Found, enqueuing, working

WARM_UP = 10


def idle(bench: Bench, system: System) -> Found:
    record = bench.record()
    jobs = WARM_UP + bench.plan.wakes
    with bench.database(system) as database, working(system, database, record=str(record)) as worker:
        with enqueuing(system, database, plan="sparse", jobs=jobs) as producer:
            producer.result()
        worker.wait_runs(jobs)
    waits = kit.waits(record)[WARM_UP:]
    cuts = quantiles(waits, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98]}, {"ms": [round(wait, 2) for wait in waits]}
