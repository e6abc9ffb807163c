"""A worker is killed with jobs in hand: how long until the last job is done, and how many ran twice.

The next worker is started at once, as whatever looks after services does. Where a system lets one say after how long
a silent worker is given up, that is ten seconds; where it does not, as it comes.
"""

from __future__ import annotations

import time
from collections import Counter

from .. import kit
from ..system import System
from ..turns import Bench, Found, load, wait_done, working

NAP = 0.05  # seconds that each handler takes, so that there are jobs in hand
SHARE = 0.2  # of the jobs have begun when the worker is killed


def crash(bench: Bench, system: System) -> Found:
    record = bench.record()
    jobs = bench.plan.crash_jobs
    options = {"record": str(record), "numbers": True, "nap": NAP, "silence": bench.plan.silence}
    with bench.database(system) as database:
        load(system, database, jobs)
        with working(system, database, **options) as victim:
            victim.wait_runs(int(jobs * SHARE))
            victim.kill()
        killed = time.time()
        seconds = None
        with working(system, database, **options):
            try:
                seconds = wait_done(system, database, bench.plan.crash_patience) - killed
            except TimeoutError:
                left = system.count(database)
            else:
                left = 0
    runs = Counter(kit.numbers(record))
    twice = sum(1 for times in runs.values() if times > 1)
    return {"seconds": seconds, "twice": None if left else twice}, {
        "jobs": jobs,
        "left": left,
        "never": jobs - len(runs),
        "patience": bench.plan.crash_patience,
    }
