"""How many jobs that do nothing a worker gets through, from claim to durable acknowledgement."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

from tests.programs import PGQ_WORKER

from ..background import maintenance
from ..compare import compare
from ..pgbench import BenchmarkError
from ..report import Row, at_least
from ..server import ROOT
from ..systems import Queue
from . import Bench

WORKERS = (
    ("sync handlers", "sync", 1, 30_000),
    ("async handlers", "async", 1, 30_000),
    ("sync handlers, two processes", "sync", 2, 45_000),
)
CONCURRENCY = 100
BARE_BATCH = 1000


def drain(bench: Bench) -> Iterator[Row]:
    """Client and server share the machine. The bare loop knows no handlers, no leases and no failures."""
    for name, task, processes, wanted in WORKERS:
        with bench.server.database() as database:
            queue = Queue(database, "pgq").create()

            def worked(task: str = task, processes: int = processes, queue: Queue = queue) -> float:
                start = _work(queue, task, processes, 1)
                return bench.drain_jobs / (_work(queue, task, processes, bench.drain_jobs) - start)

            def bare(queue: Queue = queue) -> float:
                queue.load(bench.drain_jobs)
                return bench.drain_jobs / _bare_loop(queue)

            with maintenance(database):
                result = compare(worked, bare, min(bench.rounds, 3))
        yield Row(
            name=f"drain, pgq-worker, {name}",
            unit="jobs/s",
            pgq=result.our_median,
            against=f"bare psycopg loop by {BARE_BATCH:,}",
            other=result.their_median,
            wanted=at_least(wanted),
            raw=result.raw(),
        )


def _work(queue: Queue, task: str, processes: int, count: int) -> float:
    """The seconds in which a worker starts, does all there is to do, and ends."""
    queue.load(count, task)
    options = ["--concurrency", str(CONCURRENCY), "--processes", str(processes), "--drain", "--log-level", "error"]
    began = time.perf_counter()
    subprocess.run(
        [*PGQ_WORKER, "tests.bench.noop:app", *options],
        cwd=ROOT,
        env={**os.environ, "PGQUEUE_DSN": queue.database.dsn},
        check=True,
    )
    seconds = time.perf_counter() - began
    if left := queue.count("ready") + queue.count("running"):
        raise BenchmarkError(f"pgq-worker left {left} jobs")
    return seconds


def _bare_loop(queue: Queue) -> float:
    began = time.perf_counter()
    with queue.database.connect() as db:
        while True:
            (row,) = db.execute(
                "SELECT array_agg(id), array_agg(lease) FROM pgq.claim(%s, %s)", [queue.name, BARE_BATCH]
            ).fetchall()
            if row[0] is None:
                return time.perf_counter() - began
            db.execute("SELECT count(*) FROM pgq.ack_many(%s, %s)", row)
