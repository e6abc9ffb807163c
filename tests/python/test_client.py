"""The clients: every method, both faces."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from pgqueue import (
    AsyncClient,
    BatchState,
    ClaimedJob,
    Client,
    InvalidArgument,
    JobState,
    LeaseLost,
    NotReadCommitted,
    NotWaiting,
    QueueExists,
    QueueNotEmpty,
    QueueNotFound,
)
from tests.python.support import Face, eventually

Connect = Callable[..., psycopg.Connection[Any]]


def test_enqueue_claim_ack(face: Face) -> None:
    job = face.enqueue("q", {"to": "ann", "n": [1, 2.5, None, True, "ü€😀"]}, task="send", headers={"trace": "x"})
    (claimed,) = face.claim("q", 10, lease_for=30, worker="me")
    assert isinstance(claimed, ClaimedJob)
    assert (claimed.id, claimed.queue, claimed.task, claimed.attempt) == (job, "q", "send", 1)
    assert claimed.payload == {"to": "ann", "n": [1, 2.5, None, True, "ü€😀"]}
    assert claimed.headers == {"trace": "x"}
    assert claimed.expires_at - claimed.enqueued_at >= timedelta(seconds=29)
    assert face.job_status(job).state == "running"
    face.ack(job, claimed.lease, {"sent": True})
    state = face.job_status(job)
    assert isinstance(state, JobState)
    assert (state.state, state.result, state.attempt) == ("done", {"sent": True}, 1)


def test_a_unique_key_gives_back_the_job_that_holds_it(face: Face) -> None:
    first = face.enqueue_unique("q", {"n": 1}, unique_key="k")
    assert first.inserted
    assert face.enqueue_unique("q", {"n": 2}, unique_key="k") == (first.id, False)
    assert face.enqueue("q", {"n": 2}, unique_key="k") == first.id
    found = face.enqueue_unique_many("q", [1, 2, 3], ["k", None, "other"], unique_for=60)
    assert [one.inserted for one in found] == [False, True, True]
    face.set_unique("q", unique_until="claimed")
    face.set_validator("q", None)


def test_enqueue_many_returns_the_ids_in_order(face: Face) -> None:
    ids = face.enqueue_many("q", [{"n": n} for n in range(100)], task="t", priority=-3)
    jobs = {job.id: job for job in face.claim("q", 1000)}
    assert [jobs[id].payload["n"] for id in ids] == list(range(100))
    assert {job.priority for job in jobs.values()} == {-3}


@pytest.mark.parametrize("payload", [None, True, 0, -1.5, "text", [], [1, [2]], {}, {"": None}, "\\u0000 is no NUL"])
def test_any_json_value_is_a_payload(face: Face, payload: object) -> None:
    face.enqueue("q", payload)
    assert face.claim("q")[0].payload == payload


def test_the_payload_is_an_empty_object_by_default(face: Face) -> None:
    face.enqueue("q")
    assert face.claim("q")[0].payload == {}


@pytest.mark.parametrize("payload", ["a\0b", {"\0": 1}, ["\\\0"], float("nan"), object(), "\ud800", uuid.UUID(int=1)])
def test_what_is_no_json_is_refused_with_a_hint(face: Face, payload: object) -> None:
    with pytest.raises(InvalidArgument) as caught:
        face.enqueue("q", payload)
    assert caught.value.hint
    with pytest.raises(InvalidArgument):
        face.enqueue_many("q", [{}, payload])
    assert face.claim("q") == []


def test_a_nul_in_a_name_is_refused(face: Face) -> None:
    with pytest.raises(InvalidArgument, match="NUL"):
        face.enqueue("q\0", {})


def test_a_payload_of_ten_megabytes_goes_through(face: Face) -> None:
    face.enqueue("q", {"x": "x" * 10_000_000})
    assert len(face.claim("q")[0].payload["x"]) == 10_000_000


def test_batches_settle_what_is_still_held(face: Face) -> None:
    ids = face.enqueue_many("q", [{"n": n} for n in range(6)])
    jobs = {job.id: job for job in face.claim("q", 6)}
    a, b, c, d, e, f = (jobs[id] for id in ids)
    assert face.ack_many([a.id, b.id, 999], [a.lease, b.lease + 1000, a.lease], [1, 2, 3]) == [a.id]
    assert face.reject_many([c.id, a.id], [c.lease, a.lease], ["oops", None]) == [c.id]
    assert sorted(face.release([d.id, e.id, c.id], [d.lease, e.lease, c.lease])) == sorted([d.id, e.id])
    assert face.ack_many([f.id], [f.lease]) == [f.id]
    assert face.job_status(a.id).result == 1
    assert face.job_status(f.id).result is None
    assert face.job_status(c.id).error == "oops"
    again = {job.id: job.attempt for job in face.claim("q", 6)}
    assert {d.id: again[d.id], e.id: again[e.id]} == {d.id: 1, e.id: 1}


def test_reject_retries_or_makes_a_dead_letter(face: Face) -> None:
    job = face.enqueue("q", max_attempts=5)
    (claimed,) = face.claim("q")
    assert face.reject(job, claimed.lease, "not now", retry_in=timedelta(0)) == "retry"
    face.promote()
    (claimed,) = face.claim("q")
    assert claimed.attempt == 2
    assert face.reject(job, claimed.lease, "never", retry=False) == "dead"
    state = face.job_status(job)
    assert (state.state, state.error) == ("dead", "never")
    assert face.redrive("q", [job]) == 1
    assert face.claim("q")[0].id == job


def test_leases_are_extended(face: Face) -> None:
    face.enqueue("q")
    (job,) = face.claim("q", lease_for=5)
    assert face.extend(job.lease, lease_for="1 hour") > job.expires_at + timedelta(minutes=50)
    extended = face.extend_many([job.lease, job.lease + 1000], lease_for=7200)
    assert list(extended) == [job.lease]
    assert extended[job.lease] > job.expires_at + timedelta(minutes=110)


def test_a_lost_lease_raises(face: Face) -> None:
    job = face.enqueue("q")
    (claimed,) = face.claim("q")
    face.ack(job, claimed.lease)
    for method, arguments in ((face.ack, (job,)), (face.reject, (job,)), (face.extend, ())):
        with pytest.raises(LeaseLost) as caught:
            method(*arguments, claimed.lease)
        assert isinstance(caught.value.__cause__, psycopg.Error)
        assert caught.value.detail or caught.value.hint


def test_delayed_jobs_wait(face: Face) -> None:
    job = face.enqueue("q", delay=3600)
    assert face.claim("q") == []
    assert face.job_status(job).state == "scheduled"
    assert face.job_status(12345) is None


def test_queues_are_created_changed_and_dropped(face: Face) -> None:
    face.create_queue("other", lease=timedelta(minutes=2), max_attempts=3, backoff="2 seconds", shards=1, notify=False)
    with pytest.raises(QueueExists) as exists:
        face.create_queue("other")
    assert exists.value.hint
    face.create_queue("other", if_not_exists=True)
    face.alter_queue("other", max_attempts=4, lease=30)
    face.enqueue_many("other", [{}, {}])
    assert face.claim("other")[0].max_attempts == 4
    face.pause("other")
    assert face.claim("other") == []
    face.resume("other")
    with pytest.raises(QueueNotEmpty):
        face.drop_queue("other")
    assert face.purge("other") == 1
    face.drop_queue("other", force=True)
    with pytest.raises(QueueNotFound) as missing:
        face.enqueue("other")
    assert "other" in missing.value.message
    assert missing.value.detail or missing.value.hint


def test_looking_after_it(face: Face) -> None:
    face.enqueue("q")
    assert isinstance(face.maintain(), dict)
    assert (face.promote(), face.reap()) == (0, 0)
    face.rotate()
    (stat,) = face.stats()
    assert (stat.queue, stat.paused, stat.ready, stat.dead) == ("q", False, 1, 0)
    assert stat.oldest_ready >= timedelta(0)
    assert isinstance(face.doctor(), list)
    assert face.version() == "0.2.0"


def test_roles_get_rights(face: Face, db: psycopg.Connection[Any]) -> None:
    name = f"r{uuid.uuid4().hex}"
    db.execute(f"CREATE ROLE {name}")
    try:
        for grant in (face.grant_producer, face.grant_consumer, face.grant_admin):
            grant(name)
    finally:
        db.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_jobs_of_a_group_run_one_at_a_time_or_as_the_limits_say(face: Face) -> None:
    first = face.enqueue("q", group_key="g")
    second, free = face.enqueue_many("q", [1, 2], group_keys=["g", None])
    third = face.enqueue_unique("q", group_key="g", unique_key="k").id
    assert sorted(job.id for job in face.claim("q", 10)) == [first, free]
    assert face.job_status(second).state == face.job_status(third).state == "parked"
    assert face.stats()[0].parked == 2
    face.set_limits("q", group_limit=None)
    assert [job.id for job in face.claim("q", 10)] == [second, third]
    face.set_limits("q", running_limit=4, rate=1, rate_period=60, group_rate=2, group_period="1 hour", fair=True)
    with pytest.raises(InvalidArgument):
        face.set_limits("q", rate=1)


def test_a_job_waits_for_others_and_a_batch_for_all_of_its_own(face: Face) -> None:
    first = face.enqueue("q")
    second = face.enqueue("q", after=[first])
    (third,) = face.enqueue_many("q", [1], after=(id for id in [first, second]), on_dead="run")
    fourth = face.enqueue_unique("q", unique_key="k", after=[third], on_dead="skip").id
    batch = face.batch([first, second], "q", {"all": True}, task="summary", priority=3)
    face.add_to_batch(batch, [third])
    assert face.batch_status(batch) == BatchState(batch, done=0, failed=0, pending=3)
    assert face.waits_for(batch) == [first, second, third]
    assert face.waits_for(batch, 1) == [first]
    assert [face.job_status(id).state for id in (second, third, fourth, batch)] == ["waiting"] * 4
    assert face.stats()[0].waiting == 4

    def done() -> bool:
        for job in face.claim("q", 10):
            ended.append(job)
            face.ack(job.id, job.lease)
        return len(ended) == 5

    ended: list[Any] = []
    eventually(done)
    assert [job.id for job in ended][:3] == [first, second, third]
    (last,) = [job for job in ended if job.id == batch]
    assert (last.payload, last.task, last.headers) == ({"all": True}, "summary", {"after": {"done": 3, "failed": 0}})
    assert face.batch_status(batch) is None
    with pytest.raises(NotWaiting):
        face.add_to_batch(batch, [first])
    with pytest.raises(InvalidArgument):
        face.enqueue("q", after=[2**50])
    with pytest.raises(InvalidArgument, match="without after"):
        face.enqueue("q", on_dead="run")


def test_a_schedule_is_made_changed_and_ended(face: Face, db: psycopg.Connection[Any]) -> None:
    face.schedule(
        "nightly", "30 2 * * *", "q", {"kind": "daily"}, task="report", timezone="Europe/Berlin", catch_up="all"
    )
    columns = "cron, queue, payload, task, timezone, catch_up"
    found = f"SELECT {columns} FROM pgq.schedule WHERE name = 'nightly'"
    assert db.execute(found).fetchone() == ("30 2 * * *", "q", {"kind": "daily"}, "report", "Europe/Berlin", "all")
    face.schedule("nightly", "@daily", "q")
    assert db.execute(found).fetchone() == ("@daily", "q", {}, None, "UTC", "one")
    face.unschedule("nightly")
    assert db.execute(found).fetchone() is None
    with pytest.raises(psycopg.errors.UndefinedObject):
        face.unschedule("nightly")


def test_a_schedule_that_cannot_be_is_refused(face: Face) -> None:
    with pytest.raises(QueueNotFound):
        face.schedule("s", "@daily", "missing")
    with pytest.raises(InvalidArgument) as caught:
        face.schedule("s", "0 25 * * *", "q")
    assert caught.value.detail == 'Field 2 (hour), character 3: "25" is not 0 to 23.'
    with pytest.raises(InvalidArgument):
        face.schedule("s", "@daily", "q", timezone="CET")
    with pytest.raises(InvalidArgument):
        face.schedule("s", "@daily", "q", catch_up="two")


def test_next_runs_are_those_of_the_line(face: Face) -> None:
    after = datetime(2026, 3, 28, 12, tzinfo=timezone.utc)
    runs = face.next_runs("30 2 * * *", "Europe/Berlin", 2, after)
    assert runs == [datetime(2026, 3, 29, 1, tzinfo=timezone.utc), datetime(2026, 3, 30, 0, 30, tzinfo=timezone.utc)]
    assert len(face.next_runs("@hourly")) == 5
    (run,) = face.next_runs("@hourly", n=1)
    assert run > datetime.now(timezone.utc) - timedelta(minutes=1)
    with pytest.raises(InvalidArgument):
        face.next_runs("@hourly", n=0)


def test_arguments_out_of_range_are_refused(face: Face) -> None:
    with pytest.raises(InvalidArgument):
        face.enqueue("q", priority=101)
    with pytest.raises(InvalidArgument):
        face.claim("q", -1)
    with pytest.raises(InvalidArgument):
        face.enqueue(None)
    with pytest.raises(InvalidArgument):
        face.enqueue("q", delay=float("inf"))
    with pytest.raises(InvalidArgument):
        face.enqueue("q", headers="no object")


def test_enqueue_joins_the_transaction_of_the_caller(client: Client, connect: Connect) -> None:
    connection = connect(autocommit=False, row_factory=dict_row)
    client.enqueue("q", {"n": 1}, connection=connection)
    assert client.claim("q") == []
    connection.commit()
    client.enqueue("q", {"n": 2}, connection=connection)
    connection.rollback()
    assert [job.payload for job in client.claim("q", 10)] == [{"n": 1}]


def test_a_cursor_stands_for_its_connection(client: Client, connect: Connect) -> None:
    connection = connect(autocommit=False)
    with connection.cursor() as cursor:
        client.enqueue("q", connection=cursor)
        connection.rollback()
    assert client.claim("q") == []


def test_a_client_of_a_connection_leaves_it_open(client: Client, connect: Connect) -> None:
    connection = connect(autocommit=False)
    with Client(connection=connection) as mine:
        mine.enqueue("q")
    assert not connection.closed
    assert client.claim("q") == []
    connection.commit()
    assert len(client.claim("q")) == 1


def test_ack_joins_the_transaction_of_the_handler(client: Client, connect: Connect) -> None:
    job = client.enqueue("q")
    (claimed,) = client.claim("q")
    connection = connect(autocommit=False)
    client.ack(job, claimed.lease, connection=connection)
    connection.rollback()
    state = client.job_status(job)
    assert state is not None
    assert state.state == "running"


async def _enqueue_and_roll_back(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        async with AsyncClient(connection=connection) as mine:
            await mine.enqueue("q")
        await connection.rollback()


def test_the_async_client_joins_too(client: Client, dsn: str) -> None:
    import asyncio

    asyncio.run(_enqueue_and_roll_back(dsn))
    assert client.claim("q") == []


def test_a_connection_of_the_wrong_kind_is_refused(dsn: str, connect: Connect) -> None:
    import asyncio

    with pytest.raises(TypeError, match="an async connection"):
        asyncio.run(AsyncClient().enqueue("q", connection=connect()))  # type: ignore[arg-type]


def test_claims_need_read_committed(client: Client, connect: Connect) -> None:
    connection = connect(autocommit=False)
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    with pytest.raises(NotReadCommitted) as caught:
        client.claim("q", connection=connection)
    assert caught.value.sqlstate == "PQ003"


def test_an_error_that_is_not_ours_stays_what_it_is(client: Client, connect: Connect) -> None:
    connection = connect()
    connection.close()
    with pytest.raises(psycopg.OperationalError):
        client.enqueue("q", connection=connection)


@pytest.mark.direct("terminates sessions")
def test_the_pool_survives_a_restart(client: Client, db: psycopg.Connection[Any]) -> None:
    client.enqueue("q")
    db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    others = "SELECT FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
    eventually(lambda: not db.execute(others).fetchall())
    client.enqueue("q")
    assert len(client.claim("q", 5)) == 2


def test_works_without_prepared_statements(dsn: str, client: Client) -> None:
    with Client(dsn, prepare_threshold=None, pool_size=1) as plain:
        for _ in range(10):
            plain.enqueue("q")
        assert plain._pool is not None
        with plain._pool.connection() as connection:
            assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def test_every_sql_function_has_a_method_with_the_same_arguments(db: psycopg.Connection[Any]) -> None:
    exceptions = {
        "watch",  # only for workers
        "unwatch",
        "enqueue_after",  # enqueue with after
        "enqueue_many_after",
        "watch_job",  # only for a client that waits
        "unwatch_job",
        "wait",  # a procedure; the clients wait by themselves, and hold no snapshot meanwhile
        "work",  # a procedure for sessions that are workers without Python
    }
    functions = db.execute(
        """
        SELECT proname, coalesce(proargnames[1:pronargs], '{}') FROM pg_proc
        WHERE pronamespace = 'pgq'::regnamespace AND proname NOT LIKE '\\_%' AND prorettype <> 'trigger'::regtype
        """
    ).fetchall()
    assert len(functions) > 25
    for name, arguments in functions:
        if name in exceptions:
            continue
        for cls in (Client, AsyncClient):
            parameters = list(inspect.signature(getattr(cls, name)).parameters)
            more = ["after", "on_dead"] if name in ("enqueue", "enqueue_many") else []
            assert parameters == ["self", *arguments, *more, "connection"], name
            assert getattr(cls, name).__doc__
