"""Producers and workers of the previous release go on while pgq is being upgraded under them."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import pytest

from pgqueue import App, Client, Worker
from tests.build.catalog import Connection
from tests.programs import ROOT
from tests.python.support import eventually
from tests.sql.support import call, claim, create, enqueue, rows, stats
from tests.upgrade.conftest import SYNTHETIC
from tests.upgrade.gate import Form, pgqueue
from tests.upgrade.jobs import job_states
from tests.upgrade.tree import Tree, Upgrade

RELEASED = [version.number for version in Tree(ROOT).released if version.number != Tree(ROOT).current.number]
ENOUGH = 200


class Traffic:
    """A producer and a worker, each in a thread, with sessions that stay open."""

    def __init__(self, dsn: str) -> None:
        self.made: list[int] = []
        self.done: Counter[int] = Counter()
        self._stopping = threading.Event()
        self._dsn = dsn
        app = App(dsn)

        @app.task("note", queue="q")
        def note(n: int) -> None:
            self.done[n] += 1

        self._worker = Worker(app, concurrency=4, poll=0.1)
        self._threads = ThreadPoolExecutor(2)
        self._parts: list[Future[None]] = []

    def start(self) -> None:
        self._parts = [self._threads.submit(self._produce), self._threads.submit(asyncio.run, self._worker.run())]

    def _produce(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            client = Client(connection=connection)
            n = 0
            while not self._stopping.is_set():
                self.made.append(client.enqueue("q", {"n": n}, task="note"))
                n += 1

    def goes_on(self) -> None:
        """Wait until a good deal more has been done."""
        goal = len(self.done) + ENOUGH
        eventually(lambda: len(self.done) >= goal or any(part.done() for part in self._parts), "progress", 120)
        assert not any(part.done() for part in self._parts), [part.exception() for part in self._parts if part.done()]

    def finish(self) -> None:
        """Stop producing, and wait until all is done."""
        self._stopping.set()
        self._parts[0].result(60)
        eventually(lambda: len(self.done) == len(self.made) or self._parts[1].done(), "the rest", 120)
        self.stop()

    def stop(self) -> None:
        self._stopping.set()
        self._worker.stop()
        for part in self._parts:
            part.result(60)
        self._threads.shutdown()


@pytest.fixture
def traffic(old_dsn: str, old_db: Connection) -> Iterator[Traffic]:
    old_db.execute("SELECT pgq.create_queue('q')")
    traffic = Traffic(old_dsn)
    traffic.start()
    yield traffic
    traffic.stop()


@pytest.mark.parametrize("tree", [SYNTHETIC], indirect=True)
def test_nothing_is_lost_or_done_twice(
    form: Form, tree: Tree, upgrade: Upgrade, old_dsn: str, old_db: Connection, traffic: Traffic
) -> None:
    form.provide(upgrade)
    traffic.goes_on()
    pgqueue(tree, old_dsn, "upgrade")
    traffic.goes_on()
    traffic.finish()
    assert set(traffic.done.values()) == {1}
    assert set(job_states(old_db, traffic.made).values()) == {"done"}


class Sessions:
    """Sessions that call what every version has, over and over, and see no error."""

    CONSUMERS = 3

    def __init__(self, dsn: str) -> None:
        self.made: list[int] = []
        self.done: Counter[int] = Counter()
        self._stopping = threading.Event()
        self._dsn = dsn
        parts = [self._produce, self._maintain, *[self._consume] * self.CONSUMERS]
        self._threads = ThreadPoolExecutor(len(parts))
        self._parts = [self._threads.submit(self._repeat, part) for part in parts]

    def _repeat(self, part: Callable[[Connection], None]) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as db:
            while not self._stopping.is_set():
                part(db)

    def _produce(self, db: Connection) -> None:
        self.made.append(call(db, "enqueue", "q"))
        self.made += enqueue(db, 2)
        self.made += enqueue(db, 2, delay="0.2 s")

    def _maintain(self, db: Connection) -> None:
        call(db, "maintain")
        call(db, "stats")

    def _consume(self, db: Connection) -> None:
        jobs = claim(db, 5)
        for job in jobs:
            how = random.choice(("ack", "reject", "release"))
            if how == "ack":
                call(db, "ack", job.id, job.lease)
                self.done[job.id] += 1
            elif how == "reject":
                assert call(db, "reject", job.id, job.lease, "again", "0") == "retry"
            else:
                assert rows(db, "release", [job.id], [job.lease]) == [job.id]

    def go_on(self, enough: int = ENOUGH) -> None:
        goal = len(self.done) + enough
        eventually(lambda: len(self.done) >= goal or any(part.done() for part in self._parts), "progress", 120)

    def stop(self) -> None:
        self._stopping.set()
        for part in self._parts:
            part.result(60)
        self._threads.shutdown()


@pytest.mark.parametrize("tree", RELEASED, indirect=True)
def test_sessions_of_every_older_version_go_on(
    form: Form, tree: Tree, upgrade: Upgrade, old_dsn: str, old_db: Connection
) -> None:
    form.provide(upgrade)
    create(old_db, "q", max_attempts=10000)
    sessions = Sessions(old_dsn)
    try:
        sessions.go_on()
        pgqueue(tree, old_dsn, "upgrade")
        sessions.go_on()
    finally:
        sessions.stop()
    assert set(sessions.done.values()) == {1}
    assert {"done"} <= set(job_states(old_db, sessions.made).values()) <= {"done", "ready", "scheduled", "retrying"}
    assert {id for id, state in job_states(old_db, sessions.made).items() if state == "done"} == set(sessions.done)
    assert stats(old_db).keys() <= {"ready", "scheduled", "retrying"}
