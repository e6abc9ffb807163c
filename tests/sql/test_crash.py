"""The server is killed under load: what was acknowledged has survived, nothing is lost, and nothing is done twice."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest

from tests.cluster import Cluster
from tests.conftest import Clock
from tests.sql.support import (
    Connection,
    ack,
    call,
    claim,
    claim_one,
    create,
    enqueue,
    eventually,
    ids,
    in_background,
    leases,
    one,
    refused,
    retire_all,
    rotate,
    stats,
    status,
)

pytestmark = pytest.mark.direct("the server crashes and restarts")

GONE = (psycopg.OperationalError, psycopg.InterfaceError)


class Load:
    """Producers, workers and a maintainer that write down what the server has confirmed, until it dies."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.enqueued: set[int] = set()
        self.in_doubt = 0  # enqueued, but the server died before it could say so
        self.done: Counter[int] = Counter()
        self.ack_in_doubt: set[int] = set()
        self.stop = threading.Event()
        self.errors: list[BaseException] = []

    def run(self, kill: Callable[[], None], steps: int) -> None:
        """Put the server under load, kill it after this many steps, and wait for everybody to notice."""
        self.stop.clear()
        work = [self._produce] * 3 + [self._work] * 3 + [self._maintain]
        threads = [threading.Thread(target=self._guard, args=(job, seed)) for seed, job in enumerate(work)]
        goal = len(self.enqueued) + steps
        for thread in threads:
            thread.start()
        eventually(lambda: len(self.enqueued) >= goal or self.errors, "the load")
        kill()
        self.stop.set()
        for thread in threads:
            thread.join(30)
        if self.errors:
            raise self.errors[0]

    def _guard(self, job: Callable[[Connection, random.Random], None], seed: int) -> None:
        dice = random.Random(seed)
        try:
            with psycopg.connect(self.dsn, autocommit=True) as db:
                while not self.stop.is_set():
                    job(db, dice)
        except GONE:
            pass
        except BaseException as error:
            self.errors.append(error)

    def _produce(self, db: Connection, dice: random.Random) -> None:
        count = dice.choice([1, 1, 5, 20])
        try:
            new = enqueue(db, count)
        except GONE:
            self.in_doubt += count
            raise
        self.enqueued.update(new)

    def _work(self, db: Connection, dice: random.Random) -> None:
        db.execute("SET synchronous_commit = off")
        jobs = claim(db, dice.choice([1, 3, 10, 30]))
        db.execute("SET synchronous_commit = on")
        if dice.random() < 0.1:
            return  # a worker that forgets them
        try:
            self.done.update(ack(db, jobs))
        except GONE:
            self.ack_in_doubt.update(ids(jobs))
            raise

    @staticmethod
    def _maintain(db: Connection, dice: random.Random) -> None:
        call(db, "rotate", seal=True)
        call(db, "maintain")

    def drain(self, db: Connection) -> None:
        while jobs := claim(db, 1000):
            self.done.update(ack(db, jobs))


def advance(db: Connection) -> None:
    """Let every lease expire. The clock's own connection has not survived."""
    db.execute("UPDATE test_clock.ahead SET by = by + '2 hours'")


@pytest.mark.parametrize("shards", [1, 4])
def test_what_was_confirmed_survives_a_crash_under_load(cluster: Cluster, dsn: str, shards: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as db:
        create(db, shards=shards, lease="1 hour", max_attempts=1000)
        Clock(db)
    load = Load(dsn)
    for round in range(3):
        load.run(cluster.kill, steps=300)
        cluster.start()
        with psycopg.connect(dsn, autocommit=True) as db:
            if round == 1:  # and some come back in between
                advance(db)
                call(db, "reap")
    with psycopg.connect(dsn, autocommit=True) as db:
        load.drain(db)
        advance(db)
        while call(db, "reap"):
            load.drain(db)
        assert stats(db) == {}
        lost = load.enqueued - set(load.done) - load.ack_in_doubt
        assert not lost
        twice = [id for id, times in load.done.items() if times > 1]
        assert not twice
        unknown = set(load.done) - load.enqueued
        assert len(unknown) <= load.in_doubt
        retire_all(db)
        rotate(db, 3)
        retire_all(db)
        archived: dict[int, int] = dict(
            db.execute("SELECT id, count(*) FROM pgq.archive WHERE kind = 'done' GROUP BY id").fetchall()
        )
        assert set(archived.values()) == {1}, "done twice"
        assert load.enqueued <= set(archived), "lost"
        assert set(load.done) <= set(archived), "an acknowledgement was lost"


def test_claims_that_were_lost_in_the_crash_come_back_at_once(cluster: Cluster, dsn: str) -> None:
    """A worker's claims are not waited for (synchronous_commit = off): then the jobs have just never been claimed."""
    with psycopg.connect(dsn, autocommit=True) as db:
        create(db, shards=1, lease="1 hour")
        expected = enqueue(db, 5)
        db.execute("SET synchronous_commit = off")
        zombies = claim(db, 2)
        cluster.kill()
    cluster.start()
    with psycopg.connect(dsn, autocommit=True) as db:
        jobs = claim(db, 10)
        assert ids(jobs) in (expected, expected[2:]), "neither lost nor kept"
        if ids(jobs) == expected:
            assert {job.attempt for job in jobs} == {1}
            # It must not be taken for the new claim, whose lease may not have the number of the lost one.
            taken = set(ack(db, zombies)) if set(leases(zombies)) <= set(leases(jobs)) else set()
            if not taken:
                with refused("PQ001"):
                    call(db, "ack", zombies[0].id, zombies[0].lease)
            assert set(ack(db, jobs)) == set(expected) - taken
        assert sum(stats(db).values()) in (0, 5)


def test_leases_and_outcomes_that_were_committed_survive(cluster: Cluster, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as db:
        create(db, shards=1, lease="1 hour")
        enqueue(db, 6)
        running, done, failed, released = (claim_one(db) for _ in range(4))
        call(db, "ack", done.id, done.lease, {"ok": True})
        call(db, "reject", failed.id, failed.lease, "no", retry_in="1 hour")
        db.execute("SELECT pgq.release(%s, %s)", [[released.id], [released.lease]])
        rotate(db)
        (last,) = enqueue(db)
        cluster.kill()
    cluster.start()
    with psycopg.connect(dsn, autocommit=True) as db:
        states = [status(db, id).state for id in range(1, 8)]
        assert states == ["running", "done", "retrying", "ready", "ready", "ready", "ready"]
        assert status(db, done.id).result == {"ok": True}
        with refused("PQ001"):
            call(db, "ack", done.id, done.lease)
        call(db, "ack", running.id, running.lease)
        (new,) = enqueue(db)
        assert new > last
        jobs = claim(db, 10)
        assert ids(jobs) == [4, 5, 6, last, new]
        assert min(leases(jobs)) > max(released.lease, failed.lease)


def test_a_crash_in_the_midst_of_each_step_of_rotation_loses_nothing(cluster: Cluster, dsn: str) -> None:
    """The epoch and the masks are sequences: they may be ahead of the tables after the crash."""
    with psycopg.connect(dsn, autocommit=True) as db:
        create(db, shards=1, lease="1 hour")
    expected: list[int] = []
    done: list[int] = []
    for turn in range(4):
        with closing(psycopg.connect(dsn, autocommit=True)) as db, closing(psycopg.connect(dsn)) as turner:
            for _ in range(turn + 1):
                rotate(turner)  # seals, closes, archives, truncates, and never commits
            expected += enqueue(db, 2)
            jobs = claim(db, 1)
            done += ack(db, jobs)
            cluster.kill()
        cluster.start()
        with psycopg.connect(dsn, autocommit=True) as db:
            rotate(db, turn)
            expected += enqueue(db, 1)
            done += ack(db, claim(db, 1))
    with psycopg.connect(dsn, autocommit=True) as db:
        while jobs := claim(db, 100):
            done += ack(db, jobs)
        assert sorted(done) == expected


# The first after a restart --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [enqueue, claim])
def test_the_first_call_after_a_restart_blocks_nobody_although_its_transaction_is_long(
    cluster: Cluster, dsn: str, first: Callable[[Connection], object]
) -> None:
    """It looks whether transaction ids still mean the same, under the ring's lock, which it gives back at once."""
    with psycopg.connect(dsn, autocommit=True) as db:
        create(db, shards=4)
        expected = enqueue(db, 8)
    cluster.restart("fast")
    with psycopg.connect(dsn) as slow, psycopg.connect(dsn, autocommit=True) as db:
        first(slow)
        db.execute("SET statement_timeout = '5s'")
        expected += enqueue(db, 4)
        jobs = claim(db, 3)
        assert jobs
        ack(db, jobs)
        assert call(db, "rotate", seal=True)["opened"] == 1, "the ring is locked"
        call(db, "maintain")
        slow.rollback()
        rest = claim(db, 100)
        assert sorted(ids(jobs + rest)) == expected


def test_many_first_calls_after_a_restart_at_once_agree_on_the_open_segment(cluster: Cluster, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as db:
        create(db)
        expected = enqueue(db, 4)
    cluster.restart("fast")
    sessions = [psycopg.connect(dsn, autocommit=True) for _ in range(10)]
    try:
        running = [in_background(enqueue, session, 3) for session in sessions]
        for future in running:
            expected += future.result(20)
        db = sessions[0]
        assert sorted(ids(claim(db, 100))) == sorted(expected)
        assert one(db, "SELECT count(DISTINCT slot) FROM pgq.job") == 1
    finally:
        for session in sessions:
            session.close()


def test_a_rolled_back_first_call_after_a_restart_is_no_matter(cluster: Cluster, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as db:
        create(db, shards=1)
        expected = enqueue(db, 2)
    cluster.restart("fast")
    with psycopg.connect(dsn) as slow:
        enqueue(slow)
        slow.rollback()
    with psycopg.connect(dsn, autocommit=True) as db:
        expected += enqueue(db, 2)
        assert ids(claim(db, 10)) == expected
        assert one(db, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()") == 0


def test_a_prepared_transaction_survives_and_its_jobs_are_found(cluster: Cluster, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as db:
        create(db, shards=1, notify=False)
        with psycopg.connect(dsn) as slow:
            early = enqueue(slow, 2)
            slow.execute("PREPARE TRANSACTION 'survivor'")
            slow.rollback()
        rotate(db)
        others = enqueue(db, 2)
        assert ids(claim(db, 1)) == others[:1]
        cluster.kill()
    cluster.start()
    with psycopg.connect(dsn, autocommit=True) as db:
        rotate(db, 3)
        assert ids(claim(db, 1)) == others[1:]
        fresh = enqueue(db)
        db.execute("COMMIT PREPARED 'survivor'")
        assert sorted(ids(claim(db, 10))) == sorted(early + fresh)
