"""Clients that find the primary by themselves: producers, a consumer in the harness, and real worker processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

import pgqueue
from pgqueue import ClaimedJob, Client, LeaseLost
from tests.failover.history import Writer
from tests.programs import PGQ_WORKER

ROOT = Path(__file__).parent.parent.parent
GONE = (psycopg.OperationalError, psycopg.InterfaceError)
QUEUE = "work"
# Timeline and number of the transaction. The name of a WAL file begins with its timeline.
TXN = "SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), pg_current_xact_id()::text"

Connection = psycopg.Connection[Any]


def prepare(db: Connection) -> None:
    """Make what the load needs, in a database with pgq."""
    with Client(connection=db) as client:
        client.create_queue(QUEUE, backoff=0, max_attempts=10_000, lease=3, shards=4)
    # What the application writes in the transaction of an enqueue, and of an ack.
    db.execute("CREATE TABLE request (tag text PRIMARY KEY); CREATE TABLE effect (job bigint, lease bigint)")


def _txn(db: Connection) -> tuple[int, int]:
    row = db.execute(TXN).fetchone()
    assert row is not None
    return int(row[0], 16), int(row[1])


class Load:
    """All clients of one run.

    Args:
        dsn: connection string that finds the primary.
        path: directory for their histories and logs.
        seed: what they do is drawn from it.
    """

    def __init__(self, dsn: str, path: Path, seed: int) -> None:
        self.dsn = dsn
        self.path = path
        self._seed = seed
        self._producing = threading.Event()
        self._consuming = threading.Event()
        self._producing.set()
        self._consuming.set()
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, workers: int = 2) -> None:
        for number, client in enumerate([self._produce, self._produce, self._produce_simply]):
            self._thread(f"producer{number}", client, self._producing)
        self._thread("consumer", self._consume, self._consuming)
        self._thread("turner", self._turn, self._consuming)
        for number in range(workers):
            self.workers.append(start_worker(self.dsn, self.path, f"worker{number}"))

    def stop_producing(self) -> None:
        self._producing.clear()
        for thread in self._threads:
            if thread.name.startswith("producer"):
                thread.join(120)
        self.check()

    def stop(self) -> None:
        """Stop everything. To be called when nothing is left to do, or after a failure."""
        self._producing.clear()
        self._consuming.clear()
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            try:
                worker.wait(60)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        for thread in self._threads:
            thread.join(120)

    def check(self) -> None:
        """Raise what went wrong in a client; a worker that ended has not survived."""
        if self._errors:
            raise self._errors[0]
        for number, worker in enumerate(self.workers):
            if worker.poll() is not None:
                log = (self.path / f"worker{number}.log").read_text()
                raise AssertionError(f"worker{number} ended with {worker.returncode}:\n{log[-3000:]}")

    def _thread(self, name: str, client: Callable[..., None], going: threading.Event) -> None:
        writer = Writer(self.path / f"{name}.jsonl", name)
        arguments = (client, going, writer, random.Random(f"{self._seed} {name}"))
        thread = threading.Thread(target=self._guard, name=name, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guard(self, client: Callable[..., None], going: threading.Event, writer: Writer, dice: random.Random) -> None:
        try:
            client(going, writer, dice)
        except BaseException as error:
            self._errors.append(error)
        finally:
            writer.close()

    def _produce(self, going: threading.Event, writer: Writer, dice: random.Random) -> None:
        """Enqueue in transactions of the application, some of which are rolled back."""
        number = 0
        pause = threading.Event()
        while going.is_set():
            try:
                with psycopg.connect(self.dsn) as db:
                    while going.is_set():
                        tags = [f"{writer.by}-{number + n}" for n in range(dice.choice([1, 1, 2, 10]))]
                        number += len(tags)
                        produce(db, writer, tags, dice)
                        pause.wait(dice.uniform(0, 0.03))
            except GONE:
                pause.wait(0.02)

    def _produce_simply(self, going: threading.Event, writer: Writer, dice: random.Random) -> None:
        """Enqueue with a client that has a pool of its own, as most applications do."""
        number = 0
        pause = threading.Event()
        with Client(self.dsn) as client:
            while going.is_set():
                tag = f"{writer.by}-{number}"
                number += 1
                delay = 0.2 if dice.random() < 0.05 else None
                try:
                    id = client.enqueue(QUEUE, {"tag": tag, "fail": dice.random() < 0.03}, task="work", delay=delay)
                except GONE:
                    writer.write("enqueue", "unknown", tag=tag)
                else:
                    writer.write("enqueue", "ok", tag=tag, id=id)
                pause.wait(dice.uniform(0, 0.03))

    def _consume(self, going: threading.Event, writer: Writer, dice: random.Random) -> None:
        """Claim, and acknowledge in the transaction of an effect; some jobs are held across the loss of the server."""
        pause = threading.Event()
        held: list[ClaimedJob] = []
        while going.is_set():
            try:
                with psycopg.connect(self.dsn) as db:
                    for job in held:
                        acknowledge(db, writer, job)
                    held = []
                    while going.is_set():
                        with db.transaction():
                            db.execute("SET LOCAL synchronous_commit = off")
                            held += Client(connection=db).claim(QUEUE, dice.choice([1, 1, 3, 8]), worker=writer.by)
                        pause.wait(dice.uniform(0, 0.02))
                        while held:
                            acknowledge(db, writer, held[-1])
                            held.pop()
            except GONE:
                pause.wait(0.02)

    def _turn(self, going: threading.Event, writer: Writer, dice: random.Random) -> None:
        """Turn the ring, far more often than it would by itself, so that it is always in the midst of something."""
        pause = threading.Event()
        while going.is_set():
            try:
                with psycopg.connect(self.dsn, autocommit=True) as db:
                    while going.is_set():
                        with db.transaction(force_rollback=dice.random() < 0.1):
                            db.execute("SELECT pgq.rotate(seal => %s)", [dice.random() < 0.5])
                        pause.wait(dice.uniform(0, 0.1))
            except GONE:
                pause.wait(0.02)


def produce(db: Connection, writer: Writer, tags: list[str], dice: random.Random) -> None:
    """Enqueue some jobs with the application's own rows, in one transaction."""
    txn = None
    ids: list[int] = []
    undo = dice.random() < 0.1
    try:
        with db.transaction(force_rollback=undo):
            with db.cursor() as cursor:
                cursor.executemany("INSERT INTO request VALUES (%s)", [(tag,) for tag in tags])
            payloads = [{"tag": tag, "fail": dice.random() < 0.03} for tag in tags]
            ids = Client(connection=db).enqueue_many(
                QUEUE, payloads, task="work", priority=dice.choice([0, 0, 0, -1, 1])
            )
            txn = _txn(db)
    except GONE:
        for tag in tags:
            writer.write("enqueue", "undone" if undo else "unknown", tag=tag)
        raise
    for tag, id in zip(tags, ids, strict=True):
        writer.write("enqueue", "undone" if undo else "ok", tag=tag, id=id, txn=txn)


def acknowledge(db: Connection, writer: Writer, job: ClaimedJob) -> None:
    """Acknowledge a job together with its effect."""
    txn = None
    try:
        with db.transaction():
            db.execute("INSERT INTO effect VALUES (%s, %s)", [job.id, job.lease])
            Client(connection=db).ack(job.id, job.lease)
            txn = _txn(db)
    except GONE:
        writer.write("ack", "unknown", id=job.id, lease=job.lease)
        raise
    except LeaseLost:
        writer.write("ack", "undone", id=job.id, lease=job.lease)
    else:
        writer.write("ack", "ok", id=job.id, lease=job.lease, txn=txn)


def start_worker(dsn: str, path: Path, name: str, *options: str) -> subprocess.Popen[bytes]:
    """Start a `pgq-worker` of tests/failover/app.py; it logs to a file in the directory."""
    package = Path(pgqueue.__file__).parent.parent
    with (path / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            [
                *PGQ_WORKER, "tests.failover.app:app", "--dsn", dsn, "--queue", QUEUE, "--name", name,
                "--concurrency", "4", "--poll", "0.2", *options,
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(package), "FAILOVER_NAME": name, "FAILOVER_HISTORY": str(path)},
            stderr=log,
        )  # fmt: skip
