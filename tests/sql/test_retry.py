"""What becomes of jobs that fail: backoff, the counting of attempts, dead letters, redrive."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.conftest import Clock
from tests.sql.support import (
    Connection,
    Job,
    Passage,
    across,
    call,
    claim,
    claim_one,
    column,
    create,
    enqueue,
    ids,
    leases,
    one,
    retire_all,
    rotate,
    rows,
    stats,
    status,
)

HOUR = timedelta(hours=1)


def history(db: Connection, table: str, id: int) -> list[tuple[int, str | None, str | None]]:
    """Attempt, error and worker of each failure on record."""
    past = one(db, f"SELECT history FROM pgq.{table} WHERE id = %s", id)
    return [(entry["attempt"], entry["error"], entry["worker"]) for entry in past]


def come_back(db: Connection, clock: Clock) -> None:
    """Let every retry become ready."""
    clock.advance(timedelta(days=1))
    call(db, "promote")


def delays(db: Connection, clock: Clock) -> list[float]:
    return [(run_at - clock.now()).total_seconds() for run_at in column(db, "SELECT run_at FROM pgq.scheduled")]


@across
def test_a_rejected_job_waits_for_its_next_attempt(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 hour")
    call(db, "enqueue", "q", {"a": 1}, task="t", priority=4, headers={"b": 2}, max_attempts=7)
    first = claim_one(db, worker="w")
    passage(db, clock)
    assert call(db, "reject", first.id, first.lease, "broken") == "retry"
    state = status(db, first.id)
    assert (state.state, state.attempt, state.error) == ("retrying", 2, "broken")
    assert state.run_at is not None
    assert history(db, "scheduled", first.id) == [(1, "broken", "w")]
    assert claim(db) == []
    come_back(db, clock)
    again = claim_one(db)
    assert (again.id, again.attempt, again.enqueued_at) == (first.id, 2, first.enqueued_at)
    assert (again.payload, again.task, again.priority) == ({"a": 1}, "t", 4)
    assert (again.headers, again.max_attempts) == ({"b": 2}, 7)
    assert claim(db) == []


def test_backoff_doubles_and_half_of_it_is_chance(db: Connection, clock: Clock) -> None:
    create(db, backoff="10 seconds", backoff_max="5 minutes")
    enqueue(db, 40)
    for attempt in range(1, 9):
        jobs = claim(db, 100)
        assert {job.attempt for job in jobs} == {attempt}
        assert sorted(rows(db, "reject_many", ids(jobs), leases(jobs))) == sorted(ids(jobs))
        full = min(10 * 2 ** (attempt - 1), 300)
        waits = delays(db, clock)
        assert full / 2 - 2 < min(waits) < full * 0.75 < max(waits) <= full
        clock.advance(HOUR)
        call(db, "promote")


@pytest.mark.parametrize("backoff", ["1 minute", "1 month", "1 year"])
def test_backoff_is_capped_however_many_attempts_there_were(db: Connection, clock: Clock, backoff: str) -> None:
    create(db, backoff=backoff, backoff_max="1 year", max_attempts=32767)
    enqueue(db)
    for attempt in [40, 500, 32766]:
        db.execute("UPDATE pgq.job SET attempt = %s", [attempt])  # as if it had failed that often
        job = claim_one(db)
        assert call(db, "reject", job.id, job.lease) == "retry"
        (wait,) = delays(db, clock)
        assert 182 * 86400 < wait < 367 * 86400
        clock.advance(timedelta(days=400))
        call(db, "promote")


def test_no_backoff_is_no_wait(db: Connection, clock: Clock) -> None:
    create(db, backoff="0", backoff_max="0")
    enqueue(db)
    job = claim_one(db)
    call(db, "reject", job.id, job.lease)
    call(db, "promote")
    assert claim_one(db).attempt == 2


@pytest.mark.parametrize("retry_in", ["0", "1 second", "3 days", "100 years"])
def test_retry_in_overrides_the_backoff(db: Connection, clock: Clock, retry_in: str) -> None:
    create(db)
    enqueue(db)
    job = claim_one(db)
    assert call(db, "reject", job.id, job.lease, retry_in=retry_in) == "retry"
    (wait,) = delays(db, clock)
    expected = one(db, "SELECT extract(epoch FROM pgq._now() + %s::interval - pgq._now())::float8", retry_in)
    assert expected - 5 < wait <= expected


@across
@pytest.mark.parametrize(
    "named", [{"retry": False}, {"retry": False, "retry_in": "1 hour"}, {}], ids=["no retry", "nor later", "used up"]
)
def test_a_job_that_fails_for_good_becomes_a_dead_letter(
    db: Connection, clock: Clock, passage: Passage, named: dict[str, Any]
) -> None:
    create(db, lease="1 hour", max_attempts=20 if named else 1)
    call(db, "enqueue", "q", {"a": 1}, task="t")
    job = claim_one(db, worker="w")
    passage(db, clock)
    assert call(db, "reject", job.id, job.lease, "hopeless", **named) == "dead"
    state = status(db, job.id)
    assert (state.state, state.attempt, state.error, state.task) == ("dead", 1, "hopeless", "t")
    assert state.finished_at is not None
    assert stats(db) == {"dead": 1}
    assert history(db, "dead", job.id) == [(1, "hopeless", "w")]
    come_back(db, clock)
    assert claim(db) == []


@pytest.mark.parametrize("own", [None, 3], ids=["the queue's", "the job's own"])
def test_a_job_is_attempted_max_attempts_times(db: Connection, clock: Clock, own: int | None) -> None:
    create(db, max_attempts=20 if own else 3)
    (id,) = enqueue(db, max_attempts=own)
    ends = []
    for attempt in [1, 2, 3]:
        job = claim_one(db, worker=f"w{attempt}")
        assert (job.id, job.attempt, job.max_attempts) == (id, attempt, 3)
        ends.append(call(db, "reject", id, job.lease, f"e{attempt}"))
        come_back(db, clock)
    assert ends == ["retry", "retry", "dead"]
    assert history(db, "dead", id) == [(1, "e1", "w1"), (2, "e2", "w2"), (3, "e3", "w3")]
    assert claim(db) == []


@across
def test_a_job_whose_worker_dies_each_time_stops_after_exactly_max_attempts(
    db: Connection, clock: Clock, passage: Passage
) -> None:
    create(db, max_attempts=3, lease="1 hour")
    (id,) = enqueue(db)
    for attempt in [1, 2, 3]:
        job = claim_one(db, worker=f"w{attempt}")
        assert (job.id, job.attempt) == (id, attempt)
        passage(db, clock)
        clock.advance(2 * HOUR)
        call(db, "maintain")
    assert claim(db) == []
    assert history(db, "dead", id) == [(n, "lease expired", f"w{n}") for n in [1, 2, 3]]
    assert (status(db, id).state, status(db, id).error) == ("dead", "lease expired")
    assert stats(db) == {"dead": 1}
    retire_all(db)
    rotate(db)
    assert column(db, "SELECT kind FROM pgq.archive WHERE id = %s ORDER BY attempt", id) == ["expired"] * 3


def test_a_lowered_maximum_counts_for_jobs_that_are_on_their_way(db: Connection, clock: Clock) -> None:
    create(db, max_attempts=5)
    enqueue(db)
    job = claim_one(db)
    call(db, "alter_queue", "q", max_attempts=1)
    assert call(db, "reject", job.id, job.lease) == "dead"


@across
def test_reject_many_retries_some_and_buries_others(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 hour", shards=1)
    mortal, healthy, silent, done = [enqueue(db, max_attempts=n)[0] for n in [1, 2, 2, 2]]
    jobs = claim(db, 10)
    passage(db, clock)
    call(db, "ack", jobs[3].id, jobs[3].lease)
    batch = [*jobs, jobs[0], jobs[1]]
    errors = ["fatal", "oops", None, "no", "fatal", "oops"]
    assert sorted(rows(db, "reject_many", ids(batch), leases(batch), errors)) == [mortal, healthy, silent]
    assert [status(db, id).state for id in [mortal, healthy, silent, done]] == ["dead", "retrying", "retrying", "done"]
    assert [status(db, id).error for id in [mortal, healthy, silent]] == ["fatal", "oops", None]
    assert rows(db, "reject_many", ids(jobs), leases(jobs)) == []


def test_errors_of_any_size_and_content_are_kept(db: Connection, clock: Clock) -> None:
    create(db)
    enqueue(db, 2)
    job, other = claim(db, 2)
    error = "ünï ☃ %s {} '\"\\ \n" + "x" * 1_000_000
    call(db, "reject", job.id, job.lease, error, retry=False)
    assert status(db, job.id).error == error
    call(db, "reject", other.id, other.lease, error)
    assert status(db, other.id).error == error[:10000]


def kill(db: Connection, job: Job) -> None:
    assert call(db, "reject", job.id, job.lease, "hopeless", retry=False) == "dead"


def test_redrive_runs_dead_letters_again_with_their_history(db: Connection, clock: Clock) -> None:
    create(db, max_attempts=2)
    call(db, "enqueue", "q", {"a": 1}, task="t", priority=3, headers={"b": 2})
    first = claim_one(db)
    call(db, "reject", first.id, first.lease, "e1")
    come_back(db, clock)
    second = claim_one(db)
    call(db, "reject", second.id, second.lease, "e2")
    assert call(db, "redrive", "q") == 1
    state = status(db, first.id)
    assert (state.state, state.attempt, state.error) == ("ready", 1, "e2")
    assert stats(db) == {"ready": 1}
    third = claim_one(db, worker="w")
    assert (third.id, third.attempt, third.payload, third.task) == (first.id, 1, {"a": 1}, "t")
    assert (third.priority, third.headers, third.enqueued_at) == (3, {"b": 2}, first.enqueued_at)
    kill(db, third)
    assert history(db, "dead", first.id) == [(1, "e1", None), (2, "e2", None), (1, "hopeless", "w")]
    assert call(db, "redrive", "q") == 1
    fourth = claim_one(db)
    call(db, "ack", fourth.id, fourth.lease)
    assert status(db, first.id).state == "done"
    assert stats(db) == {}


def test_redrive_takes_only_the_ids_it_was_given(db: Connection, clock: Clock) -> None:
    for queue in ["q", "other"]:
        create(db, queue, shards=1)
        enqueue(db, 3, queue)
        for job in claim(db, 3, queue):
            kill(db, job)
    first, second, third = column(db, "SELECT id FROM pgq.dead WHERE id <= 3 ORDER BY id")
    assert call(db, "redrive", "q", [third, first, first, 4, 10**12]) == 2
    assert sorted(ids(claim(db, 10))) == [first, third]
    assert call(db, "redrive", "q", []) == 0
    assert call(db, "redrive", "q") == 1
    assert call(db, "redrive", "q") == 0
    assert ids(claim(db, 10)) == [second]
    assert stats(db, "other") == {"dead": 3}


def test_a_redriven_job_outlives_the_segments_of_its_past(db: Connection, clock: Clock) -> None:
    create(db)
    enqueue(db)
    kill(db, claim_one(db))
    retire_all(db)
    assert call(db, "redrive", "q") == 1
    job = claim_one(db)
    call(db, "ack", job.id, job.lease)
    retire_all(db)
    assert status(db, job.id).state == "done"
    assert column(db, "SELECT kind FROM pgq.archive ORDER BY finished_at") == ["dead", "done"]


def test_a_released_retry_keeps_its_number_and_its_history(db: Connection, clock: Clock) -> None:
    create(db)
    enqueue(db)
    first = claim_one(db, worker="w")
    call(db, "reject", first.id, first.lease, "e1")
    come_back(db, clock)
    second = claim_one(db)
    rows(db, "release", [second.id], [second.lease])
    third = claim_one(db)
    assert third.attempt == 2
    call(db, "reject", third.id, third.lease, "e2")
    assert history(db, "scheduled", first.id) == [(1, "e1", "w"), (2, "e2", None)]
