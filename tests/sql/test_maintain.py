"""promote, reap, rotate and maintain: from anywhere, at any time, any number at once, and each thing once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from psycopg import IsolationLevel

from tests.conftest import Clock
from tests.sql.support import (
    Connect,
    Connection,
    ack,
    call,
    claim,
    claim_one,
    column,
    create,
    enqueue,
    ids,
    in_background,
    one,
    refused,
    rotate,
    rows,
    stats,
    status,
)

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def all_at_once(connect: Connect, function: Callable[[Connection], Any], sessions: int = 8) -> list[Any]:
    """Have many sessions do the same at the same moment. Returns their results, in no order."""
    ready = threading.Barrier(sessions)

    def run(session: Connection) -> Any:
        ready.wait(20)
        return function(session)

    running = [in_background(run, connect()) for _ in range(sessions)]
    return [future.result(30) for future in running]


# promote --------------------------------------------------------------------------------------------------------------


def test_jobs_become_ready_when_they_are_due_and_not_before(db: Connection, clock: Clock) -> None:
    create(db, shards=1, lease="1 hour")
    (late,) = enqueue(db, delay="2 minutes")
    (soon,) = enqueue(db, delay="1 minute")
    assert call(db, "promote") == 0
    clock.advance(61)
    assert call(db, "promote") == 1
    assert ids(claim(db, 10)) == [soon]
    clock.advance(61)
    assert call(db, "maintain")["promoted"] == 1
    assert ids(claim(db, 10)) == [late]
    assert stats(db) == {"running": 2}


def test_many_sessions_promote_each_job_once(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db)
    expected = enqueue(db, 500, delay="1 minute")
    clock.advance(MINUTE * 2)
    promoted = all_at_once(connect, lambda session: sum(call(session, "promote") for _ in range(5)))
    assert sum(promoted) == 500
    assert sorted(ids(claim(db, 1000))) == expected
    assert one(db, "SELECT count(*) FROM pgq.scheduled") == 0


def test_promotion_that_is_rolled_back_promotes_nothing(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db)
    (id,) = enqueue(db, delay="1 minute")
    clock.advance(MINUTE * 2)
    other = connect(autocommit=False)
    assert call(other, "promote") == 1
    assert call(db, "promote") == 0, "it must not wait"
    assert claim(db, 10) == []
    other.rollback()
    assert status(db, id).state == "scheduled"
    assert call(db, "promote") == 1
    assert ids(claim(db, 10)) == [id]


def test_a_job_scheduled_by_a_transaction_that_commits_late_is_promoted(
    db: Connection, connect: Connect, clock: Clock
) -> None:
    """Its time has passed when it appears, and the mark has gone on."""
    create(db)
    slow = connect(autocommit=False)
    (late,) = enqueue(slow, delay="1 minute")
    for _ in range(4):
        (id,) = enqueue(db, delay="30 seconds")
        clock.advance(MINUTE)
        assert call(db, "promote") == 1
        assert ids(claim(db, 10)) == [id]
    slow.commit()
    assert not claim(db, 10)
    clock.advance(61)  # the slow full sweep
    assert call(db, "promote") == 1
    assert ids(claim(db, 10)) == [late]


def test_more_jobs_than_a_batch_are_promoted_in_several_calls(db: Connection, clock: Clock) -> None:
    create(db)
    for _ in range(12):
        enqueue(db, 1000, delay="1 minute")
    clock.advance(MINUTE * 2)
    turn = call(db, "maintain")
    assert (turn["promoted"], turn["more"]) == (10_000, True)
    assert call(db, "promote") == 2000
    assert call(db, "promote") == 0
    assert stats(db) == {"ready": 12_000}


# reap -----------------------------------------------------------------------------------------------------------------


def test_an_expired_lease_is_reaped_once(db: Connection, clock: Clock) -> None:
    create(db, shards=1, lease="1 minute")
    expected = enqueue(db, 3)
    jobs = claim(db, 3)
    clock.advance(59)
    assert call(db, "reap") == 0
    ack(db, jobs[:1])
    clock.advance(2)
    assert call(db, "reap") == 2
    assert call(db, "reap") == 0
    again = claim(db, 10)
    assert [(job.id, job.attempt) for job in again] == [(id, 2) for id in expected[1:]]
    assert ack(db, jobs) == [], "a zombie's ack took effect"
    clock.advance(MINUTE * 10)
    ack(db, again)
    assert call(db, "reap") == 0


def test_many_sessions_reap_each_lease_once(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, lease="1 minute")
    expected = enqueue(db, 400)
    for _ in range(80):
        claim(db, 5)
    clock.advance(MINUTE * 2)
    reaped = all_at_once(connect, lambda session: sum(call(session, "reap") for _ in range(5)))
    assert sum(reaped) == 400
    again = claim(db, 1000)
    assert sorted(ids(again)) == expected
    assert {job.attempt for job in again} == {2}


def test_an_extended_lease_is_reaped_when_the_extension_is_over(db: Connection, clock: Clock) -> None:
    create(db, lease="1 minute")
    enqueue(db)
    job = claim_one(db)
    for _ in range(5):
        clock.advance(50)
        assert call(db, "reap") == 0
        expiry = call(db, "extend", job.lease)
        assert timedelta(seconds=59) < expiry - clock.now() <= MINUTE
    clock.advance(HOUR)
    assert call(db, "reap") == 1
    assert call(db, "reap") == 0


@pytest.mark.direct("a setting of the session")
def test_an_extension_that_is_not_committed_is_not_waited_for(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, lease="1 minute")
    enqueue(db)
    job = claim_one(db)
    slow = connect(autocommit=False)
    call(slow, "extend", job.lease, "1 hour")
    clock.advance(MINUTE * 2)
    hasty = connect(options="-c statement_timeout=5s")
    assert call(hasty, "reap") == 1
    slow.commit()
    with refused("PQ001"):
        call(db, "ack", job.id, job.lease)
    assert claim_one(db).attempt == 2
    clock.advance(HOUR * 2)
    assert call(db, "reap") == 1, "the extension of a dead lease was reaped, too"


def test_a_claim_that_commits_late_is_reaped_by_the_slow_sweep(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, shards=1, lease="1 minute")
    create(db, "other", lease="1 minute")
    enqueue(db)
    slow = connect(autocommit=False)
    late = claim_one(slow)
    for _ in range(3):
        enqueue(db, queue="other")
        claim(db, queue="other")
        clock.advance(MINUTE * 2)
        assert call(db, "reap") == 1
    slow.commit()
    clock.advance(MINUTE * 6)
    call(db, "reap")
    again = claim_one(db)
    assert (again.id, again.attempt) == (late.id, 2)


@pytest.mark.direct("a setting of the session")
def test_an_ack_that_is_going_on_is_not_waited_for_long(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, shards=1, lease="1 minute")
    enqueue(db, 3)
    jobs = claim(db, 1) + claim(db, 1) + claim(db, 1)
    slow = connect(autocommit=False)
    call(slow, "ack", jobs[1].id, jobs[1].lease)
    clock.advance(MINUTE * 2)
    hasty = connect(options="-c statement_timeout=5s")
    assert call(hasty, "reap") == 2, "one ack keeps the others from being reaped"
    assert sorted(ids(claim(db, 10))) == sorted([jobs[0].id, jobs[2].id])
    slow.rollback()
    assert call(db, "reap") == 1
    assert ids(claim(db, 10)) == [jobs[1].id]


def test_reaping_that_is_rolled_back_reaps_nothing(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, lease="1 minute")
    enqueue(db)
    job = claim_one(db)
    clock.advance(MINUTE * 2)
    other = connect(autocommit=False)
    assert call(other, "reap") == 1
    assert call(db, "reap") == 0, "it must not wait"
    other.rollback()
    assert status(db, job.id).state == "running"
    assert call(db, "reap") == 1


def test_an_expired_job_goes_to_the_front_of_its_line(db: Connection, clock: Clock) -> None:
    create(db, shards=1, lease="1 minute")
    first, second, third = enqueue(db, 3)
    claim(db, 2)
    clock.advance(MINUTE * 2)
    call(db, "reap")
    assert ids(claim(db, 10)) == [first, second, third]


def test_reaping_goes_on_after_more_than_a_batch(db: Connection, clock: Clock) -> None:
    create(db, lease="1 minute")
    for _ in range(11):
        enqueue(db, 1000)
    assert len(claim(db, 11_000)) == 11_000
    clock.advance(MINUTE * 2)
    turn = call(db, "maintain")
    assert (turn["reaped"], turn["more"]) == (10_000, True)
    assert call(db, "reap") == 1000
    assert call(db, "reap") == 0
    assert {job.attempt for job in claim(db, 11_000)} == {2}


# maintain -------------------------------------------------------------------------------------------------------------


def test_maintain_does_all_that_is_due(db: Connection, clock: Clock) -> None:
    create(db, lease="1 minute")
    enqueue(db, 2, delay="1 minute")
    enqueue(db)
    claim(db)
    clock.advance(MINUTE * 6)
    turn = call(db, "maintain")
    assert (turn["promoted"], turn["reaped"]) == (2, 1)
    assert stats(db) == {"ready": 3}


def test_many_sessions_maintain_at_once_and_nothing_happens_twice(
    db: Connection, connect: Connect, clock: Clock
) -> None:
    create(db, lease="1 minute")
    expected = enqueue(db, 100)
    claim(db, 100)
    expected += enqueue(db, 100, delay="1 minute")
    clock.advance(MINUTE * 10)

    def maintain(session: Connection) -> list[Any]:
        return [call(session, "maintain") for _ in range(6)]

    turns = [turn for turns in all_at_once(connect, maintain) for turn in turns]
    assert sum(turn["promoted"] for turn in turns) == 100
    assert sum(turn["reaped"] for turn in turns) == 100
    jobs = claim(db, 1000)
    assert sorted(ids(jobs)) == expected
    assert len(ack(db, jobs)) == 200
    for _ in range(6):
        clock.advance(MINUTE)
        all_at_once(connect, maintain, 4)
    assert one(db, "SELECT count(DISTINCT id) FROM pgq.archive WHERE kind = 'done'") == 200
    assert one(db, "SELECT count(*) FROM pgq.archive") == 300


def test_maintain_that_is_rolled_back_has_done_nothing(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, shards=1, lease="1 minute")
    expected = enqueue(db, 2)
    claim(db)
    expected += enqueue(db, delay="1 minute")
    call(db, "maintain")
    clock.advance(MINUTE * 10)
    other = connect(autocommit=False)
    for _ in range(3):
        call(other, "maintain")
    between = enqueue(db)
    other.rollback()
    assert [status(db, id).state for id in expected + between] == ["running", "ready", "scheduled", "ready"]
    turn = call(db, "maintain")
    assert (turn["promoted"], turn["reaped"]) == (1, 1)
    jobs = claim(db, 10)
    assert sorted(ids(jobs)) == sorted(expected + between)
    assert len(ack(db, jobs)) == 4


@pytest.mark.direct("a setting of the session")
def test_maintain_does_not_wait_for_those_who_work(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, shards=1, lease="1 minute")
    enqueue(db, 3)
    claimer, acker, producer, failer = (connect(autocommit=False) for _ in range(4))
    jobs = claim(db, 1) + claim(db, 1)
    enqueue(producer, 2)
    enqueue(producer, 2, delay="1 minute")
    claim(claimer, 1)
    call(acker, "ack", jobs[0].id, jobs[0].lease)
    call(failer, "reject", jobs[1].id, jobs[1].lease)
    hasty = connect(options="-c statement_timeout=5s")
    for _ in range(8):
        clock.advance(MINUTE)
        call(hasty, "maintain")
    for session in (claimer, acker, producer, failer):
        session.commit()
    clock.advance(MINUTE * 6)
    for _ in range(3):
        call(hasty, "maintain")
    found = sorted(ids(claim(db, 10)))
    assert found == [2, 3, 4, 5, 6, 7]


def test_marks_do_not_pile_up(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, lease="1 minute")
    for _ in range(40):
        enqueue(db, delay="5 seconds")
        claim(db)
        clock.advance(10)
        call(db, "maintain")
    kinds = column(db, "SELECT kind FROM pgq.mark ORDER BY kind")
    assert len(kinds) == len(set(kinds)), kinds
    all_at_once(connect, lambda session: [call(session, "maintain") for _ in range(5)])
    kinds = column(db, "SELECT kind FROM pgq.mark ORDER BY kind")
    assert len(kinds) == len(set(kinds)), kinds


def test_lines_that_were_added_twice_are_tidied_up(db: Connection, connect: Connect, clock: Clock) -> None:
    """Producers add a new priority without waiting for each other."""
    create(db, lease="1 hour")
    sessions = [connect(autocommit=False) for _ in range(5)]
    for session in sessions:
        enqueue(session, 2, priority=7)
    for session in sessions:
        session.commit()
    assert len(claim(db, 4)) == 4
    clock.advance(MINUTE * 2)
    call(db, "maintain")
    lanes = column(db, "SELECT lane FROM pgq.line")
    assert len(lanes) == len(set(lanes)) == 2
    assert len(claim(db, 10)) == 6


@pytest.mark.parametrize("function", ["promote", "reap", "rotate", "maintain"])
@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_maintenance_needs_read_committed(connect: Connect, function: str, isolation: IsolationLevel) -> None:
    db = connect(autocommit=False)
    db.isolation_level = isolation
    with refused("PQ003"):
        call(db, function)


def test_maintenance_of_an_empty_database_does_nothing(db: Connection) -> None:
    for _ in range(3):
        turn = call(db, "maintain")
        assert (turn["promoted"], turn["reaped"], turn["more"]) == (0, 0, False)
    assert one(db, "SELECT count(*) FROM pgq.segment") == 1


def test_nothing_happens_to_jobs_of_a_paused_queue_but_their_leases_end(db: Connection, clock: Clock) -> None:
    create(db, shards=1, lease="1 minute")
    expected = enqueue(db, 3)
    claim(db)
    call(db, "pause", "q")
    rotate(db)
    clock.advance(MINUTE * 5)
    for _ in range(5):
        call(db, "maintain")
        clock.advance(3)
    assert stats(db) == {"ready": 3}
    call(db, "resume", "q")
    assert ids(claim(db, 10)) == expected
    assert rows(db, "release", [], []) == []
