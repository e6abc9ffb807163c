"""Whoever races for the end of an attempt, one of them wins, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import psycopg
import pytest

from tests.conftest import Clock
from tests.sql.support import (
    PASSAGES,
    Connect,
    Connection,
    Job,
    ack,
    call,
    claim,
    claim_one,
    create,
    endings,
    enqueue,
    ids,
    in_background,
    leases,
    retire_all,
    rotate,
    rows,
    stats,
    status,
    until_blocked,
)

Settle = Callable[[Connection, Job], bool]


def won(db: Connection, function: str, job: Job) -> bool:
    """Settle a job; whether that took effect."""
    if function == "reap":
        return bool(call(db, "reap"))
    if function == "release":
        return bool(rows(db, "release", [job.id], [job.lease]))
    if function.endswith("_many"):
        return bool(rows(db, function, [job.id], [job.lease]))
    try:
        call(db, function, job.id, job.lease)
    except psycopg.Error as error:
        if error.sqlstate != "PQ001":
            raise
        return False
    return True


STATES = {"ack": "done", "ack_many": "done", "reject": "retrying", "release": "ready", "reap": "ready"}


@pytest.mark.parametrize("place", ["at once", "moved", "retired"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("first", ["ack", "reject", "release", "reap"])
def test_the_second_waits_for_the_first_and_exactly_one_wins(
    db: Connection, connect: Connect, clock: Clock, first: str, end: str, place: str
) -> None:
    create(db, lease="1 hour")
    one, two = connect(autocommit=False), connect()
    for second in ["ack", "ack_many", "reject", "release"]:
        enqueue(db)
        job = claim_one(db)
        PASSAGES[place](db, clock)
        clock.advance(timedelta(hours=2))  # expired, but good until it is reaped
        assert won(one, first, job)
        racer = in_background(won, two, second, job)
        until_blocked(db, two)
        getattr(one, end)()
        assert racer.result() == (end == "rollback")
        winner = first if end == "commit" else second
        assert len(endings(db, job)) == 1
        assert status(db, job.id).state == STATES[winner]
        call(db, "purge", "q")
        assert stats(db) == {}


@pytest.mark.parametrize("place", ["at once", "moved", "retired"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("first", ["ack", "reject", "release"])
def test_the_reaper_leaves_alone_what_is_being_settled(
    db: Connection, connect: Connect, clock: Clock, first: str, end: str, place: str
) -> None:
    create(db, lease="1 hour", shards=1)
    enqueue(db, 4)
    shared = claim(db, 2)
    other = claim(db, 2)
    PASSAGES[place](db, clock)
    handler = connect(autocommit=False)
    assert won(handler, first, shared[0])
    clock.advance(timedelta(hours=2))
    began = time.monotonic()
    call(db, "reap")
    call(db, "maintain")
    assert time.monotonic() - began < 10
    assert [status(db, job.id).attempt for job in other] == [2, 2]
    assert endings(db, shared[0]) == []
    getattr(handler, end)()
    clock.advance(2)
    call(db, "reap")
    expected = STATES[first] if end == "commit" else "ready"
    assert status(db, shared[0].id).state == expected
    assert (status(db, shared[1].id).state, status(db, shared[1].id).attempt) == ("ready", 2)
    assert max(len(endings(db, job)) for job in [*shared, *other]) == 1


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_job_may_be_settled_while_it_becomes_a_straggler(
    db: Connection, connect: Connect, clock: Clock, end: str
) -> None:
    create(db, lease="1 hour")
    enqueue(db, 4)
    jobs = claim(db, 4)
    rotate(db, 3)
    clock.advance(31)
    mover = connect(autocommit=False)
    assert call(mover, "rotate", seal=True)["moved"] == 4
    racers = []
    for function, job in zip(["ack", "ack_many", "reject", "release"], jobs, strict=True):
        racer = connect()
        racers.append(in_background(won, racer, function, job))
        until_blocked(db, racer)
    getattr(mover, end)()
    assert [racer.result() for racer in racers] == [True] * 4
    assert [status(db, job.id).state for job in jobs] == ["done", "done", "retrying", "ready"]
    assert [len(endings(db, job)) for job in jobs] == [1, 1, 1, 1]
    ack(db, claim(db, 10))
    retire_all(db)
    assert stats(db) == {"retrying": 1}


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_job_that_is_being_settled_does_not_become_a_straggler(
    db: Connection, connect: Connect, clock: Clock, end: str
) -> None:
    create(db, lease="1 hour")
    enqueue(db)
    job = claim_one(db)
    rotate(db, 3)
    clock.advance(31)
    handler = connect(autocommit=False)
    call(handler, "ack", job.id, job.lease)
    rotate(db, 3)
    getattr(handler, end)()
    rotate(db, 3)
    assert endings(db, job) == (["done"] if end == "commit" else [])
    assert status(db, job.id).state == ("done" if end == "commit" else "running")
    if end == "rollback":
        call(db, "ack", job.id, job.lease)
    retire_all(db)
    assert status(db, job.id).state == "done"


def test_everybody_settles_everything_and_each_job_ends_once(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, lease="1 hour", shards=2)
    enqueue(db, 120)
    jobs = claim(db, 120)
    clock.advance(timedelta(hours=2))
    start = threading.Barrier(5)

    def settle(function: str, step: int) -> int:
        session = connect()
        start.wait()
        return sum(won(session, function, jobs[n * step % 120]) for n in range(120))

    def reap() -> int:
        session = connect()
        start.wait()
        return sum(call(session, "reap") for _ in range(5))

    racers = [in_background(settle, *racer) for racer in [("ack", 1), ("ack", 7), ("reject", 11), ("release", 13)]]
    racers.append(in_background(reap))
    counts = [racer.result() for racer in racers]
    assert sum(counts) == 120, counts
    assert [len(endings(db, job)) for job in jobs] == [1] * 120


def test_batches_in_opposite_order_settle_each_job_once(db: Connection, connect: Connect) -> None:
    create(db, shards=1)
    one, two = connect(), connect()
    for _ in range(10):
        enqueue(db, 100)
        jobs = claim(db, 100)
        racers = [in_background(settle_batch, one, jobs), in_background(settle_batch, two, jobs[::-1])]
        taken = racers[0].result() + racers[1].result()
        taken += ack(db, jobs)  # what a deadlock has left over
        assert sorted(taken) == ids(jobs)


def settle_batch(db: Connection, jobs: list[Job]) -> list[int]:
    try:
        return rows(db, "ack_many", ids(jobs), leases(jobs))
    except psycopg.errors.DeadlockDetected:
        return []


def test_two_reapers_at_once_reap_once(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db)
    enqueue(db, 3)
    claim(db, 3)
    clock.advance(timedelta(hours=1))
    reaper = connect(autocommit=False)
    assert call(reaper, "reap") == 3
    assert call(db, "reap") == 0
    reaper.commit()
    assert call(db, "reap") == 0
    assert stats(db) == {"ready": 3}


@pytest.mark.direct("a setting of the session")
@pytest.mark.parametrize("function", ["promote", "reap", "rotate", "maintain"])
def test_maintenance_never_waits_for_maintenance(db: Connection, connect: Connect, clock: Clock, function: str) -> None:
    create(db)
    enqueue(db)
    enqueue(db, delay="1 minute")
    claim(db)
    clock.advance(timedelta(hours=1))
    busy = connect(autocommit=False)
    call(busy, "maintain")
    db.execute("SET lock_timeout = '2s'")
    call(db, function)
    busy.rollback()
    call(db, "maintain")
    assert stats(db) == {"ready": 2}


def test_two_redrives_at_once_redrive_once(db: Connection, connect: Connect) -> None:
    create(db)
    enqueue(db, 3)
    for job in claim(db, 3):
        call(db, "reject", job.id, job.lease, retry=False)
    first, second = connect(autocommit=False), connect()
    assert call(first, "redrive", "q") == 3
    racer = in_background(call, second, "redrive", "q")
    until_blocked(db, second)
    first.commit()
    assert racer.result() == 0
    assert len(claim(db, 10)) == 3
