"""Waiting for the end of a job, in one short transaction after the other."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Clock
from tests.sql.support import (
    Connect,
    Connection,
    Job,
    ack,
    call,
    claim,
    claim_one,
    create,
    enqueue,
    eventually,
    heard,
    in_background,
    one,
    refused,
    retire_all,
    rows,
)


def wait(db: Connection, id: int | None, timeout: str | None = "1 minute") -> tuple[str, Any, str | None]:
    """Call pgq.wait; returns state, result and error."""
    (row,) = db.execute("CALL pgq.wait(%s, %s)", [id, timeout]).fetchall()
    state, result, error = row
    return state, result, error


@pytest.fixture(autouse=True)
def queue(db: Connection) -> None:
    create(db, backoff="0")


def test_it_returns_when_the_job_is_done(db: Connection, connect: Connect) -> None:
    (id,) = enqueue(db)
    waiting = in_background(wait, connect(), id)
    job = claim_one(db)
    assert not waiting.done()
    call(db, "ack", job.id, job.lease, {"a": 1})
    assert waiting.result(20) == ("done", {"a": 1}, None)
    assert wait(db, id) == ("done", {"a": 1}, None)
    assert db.execute("CALL pgq.wait(%s)", [id]).fetchall() == [("done", {"a": 1}, None)]


def test_an_ack_that_is_not_committed_is_not_the_end(db: Connection, connect: Connect) -> None:
    (id,) = enqueue(db)
    worker = connect(autocommit=False)
    job = claim_one(worker)
    worker.commit()
    call(worker, "ack", job.id, job.lease)
    assert wait(db, id, "50 ms") == ("running", None, None)
    worker.commit()
    assert wait(db, id) == ("done", None, None)


def test_a_retried_job_is_waited_for_until_its_end(db: Connection, connect: Connect) -> None:
    (id,) = enqueue(db, max_attempts=2)
    waiting = in_background(wait, connect(), id)
    for n in range(2):
        eventually(lambda: call(db, "maintain") and one(db, "SELECT state FROM pgq.job_status(%s)", id) == "ready")
        job = claim_one(db)
        call(db, "reject", job.id, job.lease, f"e{n}")
        if n == 0:
            assert wait(db, id, "20 ms") == ("retrying", None, "e0")
            assert not waiting.done()
    assert waiting.result(20) == ("dead", None, "e1")


def test_a_job_that_ended_long_ago_is_found_in_the_archive(db: Connection) -> None:
    (id,) = enqueue(db)
    ack(db, claim(db))
    retire_all(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == 1
    assert one(db, "SELECT count(*) FROM pgq.job") == 0
    assert wait(db, id) == ("done", None, None)


def test_a_cancelled_job_has_ended(db: Connection, connect: Connect) -> None:
    (id,) = enqueue(db)
    claim(db)
    waiting = in_background(wait, connect(), id)
    call(db, "drop_queue", "q", force=True)
    assert waiting.result(20)[0] in ("cancelled", "not found")


def test_an_unknown_job_is_not_waited_for(db: Connection, connect: Connect) -> None:
    assert wait(db, 12345) == ("not found", None, None)
    producer = connect(autocommit=False)
    (id,) = enqueue(producer)
    assert wait(db, id) == ("not found", None, None)
    producer.commit()
    assert wait(db, id, "0") == ("ready", None, None)


@pytest.mark.parametrize("timeout", ["0", "30 ms", "-1 second"])
def test_it_waits_no_longer_than_told(db: Connection, timeout: str) -> None:
    (id,) = enqueue(db)
    assert wait(db, id, timeout) == ("ready", None, None)
    (id,) = enqueue(db, delay="1 hour")
    assert wait(db, id, timeout) == ("scheduled", None, None)


def test_the_clock_is_that_of_pgq(db: Connection, connect: Connect, clock: Clock) -> None:
    (id,) = enqueue(db)
    waiting = in_background(wait, connect(), id, "1 hour")
    eventually(lambda: one(db, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
    clock.advance(3601)
    assert waiting.result(20) == ("ready", None, None)


def test_null_is_refused_and_no_timeout_is_for_ever(db: Connection) -> None:
    with refused("22004"):
        wait(db, None)
    (id,) = enqueue(db)
    ack(db, claim(db))
    assert wait(db, id, None) == ("done", None, None)


def test_inside_of_a_transaction_block_the_error_says_so(db: Connection) -> None:
    (id,) = enqueue(db)
    with refused("2D000") as caught, db.transaction():
        wait(db, id)
    assert "outside_of_a_transaction_block" in (caught.value.diag.context or "")


@pytest.mark.direct("settings of the session")
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_any_isolation_level_will_do(db: Connection, connect: Connect, level: str) -> None:
    (id,) = enqueue(db)
    waiter = connect()
    waiter.execute(f"SET default_transaction_isolation = '{level}'".encode())
    waiting = in_background(wait, waiter, id)
    ack(db, claim(db))
    assert waiting.result(20) == ("done", None, None)


@pytest.mark.direct("looks at one session from another")
def test_a_waiter_does_not_hold_up_vacuum(db: Connection, connect: Connect) -> None:
    (id,) = enqueue(db)
    waiter = connect()
    waiting = in_background(wait, waiter, id)
    begun: set[Any] = set()
    query = "SELECT xact_start, backend_xid::text FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"

    def look() -> bool:
        begun.update(db.execute(query, [waiter.info.backend_pid]))
        return len(begun) >= 5

    eventually(look)
    assert {xid for _, xid in begun} == {None}
    ack(db, claim(db))
    assert waiting.result(20)[0] == "done"


def test_admins_may_and_others_may_not(db: Connection, connect: Connect) -> None:
    (id,) = enqueue(db)
    ack(db, claim(db))
    for kind in ["producer", "consumer", "admin"]:
        role = f"{db.info.dbname}_{kind}"
        db.execute(f"CREATE ROLE {role} LOGIN; SELECT pgq.grant_{kind}('{role}')")
        try:
            session = connect(user=role)
            if kind == "admin":
                session.execute("SET search_path = pg_temp, pg_catalog")
                session.execute("CREATE TEMP TABLE job (id int)")
                assert wait(session, id) == ("done", None, None)
            else:
                with refused("42501"):
                    wait(session, id)
            session.close()
        finally:
            db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# Asleep until told ----------------------------------------------------------------------------------------------------


def vigil(connect: Connect, *jobs: int) -> Connection:
    """A session that waits for the end of these jobs."""
    listener = connect()
    listener.execute("LISTEN pgq_job")
    listener.execute("LISTEN pgq")
    for id in jobs:
        assert call(listener, "watch_job", id) is True
    return listener


def settle(db: Connection, how: str, job: Job) -> None:
    if how == "ack":
        call(db, "ack", job.id, job.lease)
    elif how == "ack_many":
        ack(db, [job])
    elif how == "dead":
        call(db, "reject", job.id, job.lease, retry=False)
    elif how == "cancelled":
        call(db, "cancel", job.id)
        call(db, "reject", job.id, job.lease)


@pytest.mark.direct("listens")
@pytest.mark.parametrize("how", ["ack", "ack_many", "dead", "cancelled"])
def test_who_ends_a_job_tells_those_who_wait(db: Connection, connect: Connect, how: str) -> None:
    first, second = enqueue(db, 2)
    listener = vigil(connect, first)
    jobs = sorted(claim(db, 2), key=lambda job: job.id)
    settle(db, how, jobs[1])
    assert heard(db, listener) == []
    settle(db, how, jobs[0])
    assert heard(db, listener) == [str(first)]
    assert second


@pytest.mark.direct("listens")
@pytest.mark.parametrize("how", ["retry", "release", "snooze"])
def test_the_end_of_an_attempt_is_not_told(db: Connection, connect: Connect, how: str) -> None:
    (id,) = enqueue(db)
    listener = vigil(connect, id)
    job = claim_one(db)
    if how == "retry":
        call(db, "reject", job.id, job.lease)
    elif how == "release":
        rows(db, "release", [job.id], [job.lease])
    else:
        call(db, "snooze", job.id, job.lease, "1 second")
    assert heard(db, listener) == []


@pytest.mark.direct("listens")
def test_a_waiting_job_that_is_cancelled_is_told(db: Connection, connect: Connect) -> None:
    for id in (*enqueue(db), *enqueue(db, delay="1 hour")):
        listener = vigil(connect, id)
        call(db, "cancel", id)
        assert heard(db, listener) == [str(id)]


@pytest.mark.direct("listens")
def test_each_who_waits_is_told_and_nobody_who_does_no_longer(db: Connection, connect: Connect) -> None:
    (id,) = enqueue(db)
    one_, two, three = (vigil(connect, id) for _ in range(3))
    call(three, "unwatch_job", id)
    two.close()
    ack(db, claim(db))
    assert heard(db, one_) == [str(id)]
    (id,) = enqueue(db)
    ack(db, claim(db))
    assert heard(db, one_) == []


@pytest.mark.direct("listens")
def test_after_a_minute_without_a_new_watch_nobody_is_told(db: Connection, connect: Connect, clock: Clock) -> None:
    first, second = enqueue(db, 2)
    listener = vigil(connect, first, second)
    clock.advance(50)
    call(listener, "watch_job", second)
    clock.advance(50)
    jobs = sorted(claim(db, 2), key=lambda job: job.id)
    ack(db, jobs[:1])
    assert heard(db, listener) == [str(first)]
    clock.advance(11)
    ack(db, jobs[1:])
    assert heard(db, listener) == []


def test_nobody_is_told_where_two_phase_commit_would_fail(db: Connection, connect: Connect) -> None:
    call(db, "alter_queue", "q", notify=False)
    (id,) = enqueue(db)
    assert call(db, "watch_job", id) is False
    assert call(db, "watch_job", 12345) is False
    with refused("22004"):
        db.execute("SELECT pgq.watch_job(NULL)")
    with refused("22004"):
        db.execute("SELECT pgq.unwatch_job(NULL)")
    call(db, "unwatch_job", id)


def test_when_nobody_waits_those_who_end_jobs_ask_no_further(db: Connection, connect: Connect, clock: Clock) -> None:
    (id,) = enqueue(db)
    call(connect(), "watch_job", id)
    assert one(db, "SELECT last_value FROM pgq.awaited") == 1
    call(db, "maintain")
    assert one(db, "SELECT last_value FROM pgq.awaited") == 1
    clock.advance(120)
    call(db, "maintain")
    assert one(db, "SELECT last_value FROM pgq.awaited") == 0
