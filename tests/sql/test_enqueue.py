"""What producers may rely on: order, time, transactions of every kind, and payloads of every kind."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest
from psycopg import IsolationLevel
from psycopg.types.json import Jsonb

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
    leases,
    one,
    refused,
    retire_all,
    rotate,
    rows,
    status,
)

STRICT = pytest.mark.parametrize(
    "isolation",
    [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE],
    ids=lambda isolation: isolation.name.lower(),
)


def test_a_job_arrives_as_it_was_enqueued(db: Connection, clock: Clock) -> None:
    create(db)
    before = clock.now()
    id = call(db, "enqueue", "q", {"to": "me"}, task="mail", priority=7, max_attempts=3, headers={"trace": "x"})
    job = claim_one(db)
    assert (job.id, job.queue, job.task, job.payload) == (id, "q", "mail", {"to": "me"})
    assert (job.priority, job.attempt, job.max_attempts, job.headers) == (7, 1, 3, {"trace": "x"})
    assert before <= job.enqueued_at <= clock.now()


def test_a_job_without_settings_has_the_defaults(db: Connection) -> None:
    create(db, max_attempts=5)
    call(db, "enqueue", "q")
    job = claim_one(db)
    assert (job.task, job.payload, job.headers) == (None, {}, None)
    assert (job.priority, job.max_attempts) == (0, 5)


@pytest.mark.parametrize("delay", [None, "1 hour"], ids=["now", "later"])
def test_ids_are_returned_in_the_order_of_the_payloads(db: Connection, clock: Clock, delay: str | None) -> None:
    create(db)
    made = enqueue(db, 200, delay=delay)
    clock.advance(timedelta(hours=1))
    call(db, "promote")
    assert {job.id: job.payload for job in claim(db, 1000)} == {id: n + 1 for n, id in enumerate(made)}
    assert made == sorted(made)


def test_all_jobs_of_a_batch_share_its_settings(db: Connection) -> None:
    create(db)
    enqueue(db, 3, task="t", priority=-5, max_attempts=2, headers={"a": 1})
    jobs = claim(db, 10)
    assert {(job.task, job.priority, job.max_attempts, str(job.headers)) for job in jobs} == {("t", -5, 2, "{'a': 1}")}
    assert len(jobs) == 3


def test_an_empty_batch_enqueues_nothing(db: Connection) -> None:
    create(db)
    assert rows(db, "enqueue_many", "q", []) == []
    assert rows(db, "enqueue_many", "q", [], delay="1 hour") == []
    with refused("PQ002"):
        rows(db, "enqueue_many", "nowhere", [])


@pytest.mark.parametrize("named", [{}, {"priority": 3}, {"delay": "0"}, {"delay": "1 hour"}], ids=str)
def test_a_rolled_back_transaction_leaves_no_job(db: Connection, connect: Connect, named: dict[str, Any]) -> None:
    create(db)
    producer = connect(autocommit=False)
    call(producer, "enqueue", "q", **named)
    enqueue(producer, 3, **named)
    producer.rollback()
    assert claim(db, 10) == []
    assert one(db, "SELECT count(*) FROM pgq.scheduled") == 0


def test_a_rolled_back_savepoint_takes_only_its_own_jobs_along(db: Connection, connect: Connect) -> None:
    create(db)
    producer = connect(autocommit=False)
    kept = enqueue(producer)
    with producer.transaction(force_rollback=True):
        enqueue(producer)
    with producer.transaction():
        kept += enqueue(producer)
    producer.commit()
    assert sorted(ids(claim(db, 10))) == kept


def test_jobs_appear_together_with_the_writes_of_their_transaction(db: Connection, connect: Connect) -> None:
    create(db)
    db.execute("CREATE TABLE orders (id int)")
    producer = connect(autocommit=False)
    producer.execute("INSERT INTO orders VALUES (1)")
    call(producer, "enqueue", "q")
    assert claim(db) == []
    producer.commit()
    assert len(claim(db)) == one(db, "SELECT count(*) FROM orders") == 1


def test_lower_priority_numbers_run_first(db: Connection) -> None:
    create(db)
    made = {priority: call(db, "enqueue", "q", priority=priority) for priority in [0, 100, -1, 5, -100, 1]}
    assert ids(claim(db, 10)) == [made[priority] for priority in sorted(made)]


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_one_shard_is_first_in_first_out(db: Connection, batch: int) -> None:
    create(db, shards=1)
    made = [call(db, "enqueue", "q") for _ in range(5)] + enqueue(db, 10) + [call(db, "enqueue", "q") for _ in range(5)]
    rotate(db)
    made += enqueue(db, 5)
    taken: list[int] = []
    while jobs := claim(db, batch):
        taken += ids(jobs)
    assert taken == made


def test_many_shards_share_the_jobs(db: Connection) -> None:
    create(db, shards=4)
    enqueue(db, 40)
    assert column(db, "SELECT count(*) FROM pgq.job GROUP BY lane") == [10] * 4


@pytest.mark.parametrize("how", ["run_at", "delay"])
def test_a_job_for_later_is_scheduled_then_promoted_then_ready(db: Connection, clock: Clock, how: str) -> None:
    create(db)
    due = clock.now() + timedelta(hours=1)
    later = {"run_at": due} if how == "run_at" else {"delay": timedelta(hours=1)}
    id = call(db, "enqueue", "q", **later)
    scheduled = status(db, id)
    assert scheduled.state == "scheduled"
    assert scheduled.run_at is not None
    assert abs(scheduled.run_at - due) < timedelta(seconds=10)
    clock.advance(timedelta(minutes=59))
    assert call(db, "promote") == 0
    assert claim(db) == []
    clock.advance(timedelta(minutes=2))
    assert call(db, "promote") == 1
    assert status(db, id).state == "ready"
    job = claim_one(db)
    assert (job.id, job.attempt) == (id, 1)
    assert call(db, "promote") == 0


@pytest.mark.parametrize("named", [{"delay": "0"}, {"run_at": "2001-01-01"}, {"run_at": "4713-01-01 BC"}], ids=str)
def test_a_job_that_is_due_already_is_ready_at_once(db: Connection, named: dict[str, Any]) -> None:
    create(db)
    id = call(db, "enqueue", "q", **named)
    assert ids(claim(db)) == [id]


def test_a_scheduled_job_keeps_its_settings(db: Connection, clock: Clock) -> None:
    create(db)
    call(db, "enqueue", "q", {"a": 1}, task="t", priority=-3, delay="1 day", max_attempts=9, headers={"b": 2})
    clock.advance(timedelta(days=2))
    call(db, "maintain")
    job = claim_one(db)
    assert (job.payload, job.task, job.priority, job.max_attempts, job.headers) == ({"a": 1}, "t", -3, 9, {"b": 2})


def test_due_jobs_are_promoted_in_the_order_of_their_time(db: Connection, clock: Clock) -> None:
    create(db, shards=1)
    second = call(db, "enqueue", "q", delay="2 minutes")
    first = call(db, "enqueue", "q", delay="1 minute")
    clock.advance(90)
    call(db, "promote")
    clock.advance(90)
    call(db, "promote")
    assert ids(claim(db, 2)) == [first, second]


def test_a_scheduled_job_that_was_committed_late_is_promoted_nevertheless(
    db: Connection, connect: Connect, clock: Clock
) -> None:
    create(db)
    producer = connect(autocommit=False)
    late = call(producer, "enqueue", "q", delay="1 second")
    call(db, "enqueue", "q", delay="10 seconds")
    clock.advance(20)
    assert call(db, "promote") == 1  # has come past the time of the other
    producer.commit()
    clock.advance(61)
    assert call(db, "promote") == 1
    assert late in ids(claim(db, 2))


ANY_JSON: list[Any] = [
    None,
    True,
    0,
    -1.5,
    "",
    "text",
    [],
    [None, {}],
    {},
    {"": [{"deep": [[[]]]}]},
    "ünï ☃ 🎉 \u202e \\ ' \" $$ %s {} \n\t\u0001",
    {"ключ 🗝": "值"},
    12345678901234567890123456789,
]


def test_any_json_is_a_payload_a_header_and_a_result(db: Connection) -> None:
    create(db)
    made = [one(db, "SELECT pgq.enqueue('q', %s, headers => %s)", Jsonb(json), Jsonb({"x": json})) for json in ANY_JSON]
    jobs = sorted(claim(db, 100), key=lambda job: job.id)
    assert [(job.id, job.payload, job.headers) for job in jobs] == [
        (id, json, {"x": json}) for id, json in zip(made, ANY_JSON, strict=True)
    ]
    rows(db, "ack_many", ids(jobs), leases(jobs), [Jsonb(json) for json in ANY_JSON])
    assert [status(db, id).result for id in made] == ANY_JSON


def test_fifty_megabytes_go_through(db: Connection) -> None:
    create(db)
    big = os.urandom(500).hex() * 50_000
    call(db, "enqueue", "q", {"big": big})
    job = claim_one(db)
    assert job.payload == {"big": big}
    db.execute("SELECT pgq.ack(%s, %s, %s)", [job.id, job.lease, Jsonb({"big": big})])
    same = "SELECT s.result = j.payload FROM pgq.job j, pgq.job_status(j.id) s"
    assert one(db, same)
    retire_all(db)
    assert one(db, same.replace("pgq.job j", "pgq.archive j"))


@STRICT
@pytest.mark.parametrize("named", [{}, {"priority": 1}, {"delay": "1 minute"}], ids=str)
def test_a_strict_transaction_may_enqueue(
    db: Connection, connect: Connect, clock: Clock, isolation: IsolationLevel, named: dict[str, Any]
) -> None:
    create(db)
    producer = connect(autocommit=False)
    producer.isolation_level = isolation
    made = [call(producer, "enqueue", "q", **named), *enqueue(producer, 2, **named)]
    producer.commit()
    clock.advance(61)
    call(db, "promote")
    assert sorted(ids(claim(db, 10))) == made


@STRICT
@pytest.mark.parametrize("named", [{}, {"priority": 1}], ids=str)
def test_a_strict_transaction_enqueues_after_the_segment_of_its_snapshot_was_truncated(
    db: Connection, connect: Connect, isolation: IsolationLevel, named: dict[str, Any]
) -> None:
    create(db)
    enqueue(db)
    producer = connect(autocommit=False)
    producer.isolation_level = isolation
    producer.execute("SELECT 1")  # takes the snapshot
    ack(db, claim(db, 10))
    retire_all(db)
    made = [call(producer, "enqueue", "q", **named), *enqueue(producer, 2, **named)]
    producer.commit()
    rotate(db, 3)
    assert sorted(ids(claim(db, 10))) == made


def test_a_strict_transaction_does_not_enqueue_into_a_queue_dropped_since(db: Connection, connect: Connect) -> None:
    create(db)
    producer = connect(autocommit=False)
    producer.isolation_level = IsolationLevel.REPEATABLE_READ
    producer.execute("SELECT 1")
    call(db, "drop_queue", "q")
    with refused("40001"):
        call(producer, "enqueue", "q")


@pytest.mark.direct("watch belongs to a session")
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("turned", [False, True], ids=["still", "ring turned"])
def test_two_phase_commit_enqueues_into_a_queue_without_notify(
    db: Connection, connect: Connect, clock: Clock, end: str, turned: bool
) -> None:
    create(db, notify=False)
    connect().execute("LISTEN pgq").connection.execute("SELECT pgq.watch('{q}')")
    producer = connect(autocommit=False)
    made = [call(producer, "enqueue", "q"), call(producer, "enqueue", "q", priority=2), *enqueue(producer, 2)]
    producer.execute("PREPARE TRANSACTION 'one'")
    producer.rollback()
    producer.close()
    if turned:
        for _ in range(18):
            enqueue(db)
            ack(db, claim(db, 10))
            rotate(db)
        clock.advance(timedelta(minutes=10))
        rotate(db, 5)
    assert claim(db, 10) == []
    db.execute(f"{end} PREPARED 'one'")
    assert sorted(ids(claim(db, 10))) == (sorted(made) if end == "COMMIT" else [])
    ack(db, claim(db, 10))


def test_two_phase_commit_schedules_jobs(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, notify=False)
    producer = connect(autocommit=False)
    id = call(producer, "enqueue", "q", delay="1 minute")
    producer.execute("PREPARE TRANSACTION 'two'")
    producer.rollback()
    clock.advance(61)
    assert call(db, "promote") == 0
    db.execute("COMMIT PREPARED 'two'")
    clock.advance(61)
    assert call(db, "promote") == 1
    assert ids(claim(db)) == [id]


def test_a_function_or_trigger_may_enqueue(db: Connection) -> None:
    create(db)
    db.execute("CREATE TABLE orders (id int)")
    db.execute(
        """
        CREATE FUNCTION on_order() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pgq.enqueue('q', to_jsonb(new)); RETURN new; END $$;
        CREATE TRIGGER on_order AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION on_order();
        INSERT INTO orders SELECT generate_series(1, 3);
        """
    )
    assert sorted(job.payload["id"] for job in claim(db, 10)) == [1, 2, 3]
