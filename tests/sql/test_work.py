"""A worker that is a procedure: what the handler wrote and the end of the job are one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import Clock
from tests.sql.support import (
    Connect,
    Connection,
    call,
    column,
    create,
    enqueue,
    eventually,
    in_background,
    one,
    refused,
    stats,
    status,
    until_blocked,
)


def work(db: Connection, handler: str = "h", queue: str = "q", **named: object) -> tuple[int, int]:
    """Call pgq.work; returns how many jobs were done, and how many attempts failed."""
    names = "".join(f", {name} => %s" for name in named)
    (row,) = db.execute(f"CALL pgq.work(%s, %s{names})".encode(), [queue, handler, *named.values()]).fetchall()
    done, failed = row
    return done, failed


def handler(db: Connection, body: str, returns: str = "void", argument: str = "jsonb", name: str = "h") -> None:
    db.execute(
        f"CREATE FUNCTION {name}(job {argument}) RETURNS {returns} LANGUAGE plpgsql AS $$ BEGIN {body} END $$".encode()
    )


def logged(db: Connection) -> list[int]:
    return column(db, "SELECT n FROM log ORDER BY n")


@pytest.fixture(autouse=True)
def log(db: Connection) -> None:
    create(db, backoff="1 hour", backoff_max="1 hour", shards=1)
    db.execute("CREATE TABLE log (n int)")


def test_all_jobs_are_worked_off(db: Connection) -> None:
    handler(db, "INSERT INTO log VALUES (job::int);")
    enqueue(db, 25)
    assert work(db) == (25, 0)
    assert logged(db) == list(range(1, 26))
    assert work(db) == (0, 0)
    assert stats(db) == {}


def test_the_result_is_kept(db: Connection) -> None:
    handler(db, "RETURN CASE WHEN job <> '2' THEN jsonb_build_object('twice', job::int * 2) END;", "jsonb")
    jobs = enqueue(db, 3)
    assert work(db, "public.h") == (3, 0)
    assert [status(db, job).result for job in jobs] == [{"twice": 2}, None, {"twice": 6}]
    handler(db, "RETURN '[1]';", "json", name="g")
    (job,) = enqueue(db)
    assert work(db, "public.g(jsonb)") == (1, 0)
    assert status(db, job).result == [1]


def test_a_handler_may_take_the_job(db: Connection) -> None:
    handler(db, "RETURN to_jsonb(job) - 'expires_at' - 'enqueued_at' - 'lease';", "jsonb", "pgq.claimed_job")
    (job,) = enqueue(db, task="t", headers={"a": 1})
    assert work(db) == (1, 0)
    assert status(db, job).result == {
        "id": job, "queue": "q", "task": "t", "payload": 1, "attempt": 1, "max_attempts": 20, "priority": 0,
        "headers": {"a": 1},
    }  # fmt: skip


def test_a_name_that_needs_quotes(db: Connection) -> None:
    db.execute('CREATE SCHEMA "A b"')
    handler(db, "INSERT INTO log VALUES (1);", name='"A b"."%s(x"')
    enqueue(db)
    assert work(db, '"A b"."%s(x"') == (1, 0)


@pytest.mark.parametrize("name", ["nobody", "nobody(jsonb)", "setof", "two(jsonb,jsonb)", "proc", "pg_catalog.int4pl"])
def test_what_is_no_handler_is_refused(db: Connection, name: str) -> None:
    handler(db, "RETURN;", "SETOF int", name='"setof"')
    db.execute("CREATE FUNCTION two(a jsonb, b jsonb) RETURNS int LANGUAGE sql AS 'SELECT 1'")
    db.execute("CREATE PROCEDURE proc(a jsonb) LANGUAGE sql AS 'SELECT 1'")
    enqueue(db)
    with refused("22023"):
        work(db, '"setof"' if name == "setof" else name)
    assert stats(db) == {"ready": 1}


def test_arguments_are_checked(db: Connection) -> None:
    handler(db, "NULL;")
    with refused("22023"):
        db.execute("CALL pgq.work('q', NULL)")
    with refused("PQ002"):
        work(db, queue="nobody")
    with refused("22023"):
        work(db, batch=0)
    with refused("22023"):
        work(db, lease_for="-1 second")


@pytest.mark.direct("settings of the session")
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_it_needs_read_committed(db: Connection, level: str) -> None:
    handler(db, "NULL;")
    db.execute(f"SET default_transaction_isolation = '{level}'".encode())
    with refused("PQ003"):
        work(db)


def test_inside_of_a_transaction_block_the_error_says_so(db: Connection, connect: Connect) -> None:
    handler(db, "INSERT INTO log VALUES (job::int);")
    enqueue(db)
    with refused("2D000") as caught, db.transaction():
        work(db)
    assert "outside_of_a_transaction_block" in (caught.value.diag.context or "")
    assert stats(db) == {"ready": 1}


# When a handler fails -------------------------------------------------------------------------------------------------


def test_a_failure_undoes_what_the_handler_wrote_and_nothing_else(db: Connection) -> None:
    handler(
        db,
        "INSERT INTO log VALUES (job::int); IF job::int % 3 = 0 THEN RAISE 'no %', job USING DETAIL = 'why'; END IF;",
    )
    jobs = enqueue(db, 10)
    assert work(db) == (7, 3)
    assert logged(db) == [1, 2, 4, 5, 7, 8, 10]
    assert stats(db) == {"retrying": 3}
    error = status(db, jobs[2]).error
    assert error is not None
    assert error.startswith("no 3 (SQLSTATE P0001)\nwhy\nPL/pgSQL function h(jsonb) line 1 at RAISE")


@pytest.mark.parametrize(
    "body",
    [
        "ASSERT false;",
        "PERFORM 1 / 0;",
        "RAISE serialization_failure;",
        "RAISE SQLSTATE 'PQ001';",
        "PERFORM pgq.ack(0, 0);",
        "SET LOCAL lock_timeout = '1ms'; LOCK TABLE busy;",
        "RAISE query_canceled;",
    ],
)
def test_whatever_goes_wrong_is_a_failed_attempt(db: Connection, connect: Connect, body: str) -> None:
    db.execute("CREATE TABLE busy ()")
    other = connect(autocommit=False)
    other.execute("LOCK TABLE busy")
    handler(db, f"INSERT INTO log VALUES (job::int); IF job = '2' THEN {body} END IF;")
    jobs = enqueue(db, 3)
    if "canceled" in body:
        with refused("57014"):
            work(db)
        assert stats(db) == {"retrying": 1, "ready": 1}
    else:
        assert work(db) == (2, 1)
        assert stats(db) == {"retrying": 1}
    assert status(db, jobs[1]).error
    assert logged(db)[:1] == [1]
    assert 2 not in logged(db)


def test_a_failed_job_comes_back_and_dies_in_the_end(db: Connection, clock: Clock) -> None:
    handler(db, "RAISE 'no';")
    (job,) = enqueue(db, max_attempts=2)
    assert work(db) == (0, 1)
    clock.advance(3601)
    assert work(db) == (0, 1)
    assert status(db, job).state == "dead"


@pytest.mark.direct("settings of the session")
@pytest.mark.parametrize("batch", [1, 3, 10])
def test_a_timeout_ends_it_and_the_job_counts_as_failed(db: Connection, batch: int) -> None:
    handler(db, "INSERT INTO log VALUES (job::int); IF job = '2' THEN PERFORM pg_sleep(20); END IF;")
    jobs = enqueue(db, 10)
    db.execute("SET statement_timeout = '500ms'")
    with refused("57014") as caught:
        work(db, batch=batch)
    db.execute("RESET statement_timeout")
    assert f"job {jobs[1]}" in (caught.value.diag.message_detail or "")
    assert stats(db) == {"ready": 8, "retrying": 1}
    assert logged(db) == [1]
    assert work(db) == (8, 0)
    assert logged(db) == [1, *range(3, 11)]


@pytest.mark.direct("cancels a session")
@pytest.mark.parametrize("gap", [0, 0.001, 0.003])
def test_a_cancel_ends_it(db: Connection, connect: Connect, gap: float) -> None:
    """Even one that comes twice, as those that the postmaster passes on may do."""
    handler(db, "PERFORM pg_sleep(20);")
    enqueue(db, 2)
    worker = connect()
    call_ = in_background(work, worker)
    eventually(lambda: stats(db) == {"running": 2})
    pid = worker.info.backend_pid
    eventually(lambda: one(db, "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s", pid))
    db.execute("SELECT pg_cancel_backend(%s), pg_sleep(%s), pg_cancel_backend(%s)", [pid, gap, pid])
    with refused("57014"):
        call_.result(20)
    assert stats(db) == {"ready": 1, "retrying": 1}


@pytest.mark.direct("settings of the session")
def test_a_deadlock_is_a_failed_attempt(db: Connection, connect: Connect) -> None:
    db.execute("CREATE TABLE a (); CREATE TABLE b ()")
    handler(db, "LOCK TABLE a; PERFORM pg_sleep(0); LOCK TABLE b;")
    (job,) = enqueue(db)
    other, worker = connect(autocommit=False), connect()
    worker.execute("SET deadlock_timeout = '1s'")  # it looks once, and must then find the other one waiting
    other.execute("SET deadlock_timeout = '1h'")
    other.execute("LOCK TABLE b")
    call_ = in_background(work, worker)
    until_blocked(db, worker)
    other.execute("LOCK TABLE a")
    assert call_.result(20) == (0, 1)
    assert "40P01" in (status(db, job).error or "")


# What jobs of one batch do to each other ------------------------------------------------------------------------------


def test_a_temporary_table_of_one_job_is_not_in_the_way_of_the_next(db: Connection) -> None:
    handler(db, "CREATE TEMP TABLE mine (n int) ON COMMIT DROP; INSERT INTO log VALUES (job::int);")
    enqueue(db, 5)
    assert work(db) == (5, 0)
    assert logged(db) == [1, 2, 3, 4, 5]


def test_what_one_job_set_is_not_the_failure_of_another(db: Connection) -> None:
    handler(
        db,
        """
        IF job = '1' THEN
            SET LOCAL search_path = nowhere; LISTEN news;
        ELSE
            INSERT INTO log VALUES (job::int);
        END IF;
    """,
    )
    db.execute("ALTER FUNCTION h(jsonb) VOLATILE")
    enqueue(db, 5)
    assert work(db) == (5, 0)
    assert logged(db) == [2, 3, 4, 5]


def test_an_open_cursor_is_closed_with_the_batch(db: Connection) -> None:
    db.execute("""
        CREATE FUNCTION h(job jsonb) RETURNS void LANGUAGE plpgsql AS $$
        DECLARE c refcursor := 'mine';
        BEGIN OPEN c FOR SELECT 1; INSERT INTO log VALUES (job::int); END $$
    """)
    enqueue(db, 5)
    assert work(db) == (5, 0)
    assert one(db, "SELECT count(*) FROM pg_cursors WHERE name = 'mine'") == 0


@pytest.mark.parametrize("batch", [1, 10])
def test_a_deferred_constraint_fails_the_job_that_breaks_it(db: Connection, batch: int) -> None:
    db.execute("ALTER TABLE log ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED; INSERT INTO log VALUES (2)")
    handler(db, "INSERT INTO log VALUES (job::int);")
    jobs = enqueue(db, 5)
    assert work(db, batch=batch) == (4, 1)
    assert logged(db) == [1, 2, 3, 4, 5]
    assert "23505" in (status(db, jobs[1]).error or "")


def test_a_constraint_is_deferred_for_every_job_of_a_batch(db: Connection) -> None:
    db.execute("""
        CREATE TABLE parent (n int PRIMARY KEY);
        CREATE TABLE child (n int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
    """)
    handler(db, "INSERT INTO child VALUES (job::int); INSERT INTO parent VALUES (job::int);")
    enqueue(db, 20)
    assert work(db) == (20, 0)


@pytest.mark.direct("settings of the session")
def test_the_handler_sees_its_callers_search_path(db: Connection) -> None:
    db.execute("CREATE SCHEMA app; CREATE TABLE app.things (n int)")
    db.execute("SET search_path = app")
    handler(db, "INSERT INTO things VALUES (job::int);", name="app.h")
    enqueue(db, 2)
    assert work(db, "h") == (2, 0)


# Leases ---------------------------------------------------------------------------------------------------------------


@pytest.mark.direct("two sessions in one handler")
def test_a_lost_lease_is_not_acknowledged_twice(db: Connection, connect: Connect, clock: Clock) -> None:
    handler(db, "INSERT INTO log VALUES (job::int); PERFORM pg_advisory_xact_lock(1);")
    enqueue(db, 3)
    holder, worker = connect(autocommit=False), connect()
    one(holder, "SELECT pg_advisory_xact_lock(1)::text")
    call_ = in_background(work, worker)
    until_blocked(db, worker)
    clock.advance(61)
    assert call(db, "reap") == 3
    assert work(db, "pg_catalog.jsonb_typeof") == (3, 0)
    holder.commit()
    assert call_.result(20) == (0, 0)
    assert logged(db) == []
    assert stats(db) == {}


def test_a_slow_batch_keeps_its_leases(db: Connection, clock: Clock) -> None:
    handler(db, "INSERT INTO log VALUES (job::int); UPDATE test_clock.ahead SET by = by + '25 seconds';")
    enqueue(db, 10)
    assert work(db) == (10, 0)
    assert one(db, "SELECT count(*) FROM pgq.outcome WHERE kind = 'expired'") == 0
    assert one(db, "SELECT count(*) FROM pgq.lease WHERE job_ids IS NULL") >= 8
    assert logged(db) == list(range(1, 11))


def test_a_killed_worker_leaves_whole_jobs(db: Connection, connect: Connect, clock: Clock) -> None:
    handler(db, "INSERT INTO log VALUES (job::int); IF job = '3' THEN PERFORM pg_advisory_xact_lock(1); END IF;")
    enqueue(db, 5)
    holder, worker = connect(autocommit=False), connect()
    one(holder, "SELECT pg_advisory_xact_lock(1)::text")
    call_ = in_background(work, worker)
    until_blocked(db, worker)
    one(db, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    with pytest.raises(psycopg.Error):
        call_.result(20)
    holder.commit()
    assert logged(db) == []
    clock.advance(61)
    assert work(db) == (5, 0)
    assert logged(db) == [1, 2, 3, 4, 5]


# How long it goes on --------------------------------------------------------------------------------------------------


def test_after_its_time_it_gives_back_the_rest(db: Connection, clock: Clock) -> None:
    handler(db, "INSERT INTO log VALUES (job::int); UPDATE test_clock.ahead SET by = by + '15 seconds';")
    enqueue(db, 10)
    assert work(db, for_time="40 seconds") == (3, 0)
    assert stats(db) == {"ready": 7}
    assert work(db, for_time="0") == (0, 0)


@pytest.mark.direct("looks at one session from another")
def test_it_waits_for_jobs_in_one_short_transaction_after_the_other(db: Connection, connect: Connect) -> None:
    handler(db, "INSERT INTO log VALUES (job::int);")
    worker = connect()
    call_ = in_background(work, worker, idle="10 seconds", for_time="10 seconds")
    age = "SELECT xact_start, backend_xid::text FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
    seen: set[Any] = set()

    def look() -> bool:
        seen.update(db.execute(age, [worker.info.backend_pid]))
        return len(seen) >= 5

    eventually(look)
    assert {xid for _, xid in seen} == {None}
    enqueue(db)
    eventually(lambda: logged(db) == [1])
    worker.cancel_safe()
    with pytest.raises(psycopg.errors.QueryCanceled):
        call_.result(20)


def test_it_promotes_what_is_due_and_reaps(db: Connection, clock: Clock) -> None:
    handler(db, "INSERT INTO log VALUES (job::int);")
    enqueue(db, delay="1 minute")
    assert work(db) == (0, 0)
    clock.advance(61)
    assert work(db) == (1, 0)


def test_two_of_them_share_the_work(db: Connection, connect: Connect) -> None:
    call(db, "alter_queue", "q", shards=4)
    handler(db, "INSERT INTO log VALUES (job::int);")
    enqueue(db, 2000)
    calls = [in_background(work, connect(), idle="200 ms") for _ in range(3)]
    results = [each.result(60) for each in calls]
    assert sum(done for done, _ in results) == 2000
    assert logged(db) == list(range(1, 2001))


# Rights ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def consumer(db: Connection) -> Iterator[str]:
    name = f"{db.info.dbname}_consumer"
    db.execute(
        f"CREATE ROLE {name} LOGIN; SELECT pgq.grant_consumer('{name}'); GRANT CREATE ON SCHEMA public TO {name}"
    )
    yield name
    db.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def test_a_consumer_may_and_has_no_more_rights_than_before(db: Connection, connect: Connect, consumer: str) -> None:
    handler(db, "RETURN to_jsonb(current_user::text);", "jsonb", name="who")
    handler(db, "INSERT INTO log VALUES (1);")
    (job,) = enqueue(db)
    worker = connect(user=consumer)
    assert work(worker, "who") == (1, 0)
    assert status(db, job).result == consumer
    (job,) = enqueue(db)
    assert work(worker) == (0, 1)
    assert "42501" in (status(db, job).error or "")


def test_others_may_not(db: Connection, connect: Connect, consumer: str) -> None:
    db.execute(f"DROP OWNED BY {consumer}; SELECT pgq.grant_producer('{consumer}')")
    handler(db, "NULL;")
    with refused("42501"):
        work(connect(user=consumer))


@pytest.mark.direct("settings of the session")
def test_a_hostile_search_path_changes_nothing(db: Connection, connect: Connect) -> None:
    handler(db, "INSERT INTO public.log VALUES (job::int); IF job = '2' THEN RAISE 'no'; END IF;", name="public.h")
    enqueue(db, 3)
    worker = connect()
    worker.execute("""
        CREATE SCHEMA evil;
        CREATE FUNCTION evil.bad() RETURNS int LANGUAGE plpgsql AS 'BEGIN RAISE ''hijacked''; END';
    """)
    for name in ["int4", "int8", "timestamptz", "interval", "text", "float8"]:
        for operator in ["=", "<>", "<", "<=", ">", ">=", "+", "-", "||", "/"]:
            worker.execute(
                f"""
                CREATE FUNCTION evil.o_{name}(a {name}, b {name}) RETURNS boolean LANGUAGE plpgsql AS
                    'BEGIN RAISE ''hijacked''; END';
            """
                if operator == "="
                else "SELECT"
            )
            worker.execute(
                f"CREATE OPERATOR evil.{operator} (LEFTARG = {name}, RIGHTARG = {name}, FUNCTION = evil.o_{name})"
            )
    for signature in [
        "now()",
        "format(text, text)",
        "coalesce_(int)",
        "cardinality(int[])",
        "pg_sleep(float8)",
        "right(text, int)",
    ]:
        worker.execute(f"CREATE FUNCTION evil.{signature} RETURNS int LANGUAGE sql AS 'SELECT evil.bad()'")
    worker.execute("SET search_path = evil, pg_temp, pg_catalog")
    with pytest.raises(psycopg.Error, match="hijacked"):
        worker.execute("SELECT 1 = 1")
    assert work(worker, "public.h") == (2, 1)
    assert work(worker, "public.h(jsonb)", idle="20 ms") == (0, 0)
