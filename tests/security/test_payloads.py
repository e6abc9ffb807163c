"""Payloads are read by consumers and admins: not by a producer, and not by whoever reads error messages or the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.cluster import Cluster
from tests.security.conftest import MakeRole
from tests.sql.support import (
    Connect,
    Connection,
    Job,
    ack,
    call,
    claim,
    column,
    create,
    enqueue,
    one,
    refused,
    retire_all,
)

SECRET = "s3cr3t-4711"
LOST = 16_000_000_000_000  # added to a lease it makes one that nobody holds
ConnectAs = Callable[[str], Connection]


@pytest.fixture
def jobs(db: Connection) -> list[Job]:
    """Jobs with a secret in all that a job carries: done, archived, dead, retrying, scheduled, ready, and running."""
    create(db, max_attempts=5)
    carried = {"task": SECRET, "headers": {"h": SECRET}}
    for _ in range(6):
        call(db, "enqueue", "q", {"p": SECRET}, **carried)
    call(db, "enqueue", "q", {"p": SECRET}, delay="1 hour", **carried)
    done, dead, retrying, *running = claim(db, 5, worker=SECRET)
    call(db, "ack", done.id, done.lease, {"r": SECRET})
    call(db, "reject", dead.id, dead.lease, SECRET, retry=False)
    call(db, "reject", retrying.id, retrying.lease, SECRET, retry_in="1 hour")
    call(db, "rotate", seal=True)
    call(db, "create_queue", "other")
    call(db, "enqueue", "other", {"p": SECRET}, **carried)
    (other,) = claim(db, 1, "other")
    call(db, "ack", other.id, other.lease, {"r": SECRET})
    return [*running, other]


@pytest.mark.parametrize("kind", ["nobody", "producer", "consumer"])
def test_no_relation_can_be_read(db: Connection, jobs: list[Job], connect_as: ConnectAs, kind: str) -> None:
    session = connect_as(kind)
    relations = """
        SELECT c.oid::regclass::text FROM pg_class c
        WHERE c.relnamespace = 'pgq'::regnamespace AND c.relkind IN ('r', 'p', 'v')
    """
    for relation in column(db, relations):
        lock = f"DO 'BEGIN LOCK TABLE {relation}; END'"
        for query in (f"SELECT * FROM {relation}", f"COPY {relation} TO STDOUT", lock):
            with refused("42501"):
                session.execute(query)


def test_a_producer_gets_no_payload_out_of_any_function(
    db: Connection, jobs: list[Job], connect: Connect, make_role: MakeRole
) -> None:
    """Every function of the schema, with arguments that would find something."""
    session = connect(user=make_role("producer"))
    id, lease = jobs[0].id, jobs[0].lease
    arguments = {
        **{
            ("queue", "text"): "'q'",
            ("queues", "text[]"): "'{q}'",
            ("slot", "integer"): "0",
            ("batch", "integer"): "10",
        },
        **{("id", "bigint"): f"{id}", ("job", "bigint"): f"{id}", ("ids", "bigint[]"): f"'{{{id}}}'"},
        **{("lease", "bigint"): f"{lease}", ("leases", "bigint[]"): f"'{{{lease}}}'"},
    }
    functions = """
        SELECT p.proname, coalesce(p.proargnames[:p.pronargs], '{}'),
            ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) t)
        FROM pg_proc p WHERE p.pronamespace = 'pgq'::regnamespace AND p.prokind = 'f' ORDER BY p.proname
    """
    allowed = []
    for name, names, types in db.execute(functions).fetchall():
        given = [f"{arguments.get(argument, 'NULL')}::{argument[1]}" for argument in zip(names, types, strict=True)]
        try:
            shown = str(session.execute(f"SELECT * FROM pgq.{name}({', '.join(given)})").fetchall())
            allowed.append(name)
        except psycopg.errors.InsufficientPrivilege as error:
            shown = str(error)
        except psycopg.Error as error:
            allowed.append(name)
            shown = str(error)
        assert SECRET not in shown, name
    expected = ["enqueue", "enqueue_after", "enqueue_many", "enqueue_many_after", "enqueue_row", "enqueue_rows"]
    expected += ["enqueue_unique", "enqueue_unique_many"]
    assert sorted(allowed) == ["add_to_batch", "batch", *expected, "version"]
    assert len(claim(db, 10)) == 1  # the one that was left


# What goes wrong with valid jobs at hand: the function, its arguments, and the SQLSTATE.
MISTAKES: list[tuple[str, Callable[[Job], dict[str, Any]], str]] = [
    ("enqueue", lambda job: {"queue": "nowhere", "payload": {"p": SECRET}}, "PQ002"),
    ("enqueue", lambda job: {"queue": "q", "payload": {"p": SECRET}, "priority": 1000}, "22023"),
    ("enqueue", lambda job: {"queue": "q", "payload": {"p": SECRET}, "headers": f'["{SECRET}"]'}, "22023"),
    ("enqueue", lambda job: {"queue": "q", "payload": {"p": SECRET}, "delay": "1 hour", "run_at": "now"}, "22023"),
    ("enqueue", lambda job: {"queue": "q", "payload": {"p": SECRET}, "run_at": "infinity"}, "22023"),
    ("enqueue", lambda job: {"queue": "q", "payload": {"p": SECRET}, "delay": "200 years"}, "22023"),
    ("enqueue", lambda job: {"queue": "q", "payload": {"p": SECRET}, "group_key": SECRET * 1000}, "22023"),
    ("enqueue_unique", lambda job: {"queue": "q", "payload": {"p": SECRET}, "unique_key": SECRET * 1000}, "22023"),
    ("enqueue_many", lambda job: {"queue": "q", "payloads": [f'"{SECRET}"', None]}, "22004"),
    ("enqueue_after", lambda job: {"after": [job.id], "queue": "q", "payload": {"p": SECRET}, "on_dead": "x"}, "22023"),
    ("batch", lambda job: {"ids": [0], "queue": "q", "payload": {"p": SECRET}}, "22023"),
    ("add_to_batch", lambda job: {"id": job.id, "ids": [job.id]}, "PQ006"),
    ("claim", lambda job: {"queue": "q", "batch": 0}, "22023"),
    ("ack", lambda job: {"id": job.id, "lease": job.lease + LOST, "result": {"r": SECRET}}, "PQ001"),
    ("ack_many", lambda job: {"ids": [job.id], "leases": [], "results": [f'"{SECRET}"']}, "22023"),
    ("reject", lambda job: {"id": job.id, "lease": job.lease + LOST, "error": SECRET}, "PQ001"),
    ("reject", lambda job: {"id": job.id, "lease": job.lease, "error": SECRET, "retry_in": "-1 s"}, "22023"),
    ("reject_many", lambda job: {"ids": [job.id], "leases": [job.lease], "errors": [SECRET, SECRET]}, "22023"),
    ("release", lambda job: {"ids": [job.id], "leases": [1, 2]}, "22023"),
    ("cancel_claimed", lambda job: {"id": job.id, "lease": job.lease + LOST, "reason": SECRET}, "PQ001"),
    ("snooze", lambda job: {"id": job.id, "lease": job.lease, "delay": "-1 s"}, "22023"),
    ("extend", lambda job: {"lease": job.lease + LOST}, "PQ001"),
    ("extend", lambda job: {"lease": job.lease, "lease_for": "-1 s"}, "22023"),
    ("drop_queue", lambda job: {"queue": "q"}, "PQ005"),
    ("redrive", lambda job: {"queue": "nowhere"}, "PQ002"),
    ("schedule", lambda job: {"name": SECRET, "cron": "* * * *", "queue": "q", "payload": {"p": SECRET}}, "22023"),
]


def test_no_error_message_shows_a_payload(
    db: Connection, jobs: list[Job], connect_as: ConnectAs, cluster: Cluster
) -> None:
    """Nor the log of the server, which keeps statements and messages, but no parameters."""
    admin = connect_as("admin")
    before = cluster.log.stat().st_size
    for function, arguments, sqlstate in MISTAKES:
        with refused(sqlstate) as caught:
            call(admin, function, **arguments(jobs[0]))
        diag = caught.value.diag
        for part in (diag.message_primary, diag.message_detail, diag.message_hint, diag.context, diag.internal_query):
            assert SECRET not in (part or ""), f"{function}: {part}"
    with cluster.log.open(errors="replace") as log:
        log.seek(before)
        assert SECRET not in log.read()


def test_no_constraint_shows_a_payload(db: Connection, jobs: list[Job]) -> None:
    """A violated constraint would show the row. What a caller passes is looked at before it comes to that."""
    texts = column(
        db,
        """
        SELECT pg_get_constraintdef(c.oid) FROM pg_constraint c
        WHERE c.connamespace = 'pgq'::regnamespace AND c.contype IN ('c', 'x', 'f') AND EXISTS (
            SELECT FROM pg_attribute a
            WHERE a.attrelid = c.conrelid AND a.attname IN ('payload', 'headers', 'history', 'result')
        )
        """,
    )
    assert texts == []


def test_what_an_operator_sees_has_no_payload(db: Connection, jobs: list[Job]) -> None:
    enqueue(db, 3)
    seen = [db.execute(f"SELECT * FROM pgq.{view}").fetchall() for view in ("doctor()", "stats()", "queue_stats")]
    seen.append([(call(db, "maintain"),), (call(db, "rotate", seal=True),)])
    ack(db, [*jobs, *claim(db, 100)])
    retire_all(db)
    assert SECRET not in str(seen)
    assert one(db, "SELECT count(*) FROM pgq.archive WHERE payload::text LIKE '%%' || %s || '%%'", SECRET) > 0
