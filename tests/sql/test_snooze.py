"""A snoozed job comes back later, and the attempt does not count."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.conftest import Clock
from tests.sql.support import (
    Connect,
    Connection,
    ack,
    across,
    call,
    claim,
    claim_one,
    create,
    endings,
    enqueue,
    ids,
    in_background,
    leases,
    one,
    refused,
    retire_all,
    rotate,
    rows,
    stats,
    status,
    until_blocked,
)


@across
def test_a_snoozed_job_comes_back_after_the_delay(db: Connection, clock: Clock, passage: Any) -> None:
    create(db, max_attempts=1, lease="1 hour", shards=1)
    (id,) = enqueue(db, task="mail", headers={"h": 1}, priority=2)
    first = claim_one(db)
    passage(db, clock)
    assert call(db, "snooze", id, first.lease, "10 minutes") in (None, "")
    state = status(db, id)
    assert (state.state, state.attempt, state.error) == ("scheduled", 1, None)
    assert state.run_at is not None
    assert abs(state.run_at - clock.now() - timedelta(minutes=10)) < timedelta(minutes=1)
    clock.advance(timedelta(minutes=9))
    call(db, "promote")
    assert claim(db) == []
    clock.advance(timedelta(minutes=2))
    assert call(db, "promote") == 1
    again = claim_one(db)
    assert again.lease != first.lease
    assert again.attempt == 1
    assert (again.id, again.task, again.headers, again.priority, again.payload, again.enqueued_at) == (
        first.id, first.task, first.headers, first.priority, first.payload, first.enqueued_at,
    )  # fmt: skip
    with refused("PQ001"):
        call(db, "snooze", id, first.lease, "1 minute")
    assert call(db, "reject", id, again.lease) == "dead"
    retire_all(db)
    rotate(db)
    assert endings(db, first) == []
    assert endings(db, again) == ["dead"]


def test_a_snooze_in_between_does_not_change_the_history(db: Connection, clock: Clock) -> None:
    create(db, backoff="0", shards=1)
    (id,) = enqueue(db)
    for _ in range(3):
        job = claim_one(db)
        call(db, "snooze", id, job.lease, "0")
        call(db, "promote")
        job = claim_one(db)
        call(db, "reject", id, job.lease, "no", retry_in="0")
        call(db, "promote")
    job = claim_one(db)
    assert job.attempt == 4
    assert status(db, id).error == "no"
    ack(db, [job])
    retire_all(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == 4


def test_a_snoozed_job_leaves_the_front_of_the_line(db: Connection) -> None:
    create(db, shards=1)
    first, second = enqueue(db, 2)
    job = claim_one(db)
    rows(db, "release", [job.id], [job.lease])
    job = claim_one(db)
    assert job.id == first
    call(db, "snooze", job.id, job.lease, "0")
    call(db, "promote")
    assert ids(claim(db, 2)) == [second, first]


@pytest.mark.parametrize("count", [3, 20])
def test_snooze_many_returns_what_took_effect(db: Connection, clock: Clock, count: int) -> None:
    create(db)
    enqueue(db, count)
    jobs = claim(db, count)
    ack(db, jobs[:1])
    taken = rows(db, "snooze_many", [*ids(jobs), 10**6], [*leases(jobs), 16], "1 minute")
    assert sorted(taken) == sorted(ids(jobs[1:]))
    assert rows(db, "snooze_many", ids(jobs), leases(jobs), "1 minute") == []
    assert rows(db, "snooze_many", [], [], "1 minute") == []
    assert stats(db) == {"scheduled": count - 1}
    clock.advance(61)
    call(db, "promote")
    assert sorted(ids(claim(db, count))) == sorted(ids(jobs[1:]))


def test_bad_arguments(db: Connection) -> None:
    for statement, state in {
        "snooze(NULL, 1, '1 s')": "22004",
        "snooze(1, NULL, '1 s')": "22004",
        "snooze(1, 16, NULL)": "22004",
        "snooze(1, 16, '-1 s')": "22023",
        "snooze(1, 16, '101 years')": "22023",
        "snooze(1, 16, '1 s')": "PQ001",
        "snooze_many(NULL, '{}', '1 s')": "22004",
        "snooze_many('{1}', '{}', '1 s')": "22023",
        "snooze_many('{}', '{}', NULL)": "22004",
    }.items():
        with refused(state):
            db.execute(f"SELECT pgq.{statement}")


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("first", ["snooze", "ack", "reject", "release"])
def test_snooze_and_another_end_of_an_attempt(connect: Connect, db: Connection, first: str, end: str) -> None:
    create(db)
    (id,) = enqueue(db)
    job = claim_one(db)
    one_, two = connect(autocommit=False), connect()

    def settle(session: Connection, function: str) -> Any:
        if function == "release":
            return rows(session, function, [id], [job.lease])
        return call(session, function, id, job.lease, *(["1 hour"] if function == "snooze" else []))

    settle(one_, first)
    second = in_background(settle, two, "ack" if first == "snooze" else "snooze")
    until_blocked(db, two)
    getattr(one_, end)()
    if end == "rollback":
        second.result()
        assert status(db, id).state == ("done" if first == "snooze" else "scheduled")
    else:
        with refused("PQ001"):
            second.result()
        states = {"snooze": "scheduled", "ack": "done", "reject": "retrying", "release": "ready"}
        assert status(db, id).state == states[first]
    assert len(endings(db, job)) == 1


def test_a_snooze_of_a_session_that_dies_is_undone(connect: Connect, db: Connection, clock: Clock) -> None:
    create(db)
    (id,) = enqueue(db)
    job = claim_one(db)
    other = connect(autocommit=False)
    call(other, "snooze", id, job.lease, "1 hour")
    other.close()
    assert status(db, id).state == "running"
    clock.advance(timedelta(hours=1))
    assert call(db, "reap") == 1
    assert claim_one(db).attempt == 2


def test_a_snooze_under_repeatable_read_finds_the_lease_lost_or_fails(connect: Connect, db: Connection) -> None:
    create(db)
    (id,) = enqueue(db)
    job = claim_one(db)
    other = connect()
    other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    one(other, "SELECT 1 FROM pgq.queue")
    call(db, "ack", id, job.lease)
    with refused("40001"):
        call(other, "snooze", id, job.lease, "1 hour")
    other.execute("ROLLBACK")
    enqueue(db)
    job = claim_one(db)
    other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    call(other, "snooze", job.id, job.lease, "1 hour")
    other.execute("COMMIT")
    assert status(db, job.id).state == "scheduled"
