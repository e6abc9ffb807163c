"""A job that was answered 'cancelled' never runs; a job that was not cancelled is never lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any

import psycopg
import pytest

from tests.conftest import Clock
from tests.sql.support import (
    PASSAGES,
    Connect,
    Connection,
    ack,
    across,
    call,
    claim,
    claim_one,
    column,
    create,
    endings,
    enqueue,
    eventually,
    fingerprint,
    ids,
    in_background,
    one,
    refused,
    retire_all,
    rotate,
    rows,
    stats,
    status,
    until_blocked,
)


def agree(db: Connection) -> None:
    """Work off what is left, retire every segment, and see that their books agree: none of them is stuck."""
    while claimed := claim(db, 1000):
        ack(db, claimed)
    for source in [*(f"unsettled_{slot}" for slot in range(16)), "straggler"]:
        query = "SELECT pgq.ack_many(array_agg(id), array_agg(lease)) FROM pgq.{} HAVING count(*) > 0"
        db.execute(query.format(source))
    retire_all(db)


def sealed(db: Connection) -> None:
    """Seal the segment with the jobs, and count them."""
    rotate(db, 2)
    assert column(db, "SELECT DISTINCT state FROM pgq.segment WHERE state NOT IN ('free', 'open')") == ["closed"]


# Waiting jobs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 10])
@pytest.mark.parametrize("shards", [1, 8])
@pytest.mark.parametrize("state", ["open", "sealed", "restored"])
def test_a_ready_job_is_cancelled_and_the_others_run_in_their_order(
    db: Connection, state: str, shards: int, batch: int
) -> None:
    create(db, shards=shards)
    jobs = enqueue(db, 20)
    if state != "open":
        sealed(db)
    if state == "restored":
        db.execute("SELECT setval('pgq.restored', 1)")
    gone = [jobs[0], jobs[7], jobs[8], jobs[19]]
    assert [call(db, "cancel", job) for job in gone] == ["cancelled"] * 4
    assert stats(db) == {"ready": 16}
    assert {status(db, job).state for job in gone} == {"cancelled"}
    ran = []
    while claimed := claim(db, batch):
        ran += ids(claimed)
        ack(db, claimed)
    left = [job for job in jobs if job not in gone]
    assert sorted(ran) == left
    if shards == 1:
        assert ran == left
    agree(db)
    assert {status(db, job).state for job in gone} == {"cancelled"}
    assert {status(db, job).state for job in left} == {"done"}
    assert column(db, "SELECT id FROM pgq.archive WHERE kind = 'cancelled' ORDER BY id") == gone


def test_what_is_known_of_a_cancelled_job(db: Connection, clock: Clock) -> None:
    create(db)
    (job,) = enqueue(db, task="mail", priority=3, headers={"trace": 1})
    before = status(db, job)
    assert call(db, "cancel", job) == "cancelled"
    after = status(db, job)
    assert (after.state, after.task, after.attempt, after.enqueued_at) == ("cancelled", "mail", 1, before.enqueued_at)
    assert (after.started_at, after.result, after.error) == (None, None, None)
    assert after.finished_at is not None
    retire_all(db)
    assert status(db, job).state == "cancelled"
    query = "SELECT queue, task, priority, headers, payload, worker FROM pgq.archive"
    assert db.execute(query).fetchall() == [("q", "mail", 3, {"trace": 1}, 1, None)]
    clock.advance(timedelta(days=10))
    call(db, "maintain")
    assert call(db, "cancel", job) == "not found"


@pytest.mark.parametrize("again", [False, True])
def test_a_scheduled_job_or_a_retry_is_cancelled(db: Connection, clock: Clock, again: bool) -> None:
    create(db)
    if again:
        enqueue(db)
        job = claim_one(db)
        call(db, "reject", job.id, job.lease, "no", retry_in="1 hour")
        id = job.id
    else:
        (id,) = enqueue(db, delay="1 hour")
    assert call(db, "cancel", id) == "cancelled"
    assert (status(db, id).state, status(db, id).attempt) == ("cancelled", 2 if again else 1)
    assert status(db, id).error == ("no" if again else None)
    assert stats(db) == {}
    clock.advance(timedelta(hours=2))
    call(db, "maintain")
    assert claim(db, 10) == []
    agree(db)
    assert status(db, id).state == "cancelled"


@pytest.mark.parametrize("way", ["released", "expired", "carried"])
def test_a_job_at_the_front_of_the_line_is_cancelled(db: Connection, clock: Clock, way: str) -> None:
    create(db)
    (id,) = enqueue(db)
    if way == "carried":
        sealed(db)
        clock.advance(timedelta(minutes=2))
        rotate(db)
    else:
        job = claim_one(db)
        if way == "released":
            assert rows(db, "release", [job.id], [job.lease]) == [id]
        else:
            clock.advance(timedelta(hours=1))
            assert call(db, "reap") == 1
    assert one(db, "SELECT count(*) FROM pgq.job WHERE lane & 255 = 0") == 1
    assert call(db, "cancel", id) == "cancelled"
    assert claim(db, 10) == []
    assert status(db, id).state == "cancelled"
    agree(db)
    assert status(db, id).state == "cancelled"


def test_other_answers(db: Connection) -> None:
    create(db, max_attempts=1)
    done, dead, running, ready = enqueue(db, 4)
    by_id = {job.id: job for job in claim(db, 4)}
    ack(db, [by_id[done]])
    call(db, "reject", dead, by_id[dead].lease)
    rows(db, "release", [ready], [by_id[ready].lease])
    assert call(db, "cancel", done) == "finished"
    assert call(db, "cancel", dead) == "finished"
    assert call(db, "cancel", running) == "requested"
    assert call(db, "cancel", running) == "requested"
    assert call(db, "cancel", ready) == "cancelled"
    assert call(db, "cancel", ready) == "cancelled"
    assert call(db, "cancel", 10**9) == "not found"
    agree(db)
    assert call(db, "cancel", done) == "finished"
    assert call(db, "cancel", ready) == "cancelled"


def test_bad_arguments(db: Connection) -> None:
    create(db)
    for statement, state in {
        "cancel(NULL)": "22004",
        "cancel_many(NULL)": "22004",
        "cancel_many('none')": "PQ002",
        "cancel_many('q', NULL, NULL)": "22004",
        "cancel_requested(NULL)": "22004",
        "reschedule(NULL, now())": "22004",
        "reschedule(1, NULL)": "22004",
        "reschedule(1, 'infinity')": "22023",
        "set_priority(NULL, 1)": "22004",
        "set_priority(1, NULL)": "22004",
        "set_priority(1, 101)": "22023",
    }.items():
        with refused(state):
            db.execute(f"SELECT pgq.{statement}")


CHANGES: dict[str, tuple[Any, ...]] = {
    "cancel": (1,),
    "cancel_many": ("q",),
    "reschedule": (1, "2100-01-01"),
    "set_priority": (1, 5),
}


@pytest.mark.parametrize("function", CHANGES)
def test_under_repeatable_read_it_is_refused(connect: Connect, db: Connection, function: str) -> None:
    create(db)
    enqueue(db)
    before = fingerprint(db)
    for level in (psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE):
        other = connect(autocommit=False)
        other.isolation_level = level
        with refused("PQ003"):
            call(other, function, *CHANGES[function])
    assert fingerprint(db) == before


@pytest.mark.direct("terminates a session")
@pytest.mark.parametrize("function", CHANGES)
@pytest.mark.parametrize("state", ["ready", "sealed", "scheduled"])
def test_a_change_is_undone_with_its_transaction_or_savepoint(
    connect: Connect, db: Connection, function: str, state: str
) -> None:
    create(db)
    assert enqueue(db, delay="1 hour" if state == "scheduled" else None) == [1]
    if state == "sealed":
        sealed(db)
    before = fingerprint(db), status(db, 1), stats(db)
    other = connect(autocommit=False)
    call(other, function, *CHANGES[function])
    assert status(other, 1) != before[1] or function == "set_priority"
    other.rollback()
    assert (fingerprint(db), status(db, 1), stats(db)) == before
    with other.transaction():
        with other.transaction(force_rollback=True):
            call(other, function, *CHANGES[function])
        assert status(other, 1) == before[1]
    assert (fingerprint(db), status(db, 1), stats(db)) == before
    # A session that is killed leaves nothing behind either.
    call(other, function, *CHANGES[function])
    call_terminate(db, other)
    assert (fingerprint(db), status(db, 1), stats(db)) == before
    if state == "scheduled":
        call(db, "reschedule", 1, "2000-01-01")
        call(db, "promote")
    assert ids(claim(db, 10)) == [1]


def call_terminate(db: Connection, other: Connection) -> None:
    pid = other.info.backend_pid
    db.execute("SELECT pg_terminate_backend(%s, 20000)", [pid])
    eventually(lambda: not column(db, "SELECT pid FROM pg_stat_activity WHERE pid = %s", pid))


@pytest.mark.parametrize("delay", [None, "1 hour"])
def test_a_job_of_the_same_transaction_is_cancelled(connect: Connect, db: Connection, delay: str | None) -> None:
    create(db)
    other = connect(autocommit=False)
    kept, gone = enqueue(other, 2, delay=delay)
    assert call(other, "cancel", gone) == "cancelled"
    assert status(other, gone).state == "cancelled"
    assert claim(db, 10) == []
    other.commit()
    if delay:
        assert stats(db) == {"scheduled": 1}
        assert call(db, "reschedule", kept, "2000-01-01")
        call(db, "promote")
    assert ids(claim(db, 10)) == [kept]
    assert status(db, gone).state == "cancelled"


def test_a_late_transaction_s_job_is_cancelled_behind_the_position(connect: Connect, db: Connection) -> None:
    create(db, shards=1)
    late = connect(autocommit=False)
    first, second, third = enqueue(late, 3)
    enqueue(db, 2)
    ack(db, claim(db, 2))
    late.commit()
    assert ids(claim(db, 1)) == [first]
    assert call(db, "cancel", second) == "cancelled"
    assert call(db, "cancel", first) == "requested"
    assert stats(db) == {"ready": 1, "running": 1}
    assert ids(claim(db, 10)) == [third]


# Running jobs ---------------------------------------------------------------------------------------------------------


@across
@pytest.mark.parametrize("count", [1, 10])
def test_a_running_job_is_asked_to_stop(db: Connection, clock: Clock, passage: Any, count: int) -> None:
    create(db, lease="1 hour")
    enqueue(db, count)
    jobs = claim(db, count)
    passage(db, clock)
    leases = [job.lease for job in jobs]
    assert rows(db, "cancel_requested", leases) == []
    assert call(db, "cancel", jobs[0].id) == "requested"
    assert rows(db, "cancel_requested", leases) == [jobs[0].id]
    assert rows(db, "cancel_requested", [16, None]) == []
    assert sorted(ack(db, jobs[1:])) == sorted(ids(jobs[1:]))
    assert rows(db, "cancel_requested", leases) == [jobs[0].id]


ENDS: dict[str, tuple[str, list[Any]]] = {
    "reject": ("reject", ["no"]),
    "reject for good": ("reject", ["no", "0", False]),
    "reject_many": ("reject_many", []),
    "release": ("release", []),
    "snooze": ("snooze", ["1 minute"]),
    "reap": ("reap", []),
}


@across
@pytest.mark.parametrize("end", ENDS)
def test_what_was_asked_to_stop_does_not_come_back(db: Connection, clock: Clock, passage: Any, end: str) -> None:
    create(db, lease="1 hour", shards=1)
    enqueue(db, 2)
    job, other = claim(db, 2)
    passage(db, clock)
    assert call(db, "cancel", job.id) == "requested"
    function, more = ENDS[end]
    if end == "reap":
        clock.advance(timedelta(hours=2))
        assert call(db, "reap") == 2
    elif function in ("reject_many", "release"):
        assert rows(db, function, [job.id, other.id], [job.lease, other.lease], *more) == [job.id, other.id]
    else:
        answer = call(db, function, job.id, job.lease, *more)
        assert answer == ("cancelled" if function == "reject" else "") or answer is None
        call(db, function, other.id, other.lease, *more)
    assert status(db, job.id).state == "cancelled"
    assert status(db, other.id).state != "cancelled"
    assert endings(db, job) == ["cancelled"]
    assert column(db, "TABLE pgq.cancel_request") == []
    clock.advance(timedelta(hours=2))
    call(db, "promote")
    assert job.id not in ids(claim(db, 10))
    with refused("PQ001"):
        call(db, "ack", job.id, job.lease)
    agree(db)
    assert status(db, job.id).state == "cancelled"


def test_an_ack_of_what_was_asked_to_stop_is_done(db: Connection, clock: Clock) -> None:
    create(db)
    enqueue(db)
    job = claim_one(db)
    assert call(db, "cancel", job.id) == "requested"
    call(db, "ack", job.id, job.lease)
    assert status(db, job.id).state == "done"
    assert rows(db, "cancel_requested", [job.lease]) == []
    assert call(db, "cancel", job.id) == "finished"
    enqueue(db)
    job = claim_one(db)
    call(db, "cancel", job.id)
    call(db, "ack", job.id, job.lease)
    call(db, "maintain")
    assert column(db, "TABLE pgq.cancel_request") == []


# Races ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("shards", [1, 4])
def test_cancel_waits_for_a_claim(connect: Connect, db: Connection, end: str, batch: int, shards: int) -> None:
    create(db, shards=shards)
    (id,) = enqueue(db)
    claimer = connect(autocommit=False)
    assert ids(claim(claimer, batch)) == [id]
    canceller = connect()
    answer = in_background(call, canceller, "cancel", id)
    until_blocked(db, canceller)
    getattr(claimer, end)()
    assert answer.result() == ("requested" if end == "commit" else "cancelled")
    assert claim(db, 10) == []


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("shards", [1, 4])
def test_a_claim_during_a_cancel_gets_the_others(
    connect: Connect, db: Connection, end: str, batch: int, shards: int
) -> None:
    create(db, shards=shards)
    jobs = enqueue(db, 12)
    canceller = connect(autocommit=False)
    assert call(canceller, "cancel", jobs[0]) == "cancelled"
    before = ids(claim(db, batch))
    assert jobs[0] not in before
    assert before or shards == 1
    getattr(canceller, end)()
    after = []
    while claimed := claim(db, batch):
        after += ids(claimed)
    assert sorted(before + after) == (jobs[1:] if end == "commit" else jobs)
    if shards == 1:
        assert before + after == sorted(before + after)


@pytest.mark.parametrize("function", CHANGES)
def test_nothing_is_overtaken_during_a_change(connect: Connect, db: Connection, function: str) -> None:
    create(db, shards=1)
    jobs = enqueue(db, 3)
    (last,) = enqueue(db, priority=9)
    changer = connect(autocommit=False)
    call(changer, function, *CHANGES[function])
    for batch in (1, 10):
        assert claim(db, batch) == []
    changer.rollback()
    assert ids(claim(db, 10)) == [*jobs, last]


def test_a_claim_that_began_before_the_cancel_ended_does_not_get_the_job(connect: Connect, db: Connection) -> None:
    """It has its snapshot and waits for the lane."""
    create(db, shards=4)
    (id,) = enqueue(db)
    for batch in (1, 5):
        canceller, claimer = connect(autocommit=False), connect()
        assert call(canceller, "cancel", id) == "cancelled"
        claimed = in_background(claim, claimer, batch)
        until_blocked(db, claimer)
        canceller.commit()
        assert claimed.result() == []
        (id,) = enqueue(db)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_cancel_waits_for_a_promotion(connect: Connect, db: Connection, clock: Clock, end: str) -> None:
    create(db)
    (id,) = enqueue(db, delay="1 hour")
    clock.advance(timedelta(hours=2))
    promoter, canceller = connect(autocommit=False), connect()
    assert call(promoter, "promote") == 1
    answer = in_background(call, canceller, "cancel", id)
    until_blocked(db, canceller)
    getattr(promoter, end)()
    assert answer.result() == "cancelled"
    call(db, "promote")
    assert claim(db, 10) == []
    agree(db)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_promotion_goes_by_what_is_being_cancelled(connect: Connect, db: Connection, clock: Clock, end: str) -> None:
    create(db)
    gone, kept = enqueue(db, 2, delay="1 hour")
    clock.advance(timedelta(hours=2))
    canceller = connect(autocommit=False)
    assert call(canceller, "cancel", gone) == "cancelled"
    assert call(db, "promote") == 1
    assert ids(claim(db, 10)) == [kept]
    getattr(canceller, end)()
    clock.advance(timedelta(minutes=2))
    call(db, "promote")
    assert ids(claim(db, 10)) == ([] if end == "commit" else [gone])


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("function", CHANGES)
def test_the_second_of_two_cancels_waits(connect: Connect, db: Connection, function: str, end: str) -> None:
    create(db)
    assert enqueue(db) == [1]
    first, second = connect(autocommit=False), connect()
    call(first, function, *CHANGES[function])
    answer = in_background(call, second, "cancel", 1)
    until_blocked(db, second)
    getattr(first, end)()
    assert answer.result() == "cancelled"
    assert stats(db) == {}
    assert claim(db, 10) == []
    agree(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == 1


# A worker cancels what it has -----------------------------------------------------------------------------------------


@across
@pytest.mark.parametrize("count", [1, 10])
@pytest.mark.parametrize("asked", [False, True])
def test_a_worker_cancels_its_job(db: Connection, clock: Clock, passage: Any, count: int, asked: bool) -> None:
    create(db, lease="1 hour")
    enqueue(db, count)
    jobs = claim(db, count)
    passage(db, clock)
    if asked:
        assert call(db, "cancel", jobs[0].id) == "requested"
    call(db, "cancel_claimed", jobs[0].id, jobs[0].lease, "withdrawn")
    assert (status(db, jobs[0].id).state, status(db, jobs[0].id).error) == ("cancelled", "withdrawn")
    assert column(db, "TABLE pgq.cancel_request") == []
    for function in ("cancel_claimed", "ack", "reject"):
        with refused("PQ001"):
            call(db, function, jobs[0].id, jobs[0].lease)
    assert sorted(ack(db, jobs[1:])) == sorted(ids(jobs[1:]))
    assert one(db, "SELECT count(*) FROM pgq.dead") == 0
    assert endings(db, jobs[0]) == ["cancelled"]
    agree(db)


def test_who_lost_the_lease_cancels_nothing(db: Connection, clock: Clock) -> None:
    create(db, lease="1 minute")
    enqueue(db)
    job = claim_one(db)
    clock.advance(120)
    call(db, "reap")
    with refused("PQ001"):
        call(db, "cancel_claimed", job.id, job.lease, "withdrawn")
    assert column(db, "TABLE pgq.cancel_request") == []
    assert claim_one(db).attempt == 2


def test_a_job_cancelled_by_its_worker_tells_who_waits_and_gives_its_key_back(db: Connection) -> None:
    create(db)
    ((first, _),) = db.execute("SELECT * FROM pgq.enqueue_unique('q', unique_key => 'k')").fetchall()
    second = call(db, "enqueue_after", [first], "q", on_dead="run")
    job = claim_one(db)
    call(db, "cancel_claimed", job.id, job.lease)
    ((third, inserted),) = db.execute("SELECT * FROM pgq.enqueue_unique('q', unique_key => 'k')").fetchall()
    assert inserted
    call(db, "maintain")
    assert sorted(ids(claim(db, 10))) == [second, third]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_sessions_end_a_job_that_one_of_them_cancels(connect: Connect, db: Connection, end: str) -> None:
    create(db)
    enqueue(db)
    job = claim_one(db)
    first, second = connect(autocommit=False), connect()
    call(first, "cancel_claimed", job.id, job.lease)
    answer = in_background(lambda: ack(second, [job]))
    until_blocked(db, second)
    getattr(first, end)()
    assert answer.result() == ([] if end == "commit" else [job.id])
    assert status(db, job.id).state == ("cancelled" if end == "commit" else "done")
    assert column(db, "TABLE pgq.cancel_request") == []


@pytest.mark.direct("terminates a session")
def test_a_session_that_is_killed_has_cancelled_nothing(connect: Connect, db: Connection) -> None:
    create(db)
    enqueue(db)
    job = claim_one(db)
    other = connect(autocommit=False)
    call(other, "cancel_claimed", job.id, job.lease)
    call_terminate(db, other)
    assert status(db, job.id).state == "running"
    assert ack(db, [job]) == [job.id]


RETURNS: dict[str, Callable[[Connection, Any], Any]] = {
    "reject": lambda db, job: call(db, "reject", job.id, job.lease, "no", retry_in="0"),
    "release": lambda db, job: rows(db, "release", [job.id], [job.lease]),
    "snooze": lambda db, job: call(db, "snooze", job.id, job.lease, "0"),
    "reap": lambda db, job: call(db, "reap"),
}


@pytest.mark.parametrize("first", ["cancel", "return"])
@pytest.mark.parametrize("way", RETURNS)
def test_what_comes_back_while_it_is_asked_to_stop_is_cancelled_soon(
    connect: Connect, db: Connection, clock: Clock, way: str, first: str
) -> None:
    create(db)
    enqueue(db)
    job = claim_one(db)
    clock.advance(timedelta(hours=2))
    other = connect(autocommit=False)
    if first == "cancel":
        assert call(other, "cancel", job.id) == "requested"
        RETURNS[way](db, job)
    else:
        RETURNS[way](other, job)
        assert call(db, "cancel", job.id) == "requested"
    other.commit()
    assert status(db, job.id).state in ("ready", "scheduled", "retrying")
    call(db, "maintain")
    assert status(db, job.id).state == "cancelled"
    assert claim(db, 10) == []
    assert column(db, "TABLE pgq.cancel_request") == []
    agree(db)


def test_what_came_back_and_runs_again_is_still_asked_to_stop(connect: Connect, db: Connection) -> None:
    create(db)
    enqueue(db)
    job = claim_one(db)
    other = connect(autocommit=False)
    assert call(other, "cancel", job.id) == "requested"
    rows(db, "release", [job.id], [job.lease])
    again = claim_one(db)
    other.commit()
    assert rows(db, "cancel_requested", [again.lease]) == [job.id]
    call(db, "maintain")
    assert rows(db, "cancel_requested", [again.lease]) == [job.id]
    assert call(db, "reject", job.id, again.lease) == "cancelled"


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("first", ["cancel", "ack"])
def test_an_ack_at_the_same_time_wins(connect: Connect, db: Connection, first: str, end: str) -> None:
    create(db)
    enqueue(db)
    job = claim_one(db)
    other = connect(autocommit=False)
    if first == "cancel":
        assert call(other, "cancel", job.id) == "requested"
        call(db, "ack", job.id, job.lease)
    else:
        call(other, "ack", job.id, job.lease)
        assert call(db, "cancel", job.id) == "requested"
    getattr(other, end)()
    done = first == "cancel" or end == "commit"
    assert status(db, job.id).state == ("done" if done else "running")
    call(db, "maintain")
    assert bool(column(db, "TABLE pgq.cancel_request")) == (not done)


def test_maintenance_does_not_wait_for_who_holds_the_job(connect: Connect, db: Connection) -> None:
    create(db, shards=1)
    enqueue(db)
    job = claim_one(db)
    other = connect(autocommit=False)
    assert call(other, "cancel", job.id) == "requested"
    rows(db, "release", [job.id], [job.lease])
    other.commit()
    assert ids(claim(other)) == [job.id]
    call(db, "maintain")
    other.rollback()
    db.execute("DELETE FROM pgq.mark WHERE kind = 'cancel'")
    call(db, "maintain")
    assert status(db, job.id).state == "cancelled"


def test_cancel_gives_up_on_a_claim_that_does_not_end(connect: Connect, db: Connection) -> None:
    create(db, shards=1)
    (id,) = enqueue(db)
    claimer = connect(autocommit=False)
    claim(claimer)
    db.execute("ALTER FUNCTION pgq.cancel(bigint) SET lock_timeout = '50ms'")
    with refused("55P03"):
        call(db, "cancel", id)


# The ring -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("function", CHANGES)
@pytest.mark.parametrize("state", ["open", "sealed", "closed"])
def test_a_segment_is_counted_before_or_after_a_change_and_not_during_it(
    connect: Connect, db: Connection, function: str, end: str, state: str
) -> None:
    create(db)
    assert len(enqueue(db, 30)) == 30
    if state != "open":
        rotate(db, 1 if state == "sealed" else 2)
    other = connect(autocommit=False)
    call(other, function, *CHANGES[function])
    rotate(db, 3)
    getattr(other, end)()
    left = {"cancel_many": 0, "set_priority": 30}.get(function, 29) if end == "commit" else 30
    claimed = claim(db, 100)
    assert len(claimed) == left
    assert len(ack(db, claimed)) == left
    agree(db)
    assert column(db, "TABLE pgq.segment_lane") == []


@pytest.mark.parametrize("function", CHANGES)
def test_a_change_waits_for_the_ring_to_stop(connect: Connect, db: Connection, function: str) -> None:
    create(db)
    enqueue(db, 3)
    rotate(db)
    ring, other = connect(autocommit=False), connect()
    rotate(ring)  # counts
    answer = in_background(call, other, function, *CHANGES[function])
    until_blocked(db, other)
    ring.commit()
    answer.result()
    agree(db)
    assert column(db, "TABLE pgq.segment_lane") == []


def test_what_is_carried_forward_leaves_the_cancelled_behind(db: Connection, clock: Clock) -> None:
    create(db, shards=1)
    jobs = enqueue(db, 10)
    sealed(db)
    call(db, "cancel", jobs[3])
    clock.advance(timedelta(minutes=2))
    rotate(db, 3)
    assert one(db, "SELECT count(*) FROM pgq.job WHERE lane & 255 = 0") == 9
    call(db, "cancel", jobs[4])
    assert ids(claim(db, 10)) == [job for job in jobs if job not in (jobs[3], jobs[4])]
    assert {status(db, job).state for job in jobs[3:5]} == {"cancelled"}


def test_a_purge_and_a_drop_after_a_cancel(db: Connection) -> None:
    create(db)
    jobs = enqueue(db, 10)
    call(db, "cancel", jobs[0])
    assert call(db, "purge", "q") == 9
    call(db, "drop_queue", "q")
    assert call(db, "cancel", jobs[0]) == "not found"
    retire_all(db)


# Many -----------------------------------------------------------------------------------------------------------------


def test_cancel_many_by_task(db: Connection, clock: Clock) -> None:
    create(db, lease="1 hour")
    create(db, "other")
    mails = enqueue(db, 5, task="mail") + enqueue(db, 5, task="mail", priority=7)
    later = enqueue(db, 5, task="mail", delay="1 hour")
    sealed(db)
    bills = enqueue(db, 5, task="bill") + enqueue(db, 2)
    elsewhere = enqueue(db, 3, queue="other", task="mail")
    mails += enqueue(db, 5, task="mail")
    running = claim(db, 2)
    assert call(db, "cancel_many", "q", "mail") == 18
    assert stats(db) == {"ready": 7, "running": 2}
    assert stats(db, "other") == {"ready": 3}
    assert {status(db, job).state for job in [*mails, *later] if job not in ids(running)} == {"cancelled"}
    assert sorted(ids(claim(db, 100))) == bills
    assert sorted(ids(claim(db, 100, queue="other"))) == elsewhere
    assert rows(db, "cancel_requested", [job.lease for job in running]) == []
    assert call(db, "cancel_many", "q", "mail", True) == 2
    assert sorted(rows(db, "cancel_requested", [job.lease for job in running])) == sorted(ids(running))
    assert call(db, "cancel_many", "q", running=True) == 7
    assert call(db, "cancel_many", "q", running=True) == 0
    agree(db)


@pytest.mark.parametrize("task", [None, "mail"])
def test_cancel_many_of_all_that_waits_leaves_nothing_to_walk_over(
    connect: Connect, db: Connection, task: str | None
) -> None:
    create(db)
    jobs = enqueue(db, 50, task="mail")
    late = connect(autocommit=False)
    enqueue(late, 5, task="mail")
    enqueue(db, 50, task="mail")
    assert call(db, "cancel_many", "q", task) == 100
    assert one(db, "SELECT count(*) FROM pgq.job WHERE lane & 128 = 128") == 0
    assert {status(db, job).state for job in jobs} == {"cancelled"}
    assert stats(db) == {}
    own = enqueue(late, 5, task="mail")
    assert call(late, "cancel_many", "q", task) == 10
    late.commit()
    assert status(db, own[0]).state == "cancelled"
    assert claim(db, 100) == []
    agree(db)


def test_cancel_many_asks_stragglers(db: Connection, clock: Clock) -> None:
    create(db, lease="1 hour")
    enqueue(db, 3)
    jobs = claim(db, 3)
    PASSAGES["retired"](db, clock)
    assert call(db, "cancel_many", "q", running=True) == 3
    assert sorted(rows(db, "cancel_requested", [job.lease for job in jobs])) == sorted(ids(jobs))


def test_cancel_many_of_thirty_thousand_among_as_many(db: Connection) -> None:
    create(db)
    for _ in range(3):
        for task in ("a", "b"):
            enqueue(db, 10_000, task=task)
    claimed = claim(db, 100)
    assert call(db, "cancel_many", "q", "a") == 30_000 - sum(job.task == "a" for job in claimed)
    left = 30_000 - sum(job.task == "b" for job in claimed)
    assert stats(db) == {"ready": left, "running": 100}
    while claimed := claim(db, 10_000):
        assert {job.task for job in claimed} == {"b"}
        left -= len(claimed)
    assert left == 0


# Everything at once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_nothing_cancelled_runs_and_nothing_else_is_lost(connect: Connect, db: Connection, shards: int) -> None:
    create(db, shards=shards, lease="1 hour", backoff="0", max_attempts=1000)
    stop, enqueued = threading.Event(), threading.Event()
    lock = threading.Lock()
    known: list[int] = []
    answers: dict[int, str] = {}
    done: set[int] = set()
    attempts: list[tuple[int, bool]] = []

    def produce(session: Connection) -> None:
        chance = random.Random(1)
        end = time.monotonic() + 60
        for turn in count():
            made = enqueue(session, chance.randrange(1, 20), delay=chance.choice([None, None, "0.05 s"]))
            with lock:
                known.extend(made)
                if time.monotonic() > end or (turn >= 20 and "cancelled" in answers.values()):  # some must come in time
                    break
        enqueued.set()

    def cancel(session: Connection, seed: int) -> None:
        chance = random.Random(seed)
        while not enqueued.is_set():
            with lock:
                id = chance.choice(known) if known else 0
            match chance.randrange(4):
                case 0:
                    call(session, "set_priority", id, chance.randrange(3))
                case 1:
                    call(session, "reschedule", id, "2000-01-01")
                case _:
                    answer = call(session, "cancel", id)
                    with lock:
                        answers[id] = answer if answers.get(id) != "cancelled" else "cancelled"

    def consume(session: Connection, seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            with lock:
                before = {id for id, answer in answers.items() if answer == "cancelled"}
            for job in claim(session, chance.choice([1, 3])):
                with lock:
                    attempts.append((job.id, job.id in before))
                match chance.randrange(4):
                    case 0:
                        rows(session, "release", [job.id], [job.lease])
                    case 1:
                        call(session, "reject", job.id, job.lease, retry_in="0")
                    case 2:
                        call(session, "snooze", job.id, job.lease, "0")
                    case _:
                        call(session, "ack", job.id, job.lease)
                        with lock:
                            done.add(job.id)

    def maintain(session: Connection) -> None:
        while not stop.is_set():
            session.execute("DELETE FROM pgq.mark WHERE kind IN ('promote-all', 'cancel')")  # so that nothing waits
            call(session, "maintain")
            call(session, "rotate", seal=True)

    work = [in_background(produce, connect()), *(in_background(cancel, connect(), seed) for seed in (2, 3))]
    rest = [in_background(maintain, connect()), *(in_background(consume, connect(), seed) for seed in (4, 5))]
    for part in work:
        part.result(60)
    eventually(lambda: stats(db) == {}, "the end", 120)
    stop.set()
    for part in rest:
        part.result(60)
    cancelled = {id for id, answer in answers.items() if answer == "cancelled"}
    assert cancelled
    assert [id for id, too_late in attempts if too_late] == []
    assert not cancelled & done
    ended = {id: status(db, id).state for id in known}
    assert {id for id, state in ended.items() if state == "done"} == done
    assert {id for id, state in ended.items() if state != "done"} >= cancelled
    assert {id for id, state in ended.items() if state == "cancelled"} <= set(answers)
    assert set(ended.values()) <= {"done", "cancelled"}
    agree(db)
    assert {id: status(db, id).state for id in known} == ended


# Another time, another priority ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["open", "sealed", "scheduled", "retrying"])
def test_reschedule(db: Connection, clock: Clock, state: str) -> None:
    create(db)
    if state == "retrying":
        enqueue(db)
        job = claim_one(db)
        call(db, "reject", job.id, job.lease, "no", retry_in="1 minute")
        id = job.id
    else:
        (id,) = enqueue(db, task="t", headers={"h": 1}, delay="1 minute" if state == "scheduled" else None)
    if state == "sealed":
        sealed(db)
    before = status(db, id)
    when = clock.now() + timedelta(hours=1)
    assert call(db, "reschedule", id, when)
    after = status(db, id)
    assert (after.run_at, after.attempt, after.enqueued_at) == (when, before.attempt, before.enqueued_at)
    assert stats(db) == {"retrying" if state == "retrying" else "scheduled": 1}
    clock.advance(timedelta(minutes=30))
    call(db, "promote")
    assert claim(db, 10) == []
    assert call(db, "reschedule", id, clock.now() + timedelta(minutes=10))
    clock.advance(timedelta(minutes=11))
    call(db, "promote")
    again = claim_one(db)
    assert (again.id, again.attempt, again.enqueued_at) == (id, before.attempt, before.enqueued_at)
    assert (again.task, again.headers) == ((None, None) if state == "retrying" else ("t", {"h": 1}))
    call(db, "ack", id, again.lease)
    agree(db)
    assert status(db, id).state == "done"


def test_reschedule_again_and_again_in_one_segment(db: Connection, clock: Clock) -> None:
    create(db, shards=1)
    jobs = enqueue(db, 3)
    for _ in range(4):
        assert call(db, "reschedule", jobs[0], clock.now() + timedelta(minutes=1))
        assert call(db, "set_priority", jobs[0], 5)
        clock.advance(timedelta(minutes=2))
        call(db, "promote")
        assert call(db, "set_priority", jobs[0], 0)
    claimed = claim(db, 10)
    assert ids(claimed) == [jobs[1], jobs[2], jobs[0]]
    ack(db, claimed)
    agree(db)
    assert {status(db, job).state for job in jobs} == {"done"}
    assert one(db, "SELECT count(*) FROM pgq.archive") == 3


def test_reschedule_into_the_past(db: Connection, clock: Clock) -> None:
    create(db)
    ready, later = enqueue(db)[0], enqueue(db, delay="1 hour")[0]
    call(db, "promote")
    for id in (ready, later):
        assert call(db, "reschedule", id, "2000-01-01")
    call(db, "promote")
    assert sorted(ids(claim(db, 10))) == [ready, later]


@pytest.mark.parametrize("function", ["reschedule", "set_priority"])
def test_what_runs_or_has_ended_is_left_alone(db: Connection, function: str) -> None:
    create(db, max_attempts=1)
    jobs = enqueue(db, 4)
    by_id = {job.id: job for job in claim(db, 4)}
    call(db, "ack", jobs[0], by_id[jobs[0]].lease)
    call(db, "reject", jobs[1], by_id[jobs[1]].lease)
    rows(db, "release", [jobs[2]], [by_id[jobs[2]].lease])
    call(db, "cancel", jobs[2])
    before = fingerprint(db)
    for id in [*jobs, 10**9]:
        assert call(db, function, id, *CHANGES[function][1:]) is False
    assert fingerprint(db) == before


def test_set_priority(db: Connection, clock: Clock) -> None:
    create(db, shards=1)
    first, second, third = enqueue(db, 3)
    (later,) = enqueue(db, delay="1 minute", priority=10)
    assert call(db, "set_priority", third, -5)
    assert call(db, "set_priority", first, 5)
    assert call(db, "set_priority", second, 0)  # stays where it is
    assert call(db, "set_priority", later, -10)
    assert stats(db) == {"ready": 3, "scheduled": 1}
    clock.advance(61)
    call(db, "promote")
    claimed = claim(db, 10)
    assert [(job.id, job.priority) for job in claimed] == [(later, -10), (third, -5), (second, 0), (first, 5)]
    ack(db, claimed)
    agree(db)


def test_set_priority_of_the_same_transaction_s_job(connect: Connect, db: Connection) -> None:
    create(db)
    other = connect(autocommit=False)
    (id,) = enqueue(other)
    for priority in (1, 0, 1, -1):
        assert call(other, "set_priority", id, priority)
    other.commit()
    (job,) = claim(db, 10)
    assert (job.id, job.priority) == (id, -1)
    ack(db, [job])
    agree(db)


def test_a_move_while_the_queue_is_dropped_finds_it_gone(connect: Connect, db: Connection) -> None:
    create(db)
    (id,) = enqueue(db, delay="1 hour")
    dropper, other = connect(autocommit=False), connect()
    call(dropper, "drop_queue", "q", True)
    answer = in_background(call, other, "set_priority", id, 5)
    until_blocked(db, other)
    dropper.commit()
    with refused("PQ002"):
        answer.result()
    assert call(db, "set_priority", id, 5) is False


def test_workers_are_not_granted_to_cancel(db: Connection, connect: Connect) -> None:
    create(db)
    (id,) = enqueue(db)
    db.execute("CREATE ROLE cancel_consumer LOGIN; SELECT pgq.grant_consumer('cancel_consumer')")
    db.execute("CREATE ROLE cancel_admin LOGIN; SELECT pgq.grant_admin('cancel_admin')")
    try:
        consumer, admin = connect(user="cancel_consumer"), connect(user="cancel_admin")
        for function, arguments in CHANGES.items():
            with refused("42501"):
                call(consumer, function, *arguments)
        job = claim_one(consumer)
        assert call(admin, "cancel", id) == "requested"
        assert rows(consumer, "cancel_requested", [job.lease]) == [id]
        assert call(consumer, "reject", job.id, job.lease) == "cancelled"
        (id,) = enqueue(admin)
        assert call(admin, "reschedule", id, "2100-01-01")
        assert call(admin, "set_priority", id, 1)
        assert call(admin, "cancel_many", "q") == 1
        consumer.close()
        admin.close()
    finally:
        db.execute("DROP OWNED BY cancel_consumer, cancel_admin; DROP ROLE cancel_consumer, cancel_admin")


# What was taken back before -------------------------------------------------------------------------------------------


def put_off(db: Connection, clock: Clock, job: int) -> None:
    call(db, "reschedule", job, clock.now() + timedelta(minutes=1))
    clock.advance(61)
    call(db, "promote")


def move_twice(db: Connection, clock: Clock, job: int) -> None:
    call(db, "set_priority", job, 7)
    call(db, "set_priority", job, 0)


@pytest.mark.parametrize("before", [put_off, move_twice])
@pytest.mark.parametrize("times", [1, 3])
def test_a_job_that_was_moved_and_then_cancelled_is_known_as_cancelled(
    db: Connection, clock: Clock, before: Callable[[Connection, Clock, int], None], times: int
) -> None:
    create(db)
    (job,) = enqueue(db)
    for _ in range(times):
        before(db, clock, job)
        assert status(db, job).state == "ready"
    for _ in range(2):
        assert call(db, "cancel", job) == "cancelled"
        assert status(db, job).state == "cancelled"
    agree(db)
    assert status(db, job).state == "cancelled"


def test_a_cancelled_job_is_the_same_in_the_archive(db: Connection) -> None:
    create(db)
    (job,) = enqueue(db)
    call(db, "cancel", job)
    before, tried = status(db, job), db.execute("SELECT * FROM pgq.attempts(%s)", [job]).fetchall()
    retire_all(db)
    assert status(db, job) == before
    assert db.execute("SELECT * FROM pgq.attempts(%s)", [job]).fetchall() == tried


def test_two_sessions_maintain_while_a_job_is_asked_to_stop(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db)
    enqueue(db)
    job = claim_one(db)
    call(db, "cancel", job.id)
    call(db, "maintain")
    clock.advance(2)
    other = connect(autocommit=False)
    call(other, "maintain")
    call(db, "maintain")
    other.commit()
    ack(db, [job])
    clock.advance(2)
    call(db, "maintain")
    assert column(db, "TABLE pgq.cancel_request") == []


@pytest.mark.direct("looks at a session from another one")
def test_cancel_many_of_a_task_leaves_a_job_that_is_committed_meanwhile(db: Connection, connect: Connect) -> None:
    create(db, shards=1)
    create(db, "other")
    enqueue(db, task="a")
    canceller, producer, ring, blocker = (connect(autocommit=n == 0) for n in range(4))
    (job,) = enqueue(producer, task="b")
    rotate(db)
    enqueue(db, queue="other")
    ring.execute("SELECT pg_advisory_xact_lock(pgq._task_key(1))")
    count = in_background(call, canceller, "cancel_many", "q", task="a")
    until_blocked(db, canceller)  # it has looked which jobs are of the task
    rotate(ring)
    slot = one(db, "SELECT pg_sequence_last_value('pgq.epoch') & 15")
    blocker.execute(f"LOCK TABLE pgq.job_{slot} IN SHARE MODE")
    ring.commit()
    query = "SELECT wait_event = 'relation' FROM pg_stat_activity WHERE pid = %s"
    eventually(lambda: one(db, query, canceller.info.backend_pid))  # and that there are no others
    producer.commit()
    blocker.commit()
    assert count.result(20) == 1
    assert ids(claim(db, 10)) == [job]
