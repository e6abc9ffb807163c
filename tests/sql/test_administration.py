"""Emptying a queue state by state, and what keeps it from being dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
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
    eventually,
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

STATES = {"ready": 7, "scheduled": 2, "retrying": 1, "dead": 3, "archived": 2}


@pytest.fixture
def full(db: Connection, clock: Clock) -> Connection:
    """Two queues with jobs in every state, and something in the archive."""
    for queue in ("q", "other"):
        create(db, queue, lease="1 day", backoff="1 hour", max_attempts=2)
        enqueue(db, 2, queue)
        ack(db, claim(db, 2, queue))
    retire_all(db)
    for queue in ("q", "other"):
        enqueue(db, 6, queue)
        jobs = claim(db, 6, queue)
        for job in jobs[:3]:
            call(db, "reject", job.id, job.lease, retry=False)
        call(db, "reject", jobs[3].id, jobs[3].lease)
        rows(db, "release", [jobs[4].id], [jobs[4].lease])
        enqueue(db, 4, queue)
        rotate(db)
        enqueue(db, 2, queue, priority=-9)
        enqueue(db, 2, queue, delay="1 day")
    return db


def held(db: Connection, queue: str = "q") -> dict[str, int]:
    archived = one(db, "SELECT count(*) FROM pgq.archive WHERE queue = %s", queue)
    return stats(db, queue) | ({"archived": archived} if archived else {})


@pytest.mark.parametrize("state", STATES)
def test_purging_one_state_leaves_the_others(full: Connection, state: str) -> None:
    before = {**STATES, "running": 1}
    assert held(full) == held(full, "other") == before
    assert call(full, "purge_state", "q", state) == before.pop(state)
    assert held(full) == before
    assert call(full, "purge_state", "q", state) == 0
    assert held(full, "other") == {**STATES, "running": 1}


def test_state_by_state_a_queue_becomes_empty(full: Connection) -> None:
    assert {state: call(full, "purge_state", "q", state) for state in STATES} == STATES
    assert held(full) == {"running": 1}
    assert claim(full, 100) == []
    assert len(claim(full, 100, "other")) == 7


def test_what_is_purged_was_cancelled(full: Connection) -> None:
    ready = claim(full, 1)
    rows(full, "release", ids(ready), leases(ready))
    call(full, "purge_state", "q", "ready")
    assert status(full, ready[0].id).state == "cancelled"


def test_purge_does_as_before(full: Connection) -> None:
    assert call(full, "purge", "q") == 10
    assert one(full, "SELECT pgq.purge(queue => 'other')") == 10
    assert held(full) == held(full, "other") == {"running": 1, "dead": 3, "archived": 2}


@pytest.mark.parametrize(
    ("sqlstate", "arguments"),
    [
        ("22004", "NULL, 'ready'"),
        ("22004", "'q', NULL"),
        ("PQ002", "'nowhere', 'ready'"),
        *[("22023", f"'q', '{state}'") for state in ["", "running", "done", "Ready", "ready,dead"]],
        ("42883", "'q', '{ready}'::text[]"),
    ],
)
def test_bad_arguments_are_refused(db: Connection, sqlstate: str, arguments: str) -> None:
    create(db)
    made = enqueue(db)
    with pytest.raises(psycopg.Error) as caught:
        db.execute(f"SELECT pgq.purge_state({arguments})".encode())
    assert (caught.value.sqlstate, bool(caught.value.diag.message_hint)) == (sqlstate, True)
    assert ids(claim(db)) == made


@pytest.mark.parametrize("state", STATES)
def test_purging_needs_read_committed(full: Connection, connect: Connect, state: str) -> None:
    session = connect(autocommit=False)
    session.isolation_level = IsolationLevel.REPEATABLE_READ
    with refused("PQ003"):
        call(session, "purge_state", "q", state)
    session.rollback()
    assert held(full) == {**STATES, "running": 1}


@pytest.mark.direct("terminates a session")
@pytest.mark.parametrize("state", STATES)
def test_a_purge_that_is_undone_has_purged_nothing(full: Connection, connect: Connect, state: str) -> None:
    session = connect(autocommit=False)
    session.execute("SAVEPOINT s")
    assert call(session, "purge_state", "q", state) == STATES[state]
    session.execute("ROLLBACK TO SAVEPOINT s")
    session.commit()
    assert held(full) == {**STATES, "running": 1}
    assert call(session, "purge_state", "q", state) == STATES[state]
    full.execute("SELECT pg_terminate_backend(%s, 20000)", [session.info.backend_pid])
    session.close()
    eventually(lambda: held(full) == {**STATES, "running": 1})
    assert len(claim(full, 100)) == 7


@pytest.mark.parametrize(
    ("state", "move", "left"),
    [
        ("scheduled", lambda db: call(db, "promote"), {"ready": 1}),
        ("dead", lambda db: call(db, "redrive", "q"), {"ready": 1}),
        ("ready", lambda db: len(claim(db)), {"running": 1}),
    ],
    ids=["promote", "redrive", "claim"],
)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_job_that_moves_meanwhile_is_purged_or_moved(
    db: Connection,
    connect: Connect,
    clock: Clock,
    state: str,
    move: Callable[[Connection], int],
    left: dict[str, int],
    end: str,
) -> None:
    create(db, shards=1)
    enqueue(db, delay="1 hour" if state == "scheduled" else None)
    if state == "dead":
        job = claim_one(db)
        call(db, "reject", job.id, job.lease, retry=False)
    clock.advance(7200)
    mover, purger = connect(autocommit=False), connect()
    assert move(mover) == 1
    racer = in_background(call, purger, "purge_state", "q", state)
    until_blocked(db, purger)
    getattr(mover, end)()
    assert racer.result() == (0 if end == "commit" else 1)
    assert stats(db) == (left if end == "commit" else {})


def test_a_purge_gives_up_on_who_does_not_end(db: Connection, connect: Connect) -> None:
    create(db)
    enqueue(db, delay="200 milliseconds")
    eventually(lambda: one(db, "SELECT run_at < pgq._now() FROM pgq.scheduled"))
    promoter = connect(autocommit=False)
    assert call(promoter, "promote") == 1
    for function in ("purge_state", "_clear_queue"):
        types = "(text, text)" if function == "purge_state" else "(pgq.queue)"
        db.execute(f"ALTER FUNCTION pgq.{function}{types} SET lock_timeout = '100ms'".encode())
    with refused("55P03"):
        call(db, "purge_state", "q", "scheduled")
    with refused("55P03"):
        call(db, "purge", "q")
    promoter.commit()
    assert stats(db) == {"ready": 1}


def test_maintenance_goes_on_while_the_archive_is_purged(full: Connection, connect: Connect, clock: Clock) -> None:
    session = connect(autocommit=False)
    call(session, "purge_state", "q", "archived")
    full.execute("SET lock_timeout = '2s'")
    ack(full, claim(full, 100))
    for _ in range(6):
        rotate(full)
        clock.advance(31)
    session.commit()
    assert one(full, "SELECT count(*) FROM pgq.archive WHERE queue = 'q'") > 0


# Drop -----------------------------------------------------------------------------------------------------------------


def _older(db: Connection, clock: Clock) -> None:
    enqueue(db)
    rotate(db, 2)


def _released(db: Connection, clock: Clock) -> None:
    enqueue(db)
    job = claim_one(db)
    rows(db, "release", [job.id], [job.lease])


def _carried(db: Connection, clock: Clock) -> None:
    enqueue(db)
    for _ in range(5):
        rotate(db)
        clock.advance(61)
    assert one(db, "SELECT count(*) FROM pgq.outcome WHERE kind = 'carried'") > 0


def _other_priority(db: Connection, clock: Clock) -> None:
    enqueue(db, priority=100)


def _beyond_the_shards(db: Connection, clock: Clock) -> None:
    call(db, "alter_queue", "q", shards=64)
    enqueue(db, 64)
    call(db, "alter_queue", "q", shards=1)
    ack(db, claim(db, 63))


def _overdue(db: Connection, clock: Clock) -> None:
    enqueue(db, delay="1 second")
    clock.advance(5)


def _at_a_rate(db: Connection, clock: Clock) -> None:
    enqueue(db)
    job = claim_one(db)
    call(db, "reject", job.id, job.lease, retry=False)
    call(db, "redrive_where", "q", per_second=0.001)


def _one_of_a_batch(db: Connection, clock: Clock) -> None:
    enqueue(db, 10)
    ack(db, claim(db, 10)[1:])


def _paused(db: Connection, clock: Clock) -> None:
    enqueue(db)
    call(db, "pause", "q")


@pytest.mark.parametrize(
    "hide",
    [
        _older,
        _released,
        _carried,
        _other_priority,
        _beyond_the_shards,
        _overdue,
        _at_a_rate,
        _one_of_a_batch,
        _paused,
    ],
)
def test_a_queue_with_a_single_job_anywhere_is_not_dropped(
    db: Connection, clock: Clock, hide: Callable[[Connection, Clock], None]
) -> None:
    create(db, lease="1 day")
    hide(db, clock)
    with refused("PQ005") as caught:
        call(db, "drop_queue", "q")
    assert "1 jobs" in (caught.value.diag.message_detail or "")
    call(db, "drop_queue", "q", force=True)
    retire_all(db)
    assert one(db, "SELECT (SELECT count(*) FROM pgq.scheduled) + (SELECT count(*) FROM pgq.dead)") == 0


@pytest.mark.parametrize("state", ["done", "cancelled", "discarded", "expired and discarded"])
def test_a_queue_with_nothing_but_a_past_is_dropped(db: Connection, clock: Clock, state: str) -> None:
    create(db, max_attempts=1)
    enqueue(db, 2)
    if state == "cancelled":
        call(db, "purge", "q")
    else:
        jobs = claim(db, 2)
        if state == "done":
            ack(db, jobs)
        elif state == "discarded":
            for job in jobs:
                call(db, "reject", job.id, job.lease)
        else:
            clock.advance(3600)
            call(db, "reap")
        call(db, "discard_where", "q")
    call(db, "drop_queue", "q")
    retire_all(db)
    assert one(db, "SELECT count(*) FROM pgq.line") == 0


def test_a_straggler_that_has_ended_does_not_keep_its_queue(db: Connection, clock: Clock) -> None:
    create(db, lease="1 hour")
    enqueue(db)
    job = claim_one(db)
    rotate(db, 3)
    clock.advance(31)
    rotate(db)
    with refused("PQ005"):
        call(db, "drop_queue", "q")
    call(db, "ack", job.id, job.lease)
    assert one(db, "SELECT count(*) FROM pgq.straggler WHERE kind = 'done'") == 1
    call(db, "drop_queue", "q")


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_dropping_and_discarding_at_once(db: Connection, connect: Connect, end: str) -> None:
    create(db)
    enqueue(db, 20)
    jobs = claim(db, 20)
    for job in reversed(jobs):
        call(db, "reject", job.id, job.lease, retry=False)
    discarder, dropper = connect(autocommit=False), connect()
    assert call(discarder, "discard_where", "q", n=10) == 10
    racer = in_background(call, dropper, "drop_queue", "q", force=True)
    until_blocked(db, dropper)
    getattr(discarder, end)()
    racer.result()
    assert column(db, "SELECT name FROM pgq.queue") == column(db, "SELECT id FROM pgq.dead") == []


def test_the_archive_outlives_its_queue(db: Connection) -> None:
    create(db)
    (id,) = enqueue(db)
    ack(db, claim(db))
    retire_all(db)
    call(db, "drop_queue", "q")
    assert status(db, id).queue == "q"
    create(db)
    states: Any = call(db, "purge_state", "q", "archived")
    assert states == 1
    assert rows(db, "job_status", id) == []
