"""Claim and ack while somebody else's transaction pins the horizon, and the dead tuples after it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from ..background import CpuClock, Producer, pinned_snapshot, running
from ..pgbench import BenchmarkError
from ..report import Row, at_least, at_most
from ..systems import Queue, payloads
from . import Bench

CLIENTS = 8


@dataclass(frozen=True)
class Pinned:
    """Jobs/s at both ends of the run, and what it left behind."""

    first: float
    last: float
    jobs: int
    per_second: list[float]
    cpu_us: tuple[float, float]  # of the server per job, at both ends
    dead: dict[str, int]

    @property
    def ratio(self) -> float:
        return self.last / self.first

    @property
    def dead_total(self) -> int:
        return sum(self.dead.values())

    def raw(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "jobs": self.jobs} | {
            name: getattr(self, name) for name in ("first", "last", "per_second", "cpu_us", "dead")
        }


def pinned(bench: Bench) -> Iterator[Row]:
    conventional = _measure(bench, "conv")
    pgq = _measure(bench, "pgq")
    seconds = bench.pinned_seconds
    edge = _edge(bench)
    raw = {"pgq": pgq.raw(), "conventional": conventional.raw()}
    yield Row(
        name=f"pinned snapshot {seconds} s: last {edge} s against first",
        unit="jobs/s",
        pgq=pgq.last,
        against="pgq's own first seconds",
        other=pgq.first,
        ratio=pgq.ratio,
        wanted=at_least(0.9),
        raw=raw,
    )
    yield Row(
        name="  the same of the conventional queue",
        unit="jobs/s",
        pgq=conventional.last,
        against="its own first seconds",
        other=conventional.first,
        ratio=conventional.ratio,
    )
    yield Row(
        name=f"  last {edge} s of both",
        unit="jobs/s",
        pgq=pgq.last,
        against="conventional",
        other=conventional.last,
        ratio=pgq.last / conventional.last,
    )
    yield Row(
        name=f"  CPU per job, last {edge} s",
        unit="µs",
        pgq=pgq.cpu_us[1],
        against="conventional",
        other=conventional.cpu_us[1],
        ratio=pgq.cpu_us[1] / conventional.cpu_us[1],
    )
    yield Row(
        name=f"  dead tuples after {pgq.jobs:,} and {conventional.jobs:,} jobs",
        unit="tuples",
        pgq=pgq.dead_total,
        against="conventional",
        other=conventional.dead_total,
        wanted=at_most(500),
    )


def _measure(bench: Bench, schema: str) -> Pinned:
    seconds = bench.pinned_seconds
    with bench.server.database() as database:
        queue = Queue(database, schema).create()
        with queue.turn():
            rate = queue.consume(1, clients=CLIENTS, seconds=max(bench.seconds // 2, 1))
        queue.load_up_to(int(rate * seconds * 1.3))
        queue.tidy()
        before = queue.count("ready")
        producer = Producer(database, schema, queue.name, payloads(100))
        clock = CpuClock(bench.server)
        with pinned_snapshot(database.connect()):
            with queue.turn(), running(producer), running(clock):
                began = database.value("SELECT clock_timestamp()")
                run, missing = queue.measured("claim_ack_1.sql", clients=CLIENTS, seconds=seconds, progress=True)
            dead = _dead(queue)
        left = queue.count("ready")
        jobs = run.transactions - missing
        if left < CLIENTS or before + producer.count - left != jobs:
            raise BenchmarkError(f"{schema}: {before} + {producer.count} jobs, {jobs} acked, {left} left")
        short = dict(
            database.rows(
                "SELECT extract(epoch FROM at - %s)::int, sum(missing)::int FROM bench.short GROUP BY 1",
                began,
            )
        )
    per_second = [done - short.get(i, 0) for i, done in enumerate(run.progress)]
    edge = _edge(bench)
    spent = clock.spent()[:seconds]
    return Pinned(
        first=sum(per_second[:edge]) / edge,
        last=sum(per_second[-edge:]) / edge,
        jobs=jobs,
        per_second=per_second,
        cpu_us=(
            sum(spent[:edge]) / sum(per_second[:edge]) * 1e6,
            sum(spent[-edge:]) / sum(per_second[-edge:]) * 1e6,
        ),
        dead=dead,
    )


def _edge(bench: Bench) -> int:
    return max(bench.pinned_seconds // 6, 1)


def _dead(queue: Queue) -> dict[str, int]:
    """Dead tuples of each table, counted by a VACUUM that may not remove them; not an estimate."""
    found: dict[str, int] = {}
    with queue.database.connect() as db:
        notices: list[str] = []
        db.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        tables = db.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r'",
            [queue.schema],
        ).fetchall()
        for (table,) in tables:
            notices.clear()
            db.execute(
                sql.SQL("VACUUM (VERBOSE, INDEX_CLEANUP OFF, TRUNCATE OFF) {}").format(
                    sql.Identifier(queue.schema, table)
                )
            )
            text = "\n".join(notices)
            dead = sum(
                int(removed) + int(kept)
                for removed, kept in re.findall(
                    r"tuples: (\d+) removed, \d+ remain, (\d+) are dead but not yet removable", text
                )
            )
            if dead:
                found[table] = dead
    return found
