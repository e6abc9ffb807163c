"""What is known about every attempt of a job, wherever it is kept, and how far a running one says it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.rows import class_row

from tests.conftest import Clock
from tests.sql.support import (
    Connect,
    Connection,
    Job,
    Passage,
    ack,
    across,
    call,
    claim,
    claim_one,
    column,
    create,
    enqueue,
    flush_counts,
    in_background,
    one,
    refused,
    retire_all,
    rotate,
    rows,
    until_blocked,
)

HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Attempt:
    """A row of pgq.attempts."""

    attempt: int
    state: str
    lease: int | None
    worker: str | None
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    result: Any
    error: str | None
    progress: Any


def attempts(db: Connection, id: int) -> list[Attempt]:
    with db.cursor(row_factory=class_row(Attempt)) as cursor:
        return cursor.execute("SELECT * FROM pgq.attempts(%s)", [id]).fetchall()


def told(db: Connection, id: int) -> list[tuple[int, str]]:
    return [(attempt.attempt, attempt.state) for attempt in attempts(db, id)]


def come_back(db: Connection, clock: Clock) -> None:
    """Let every retry become ready."""
    clock.advance(2 * HOUR)
    call(db, "promote")


def fail(db: Connection, error: str = "broken", **named: Any) -> Job:
    job = claim_one(db, worker="w")
    call(db, "reject", job.id, job.lease, error, **named)
    return job


# Attempts -------------------------------------------------------------------------------------------------------------

LIFE = [(1, "retry"), (2, "expired"), (3, "dead"), (1, "released"), (1, "done")]


def live(db: Connection, clock: Clock, passage: Passage) -> int:
    """One job with an attempt of each kind."""
    create(db, lease="1 hour", max_attempts=3)
    (id,) = enqueue(db)
    assert told(db, id) == []
    job = claim_one(db)
    assert told(db, id) == [(1, "running")]
    passage(db, clock)
    assert told(db, id) == [(1, "running")]
    call(db, "reject", id, job.lease, "e1")
    assert told(db, id) == [(1, "retry")]
    come_back(db, clock)
    claim_one(db)
    passage(db, clock)
    clock.advance(2 * HOUR)
    assert call(db, "reap") == 1
    assert told(db, id) == [(1, "retry"), (2, "expired")]
    job = claim_one(db)
    passage(db, clock)
    call(db, "reject", id, job.lease, "e3")
    assert told(db, id) == LIFE[:3]
    call(db, "redrive", "q")
    assert told(db, id) == LIFE[:3]
    job = claim_one(db)
    rows(db, "release", [id], [job.lease])
    job = claim_one(db)
    assert told(db, id) == [*LIFE[:4], (1, "running")]
    passage(db, clock)
    call(db, "ack", id, job.lease, {"ok": 1})
    return id


@across
def test_every_attempt_of_a_life_is_known_in_order(db: Connection, clock: Clock, passage: Passage) -> None:
    id = live(db, clock, passage)
    kept = [a for a in attempts(db, id) if a.state != "released"]  # until its segment is retired
    assert [(a.attempt, a.state) for a in kept] == [p for p in LIFE if p[1] != "released"]
    assert [a.error for a in kept] == ["e1", "lease expired", "e3", None]
    assert [a.result for a in kept] == [None, None, None, {"ok": 1}]
    retire_all(db)
    rotate(db, 3)
    assert attempts(db, id) == kept


def test_each_row_says_who_and_when(db: Connection, clock: Clock) -> None:
    create(db, lease="10 minutes")
    (id,) = enqueue(db)
    job = claim_one(db, worker="me")
    (running,) = attempts(db, id)
    assert running == Attempt(1, "running", job.lease, "me", running.started_at, None, job.expires_at, None, None, None)
    until = call(db, "extend", job.lease, timedelta(hours=3))
    (extended,) = attempts(db, id)
    assert extended.expires_at == until
    clock.advance(HOUR)
    before = clock.now()
    call(db, "ack", id, job.lease)
    (done,) = attempts(db, id)
    assert (done.started_at, done.expires_at) == (running.started_at, None)
    assert done.started_at is not None
    assert done.finished_at is not None
    assert before - HOUR > done.started_at - timedelta(minutes=1)
    assert before < done.finished_at < clock.now()


def test_a_straggler_says_when_its_lease_ends(db: Connection, clock: Clock) -> None:
    create(db, lease="10 minutes")
    (id,) = enqueue(db)
    job = claim_one(db)
    rotate(db, 3)
    clock.advance(31)
    rotate(db)
    assert [a.expires_at for a in attempts(db, id)] == [job.expires_at]
    until = call(db, "extend", job.lease, HOUR)
    assert [a.expires_at for a in attempts(db, id)] == [until]


@pytest.mark.parametrize("size", [7, 8, 100])
def test_an_ended_batch_is_read_job_by_job(db: Connection, clock: Clock, size: int) -> None:
    """Eight and more that end together have one outcome between them."""
    create(db, shards=1)
    made = enqueue(db, size)
    jobs = claim(db, size)
    column(
        db,
        "SELECT pgq.ack_many(%s::bigint[], %s::bigint[], ARRAY(SELECT to_jsonb(n) FROM unnest(%s::bigint[]) n))",
        made,
        [job.lease for job in jobs],
        made,
    )
    for id in (made[0], made[-2], made[-1]):
        assert [(a.state, a.result) for a in attempts(db, id)] == [("done", id)]
    retire_all(db)
    assert [(a.state, a.result) for a in attempts(db, made[-1])] == [("done", made[-1])]


def test_a_split_batch_is_read_job_by_job(db: Connection) -> None:
    create(db, shards=1)
    made = enqueue(db, 20)
    jobs = claim(db, 20)
    call(db, "ack", made[0], jobs[0].lease, {"a": 1})
    call(db, "reject", made[1], jobs[1].lease, "no")
    assert told(db, made[0]) == [(1, "done")]
    assert told(db, made[1]) == [(1, "retry")]
    assert told(db, made[2]) == [(1, "running")]
    ack(db, jobs[2:])
    assert told(db, made[2]) == [(1, "done")]


@pytest.mark.parametrize("forget", ["UPDATE pgq.queue SET retention = '0'", None])
def test_the_history_knows_what_the_archive_does_not(db: Connection, clock: Clock, forget: str | None) -> None:
    create(db, lease="1 hour", max_attempts=2, retention="1 day")
    (id,) = enqueue(db)
    if forget:
        db.execute(forget.encode())
    fail(db, "e1")
    come_back(db, clock)
    fail(db, "e2")
    call(db, "redrive", "q")
    claim_one(db, worker="v")
    clock.advance(2 * HOUR)
    call(db, "reap")
    fail(db, "e4")
    whole = attempts(db, id)
    life = [(1, "retry"), (2, "dead"), (1, "expired"), (2, "dead")]
    assert [(a.attempt, a.state) for a in whole] == life
    retire_all(db)
    if not forget:
        rotate(db, 3)
        assert attempts(db, id) == whole
        for _ in range(3):
            clock.advance(timedelta(days=1))
            call(db, "maintain")
    assert one(db, "SELECT count(*) FROM pgq.archive WHERE id = %s", id) == 0
    past = attempts(db, id)
    assert [(a.attempt, a.state) for a in past] == life
    assert [(a.worker, a.error) for a in past] == [(a.worker, a.error) for a in whole]
    assert {(a.lease, a.started_at) for a in past} == {(None, None)}
    for was, known in zip(whole, past, strict=True):
        assert was.finished_at is not None
        assert known.finished_at is not None
        assert timedelta(0) <= was.finished_at - known.finished_at < timedelta(seconds=5)
    # Redriven at last, it is done, and what is no more is not made up.
    call(db, "redrive", "q")
    job = claim_one(db)
    assert told(db, id) == [*life, (1, "running")]
    call(db, "ack", id, job.lease)
    assert told(db, id)[-1] == (1, "done")


def test_a_waiting_job_that_was_purged_was_cancelled(db: Connection) -> None:
    create(db)
    (id,) = enqueue(db)
    call(db, "purge", "q")
    assert told(db, id) == [(1, "cancelled")]
    retire_all(db)
    assert told(db, id) == [(1, "cancelled")]


def test_carrying_a_job_forward_is_no_attempt(db: Connection, clock: Clock) -> None:
    create(db, shards=1)
    (id,) = enqueue(db)
    for _ in range(5):
        rotate(db)
        clock.advance(61)
    assert one(db, "SELECT count(*) FROM pgq.outcome WHERE kind = 'carried'") > 0
    assert told(db, id) == []
    claim_one(db)
    assert told(db, id) == [(1, "running")]


def test_what_is_half_archived_is_told_once(db: Connection) -> None:
    create(db)
    (id,) = enqueue(db)
    ack(db, claim(db))
    while not one(db, "SELECT count(*) FROM pgq.archive"):
        rotate(db)
    assert one(db, "SELECT count(*) FROM pgq.outcome") == 1
    assert told(db, id) == [(1, "done")]


def test_an_unknown_job_has_no_attempts(db: Connection) -> None:
    create(db)
    assert attempts(db, 1) == attempts(db, -(2**63)) == []
    for function in ["attempts", "job_progress"]:
        with refused("22004"):
            db.execute(f"SELECT pgq.{function}(NULL)".encode())


@pytest.mark.parametrize("move", [{"retry": False}, {"retry_in": "1 hour"}], ids=["dead", "retry"])
def test_attempts_are_those_of_one_moment(db: Connection, connect: Connect, move: dict[str, Any]) -> None:
    """The look at the segment waits for a lock, while the job leaves it."""
    create(db)
    enqueue(db)
    job = claim_one(db)
    mover, reader = connect(autocommit=False), connect()
    mover.execute("LOCK TABLE pgq.lease_0, pgq.outcome_0")
    call(mover, "reject", job.id, job.lease, **move)
    seen = in_background(told, reader, job.id)
    until_blocked(db, reader)
    mover.commit()
    assert seen.result() == [(1, "running")]
    assert told(reader, job.id) == [(1, "retry" if "retry_in" in move else "dead")]


def read(db: Connection) -> tuple[int, int]:
    """Sequential scans of all tables with jobs, and index entries read, so far."""
    flush_counts(db)
    cursor = db.execute(
        """
        SELECT sum(t.seq_scan)::bigint, sum(i.read)::bigint
        FROM pg_stat_user_tables t
        LEFT JOIN LATERAL (
            SELECT sum(idx_tup_read) AS read FROM pg_stat_user_indexes i WHERE i.relid = t.relid
        ) i ON true
        WHERE t.schemaname = 'pgq' AND t.relname ~ '^(job|lease|outcome|archive|scheduled|dead|straggler|progress)'
        """
    )
    (scans, entries) = cursor.fetchall()[0]
    return scans, entries


@pytest.mark.direct("looks at what a session reads")
def test_attempts_are_found_through_indexes(db: Connection, connect: Connect) -> None:
    create(db)
    for _ in range(30):
        db.execute("SELECT count(*) FROM pgq.enqueue_many('q', array_fill('{}'::jsonb, ARRAY[1000]))")
    for _ in range(100):
        ack(db, claim(db, 50))
    rotate(db)
    db.execute("SELECT count(*) FROM pgq.enqueue_many('q', array_fill('{}'::jsonb, ARRAY[5000]))")
    ack(db, claim(db, 100))
    (job,) = claim(db)
    db.execute("ANALYZE")
    reader = connect()
    for id in (1, job.id, 30_001, 34_000):
        attempts(reader, id)
        call(reader, "progress", job.id, job.lease, "1")
        call(reader, "job_progress", id)
    before = read(reader)
    for id in (1, job.id, 30_001, 34_000):
        attempts(reader, id)
        call(reader, "progress", job.id, job.lease, "1")
        call(reader, "job_progress", id)
    after = read(reader)
    assert after[0] == before[0]
    assert after[1] - before[1] < 1000


# Progress -------------------------------------------------------------------------------------------------------------


def progress(db: Connection, job: Job, value: str) -> bool:
    return bool(call(db, "progress", job.id, job.lease, value))


def tidy(db: Connection, clock: Clock) -> None:
    """Let the minute pass after which maintenance tidies up."""
    clock.advance(61)
    while call(db, "maintain")["more"]:
        pass


@across
def test_progress_is_seen_until_the_attempt_ends(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 day", backoff="0", backoff_max="0")
    (id,) = enqueue(db)
    job = claim_one(db)
    assert (call(db, "job_progress", id), attempts(db, id)[0].progress) == (None, None)
    assert progress(db, job, "0.25")
    assert (call(db, "job_progress", id), attempts(db, id)[0].progress) == (0.25, 0.25)
    passage(db, clock)
    assert (call(db, "job_progress", id), attempts(db, id)[0].progress) == (0.25, 0.25)
    clock.advance(60)
    assert progress(db, job, '{"done": 3, "of": 4}')
    assert call(db, "job_progress", id) == attempts(db, id)[0].progress == {"done": 3, "of": 4}
    call(db, "reject", id, job.lease, "broken")
    with refused("PQ001"):
        progress(db, job, "1")
    assert (call(db, "job_progress", id), attempts(db, id)[0].progress) == (None, None)
    clock.advance(1)
    call(db, "promote")
    again = claim_one(db)
    assert call(db, "job_progress", id) is None
    with refused("PQ001"):
        progress(db, job, "1")
    assert progress(db, again, "0.5")
    assert [a.progress for a in attempts(db, id)] == [None, 0.5]
    tidy(db, clock)
    assert column(db, "SELECT lease FROM pgq.progress") == [again.lease]
    call(db, "ack", id, again.lease)
    tidy(db, clock)
    assert column(db, "SELECT lease FROM pgq.progress") == []


def test_progress_of_a_job_of_a_batch_ends_with_the_batch(db: Connection, clock: Clock) -> None:
    create(db, shards=1)
    enqueue(db, 20)
    jobs = claim(db, 20)
    assert progress(db, jobs[3], "1")
    ack(db, jobs)
    assert call(db, "job_progress", jobs[3].id) is None
    with refused("PQ001"):
        progress(db, jobs[4], "1")
    tidy(db, clock)
    assert one(db, "SELECT count(*) FROM pgq.progress") == 0


def test_an_expired_lease_that_nobody_has_reaped_still_counts(db: Connection, clock: Clock) -> None:
    """As for ack: who comes first."""
    create(db)
    enqueue(db)
    job = claim_one(db)
    clock.advance(120)
    assert progress(db, job, "1")
    call(db, "reap")
    with refused("PQ001"):
        progress(db, job, "2")


def test_reports_are_left_out_that_come_too_soon(db: Connection, clock: Clock) -> None:
    create(db, lease="1 day")
    (id,) = enqueue(db)
    job = claim_one(db)
    assert progress(db, job, "1")
    assert not progress(db, job, "2")
    assert call(db, "job_progress", id) == 1
    clock.advance(1)
    assert progress(db, job, "3")
    clock.advance(3600)
    assert progress(db, job, "4")
    clock.advance(30)  # less than a hundredth of an hour
    assert not progress(db, job, "5")
    clock.advance(8)
    assert progress(db, job, "6")
    clock.advance(-1000)  # a clock that was put back silences nobody
    assert progress(db, job, "7")
    assert call(db, "job_progress", id) == 7


def test_an_attempt_that_reports_all_the_time_leaves_a_few_hundred_dead_rows(db: Connection, clock: Clock) -> None:
    create(db, lease="1 day")
    enqueue(db)
    job = claim_one(db)
    written = 0
    for _ in range(3600):  # an hour
        clock.advance(1)
        written += progress(db, job, "1")
    assert 300 < written < 600


@pytest.mark.parametrize("value", ["null", "0.5", '"text"', "[]", "{}", '"' + "x" * 998 + '"'])
def test_progress_is_any_small_json(db: Connection, value: str) -> None:
    create(db)
    enqueue(db)
    job = claim_one(db)
    assert progress(db, job, value)
    assert one(db, "SELECT value = %s FROM pgq.progress", value)


@pytest.mark.parametrize(
    ("sqlstate", "arguments"),
    [
        ("22004", "NULL, 1, '1'"),
        ("22004", "1, NULL, '1'"),
        ("22004", "1, 1, NULL"),
        ("PQ001", "1, 1, '1'"),
        ("PQ001", "-9223372036854775808, -1, '1'"),
        ("22023", "1, 1, to_jsonb(repeat('x', 999))"),
        ("22P02", "1, 1, 'half'"),
    ],
)
def test_bad_progress_is_refused(db: Connection, sqlstate: str, arguments: str) -> None:
    create(db)
    with refused(sqlstate):
        db.execute(f"SELECT pgq.progress({arguments})".encode())


def test_progress_needs_the_lease_of_that_job(db: Connection) -> None:
    create(db, shards=1)
    enqueue(db, 2)
    first, second = claim_one(db), claim_one(db)
    with refused("PQ001"):
        call(db, "progress", first.id, second.lease, "1")


@pytest.mark.parametrize("end", ["ack", "reject", "reap"])
@pytest.mark.parametrize("late", [False, True], ids=["before the commit", "after the commit"])
def test_progress_and_an_end_at_once(db: Connection, connect: Connect, clock: Clock, end: str, late: bool) -> None:
    """Neither waits for the other. What is told of an attempt that has ended shows nowhere, and goes."""
    create(db)
    (id,) = enqueue(db)
    job = claim_one(db)
    clock.advance(120 if end == "reap" else 0)
    ending, telling = connect(autocommit=False), connect(autocommit=False)
    for session in (ending, telling):
        session.execute("SET LOCAL lock_timeout = '5s'")
    if not late:
        assert progress(telling, job, "1")
    if end == "reap":
        assert call(ending, "reap") == 1
    else:
        call(ending, end, id, job.lease)
    if late:
        assert progress(telling, job, "1")
    ending.commit()
    assert call(db, "job_progress", id) is None
    telling.commit()
    assert call(db, "job_progress", id) is None
    assert [a.progress for a in attempts(db, id)] == [None]
    with refused("PQ001"):
        progress(db, job, "2")
    tidy(db, clock)
    assert one(db, "SELECT count(*) FROM pgq.progress") == 0


def test_maintain_does_not_wait_for_who_has_just_told(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db)
    enqueue(db)
    job = claim_one(db)
    progress(db, job, "1")
    clock.advance(2)
    teller = connect(autocommit=False)
    assert progress(teller, job, "2")
    call(db, "ack", job.id, job.lease)
    db.execute("SET lock_timeout = '2s'")
    tidy(db, clock)
    teller.commit()
    tidy(db, clock)
    assert one(db, "SELECT count(*) FROM pgq.progress") == 0


@pytest.mark.parametrize("undo", ["ROLLBACK", "ROLLBACK TO SAVEPOINT s"])
def test_progress_that_is_rolled_back_was_never_told(db: Connection, connect: Connect, undo: str) -> None:
    create(db)
    (id,) = enqueue(db)
    job = claim_one(db)
    session = connect(autocommit=False)
    session.execute("SAVEPOINT s")
    assert progress(session, job, "1")
    assert call(session, "job_progress", id) == 1
    session.execute(undo.encode())
    session.commit()
    assert call(db, "job_progress", id) is None
    assert progress(db, job, "2")


def test_two_sessions_that_tell_of_one_attempt(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db)
    (id,) = enqueue(db)
    job = claim_one(db)
    first, second = connect(autocommit=False), connect()
    assert progress(first, job, "1")
    racer = in_background(progress, second, job, "2")
    until_blocked(db, second)
    first.commit()
    assert racer.result()
    assert call(db, "job_progress", id) == 2
    assert one(db, "SELECT count(*) FROM pgq.progress") == 1


def test_under_repeatable_read_a_newer_report_is_a_conflict(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db)
    enqueue(db)
    job = claim_one(db)
    progress(db, job, "1")
    clock.advance(2)
    old = connect(autocommit=False)
    old.isolation_level = IsolationLevel.REPEATABLE_READ
    old.execute("SELECT 1 FROM pgq.queue")
    clock.advance(2)
    assert progress(db, job, "2")
    with pytest.raises(psycopg.errors.SerializationFailure):
        progress(old, job, "3")


@pytest.mark.direct("terminates a session")
@pytest.mark.parametrize("kill", ["before", "after"])
def test_a_session_that_is_killed_while_it_tells_holds_up_nobody(
    db: Connection, connect: Connect, kill: str, clock: Clock
) -> None:
    create(db)
    (id,) = enqueue(db)
    job = claim_one(db)
    victim = connect(autocommit=False)
    assert progress(victim, job, "1")
    if kill == "after":
        victim.commit()
    db.execute("SELECT pg_terminate_backend(%s, 20000)", [victim.info.backend_pid])
    victim.close()
    clock.advance(2)
    assert progress(db, job, "2")
    assert call(db, "job_progress", id) == 2


def test_progress_outlives_the_queue_by_a_minute(db: Connection, clock: Clock) -> None:
    create(db)
    (id,) = enqueue(db)
    job = claim_one(db)
    progress(db, job, "1")
    call(db, "drop_queue", "q", force=True)
    assert call(db, "job_progress", id) is None
    tidy(db, clock)
    assert one(db, "SELECT count(*) FROM pgq.progress") == 0


# Rights ---------------------------------------------------------------------------------------------------------------

Ask = Callable[[Connection], object]


@pytest.mark.direct("logs in as other roles")
@pytest.mark.parametrize(
    ("grant", "allowed"),
    [
        (None, set()),
        ("producer", set()),
        ("consumer", {"progress"}),
        ("admin", {"progress", "attempts", "job_progress"}),
    ],
)
def test_who_may_ask_and_tell(db: Connection, connect: Connect, grant: str | None, allowed: set[str]) -> None:
    create(db)
    enqueue(db)
    job = claim_one(db)
    db.execute("DROP ROLE IF EXISTS asker; CREATE ROLE asker LOGIN")
    if grant:
        db.execute(f"SELECT pgq.grant_{grant}('asker')".encode())
    asker = connect(user="asker")
    asks: dict[str, Ask] = {
        "progress": lambda db: progress(db, job, "1"),
        "attempts": lambda db: attempts(db, job.id),
        "job_progress": lambda db: call(db, "job_progress", job.id),
    }
    may = set()
    for name, ask in asks.items():
        try:
            ask(asker)
            may.add(name)
        except psycopg.errors.InsufficientPrivilege:
            pass
    assert may == allowed
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        asker.execute("TABLE pgq.progress")
    asker.close()
    db.execute("DROP OWNED BY asker; DROP ROLE asker")
