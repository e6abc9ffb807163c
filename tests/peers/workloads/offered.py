"""The highest rate, offered steadily, at which 99 of 100 jobs begin within a second of when they were due.

The producer sends at its rate whatever becomes of the jobs, and each job carries the time at which it was due: what is
late because the producer itself falls behind counts as well. Rates go up by a quarter until one is too high.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import quantiles

from .. import kit
from ..program import PeerError
from ..server import Database
from ..system import System
from ..turns import Bench, Found, enqueuing, working

LONGEST_MS = 1000
FIRST = 0.3  # of what one worker drains
UP, DOWN = 1.25, 0.6


@dataclass(frozen=True)
class Step:
    """One rate, and what became of it."""

    rate: int
    p50: float | None = None
    p99: float | None = None
    late_ms: float | None = None
    error: str | None = None

    @property
    def sustained(self) -> bool:
        return self.p99 is not None and self.p99 < LONGEST_MS


def offered(bench: Bench, system: System) -> Found:
    steps: list[Step] = []
    rate = bench.rate(system) * FIRST
    for _ in range(bench.plan.offered_steps):
        with bench.database(system) as database:
            steps.append(_step(bench, system, database, max(int(rate), 20)))
        if steps[-1].sustained:
            rate *= UP
        elif any(step.sustained for step in steps):
            break
        else:
            rate *= DOWN
    best = max((step.rate for step in steps if step.sustained), default=None)
    raw = {"steps": [asdict(step) for step in steps], "open": all(step.sustained for step in steps)}
    return {"rate": best}, raw


def _step(bench: Bench, system: System, database: Database, rate: int) -> Step:
    record = bench.record()
    seconds = bench.plan.offered_seconds
    with working(system, database, record=str(record)) as worker:
        try:
            with enqueuing(system, database, plan="pace", rate=rate, seconds=seconds) as producer:
                done = producer.result(seconds * 2 + 10)
            worker.wait_runs(done["jobs"], seconds + 5)
        except PeerError as error:
            return Step(rate, error=str(error)[:200])
    cuts = quantiles(kit.waits(record), n=100, method="inclusive")
    record.unlink()
    return Step(rate, round(cuts[49], 2), round(cuts[98], 2), round(done["late_ms"], 1))
