"""What goes on beside a measurement: maintenance, a pinned snapshot, producers, waiting workers."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from .pgbench import BenchmarkError
from .server import Database, Server

RETIRE_SECONDS = 300


class Background(threading.Thread):
    """A thread that works until it is told to stop, and whose failure fails the benchmark."""

    def __init__(self, work: Callable[[threading.Event], None]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._error: BaseException | None = None
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            self._work(self._stopping)
        except BaseException as error:
            self._error = error

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)
        if self._error:
            raise self._error
        if self.is_alive():
            raise TimeoutError("a background task did not stop")


@contextmanager
def running(work: Callable[[threading.Event], None]) -> Iterator[None]:
    thread = Background(work)
    thread.start()
    try:
        yield
    finally:
        thread.stop()


def maintain(db: psycopg.Connection[Any]) -> bool:
    """One call of pgq.maintain(); whether it has more to do at once."""
    row = db.execute("SELECT coalesce((pgq.maintain() ->> 'more')::boolean, false)").fetchone()
    return bool(row and row[0])


def retire(db: psycopg.Connection[Any]) -> None:
    """Turn the ring until all that is done is archived and its segments are empty."""
    empty = "SELECT sum(pg_relation_size(relid)) = 0 FROM pg_partition_tree('pgq.job') WHERE isleaf"
    deadline = time.monotonic() + RETIRE_SECONDS
    while db.execute(empty).fetchone() != (True,):
        if time.monotonic() > deadline:
            raise BenchmarkError("finished segments were not retired")
        db.execute("SELECT pgq.rotate(true)")


@contextmanager
def maintenance(database: Database) -> Iterator[None]:
    """pgq.maintain() about each second, as any pgq worker calls it."""

    def work(stopping: threading.Event) -> None:
        with database.connect() as db:
            while not stopping.is_set():
                maintain(db)
                stopping.wait(1)

    with running(work):
        yield


@contextmanager
def pinned_snapshot(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Somebody else's long transaction: it holds a snapshot and has a transaction id. Closes the connection."""
    with connection as db:
        db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        db.execute("SELECT pg_current_xact_id()")
        try:
            yield
        finally:
            db.execute("ROLLBACK")


@dataclass
class CpuClock:
    """Reads the server's CPU time each second: a neighbour on the machine slows jobs, but adds little to this."""

    server: Server
    readings: list[float] = field(default_factory=list)

    def __call__(self, stopping: threading.Event) -> None:
        began = time.monotonic()
        while not stopping.wait(max(began + len(self.readings) - time.monotonic(), 0)):
            self.readings.append(self.server.cpu_seconds())

    def spent(self) -> list[float]:
        """CPU seconds in each second."""
        return [after - before for before, after in itertools.pairwise(self.readings)]


@dataclass
class Producer:
    """Enqueues a hundred jobs ten times a second and counts them."""

    database: Database
    schema: str
    queue: str
    payloads: str
    count: int = 0

    def __call__(self, stopping: threading.Event) -> None:
        with self.database.connect() as db:
            db.execute("SELECT set_config('search_path', %s, false)", [self.schema])
            while not stopping.wait(0.1):
                db.execute("SELECT count(*) FROM enqueue_many(%s, %s)", [self.queue, self.payloads])
                self.count += 100


@dataclass
class Listener:
    """An idle worker: listens and is registered as waiting, but its queue gets no jobs.

    With the queue that does get them it is a worker that hangs: woken each time, never claiming.
    """

    database: Database
    queue: str
    channel: str = "pgq"
    watch: bool = True
    notified: int = 0

    def __call__(self, stopping: threading.Event) -> None:
        with self.database.connect() as db:
            db.execute(f'LISTEN "{self.channel}"'.encode())
            if self.watch:
                db.execute("SELECT pgq.watch(%s)", [[self.queue]])
            while not stopping.is_set():
                self.notified += len(list(db.notifies(timeout=1)))


@dataclass
class Worker:
    """A worker with the idle protocol of pgq and a handler that does nothing.

    `on_job` is called with each job's payload at the moment its handler would start.
    With listen=False it only polls, which is the same worker without any NOTIFY code.
    """

    database: Database
    queue: str
    listen: bool = True
    batch: int = 100
    poll: float = 1.0
    on_job: Callable[[Any], None] | None = None
    jobs: int = 0
    sleeps: int = 0

    def __call__(self, stopping: threading.Event) -> None:
        with self.database.connect() as claims, self.database.connect() as acks:
            claims.execute("SET synchronous_commit = off")
            if self.listen:
                claims.execute("LISTEN pgq")
            while not stopping.is_set():
                if self._work(claims, acks):
                    continue
                if self.listen:
                    claims.execute("SELECT pgq.watch(%s)", [[self.queue]])
                    worked = self._work(claims, acks)
                    if not worked:
                        self._sleep(claims, stopping)
                    claims.execute("SELECT pgq.unwatch(%s)", [[self.queue]])
                else:
                    self._sleep(claims, stopping)

    def _work(self, claims: psycopg.Connection[Any], acks: psycopg.Connection[Any]) -> bool:
        jobs = claims.execute("SELECT id, lease, payload FROM pgq.claim(%s, %s)", [self.queue, self.batch]).fetchall()
        if not jobs:
            return False
        if self.on_job:
            for _, _, payload in jobs:
                self.on_job(payload)
        acks.execute("SELECT pgq.ack_many(%s, %s)", [[job[0] for job in jobs], [job[1] for job in jobs]])
        self.jobs += len(jobs)
        return True

    def _sleep(self, claims: psycopg.Connection[Any], stopping: threading.Event) -> None:
        self.sleeps += 1
        if not self.listen:
            stopping.wait(self.poll)
            return
        until = time.monotonic() + self.poll
        while not stopping.is_set() and (left := until - time.monotonic()) > 0:
            for notification in claims.notifies(timeout=left, stop_after=1):
                if notification.payload == self.queue:
                    return
