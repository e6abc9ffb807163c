"""Who may do what: nobody anything, producers enqueue, consumers claim and settle, admins all that is public."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.security.conftest import MakeRole
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
    one,
    refused,
    retire_all,
    rows,
)

PRODUCE = {
    *["enqueue", "enqueue_many", "enqueue_unique", "enqueue_unique_many", "enqueue_after"],
    *["enqueue_many_after", "batch", "add_to_batch"],
    *["enqueue_row", "enqueue_rows"],
}
CONSUME = {
    *["claim", "ack", "ack_many", "reject", "reject_many", "extend", "extend_many", "release", "snooze"],
    *["snooze_many", "cancel_requested", "cancel_claimed", "progress", "work", "try_exclusive", "exclusive_holder"],
    *["watch", "unwatch", "maintain", "promote", "reap", "rotate"],
}
ADMINISTER = {
    *["create_queue", "alter_queue", "set_unique", "set_limits", "drop_queue", "pause", "resume", "purge"],
    "purge_state",
    *["cancel", "cancel_many", "reschedule", "set_priority", "schedule", "unschedule", "next_runs"],
    *["dead_letters", "redrive", "redrive_where", "discard", "discard_where"],
    *[
        "job_status",
        "batch_status",
        "waits_for",
        "wait",
        "watch_job",
        "unwatch_job",
        "attempts",
        "job_progress",
        "stats",
        "doctor",
        "queues",
        "jobs",
        "workers",
        "activity",
        "failures",
    ],
    *["grant_producer", "grant_consumer", "grant_admin"],
}
MATRIX = {
    "nobody": set(),
    "producer": PRODUCE | {"version"},
    "consumer": CONSUME | {"version"},
    "admin": PRODUCE | CONSUME | ADMINISTER | {"version"},
}
# A validator runs with the rights of the owner: he alone names it.
OWNERS = {"set_validator"}
# Procedures that commit cannot run with the rights of another role than the caller's.
INVOKER = {"work", "wait"}
# A worker looks at the clock before it goes to sleep; what these procedures need is called by the same role.
CALLED = {"_now", "_outside_of_a_transaction_block", "_handler", "_nap"}
HELPERS = {"nobody": set(), "producer": set(), "consumer": CALLED, "admin": CALLED}

ConnectAs = Callable[[str], Connection]

# Every relation of the schema, and the sequences, with every privilege there is.
HELD = """
    SELECT c.relname || ' ' || p FROM pg_class c CROSS JOIN unnest(%(privileges)s::text[]) p
    WHERE c.relnamespace = 'pgq'::regnamespace AND c.relkind = ANY (%(kinds)s::"char"[])
        AND CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(%(role)s, c.oid, p)
            ELSE has_any_column_privilege(%(role)s, c.oid, p) END
    ORDER BY 1
"""


def functions(db: Connection, condition: str, *values: str) -> set[str]:
    query = "SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'pgq'::regnamespace AND "
    return set(column(db, query + condition, *values))


def relations_held(db: Connection, role: str) -> list[str]:
    tables = {"privileges": ["SELECT", "INSERT", "UPDATE", "REFERENCES"], "kinds": ["r", "p", "v", "m"], "role": role}
    sequences = {"privileges": ["SELECT", "USAGE", "UPDATE"], "kinds": ["S"], "role": role}
    return [row[0] for held in (tables, sequences) for row in db.execute(HELD, held)]


@pytest.mark.parametrize("kind", MATRIX)
def test_each_role_may_call_exactly_its_functions(db: Connection, make_role: MakeRole, kind: str) -> None:
    role = make_role(kind)
    assert functions(db, "has_function_privilege(%s, p.oid, 'EXECUTE')", role) == MATRIX[kind] | HELPERS[kind]


def test_the_matrix_names_every_public_function(db: Connection) -> None:
    assert functions(db, "p.proname !~ '^_'") == MATRIX["admin"] | OWNERS


@pytest.mark.parametrize("kind", MATRIX)
def test_no_role_may_touch_a_table_or_a_sequence(db: Connection, make_role: MakeRole, kind: str) -> None:
    create(db)
    enqueue(db)
    ack(db, claim(db))
    retire_all(db)  # the archive gets its first partition
    readable = ["archive SELECT", "queue_stats SELECT", "schedule SELECT"] if kind == "admin" else []
    assert relations_held(db, make_role(kind)) == readable


@pytest.mark.parametrize("kind", MATRIX)
def test_no_role_may_create_anything_in_the_schema(db: Connection, make_role: MakeRole, kind: str) -> None:
    role = make_role(kind)
    assert not one(db, "SELECT has_schema_privilege(%s, 'pgq', 'CREATE')", role)
    assert one(db, "SELECT has_schema_privilege(%s, 'pgq', 'USAGE')", role) == (kind != "nobody")


def test_public_functions_run_as_the_owner_with_a_safe_path_and_helpers_do_not(db: Connection) -> None:
    definers = functions(db, "p.prosecdef")
    assert definers == (MATRIX["admin"] | OWNERS) - INVOKER - {"version"}
    safe = "p.prosecdef AND p.proconfig @> ARRAY['search_path=pg_catalog, pg_temp']"
    assert functions(db, safe) == definers


def test_a_role_without_rights_is_refused_everything(db: Connection, connect_as: ConnectAs) -> None:
    create(db)
    nobody = connect_as("nobody")
    for query in ["pgq.version()", "pgq.enqueue('q')", "pgq.claim('q')", "pgq.stats()", "pgq._now()", "pgq.job"]:
        with refused("42501"):
            nobody.execute(f"SELECT * FROM {query}")


def test_a_producer_only_enqueues(db: Connection, connect_as: ConnectAs) -> None:
    create(db)
    producer = connect_as("producer")
    made = [call(producer, "enqueue", "q"), call(producer, "enqueue", "q", priority=1), *enqueue(producer, 2)]
    call(producer, "enqueue", "q", delay="1 hour")
    assert one(producer, "SELECT pgq.version()")
    for query in ["pgq.claim('q')", "pgq.stats()", "pgq.maintain()", "pgq.job_status(1)", "pgq.job", "pgq.queue_stats"]:
        with refused("42501"):
            producer.execute(f"SELECT * FROM {query}")
    assert len(claim(db, 10)) == len(made)


def test_a_consumer_works_and_does_not_enqueue(db: Connection, connect_as: ConnectAs) -> None:
    create(db)
    enqueue(db, 4)
    consumer = connect_as("consumer")
    acked, rejected, extended, released = claim(consumer, 4, worker="w")
    call(consumer, "ack", acked.id, acked.lease)
    call(consumer, "reject", rejected.id, rejected.lease)
    call(consumer, "extend", extended.lease)
    rows(consumer, "release", [released.id], [released.lease])
    call(consumer, "watch", ["q"])
    call(consumer, "unwatch", ["q"])
    for task in ["maintain", "promote", "reap", "rotate"]:
        call(consumer, task)
    queries = ["pgq.enqueue('q')", "pgq.stats()", "pgq.pause('q')", "pgq.redrive('q')", "pgq.lease", "pgq.archive"]
    for query in queries:
        with refused("42501"):
            consumer.execute(f"SELECT * FROM {query}")


def test_a_consumer_turns_the_whole_ring(db: Connection, connect_as: ConnectAs) -> None:
    create(db)
    consumer = connect_as("consumer")
    for _ in range(40):
        enqueue(db)
        ack(consumer, claim(consumer, 10))
        call(consumer, "rotate", seal=True)
    assert one(db, "SELECT max(generation) FROM pgq.segment") >= 16
    assert one(db, "SELECT count(*) FROM pgq.archive") > 10


def test_an_admin_does_all_of_it_and_passes_it_on(connect: Connect, connect_as: ConnectAs, make_role: MakeRole) -> None:
    admin = connect_as("admin")
    create(admin)
    enqueue(admin, 2)
    job = claim_one(admin)
    call(admin, "reject", job.id, job.lease, retry=False)
    assert call(admin, "redrive", "q") == 1
    assert one(admin, "SELECT ready FROM pgq.queue_stats") == 2
    assert admin.execute("SELECT * FROM pgq.archive").fetchall() == []
    admin.execute("SELECT * FROM pgq.doctor()")
    role = make_role("nobody")
    call(admin, "grant_producer", role)
    enqueue(connect(user=role))
    call(admin, "drop_queue", "q", force=True)


def test_a_role_may_be_both_producer_and_consumer(db: Connection, connect: Connect, make_role: MakeRole) -> None:
    create(db)
    role = make_role("producer")
    call(db, "grant_consumer", role)
    both = connect(user=role)
    enqueue(both)
    assert len(claim(both)) == 1
