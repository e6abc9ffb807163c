"""The life of a queue: created, changed, paused, purged, dropped; and what job_status, stats and the doctor say."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tests.conftest import Clock
from tests.sql.support import (
    Connect,
    Connection,
    Passage,
    ack,
    across,
    call,
    claim,
    claim_one,
    column,
    create,
    enqueue,
    eventually,
    findings,
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

HOUR = timedelta(hours=1)


# Settings


def settings(db: Connection, queue: str = "q") -> dict[str, Any]:
    return dict(one(db, "SELECT to_jsonb(q) - 'id' - 'created_at' FROM pgq.queue q WHERE name = %s", queue))


def test_a_queue_has_the_documented_defaults(db: Connection) -> None:
    create(db)
    assert settings(db) == {
        "name": "q",
        "lease": "00:01:00",
        "max_attempts": 20,
        "backoff": "00:00:01",
        "backoff_max": "01:00:00",
        "retention": "7 days",
        "shards": 8,
        "lanes": 8,
        "paused": False,
        "notify": True,
        "validator": None,
        "unique_until": "finished",
        "unique_for": None,
        "on_repeat": "keep",
        "running_limit": None,
        "group_limit": 1,
        "rate": None,
        "rate_period": None,
        "group_rate": None,
        "group_period": None,
        "fair": False,
        "keep_place": True,
    }


def test_creating_a_queue_twice_is_an_error_or_changes_nothing(db: Connection) -> None:
    create(db, shards=3)
    with refused("42710"):
        create(db)
    create(db, if_not_exists=True, shards=5)
    assert settings(db)["shards"] == 3


@pytest.mark.parametrize("if_not_exists", [False, True])
def test_two_sessions_that_create_the_same_queue_make_one(
    db: Connection, connect: Connect, if_not_exists: bool
) -> None:
    first, second = connect(autocommit=False), connect()
    create(first)
    racer = in_background(create, second, if_not_exists=if_not_exists)
    until_blocked(db, second)
    first.commit()
    if if_not_exists:
        racer.result()
    else:
        with refused("42710"):
            racer.result()
    enqueue(db)
    assert len(claim(db, 10)) == 1


def test_alter_queue_changes_what_it_is_given_and_nothing_else(db: Connection) -> None:
    create(db)
    before = settings(db)
    call(db, "alter_queue", "q")
    assert settings(db) == before
    changes = {
        "lease": "00:00:05",
        "max_attempts": 3,
        "backoff": "00:00:02",
        "backoff_max": "00:00:09",
        "retention": "1 day",
        "shards": 16,
        "notify": False,
    }
    for name, value in changes.items():
        call(db, "alter_queue", "q", **{name: value})
        before[name] = value
        before["lanes"] = max(before["lanes"], before["shards"])
        assert settings(db) == before


def test_no_job_is_lost_when_shards_go_up_and_down(db: Connection, clock: Clock) -> None:
    create(db, shards=4)
    made = enqueue(db, 20) + enqueue(db, 20, delay="1 minute") + enqueue(db, 20, priority=5)
    for shards in [1, 64, 2]:
        call(db, "alter_queue", "q", shards=shards)
        made += enqueue(db, 20) + enqueue(db, 20, priority=5)
        rotate(db)
    clock.advance(61)
    call(db, "promote")
    assert stats(db) == {"ready": len(made)}
    again = claim(db, 30)
    assert len(rows(db, "release", ids(again), leases(again))) == 30
    taken: list[int] = []
    while jobs := claim(db, 17):
        taken += ids(jobs)
    assert sorted(taken) == sorted(made)


def test_jobs_without_retention_are_not_archived(db: Connection, clock: Clock) -> None:
    create(db, retention="0")
    create(db, "kept")
    for queue in ["q", "kept"]:
        enqueue(db, 2, queue)
        ack(db, claim(db, 10, queue))
    retire_all(db)
    assert column(db, "SELECT queue FROM pgq.archive") == ["kept", "kept"]


# Pause, purge


@across
def test_a_paused_queue_goes_on_with_everything_but_claims(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 hour")
    enqueue(db, 4)
    jobs = claim(db, 4)
    passage(db, clock)
    call(db, "pause", "q")
    call(db, "pause", "q")
    call(db, "ack", jobs[0].id, jobs[0].lease)
    call(db, "reject", jobs[1].id, jobs[1].lease)
    rows(db, "release", [jobs[2].id], [jobs[2].lease])
    call(db, "extend", jobs[3].lease)
    enqueue(db)
    assert claim(db, 10) == []
    assert stats(db) == {"ready": 2, "running": 1, "retrying": 1}
    call(db, "resume", "q")
    call(db, "resume", "q")
    assert len(claim(db, 10)) == 2


@across
def test_purge_cancels_what_waits_and_leaves_the_rest(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 hour", max_attempts=2)
    create(db, "other")
    enqueue(db, 4)
    running, dying, failing, released = claim(db, 4)
    passage(db, clock)
    call(db, "reject", dying.id, dying.lease, retry=False)
    call(db, "reject", failing.id, failing.lease)
    rows(db, "release", [released.id], [released.lease])
    ready = enqueue(db, 20) + enqueue(db, 5, priority=9)
    enqueue(db, 3, delay="1 hour")
    enqueue(db, 2, "other")
    enqueue(db, 2, "other", delay="1 hour")
    assert call(db, "purge", "q") == 20 + 5 + 3 + 1 + 1
    assert call(db, "purge", "q") == 0
    assert stats(db) == {"running": 1, "dead": 1}
    assert stats(db, "other") == {"ready": 2, "scheduled": 2}
    assert {status(db, id).state for id in ready} == {"cancelled"}
    assert claim(db, 100) == []
    call(db, "ack", running.id, running.lease)
    after = enqueue(db)
    assert ids(claim(db, 100)) == after
    assert len(claim(db, 100, "other")) == 2


def test_purge_waits_for_a_claim_that_holds_a_lane(db: Connection, connect: Connect) -> None:
    create(db, shards=1)
    enqueue(db, 3)
    claimer, purger = connect(autocommit=False), connect()
    taken = claim_one(claimer)
    racer = in_background(call, purger, "purge", "q")
    until_blocked(db, purger)
    claimer.commit()
    assert racer.result() == 2
    assert claim(db, 10) == []
    call(db, "ack", taken.id, taken.lease)


# Drop


@pytest.fixture
def everything(db: Connection, clock: Clock) -> dict[str, Any]:
    """A queue with jobs in every state, and another one."""
    create(db, lease="1 hour", shards=2)
    create(db, "other")
    enqueue(db, 1, "other")
    enqueue(db, 6)
    straggler = claim_one(db)
    early = claim(db, 5)
    ack(db, early[:1])
    rotate(db, 3)
    clock.advance(31)
    rotate(db)
    running, dead, retrying, released = early[1:]
    call(db, "reject", dead.id, dead.lease, retry=False)
    call(db, "reject", retrying.id, retrying.lease)
    rows(db, "release", [released.id], [released.lease])
    enqueue(db, 5)
    rotate(db)
    enqueue(db, 5, priority=3)
    enqueue(db, 2, delay="1 hour")
    return {"running": [straggler, running]}


def test_drop_queue_with_force_leaves_nothing_behind(db: Connection, clock: Clock, everything: dict[str, Any]) -> None:
    call(db, "drop_queue", "q", force=True)
    with refused("PQ002"):
        claim(db)
    with refused("PQ002"):
        enqueue(db)
    assert column(db, "SELECT queue FROM pgq.stats()") == ["other"]
    assert stats(db, "other") == {"ready": 1}
    for job in everything["running"]:
        with refused("PQ001"):
            call(db, "ack", job.id, job.lease)
        with refused("PQ001"):
            call(db, "extend", job.lease)
    ack(db, claim(db, 1, "other"))
    clock.advance(2 * HOUR)
    call(db, "maintain")
    retire_all(db)
    leftovers = """
        SELECT count(*) FROM pgq.line WHERE queue_id NOT IN (SELECT id FROM pgq.queue)
        UNION ALL SELECT count(*) FROM pgq.scheduled
        UNION ALL SELECT count(*) FROM pgq.dead
        UNION ALL SELECT count(*) FROM pgq.straggler
    """
    assert column(db, leftovers) == [0, 0, 0, 0]
    create(db)
    assert stats(db) == {}
    assert claim(db) == []


def test_a_queue_of_the_same_name_starts_anew(db: Connection, everything: dict[str, Any]) -> None:
    call(db, "drop_queue", "q", force=True)
    create(db)
    made = enqueue(db, 3)
    assert sorted(ids(claim(db, 100))) == made


@pytest.mark.parametrize("held", ["ready", "running", "expired", "straggler", "scheduled", "retrying", "dead"])
def test_drop_queue_without_force_refuses_while_there_are_jobs(db: Connection, clock: Clock, held: str) -> None:
    create(db, lease="1 hour")
    enqueue(db, delay="1 hour" if held == "scheduled" else None)
    if held not in ("ready", "scheduled"):
        job = claim_one(db)
    if held == "expired":
        clock.advance(3 * HOUR)
    if held == "straggler":
        rotate(db, 3)
        clock.advance(31)
        rotate(db)
    if held in ("retrying", "dead"):
        call(db, "reject", job.id, job.lease, retry=held == "retrying")
    with refused("PQ005"):
        call(db, "drop_queue", "q")
    with refused("PQ005"):
        call(db, "drop_queue", "q", force=None)
    call(db, "drop_queue", "q", force=True)


def test_drop_queue_drops_an_idle_queue_with_a_past(db: Connection) -> None:
    create(db)
    enqueue(db, 3)
    ack(db, claim(db, 3))
    call(db, "drop_queue", "q")
    retire_all(db)


def test_drop_queue_waits_for_a_producer_and_then_sees_its_jobs(db: Connection, connect: Connect) -> None:
    create(db)
    producer, dropper = connect(autocommit=False), connect()
    made = enqueue(producer)
    racer = in_background(call, dropper, "drop_queue", "q")
    eventually(lambda: one(db, "SELECT last_value > 0 FROM pgq.dropping"), "the drop has begun")
    producer.commit()
    with refused("PQ005"):
        racer.result()
    assert ids(claim(db)) == made


def test_drop_queue_gives_up_on_a_producer_that_does_not_end(db: Connection, connect: Connect) -> None:
    create(db)
    producer = connect(autocommit=False)
    made = enqueue(producer)
    db.execute("ALTER FUNCTION pgq.drop_queue SET lock_timeout = '100ms'")  # rather than five seconds
    with refused("55P03"):
        call(db, "drop_queue", "q", force=True)
    producer.commit()
    assert ids(claim(db)) == made


@pytest.mark.parametrize("named", [{}, {"priority": 1}, {"delay": "1 hour"}], ids=str)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_producer_that_comes_while_a_queue_is_dropped_waits_and_learns_what_became_of_it(
    db: Connection, connect: Connect, named: dict[str, Any], end: str
) -> None:
    create(db)
    dropper, producer = connect(autocommit=False), connect()
    call(dropper, "drop_queue", "q")
    racer = in_background(call, producer, "enqueue", "q", **named)
    until_blocked(db, producer)
    getattr(dropper, end)()
    if end == "rollback":
        assert status(db, racer.result()).state in ("ready", "scheduled")
    else:
        with refused("PQ002"):
            racer.result()


def test_no_job_is_lost_silently_when_a_queue_is_dropped_under_producers(db: Connection, connect: Connect) -> None:
    def produce() -> list[int]:
        session = connect()
        made: list[int] = []
        while True:
            try:
                made.append(call(session, "enqueue", "q"))
            except psycopg.Error as error:
                if error.sqlstate != "PQ002":
                    raise
                return made

    create(db)
    producers = [in_background(produce) for _ in range(3)]
    eventually(lambda: one(db, "SELECT last_value > 100 FROM pgq.job_id"))
    with refused("PQ005"):
        call(db, "drop_queue", "q")
    call(db, "drop_queue", "q", force=True)
    made = [id for producer in producers for id in producer.result()]
    cancelled = column(db, "SELECT count(*) FROM pgq.outcome WHERE kind = 'cancelled'")
    assert cancelled == [len(made)]
    retire_all(db)


def test_drop_queue_waits_for_a_claim_and_cancels_it_too(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, shards=1)
    enqueue(db, 3)
    claimer, dropper = connect(autocommit=False), connect()
    taken = claim_one(claimer)
    racer = in_background(call, dropper, "drop_queue", "q", force=True)
    until_blocked(db, dropper)
    claimer.commit()
    racer.result()
    with refused("PQ001"):
        call(db, "ack", taken.id, taken.lease)
    retire_all(db)


# job_status


@across
def test_job_status_knows_every_state_of_a_life(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 hour", max_attempts=3)
    (id,) = enqueue(db, delay="1 minute", task="t")
    seen = []

    def look() -> None:
        seen.append((status(db, id).state, status(db, id).attempt))

    look()
    clock.advance(62)
    call(db, "promote")
    look()
    job = claim_one(db)
    look()
    passage(db, clock)
    look()
    rows(db, "release", [id], [job.lease])
    look()
    job = claim_one(db)
    call(db, "reject", id, job.lease, "e1")
    look()
    clock.advance(120)
    call(db, "promote")
    look()
    job = claim_one(db)
    passage(db, clock)
    clock.advance(2 * HOUR)
    call(db, "reap")
    look()
    job = claim_one(db)
    passage(db, clock)
    call(db, "reject", id, job.lease, "e3")
    look()
    call(db, "redrive", "q")
    look()
    job = claim_one(db)
    look()
    call(db, "ack", id, job.lease, {"ok": 1})
    look()
    retire_all(db)
    look()
    assert seen == [
        ("scheduled", 1),
        ("ready", 1),
        ("running", 1),
        ("running", 1),
        ("ready", 1),
        ("retrying", 2),
        ("ready", 2),
        ("ready", 3),
        ("dead", 3),
        ("ready", 1),
        ("running", 1),
        ("done", 1),
        ("done", 1),
    ]
    assert (status(db, id).result, status(db, id).task) == ({"ok": 1}, "t")


def test_job_status_says_when(db: Connection, clock: Clock) -> None:
    create(db)
    (id,) = enqueue(db)
    assert (status(db, id).started_at, status(db, id).finished_at, status(db, id).run_at) == (None, None, None)
    clock.advance(HOUR)
    before = clock.now()
    job = claim_one(db)
    started_at = status(db, id).started_at
    assert started_at is not None
    assert before < started_at < clock.now()
    clock.advance(HOUR)
    before = clock.now()
    call(db, "ack", id, job.lease)
    done = status(db, id)
    assert done.finished_at is not None
    assert (done.started_at, before < done.finished_at < clock.now()) == (started_at, True)


def test_job_status_of_an_unknown_job_is_empty(db: Connection) -> None:
    create(db)
    assert rows(db, "job_status", 1) == rows(db, "job_status", -(2**63)) == []


def test_job_status_forgets_a_job_with_its_archive(db: Connection, clock: Clock) -> None:
    create(db, retention="1 day")
    enqueue(db)
    (job,) = jobs = claim(db)
    ack(db, jobs)
    retire_all(db)
    assert status(db, job.id).state == "done"
    for _ in range(3):
        clock.advance(timedelta(days=1))
        call(db, "maintain")
    assert rows(db, "job_status", job.id) == []


def test_a_purged_job_stays_cancelled_in_the_archive(db: Connection) -> None:
    create(db)
    (id,) = enqueue(db)
    call(db, "purge", "q")
    assert status(db, id).state == "cancelled"
    retire_all(db)
    assert status(db, id).state == "cancelled"


# stats


@across
def test_stats_count_every_state(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 hour")
    create(db, "idle")
    assert stats(db) == stats(db, "idle") == {}
    enqueue(db, 7)
    jobs = claim(db, 7)
    passage(db, clock)
    assert stats(db) == {"running": 7}
    call(db, "ack", jobs[0].id, jobs[0].lease)
    assert stats(db) == {"running": 6}
    call(db, "reject", jobs[1].id, jobs[1].lease)
    assert stats(db) == {"running": 5, "retrying": 1}
    call(db, "reject", jobs[2].id, jobs[2].lease, retry=False)
    assert stats(db) == {"running": 4, "retrying": 1, "dead": 1}
    rows(db, "release", ids(jobs[3:5]), leases(jobs[3:5]))
    assert stats(db) == {"ready": 2, "running": 2, "retrying": 1, "dead": 1}
    enqueue(db, 3, delay="1 day")
    enqueue(db, 2, priority=-7)
    assert stats(db) == {"ready": 4, "running": 2, "scheduled": 3, "retrying": 1, "dead": 1}
    clock.advance(2 * HOUR)
    call(db, "maintain")
    assert stats(db) == {"ready": 7, "scheduled": 3, "dead": 1}
    clock.advance(timedelta(days=1))
    call(db, "promote")
    call(db, "redrive", "q")
    assert stats(db) == {"ready": 11}
    ack(db, claim(db, 100))
    assert stats(db) == stats(db, "idle") == {}


def test_stats_do_not_count_what_is_not_committed(db: Connection, connect: Connect) -> None:
    create(db, shards=1)
    late = connect(autocommit=False)
    enqueue(late, 2)
    enqueue(db, 3)
    assert stats(db) == {"ready": 3}
    claim(db, 2)
    assert stats(db) == {"ready": 1, "running": 2}
    late.commit()
    assert stats(db) == {"ready": 3, "running": 2}
    claim(db, 1)
    assert stats(db) == {"ready": 2, "running": 3}


def test_stats_say_how_old_the_oldest_ready_job_is(db: Connection, clock: Clock) -> None:
    create(db)
    age = "SELECT oldest_ready FROM pgq.queue_stats WHERE queue = 'q'"
    assert one(db, age) is None
    enqueue(db)
    clock.advance(HOUR)
    enqueue(db)
    assert HOUR <= one(db, age) < HOUR + timedelta(minutes=1)
    call(db, "pause", "q")
    assert one(db, "SELECT paused FROM pgq.queue_stats WHERE queue = 'q'")


# The doctor


@pytest.fixture
def healthy(db: Connection, clock: Clock) -> Connection:
    create(db)
    call(db, "maintain")
    assert findings(db) == {}
    return db


@pytest.mark.direct("looks at the session")
def test_the_doctor_names_the_session_that_holds_a_lane(healthy: Connection, connect: Connect, clock: Clock) -> None:
    enqueue(healthy)
    holder = connect(autocommit=False)
    claim(holder)
    assert "stuck_lane" not in findings(healthy)
    clock.advance(6)
    severity, subject, detail, hint = findings(healthy)["stuck_lane"]
    assert (severity, subject) == ("error", "queue q")
    pid = str(holder.info.backend_pid)
    assert pid in detail
    assert f"pg_terminate_backend({pid})" in hint
    holder.rollback()
    assert "stuck_lane" not in findings(healthy)


@pytest.mark.parametrize("paused", [False, True], ids=["no worker", "paused"])
def test_the_doctor_sees_that_nobody_claims(healthy: Connection, clock: Clock, paused: bool) -> None:
    enqueue(healthy, 3)
    if paused:
        call(healthy, "pause", "q")
    assert "no_claims" not in findings(healthy)
    clock.advance(61)
    call(healthy, "maintain")
    severity, subject, detail, hint = findings(healthy)["no_claims"]
    assert (severity, subject, "3 jobs" in detail) == ("warning", "queue q", True)
    assert ("pgq.resume('q')" if paused else "worker") in hint
    call(healthy, "resume", "q")
    claim(healthy)
    assert "no_claims" not in findings(healthy)


@pytest.mark.direct("looks at the session")
@pytest.mark.parametrize("prepared", [False, True], ids=["a session", "a prepared transaction"])
def test_the_doctor_names_who_still_inserts_into_a_sealed_segment(
    healthy: Connection, connect: Connect, clock: Clock, prepared: bool
) -> None:
    enqueue(healthy)
    producer = connect(autocommit=False)
    enqueue(producer)
    pid = str(producer.info.backend_pid)
    if prepared:
        producer.execute("PREPARE TRANSACTION 'held'")
        producer.rollback()
    rotate(healthy, 2)
    clock.advance(61)
    call(healthy, "maintain")
    severity, subject, detail, _ = findings(healthy)["segment_held"]
    assert (severity, subject) == ("warning", "segment 0")
    assert ("prepared" if prepared else pid) in detail
    if prepared:
        healthy.execute("ROLLBACK PREPARED 'held'")
    else:
        producer.rollback()
    assert "segment_held" not in findings(healthy)


@pytest.mark.direct("looks at the session")
def test_the_doctor_names_who_keeps_a_segment_from_being_truncated(healthy: Connection, connect: Connect) -> None:
    enqueue(healthy)
    ack(healthy, claim(healthy))
    reader = connect(autocommit=False)
    reader.execute("SELECT count(*) FROM pgq.job")
    rotate(healthy, 5)
    severity, subject, detail, _ = findings(healthy)["segment_locked"]
    assert (severity, subject) == ("warning", "segment 0")
    assert str(reader.info.backend_pid) in detail
    reader.rollback()
    rotate(healthy)
    assert "segment_locked" not in findings(healthy)


def test_the_doctor_sees_a_segment_that_waits_for_its_consumers(healthy: Connection, clock: Clock) -> None:
    enqueue(healthy, 3)
    rotate(healthy)
    rotate(healthy)
    clock.advance(timedelta(minutes=11))
    _, subject, detail, _ = findings(healthy)["segment_waiting"]
    assert (subject, "3 jobs of queue q" in detail) == ("segment 0", True)


def test_the_doctor_sees_a_segment_that_waits_for_its_workers(healthy: Connection, clock: Clock) -> None:
    enqueue(healthy)
    claim(healthy, lease_for="1 day")
    rotate(healthy, 3)
    clock.advance(timedelta(minutes=11))
    assert findings(healthy)["segment_running"][1] == "segment 0"


def test_the_doctor_sees_that_the_ring_is_full(healthy: Connection, connect: Connect) -> None:
    reader = connect(autocommit=False)
    reader.execute("SELECT count(*) FROM pgq.job")
    seen = []
    for _ in range(20):
        enqueue(healthy)
        ack(healthy, claim(healthy))
        rotate(healthy, 3)
        if finding := findings(healthy).get("ring_full"):
            seen.append((finding[0], finding[2]))
    assert dict(seen) == {"warning": "1 of 16 segments are free", "error": "0 of 16 segments are free"}
    reader.rollback()
    retire_all(healthy)
    assert findings(healthy) == {}


def test_the_doctor_sees_that_nobody_maintains(healthy: Connection, clock: Clock) -> None:
    clock.advance(timedelta(minutes=4))
    assert findings(healthy).keys() == {"not_maintained"}
    call(healthy, "maintain")
    assert findings(healthy) == {}


def test_an_empty_installation_is_healthy(db: Connection) -> None:
    assert findings(db) == {}
    assert db.execute("SELECT * FROM pgq.stats()").fetchall() == []


@pytest.mark.parametrize("how", ["enqueued", "promoted"])
@pytest.mark.parametrize("count", [1, 20])
def test_a_queue_is_dropped_with_what_the_transaction_has_added_itself(
    db: Connection, connect: Connect, clock: Clock, how: str, count: int
) -> None:
    """No claim would ever see those jobs again, and their segment would never be retired."""
    create(db)
    create(db, "other")
    enqueue(db, count, delay="1 minute" if how == "promoted" else None)
    enqueue(db, 3, queue="other")
    clock.advance(61)
    session = connect(autocommit=False)
    if how == "enqueued":
        enqueue(session, count)
    else:
        assert call(session, "promote") == count
    with refused("PQ005"), session.transaction():
        call(session, "drop_queue", "q")
    call(session, "drop_queue", "q", force=True)
    session.commit()
    assert len(ack(db, claim(db, 10, "other"))) == 3
    retire_all(db)
