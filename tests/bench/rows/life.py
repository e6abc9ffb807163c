"""A job's whole life, steadily: enqueue 100, claim 100, ack 100. Throughput, and WAL written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from ..compare import Comparison, compare
from ..pgbench import BenchmarkError
from ..report import Row, at_most
from ..server import Database
from ..systems import Queue, both
from . import Bench

CLIENTS = 8
WAL_CLIENTS = 4


def throughput(bench: Bench) -> Iterator[Row]:
    """With the archive on. Both put work off; the second row has it in: archiving here, VACUUM there."""
    with bench.server.database() as database:
        pgq, conventional = both(database)
        rates: dict[str, list[float]] = {"pgq": [], "conv": []}

        def turn(queue: Queue) -> float:
            database.run("CHECKPOINT")
            with queue.work():
                run, missing = queue.measured("whole_life_100.sql", clients=CLIENTS, seconds=4 * bench.seconds)
            left = queue.count("ready")
            if left > missing:
                raise BenchmarkError(f"{left} jobs are left although claims fell short by only {missing}")
            queue.drain()
            put_off = queue.retire()
            jobs = run.transactions * 100
            queue.cpu_us.append(run.cpu_seconds / jobs * 1e6)
            rates[queue.schema].append(jobs / (run.seconds + put_off))
            return jobs / run.seconds

        result = compare(lambda: turn(pgq), lambda: turn(conventional), bench.rounds)
        whole = Comparison(rates["pgq"], rates["conv"])
        raw = {side.schema: side.raw() for side in (pgq, conventional)}
    for note, figures in (("", result), (", put-off work included", whole)):
        yield Row(
            name=f"enqueue, claim, ack 100, {CLIENTS} clients{note}",
            unit="jobs/s",
            pgq=figures.our_median,
            against="conventional",
            other=figures.their_median,
            ratio=figures.ratio,
            raw=figures.raw() | ({} if note else raw),
        )


@dataclass(frozen=True)
class Wal:
    """What the server wrote for each job."""

    bytes_per_job: float
    records_per_job: float
    full_page_images: int

    def raw(self) -> dict[str, Any]:
        return self.__dict__


def wal(bench: Bench) -> Iterator[Row]:
    """Counted by the server's position in the WAL after all is retired: upkeep, archive and vacuum are in it."""
    for note, images, retention, wanted in (
        ("archive off", True, "0", at_most(700)),
        ("archive off, no full-page images", False, "0", None),
        ("archive on", True, "7 days", None),
    ):
        pgq = _written(bench, "pgq", images, retention)
        conventional = _written(bench, "conv", images, retention)
        yield Row(
            name=f"WAL per job, {note}",
            unit="bytes",
            pgq=pgq.bytes_per_job,
            against="conventional",
            other=conventional.bytes_per_job,
            ratio=None if wanted else pgq.bytes_per_job / conventional.bytes_per_job,
            wanted=wanted,
            raw={"pgq": pgq.raw(), "conventional": conventional.raw()},
        )


def _written(bench: Bench, schema: str, full_page_images: bool, retention: str) -> Wal:
    with bench.server.database() as database:
        queue = Queue(database, schema).create(retention=retention)
        _full_page_writes(database, full_page_images)
        try:
            with queue.work():
                queue.pgbench("whole_life_100.sql", clients=WAL_CLIENTS, transactions=20)
                database.run("CHECKPOINT")
                before = _position(database)
                transactions = bench.life_jobs // 100 // WAL_CLIENTS
                run, _ = queue.measured("whole_life_100.sql", clients=WAL_CLIENTS, transactions=transactions)
            queue.drain()
            queue.retire()
            after = _position(database)
        finally:
            _full_page_writes(database, True)
    jobs = run.transactions * 100
    return Wal(
        bytes_per_job=(after[0] - before[0]) / jobs,
        records_per_job=(after[1] - before[1]) / jobs,
        full_page_images=after[2] - before[2],
    )


def _position(database: Database) -> tuple[int, int, int]:
    (row,) = database.rows(
        "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, wal_records, wal_fpi FROM pg_stat_wal"
    )
    return row[0], row[1], row[2]


def _full_page_writes(database: Database, on: bool) -> None:
    database.run(
        sql.SQL("ALTER SYSTEM SET full_page_writes = {}").format(sql.Literal(on)),
        "SELECT pg_reload_conf()",
        "SELECT pg_sleep(0.5)",
    )
