"""Producers and workers of the previous release go on while pgq is being upgraded under them."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import pytest

from pgqueue import App, Client, Worker
from tests.build.catalog import Connection
from tests.python.support import eventually
from tests.upgrade.conftest import SYNTHETIC
from tests.upgrade.gate import Form, pgqueue
from tests.upgrade.jobs import job_states
from tests.upgrade.tree import Tree, Upgrade

pytestmark = pytest.mark.parametrize("tree", [SYNTHETIC], indirect=True)
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
                try:
                    self.made.append(client.enqueue("q", {"n": n}, task="note"))
                    n += 1
                except psycopg.errors.DeadlockDetected:  # nothing was enqueued
                    continue

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
