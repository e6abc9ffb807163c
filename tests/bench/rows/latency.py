"""From commit to the start of the handler, in an idle worker."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from pgqueue import Client
from tests.programs import PGQ_WORKER

from ..background import Worker, maintenance, running
from ..pgbench import BenchmarkError, percentile
from ..report import Row, at_most
from ..server import ROOT, Database
from ..systems import Queue
from . import Bench

WARM_UP = 20  # jobs; connections, prepared statements, imports

Samples = Callable[[], dict[int, int]]  # number of the job -> when its handler started, ns


def latency(bench: Bench) -> Iterator[Row]:
    """The clock starts before COMMIT is sent, so the commit itself is part of the figure."""
    for name, worker, judged in (
        ("pgq-worker", _pgq_worker, True),
        ("bare psycopg listener", _bare_listener, False),
    ):
        waits = _measure(bench, worker)
        for percent, limit in ((50, 5), (99, 20)):
            yield Row(
                name=f"commit to handler, idle {name}, p{percent}",
                unit="ms",
                pgq=percentile(waits, percent),
                wanted=at_most(limit) if judged else None,
                raw={"ms": [round(wait, 3) for wait in waits]} if percent == 50 else {},
            )


def round_trip(bench: Bench) -> Iterator[Row]:
    """From before enqueue is sent until client.wait returns the result, through an idle pgq-worker."""
    with bench.server.database() as database:
        queue = Queue(database, "pgq").create()
        with maintenance(database), _pgq_worker(database, queue), Client(database.dsn) as client:
            waits = [_ask(client, queue, n) for n in range(WARM_UP + bench.wakes)][WARM_UP:]
    for percent, limit in ((50, 10), (99, None)):
        yield Row(
            name=f"enqueue, work, wait for the result, idle pgq-worker, p{percent}",
            unit="ms",
            pgq=percentile(waits, percent),
            wanted=at_most(limit) if limit else None,
            raw={"ms": [round(wait, 3) for wait in waits]} if percent == 50 else {},
        )


def _ask(client: Client, queue: Queue, number: int) -> float:
    time.sleep(0.05)
    began = time.monotonic()
    state = client.wait(client.enqueue(queue.name, {"n": number}, task="bench"), 30)
    if state is None or state.state != "done":
        raise BenchmarkError(f"the answer was {state}")
    return (time.monotonic() - began) * 1000


def _measure(bench: Bench, worker: Callable[[Database, Queue], AbstractContextManager[Samples]]) -> list[float]:
    with bench.server.database() as database:
        queue = Queue(database, "pgq").create()
        with maintenance(database), worker(database, queue) as samples:
            _await(samples, _produce(database, queue, range(WARM_UP)))
            committed = _produce(database, queue, range(WARM_UP, WARM_UP + bench.wakes))
            started = _await(samples, committed)
    return [(started[number] - at) / 1e6 for number, at in committed.items()]


def _produce(database: Database, queue: Queue, numbers: range) -> dict[int, int]:
    """One job at a time, with enough time between for the worker to be idle again."""
    committed: dict[int, int] = {}
    pause = random.Random(1)
    with database.connect() as db:
        for number in numbers:
            time.sleep(pause.uniform(0.03, 0.07))
            db.execute("BEGIN")
            db.execute("SELECT pgq.enqueue(%s, %s, %s)", [queue.name, f'{{"n": {number}}}', "bench"])
            committed[number] = time.time_ns()
            db.execute("COMMIT")
    return committed


def _await(samples: Samples, committed: dict[int, int]) -> dict[int, int]:
    deadline = time.monotonic() + 30
    while not committed.keys() <= (started := samples()).keys():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"after 30 s only {len(started)} jobs have been handled")
        time.sleep(0.1)
    return started


@contextmanager
def _bare_listener(database: Database, queue: Queue) -> Iterator[Samples]:
    started: dict[int, int] = {}

    def on_job(payload: dict[str, Any]) -> None:
        started[payload["n"]] = time.time_ns()

    with running(Worker(database, queue.name, on_job=on_job)):
        yield lambda: started


@contextmanager
def _pgq_worker(database: Database, queue: Queue) -> Iterator[Samples]:
    """The worker as it is run in production, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "started"
        record.touch()
        process = subprocess.Popen(
            [*PGQ_WORKER, "tests.bench.worker:app", "--queue", queue.name],
            cwd=ROOT,
            env={**os.environ, "PGQUEUE_DSN": database.dsn, "PGQUEUE_BENCH_RECORD": str(record)},
        )

        def samples() -> dict[int, int]:
            if process.poll() is not None:
                raise BenchmarkError(f"pgq-worker ended with {process.returncode}")
            lines = record.read_text().splitlines()
            return {int(number): int(at) for number, at in (line.split() for line in lines)}

        try:
            yield samples
        finally:
            process.terminate()
            process.wait(20)
