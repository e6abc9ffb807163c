"""Jobs that wait for other jobs, and batches: never before the end of all, never left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from tests.conftest import Clock
from tests.sql.support import (
    PASSAGES,
    Connect,
    Connection,
    Job,
    ack,
    call,
    claim,
    claim_one,
    column,
    create,
    enqueue,
    eventually,
    flush_counts,
    heard,
    ids,
    in_background,
    leases,
    listen,
    one,
    refused,
    retire_all,
    rotate,
    rows,
    status,
    until_blocked,
)

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def db(db: Connection) -> Connection:
    create(db, shards=1, backoff=SECOND, backoff_max=SECOND, max_attempts=2)
    return db


def after(db: Connection, *others: int, **named: Any) -> int:
    """Enqueue a job that waits for others."""
    id = call(db, "enqueue_after", list(others), "q", "0", **named)
    assert isinstance(id, int)
    return id


def state(db: Connection, id: int) -> str:
    return status(db, id).state


def after_many(db: Connection, count: int, *others: int, **named: Any) -> list[int]:
    return rows(db, "enqueue_many_after", list(others), "q", ["0"] * count, **named)


def waiting(db: Connection, queue: str = "q") -> Any:
    return one(db, "SELECT waiting FROM pgq.stats() WHERE queue = %s", queue)


def maintain(db: Connection, times: int = 2) -> None:
    for _ in range(times):
        call(db, "maintain")


def finish(db: Connection, id: int) -> None:
    """Work off the next job, which must be this one."""
    job = claim_one(db)
    assert job.id == id
    assert ack(db, [job]) == [id]


def ready(db: Connection) -> list[int]:
    """What can be claimed once everybody who found nothing has looked around."""
    assert claim(db) == []
    return ids(claim(db, 100))


def kill(db: Connection, job: Job) -> None:
    assert call(db, "reject", job.id, job.lease, "broken", retry=False) == "dead"


def dead_letter(db: Connection, id: int) -> tuple[int, str]:
    ((attempt, error),) = db.execute("SELECT attempt, error FROM pgq.dead_letters('q') WHERE id = %s", [id]).fetchall()
    return attempt, error


def traces(db: Connection) -> list[int]:
    """How many rows the tables of this feature have."""
    return [one(db, f"SELECT count(*) FROM pgq.{table}") for table in ("dependent", "dependency", "ended")]


# A job waits for others ----------------------------------------------------------------------------------------------


def test_a_job_runs_when_the_other_is_done(db: Connection) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    assert (state(db, second), waiting(db), rows(db, "waits_for", second)) == ("waiting", 1, [first])
    job = claim_one(db)
    assert job.id == first
    assert claim(db) == []
    ack(db, [job])
    assert ready(db) == [second]
    assert (state(db, second), waiting(db)) == ("running", 0)
    assert traces(db) == [0, 0, 0]


def test_it_waits_for_all_of_them(db: Connection) -> None:
    made = enqueue(db, 3)
    last = after(db, *made)
    for id in made:
        assert state(db, last) == "waiting"
        finish(db, id)
    assert ready(db) == [last]


def test_many_may_wait_for_one(db: Connection) -> None:
    (first,) = enqueue(db)
    others = after_many(db, 100, first)
    finish(db, first)
    assert ready(db) == others


def test_a_chain_needs_nobody_but_its_workers(db: Connection) -> None:
    made = enqueue(db)
    for _ in range(20):
        made.append(after(db, made[-1]))
    finished: list[int] = []
    while len(finished) < 21:
        for job in claim(db, 10) or claim(db, 10):
            finished += ack(db, [job])
    assert finished == made


def test_a_diamond(db: Connection) -> None:
    (top,) = enqueue(db)
    left, right = after(db, top), after(db, top)
    bottom = after(db, left, right)
    finish(db, top)
    assert claim(db) == []
    finish(db, left)
    assert claim(db, 10)[0].id == right
    assert claim(db) == []
    assert state(db, bottom) == "waiting"


def test_maintain_lets_it_go_too(db: Connection) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    finish(db, first)
    maintain(db, 1)
    assert claim_one(db).id == second


def single(db: Connection, jobs: list[Job]) -> None:
    for job in jobs:
        call(db, "ack", job.id, job.lease)


def many(db: Connection, jobs: list[Job]) -> None:
    assert sorted(ack(db, jobs)) == sorted(ids(jobs))


def backwards(db: Connection, jobs: list[Job]) -> None:
    many(db, jobs[::-1])


@pytest.mark.parametrize("passage", PASSAGES.values(), ids=PASSAGES)
@pytest.mark.parametrize("count", [1, 3, 20], ids="{} jobs".format)
@pytest.mark.parametrize("how", [single, many, backwards])
def test_every_way_to_acknowledge_tells(
    db: Connection, clock: Clock, passage: Callable[..., None], count: int, how: Callable[..., None]
) -> None:
    made = enqueue(db, count)
    last = after(db, *made)
    jobs = claim(db, 100)
    passage(db, clock)
    how(db, jobs)
    assert sorted(column(db, "SELECT job_id FROM pgq.ended")) == made
    assert ready(db) == [last]


@pytest.mark.parametrize("retention", ["7 days", "0"])
@pytest.mark.parametrize("retired", [False, True], ids=["just now", "long ago"])
def test_what_it_waits_for_may_have_ended_before(db: Connection, retention: str, retired: bool) -> None:
    call(db, "alter_queue", "q", retention=retention)
    (first,) = enqueue(db)
    finish(db, first)
    if retired:
        retire_all(db)
    second = after(db, first)
    if retired and retention == "0":  # nobody remembers
        maintain(db)
        assert dead_letter(db, second) == (0, f"job {first}, which it waits for, is not known")
    else:
        assert ready(db) == [second]


def test_a_retry_is_no_end(db: Connection, clock: Clock) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    job = claim_one(db)
    assert call(db, "reject", job.id, job.lease) == "retry"
    maintain(db)
    assert state(db, second) == "waiting"
    clock.advance(2)
    maintain(db)
    finish(db, first)
    assert ready(db) == [second]


@pytest.mark.parametrize("end", ["release", "snooze", "expire"])
def test_nor_is_an_attempt_that_does_not_count(db: Connection, clock: Clock, end: str) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    job = claim_one(db)
    if end == "release":
        rows(db, "release", [job.id], [job.lease])
    elif end == "snooze":
        call(db, "snooze", job.id, job.lease, "1 second")
    else:
        clock.advance(61)
    maintain(db)
    clock.advance(2)
    maintain(db)
    assert state(db, second) == "waiting"
    finish(db, first)
    assert ready(db) == [second]


@pytest.mark.parametrize("named", [{"run_at": None}, {"delay": "1 hour"}], ids=["run_at", "delay"])
@pytest.mark.parametrize("soon", [True, False], ids=["done before", "done after"])
def test_it_may_have_a_time_as_well(db: Connection, clock: Clock, named: dict[str, Any], soon: bool) -> None:
    due = clock.now() + timedelta(hours=1)
    if "run_at" in named:
        named = {"run_at": due}
    (first,) = enqueue(db)
    second = after(db, first, **named)
    seen = status(db, second)
    assert seen.state == "waiting"
    assert seen.run_at is not None
    assert abs(seen.run_at - due) < SECOND * 5
    if soon:
        finish(db, first)
        maintain(db)
        assert (state(db, second), claim(db)) == ("scheduled", [])
        clock.advance(3601)
        maintain(db)
        assert claim_one(db).id == second
    else:
        clock.advance(3601)
        maintain(db)
        finish(db, first)
        assert ready(db) == [second]


def test_priority_group_headers_and_attempts_come_along(db: Connection) -> None:
    (first,) = enqueue(db)
    named = {"priority": 7, "max_attempts": 3, "group_key": "g", "headers": {"a": 1}}
    second = call(db, "enqueue_after", [first], "q", '{"n": 1}', "task", **named)
    third = call(db, "enqueue", "q", "2", priority=7, group_key="g")
    finish(db, first)
    running = claim_one(db)
    assert running.id == third  # of the same group, and it came first
    maintain(db)
    assert claim(db) == []
    assert state(db, second) == "parked"
    ack(db, [running])
    job = claim_one(db)
    assert (job.id, job.task, job.payload, job.priority) == (second, "task", {"n": 1}, 7)
    assert (job.max_attempts, job.headers) == (3, {"a": 1})


def test_the_other_may_be_in_another_queue(db: Connection) -> None:
    create(db, "other")
    (first,) = enqueue(db, queue="other")
    second = after(db, first)
    ack(db, claim(db, 1, "other"))
    assert ready(db) == [second]


# What if one is not done ---------------------------------------------------------------------------------------------


def reject(db: Connection, clock: Clock, id: int) -> None:
    kill(db, claim_one(db))


def expire(db: Connection, clock: Clock, id: int) -> None:
    for _ in range(2):
        claim_one(db)
        clock.advance(61)
        call(db, "reap")


def cancel(db: Connection, clock: Clock, id: int) -> None:
    assert call(db, "cancel", id) == "cancelled"


def cancel_running(db: Connection, clock: Clock, id: int) -> None:
    job = claim_one(db)
    assert call(db, "cancel", id) == "requested"
    assert call(db, "reject", job.id, job.lease) == "cancelled"


def cancel_and_release(db: Connection, clock: Clock, id: int) -> None:
    job = claim_one(db)
    assert call(db, "cancel", id) == "requested"
    rows(db, "release", [job.id], [job.lease])


def cancel_all(db: Connection, clock: Clock, id: int) -> None:
    call(db, "cancel_many", "q", "victim")


def purge(db: Connection, clock: Clock, id: int) -> None:
    call(db, "purge_state", "q", "ready")


def put_off_and_purge(db: Connection, clock: Clock, id: int) -> None:
    call(db, "reschedule", id, clock.now() + MINUTE)
    call(db, "purge_state", "q", "scheduled")


BAD_ENDS: dict[str, tuple[Callable[[Connection, Clock, int], None], str]] = {
    "rejected": (reject, "is dead"),
    "expired": (expire, "is dead"),
    "cancelled": (cancel, "was cancelled"),
    "cancelled while running": (cancel_running, "was cancelled"),
    "cancelled and released": (cancel_and_release, "was cancelled"),
    "cancelled with all": (cancel_all, "was cancelled"),
    "purged": (purge, "was cancelled"),
    "purged while scheduled": (put_off_and_purge, "was cancelled"),
}


@pytest.mark.parametrize(("end", "words"), BAD_ENDS.values(), ids=BAD_ENDS)
@pytest.mark.parametrize("on_dead", ["fail", "skip", "run"])
@pytest.mark.parametrize("told", [True, False], ids=["told", "found out"])
def test_it_dies_too_or_is_cancelled_or_runs(
    db: Connection, clock: Clock, end: Callable[..., None], words: str, on_dead: str, told: bool
) -> None:
    first = call(db, "enqueue", "q", "1", "victim")
    second = after(db, first, on_dead=on_dead)
    end(db, clock, first)
    assert column(db, "SELECT job_id FROM pgq.ended") == [first]
    if not told:
        db.execute("DELETE FROM pgq.ended")
    maintain(db)
    if on_dead == "fail":
        if not told and end is put_off_and_purge:
            words = "is not known"
        assert state(db, second) == "dead"
        assert dead_letter(db, second) == (0, f"job {first}, which it waits for, {words}")
    elif on_dead == "skip":
        assert state(db, second) == "cancelled"
        assert traces(db) == [0, 0, 0]
    else:
        job = claim_one(db)
        assert (job.id, job.headers) == (second, {"after": {"done": 0, "failed": 1}})
        assert traces(db) == [0, 0, 0]


@pytest.mark.parametrize(("on_dead", "end"), [("fail", "dead"), ("skip", "cancelled")])
def test_it_does_not_wait_for_the_others_then(db: Connection, on_dead: str, end: str) -> None:
    first, other = enqueue(db, 2)
    second = after(db, first, other, on_dead=on_dead)
    kill(db, claim_one(db))
    maintain(db)
    assert state(db, second) == end
    finish(db, other)
    maintain(db)
    assert state(db, second) == end
    assert column(db, "SELECT count(*) FROM pgq.job WHERE id = %s AND lane & 128 = 0", second) == [0]


@pytest.mark.parametrize(("on_dead", "end"), [("fail", "dead"), ("skip", "cancelled")])
def test_it_takes_those_along_that_wait_for_it(db: Connection, on_dead: str, end: str) -> None:
    made = enqueue(db)
    for _ in range(10):
        made.append(after(db, made[-1], on_dead=on_dead))
    last = after(db, made[-1], on_dead="run")
    kill(db, claim_one(db))
    maintain(db, 1)
    assert [state(db, id) for id in made[1:]] == [end] * 10
    assert claim_one(db).id == last


def test_a_discarded_dead_letter_is_a_job_that_nobody_knows(db: Connection) -> None:
    (first,) = enqueue(db)
    call(db, "alter_queue", "q", retention="0")
    kill(db, claim_one(db))
    call(db, "discard", "q", [first])
    retire_all(db)
    second = after(db, first)
    maintain(db)
    assert dead_letter(db, second) == (0, f"job {first}, which it waits for, is not known")


def test_a_job_of_a_queue_that_was_dropped_is_not_done(db: Connection) -> None:
    create(db, "other")
    (first,) = enqueue(db, queue="other")
    claim(db, 1, "other")
    second = after(db, first)
    call(db, "drop_queue", "other", force=True)
    maintain(db)
    assert state(db, second) == "dead"


def test_redriven_together_they_keep_their_order(db: Connection) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    third = after(db, second)
    kill(db, claim_one(db))
    maintain(db)
    assert [state(db, id) for id in (first, second, third)] == ["dead"] * 3
    assert call(db, "redrive", "q") == 3
    assert [state(db, id) for id in (first, second, third)] == ["ready", "waiting", "waiting"]
    for id in (first, second, third):
        finish(db, id)
        assert claim(db) == []
    assert traces(db) == [0, 0, 0]


def test_redriven_alone_it_dies_again_or_runs_if_the_other_is_done_by_now(db: Connection) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    kill(db, claim_one(db))
    maintain(db)
    call(db, "redrive", "q", [second])
    maintain(db)
    assert state(db, second) == "dead"
    call(db, "redrive", "q", [first])
    finish(db, first)
    assert call(db, "redrive_where", "q", per_second=1) == 1
    assert ready(db) == [second]


def test_a_job_that_ran_and_died_waits_for_nobody_when_redriven(db: Connection) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    finish(db, first)
    assert claim(db) == []
    kill(db, claim_one(db))
    call(db, "redrive", "q", [second])
    assert claim_one(db).id == second


# What is done to a job that waits ------------------------------------------------------------------------------------


def forget(db: Connection, clock: Clock) -> None:
    """Let a minute pass in which what nobody needs any more is removed."""
    clock.advance(61)
    maintain(db)


def test_it_can_be_cancelled(db: Connection) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    third = after(db, second, on_dead="run")
    assert call(db, "cancel", second) == "cancelled"
    assert state(db, second) == "cancelled"
    maintain(db)
    assert sorted(ids(claim(db, 10))) == [first, third]
    assert traces(db) == [0, 0, 0]


def test_many_can_be_cancelled(db: Connection) -> None:
    (first,) = enqueue(db)
    after_many(db, 5, first, task="late")
    assert call(db, "cancel_many", "q", "late") == 5
    assert (waiting(db), traces(db)) == (0, [0, 0, 0])


@pytest.mark.parametrize("how", ["purge", "waiting", "scheduled"])
def test_it_can_be_purged(db: Connection, how: str) -> None:
    (first,) = enqueue(db)
    job = claim_one(db)
    after(db, first)
    enqueue(db, delay="1 hour")
    gone = call(db, "purge", "q") if how == "purge" else call(db, "purge_state", "q", how)
    assert gone == (2 if how == "purge" else 1)
    assert waiting(db) == (1 if how == "scheduled" else 0)
    if how != "scheduled":
        assert traces(db) == [0, 0, 0]
    ack(db, [job])
    assert ready(db) == ([] if how != "scheduled" else [first + 1])


def test_a_queue_with_jobs_that_wait_is_not_empty(db: Connection, clock: Clock) -> None:
    create(db, "other")
    (first,) = enqueue(db, queue="other")
    after(db, first)
    with refused("PQ005"):
        call(db, "drop_queue", "q")
    call(db, "drop_queue", "q", force=True)
    assert traces(db) == [0, 0, 0]
    ack(db, claim(db, 1, "other"))
    forget(db, clock)


def test_another_time_is_one_more_thing_to_wait_for(db: Connection, clock: Clock) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    due = clock.now() + MINUTE
    assert call(db, "reschedule", second, due)
    assert (state(db, second), status(db, second).run_at) == ("waiting", due)
    finish(db, first)
    maintain(db)
    assert state(db, second) == "scheduled"
    clock.advance(61)
    maintain(db)
    assert claim_one(db).id == second


def test_its_priority_can_be_changed(db: Connection) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    assert call(db, "set_priority", second, -5)
    assert state(db, second) == "waiting"
    enqueue(db)
    finish(db, first)
    maintain(db)
    assert (claim_one(db).id, waiting(db)) == (second, 0)


def test_it_holds_its_unique_key_and_can_be_debounced(db: Connection, clock: Clock) -> None:
    (first,) = enqueue(db)
    second = after(db, first, unique_key="k")
    again = after(db, first, unique_key="k")
    assert again == second
    due = clock.now() + MINUTE
    db.execute("SELECT pgq.enqueue_unique('q', '7', run_at => %s, unique_key => 'k', on_repeat => 'debounce')", [due])
    assert (state(db, second), status(db, second).run_at) == ("waiting", due)
    finish(db, first)
    clock.advance(61)
    maintain(db)
    job = claim_one(db)
    assert (job.id, job.payload) == (second, 7)


# Batches -------------------------------------------------------------------------------------------------------------


def progress(db: Connection, batch: int) -> tuple[int, int, int]:
    query = "SELECT done, failed, pending FROM pgq.batch_status(%s)"
    ((done, failed, pending),) = db.execute(query, [batch]).fetchall()
    return done, failed, pending


def test_the_job_of_a_batch_runs_last_and_knows_how_the_others_ended(db: Connection) -> None:
    made = enqueue(db, 10)
    batch = call(db, "batch", made, "q", '{"report": 1}', "summary", headers={"trace": "x"})
    jobs = claim(db, 10)
    ack(db, jobs[:7])
    kill(db, jobs[7])
    maintain(db)
    assert progress(db, batch) == (7, 1, 2)
    assert rows(db, "waits_for", batch) == ids(jobs[8:])
    ack(db, jobs[8:9])
    call(db, "cancel", jobs[9].id)
    call(db, "reject", jobs[9].id, jobs[9].lease)
    assert claim(db) == []
    job = claim_one(db)
    assert (job.id, job.payload, job.task) == (batch, {"report": 1}, "summary")
    assert job.headers == {"trace": "x", "after": {"done": 8, "failed": 2}}
    assert rows(db, "batch_status", batch) == []


def test_a_batch_of_nothing_runs_at_once(db: Connection) -> None:
    batch = call(db, "batch", [], "q")
    assert ready(db) == [batch]


def test_a_batch_can_be_filled_in_its_transaction(db: Connection) -> None:
    with db.transaction():
        batch = call(db, "batch", [], "q")
        for _ in range(3):
            call(db, "add_to_batch", batch, enqueue(db, 2))
    assert progress(db, batch) == (0, 0, 6)
    ack(db, claim(db, 6))
    assert ready(db) == [batch]


def test_a_job_of_a_batch_may_add_others(db: Connection) -> None:
    (first,) = enqueue(db)
    batch = call(db, "batch", [first], "q")
    job = claim_one(db)
    with db.transaction():
        more = enqueue(db, 2)
        call(db, "add_to_batch", batch, more)
        ack(db, [job])
    assert sorted(ids(claim(db, 10))) == more
    assert claim(db) == []
    assert state(db, batch) == "waiting"


def test_adding_one_twice_is_adding_it_once(db: Connection) -> None:
    first, second = enqueue(db, 2)
    batch = call(db, "batch", [first, first], "q")
    call(db, "add_to_batch", batch, [first, second, second])
    assert progress(db, batch) == (0, 0, 2)


def test_nothing_can_be_added_to_what_waits_no_longer(db: Connection) -> None:
    (first,) = enqueue(db)
    batch = call(db, "batch", [], "q")
    assert claim_one(db).id == first
    assert claim(db) == []
    for id in (batch, first, 12345):
        with refused("PQ006"):
            call(db, "add_to_batch", id, [first])
    cancelled = call(db, "batch", [first], "q")
    call(db, "cancel", cancelled)
    with refused("PQ006"):
        call(db, "add_to_batch", cancelled, [first])


def test_nobody_waits_for_himself(db: Connection) -> None:
    (first,) = enqueue(db)
    batch = call(db, "batch", [first], "q")
    second = after(db, batch)
    third = after(db, first, second)
    for id in (batch, second, third):
        with refused("22023"):
            call(db, "add_to_batch", batch, [id])
    assert progress(db, batch) == (0, 0, 1)


def test_ten_thousand_jobs(db: Connection, connect: Connect) -> None:
    """Acknowledged by four at once, in pieces of all sizes: counted exactly, called back once."""
    made = enqueue(db, 10_000)
    batch = call(db, "batch", made, "q")
    done: list[int] = []
    called: list[Job] = []

    def work(batch_size: int) -> None:
        mine = connect()
        while not called:
            jobs = claim(mine, batch_size)
            if batch in ids(jobs):
                assert len(done) == 10_000
                called.extend(jobs)
            done.extend(ack(mine, jobs))
            if not jobs:
                call(mine, "maintain")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [7, 50, 111, 300]))
    assert [(job.id, job.headers) for job in called] == [(batch, {"after": {"done": 10_000, "failed": 0}})]
    assert sorted(done) == [*made, batch]
    assert traces(db) == [0, 0, 0]


def test_the_end_of_ten_thousand_costs_them_an_appended_row_each(db: Connection) -> None:
    """And that is all: no row that all of them would have to change."""
    made = enqueue(db, 1000)
    call(db, "batch", made, "q")
    jobs = claim(db, 1000)
    before = one(db, "SELECT ctid::text FROM pgq.dependent")
    ack(db, jobs)
    assert traces(db) == [1, 1000, 1000]
    assert one(db, "SELECT ctid::text FROM pgq.dependent") == before


# Other sessions at every moment --------------------------------------------------------------------------------------


@pytest.fixture
def other(db: Connection, connect: Connect) -> Connection:
    return connect(autocommit=False)


def test_what_ends_while_the_dependency_is_not_committed_is_found_out(db: Connection, other: Connection) -> None:
    (first,) = enqueue(db)
    job = claim_one(db)
    second = after(other, first)
    ack(db, [job])
    other.commit()
    assert column(db, "SELECT * FROM pgq.ended") == []
    assert ready(db) == [second]


def test_an_end_counts_when_it_is_committed(db: Connection, other: Connection) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    job = claim_one(db)
    ack(other, [job])
    maintain(db)
    assert state(db, second) == "waiting"
    other.commit()
    assert ready(db) == [second]


def test_an_end_that_is_rolled_back_does_not_count(db: Connection, other: Connection, clock: Clock) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    job = claim_one(db)
    ack(other, [job])
    maintain(db)
    other.rollback()
    maintain(db)
    assert (state(db, second), traces(db)) == ("waiting", [1, 1, 0])
    ack(db, [job])
    assert ready(db) == [second]


def test_an_end_that_was_committed_late_is_not_missed(db: Connection, other: Connection, clock: Clock) -> None:
    """Others ended, were told and taken in meanwhile, and the mark went on by more than it lags."""
    first, another = enqueue(db, 2)
    second, third = after(db, first), after(db, another)
    jobs = claim(db, 2)
    ack(other, jobs[:1])
    clock.advance(10)
    ack(db, jobs[1:])
    assert claim(db) == []
    finish(db, third)
    clock.advance(10)
    other.commit()
    db.execute(
        "CREATE OR REPLACE FUNCTION pgq._end_of(job bigint, since xid8, OUT over boolean, OUT kind pgq.outcome_kind)"
        " LANGUAGE sql AS 'SELECT false, NULL::pgq.outcome_kind'"
    )  # nobody shall find out by himself
    forget(db, clock)
    assert claim_one(db).id == second


def test_a_rolled_back_dependent_was_never_there(db: Connection, other: Connection) -> None:
    (first,) = enqueue(db)
    after(other, first)
    other.rollback()
    finish(db, first)
    assert ready(db) == []
    assert traces(db) == [0, 0, 0]


def test_a_savepoint_takes_back_the_dependency_only(db: Connection) -> None:
    (first,) = enqueue(db)
    with db.transaction():
        kept = after(db, first)
        db.execute("SAVEPOINT before")
        after(db, first)
        db.execute("ROLLBACK TO before")
    finish(db, first)
    assert ready(db) == [kept]


def test_nobody_waits_for_someone_who_cancels_it(db: Connection, other: Connection) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    third = after(db, first)
    job = claim_one(db)
    assert call(other, "cancel", second) == "cancelled"
    ack(db, [job])
    assert ready(db) == [third]
    assert state(db, second) == "waiting"
    other.rollback()
    assert ready(db) == [second]


@pytest.mark.parametrize("on_dead", ["fail", "skip"])
def test_nor_when_the_other_died(db: Connection, other: Connection, on_dead: str) -> None:
    (first,) = enqueue(db)
    second = after(db, first, on_dead=on_dead)
    job = claim_one(db)
    assert call(other, "cancel", second) == "cancelled"
    kill(db, job)
    maintain(db)
    assert state(db, second) == "waiting"
    other.rollback()
    maintain(db)
    assert state(db, second) == {"fail": "dead", "skip": "cancelled"}[on_dead]


def test_what_is_about_to_be_added_is_waited_for(db: Connection, other: Connection) -> None:
    first, second = enqueue(db, 2)
    batch = call(db, "batch", [first], "q")
    jobs = claim(db, 2)
    call(other, "add_to_batch", batch, [second])
    ack(db, jobs[:1])
    assert ready(db) == []
    maintain(db)
    other.commit()
    assert ready(db) == []
    assert progress(db, batch) == (1, 0, 1)
    ack(db, jobs[1:])
    assert ready(db) == [batch]


def test_what_was_about_to_be_added_and_is_not_is_not_waited_for(db: Connection, other: Connection) -> None:
    first, second = enqueue(db, 2)
    batch = call(db, "batch", [first], "q")
    jobs = claim(db, 2)
    call(other, "add_to_batch", batch, [second])
    ack(db, jobs[:1])
    assert ready(db) == []
    other.rollback()
    assert ready(db) == [batch]


def test_adding_waits_for_the_one_who_lets_the_batch_go(db: Connection, other: Connection, connect: Connect) -> None:
    first, second = enqueue(db, 2)
    batch = call(db, "batch", [first], "q")
    jobs = claim(db, 2)
    ack(db, jobs[:1])
    assert claim(other) == []
    third = connect()
    late = in_background(call, third, "add_to_batch", batch, [second])
    until_blocked(db, third)
    other.commit()
    with refused("PQ006"):
        late.result(20)
    assert ids(claim(db, 10)) == [batch]


def test_one_who_resolves_at_a_time_and_nobody_waits(db: Connection, other: Connection) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    finish(db, first)
    assert claim(other) == []  # has let it go, but not committed
    assert ready(db) == []
    maintain(db)
    other.rollback()
    assert ready(db) == [second]


@pytest.mark.direct("terminates a session")
@pytest.mark.parametrize("moment", ["enqueue", "ack", "resolve", "give up", "add"])
def test_a_session_that_is_killed_leaves_nothing_behind(db: Connection, other: Connection, moment: str) -> None:
    first, more = enqueue(db, 2)
    second = 0 if moment == "enqueue" else after(db, first, on_dead="fail" if moment == "give up" else "run")
    job = claim_one(db)
    if moment == "enqueue":
        after(other, first)
    elif moment == "ack":
        ack(other, [job])
    elif moment == "resolve":
        ack(db, [job])
        db.execute("UPDATE pgq.queue SET paused = true")
        other.execute("SELECT pgq.maintain()")
    elif moment == "give up":
        kill(db, job)
        other.execute("SELECT pgq.maintain()")
    else:
        call(other, "add_to_batch", second, [more])
    db.execute("SELECT pg_terminate_backend(%s, 20000)", [other.info.backend_pid])
    call(db, "resume", "q")
    if moment == "give up":
        maintain(db)
        assert state(db, second) == "dead"
        return
    if moment != "resolve":
        ack(db, [job])
    maintain(db)
    finish(db, more)
    assert ids(claim(db, 10)) == ([second] if second else [])


def test_an_id_that_nobody_knows_may_be_about_to_be_committed(db: Connection, other: Connection) -> None:
    (first,) = enqueue(other)
    second = after(db, first)
    maintain(db)
    assert state(db, second) == "waiting"
    other.commit()
    maintain(db)
    assert state(db, second) == "waiting"
    finish(db, first)
    assert ready(db) == [second]


@pytest.mark.parametrize("on_dead", ["fail", "skip", "run"])
def test_one_that_was_rolled_back_is_not_known(db: Connection, other: Connection, on_dead: str) -> None:
    (first,) = enqueue(other)
    second = after(db, first, on_dead=on_dead)
    maintain(db)
    assert state(db, second) == "waiting"
    other.rollback()
    maintain(db)
    assert state(db, second) == {"fail": "dead", "skip": "cancelled", "run": "ready"}[on_dead]


def test_a_race_of_everything(db: Connection, connect: Connect) -> None:
    """Workers, those who enqueue chains, and maintenance, all at once: each runs once, and after what it waits for."""
    links, chains = 12, 15
    order: list[int] = []
    after_of: dict[int, int] = {}
    lock = threading.Lock()
    stop = threading.Event()

    def produce() -> None:
        mine = connect()
        for _ in range(chains):
            (last,) = enqueue(mine)
            for _ in range(links - 1):
                next = after(mine, last)
                with lock:
                    after_of[next] = last
                last = next

    def work() -> None:
        mine = connect()
        while not stop.is_set():
            for job in claim(mine, 5):
                with lock:
                    order.append(job.id)
                ack(mine, [job])

    def look_after() -> None:
        mine = connect()
        while not stop.is_set():
            call(mine, "maintain")

    with ThreadPoolExecutor(6) as pool:
        tasks = [pool.submit(f) for f in (produce, produce, work, work, work, look_after)]
        for task in tasks[:2]:
            task.result()
        try:
            eventually(lambda: len(order) == 2 * links * chains, "the end of all chains", 60)
        finally:
            stop.set()
    place = {id: n for n, id in enumerate(order)}
    assert len(place) == len(order)
    assert all(place[last] < place[next] for next, last in after_of.items())


# Who is told and who is not ------------------------------------------------------------------------------------------


@pytest.mark.direct("listens")
def test_an_idle_worker_is_woken_for_the_last_one_only(db: Connection, connect: Connect) -> None:
    create(db, "work")
    made = enqueue(db, 30, queue="work")
    batch = call(db, "batch", made, "q")
    jobs = claim(db, 30, "work")
    listener = listen(connect, "q")
    ack(db, jobs[:5])
    assert heard(db, listener) == []
    maintain(db)
    ack(db, jobs[5:29])
    maintain(db)
    ack(db, jobs[29:])
    assert heard(db, listener) == ["q"]
    assert claim(db) == []
    assert heard(db, listener) == ["q"]
    assert claim_one(db).id == batch


@pytest.mark.direct("listens")
def test_an_idle_worker_is_woken_for_one_that_need_not_wait(db: Connection, connect: Connect) -> None:
    (first,) = enqueue(db)
    finish(db, first)
    listener = listen(connect, "q")
    after(db, first)
    assert heard(db, listener) == ["q"]


def test_the_time_that_a_worker_sleeps_is_finite(db: Connection) -> None:
    (first,) = enqueue(db)
    after(db, first)
    assert call(db, "watch", ["q"]) is None
    enqueue(db, delay="1 hour")
    assert call(db, "watch", ["q"]) is not None


def test_who_has_nobody_waiting_tells_nobody(db: Connection, clock: Clock) -> None:
    first, plain = enqueue(db, 2)
    second = after(db, first)
    jobs = claim(db, 2)
    ack(db, jobs)
    assert column(db, "SELECT job_id FROM pgq.ended") == [first]
    assert one(db, "SELECT last_value FROM pgq.awaited") == 1
    assert ready(db) == [second]
    forget(db, clock)
    assert one(db, "SELECT last_value FROM pgq.awaited") == 0
    assert plain


def test_nobody_stops_telling_while_one_is_about_to_wait(db: Connection, other: Connection, clock: Clock) -> None:
    (first,) = enqueue(db)
    second = after(other, first)
    forget(db, clock)
    assert one(db, "SELECT last_value FROM pgq.awaited") == 1
    other.commit()
    finish(db, first)
    assert column(db, "SELECT job_id FROM pgq.ended") == [first]
    assert ready(db) == [second]


def test_what_waited_as_a_dead_letter_goes_with_it(db: Connection, clock: Clock) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    kill(db, claim_one(db))
    maintain(db)
    call(db, "discard", "q", [second])
    forget(db, clock)
    assert traces(db) == [0, 0, 0]


def test_all_are_looked_after_in_turn(db: Connection) -> None:
    """Many more than in one round, and nobody was told."""
    made = enqueue(db, 250)
    others = [after(db, id) for id in made]
    ack(db, claim(db, 250))
    db.execute("DELETE FROM pgq.ended")
    maintain(db, 4)
    assert ids(claim(db, 250)) == others


def test_with_a_pinned_snapshot_it_reads_no_more_than_there_is(db: Connection, connect: Connect, clock: Clock) -> None:
    """What has been taken in stays in the tables, dead; nobody walks over it again and again."""
    pin = connect(autocommit=False)
    pin.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    pin.execute("SELECT 1")
    query = """
        SELECT sum(idx_tup_read) FROM pg_stat_user_indexes
        WHERE relname IN ('ended', 'dependent', 'dependency') AND schemaname = 'pgq'
    """

    def round(count: int) -> Any:
        flush_counts(db)
        before = one(db, query)
        batch = call(db, "batch", enqueue(db, count), "q")
        ack(db, claim(db, count))
        assert claim(db) == []
        finish(db, batch)
        flush_counts(db)
        clock.advance(6)
        return one(db, query) - before

    round(2)
    small = round(2)
    for _ in range(4):  # less than a minute in all, after which somebody looks at everything
        round(200)
    round(2)
    assert round(2) <= small + 5


@pytest.mark.parametrize("analysed", [True, False], ids=["analysed", "never analysed"])
def test_what_others_wait_for_is_not_read(db: Connection, analysed: bool) -> None:
    db.execute("ALTER TABLE pgq.dependency SET (autovacuum_enabled = off)")
    db.execute("ALTER TABLE pgq.dependent SET (autovacuum_enabled = off)")
    made = enqueue(db, 3)
    small = call(db, "batch", made[:1], "q")
    if analysed:
        db.execute("ANALYZE pgq.dependency, pgq.dependent")
    after_many(db, 20_000, *made[1:2])
    query = """
        SELECT sum(seq_tup_read) + sum(idx_tup_fetch) FROM pg_stat_user_tables
        WHERE relname IN ('dependent', 'dependency') AND schemaname = 'pgq'
    """
    flush_counts(db)
    before = one(db, query)
    call(db, "add_to_batch", small, made[2:])
    assert progress(db, small) == (0, 0, 2)
    assert rows(db, "waits_for", small) == [made[0], made[2]]
    flush_counts(db)
    assert one(db, query) - before < 50


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [[0], [-1], [2**62], [1, 99]])
def test_one_can_wait_only_for_what_was_enqueued(db: Connection, bad: list[int]) -> None:
    enqueue(db)
    with refused("22023"):
        after(db, *bad)
    with refused("22023"):
        call(db, "batch", bad, "q")


def test_null_is_no_job(db: Connection) -> None:
    with refused("22004"):
        db.execute("SELECT pgq.enqueue_after(ARRAY[NULL]::bigint[], 'q')")
    for function in ("enqueue_after(NULL, 'q')", "enqueue_after(NULL, 'q', unique_key => 'k')", "batch(NULL, 'q')"):
        with refused("22004"):
            db.execute(f"SELECT pgq.{function}")
    with refused("22004"):
        db.execute("SELECT pgq.enqueue_many_after(NULL, 'q', '{1}')")
    with refused("22004"):
        db.execute("SELECT pgq.enqueue_after('{}', 'q', NULL)")
    with refused("22004"):
        db.execute("SELECT pgq.add_to_batch(NULL, '{}')")
    with refused("22004"):
        db.execute("SELECT * FROM pgq.batch_status(NULL)")
    with refused("22004"):
        db.execute("SELECT pgq.waits_for(NULL)")
    with refused("22023"):
        db.execute("SELECT pgq.waits_for(1, 0)")


@pytest.mark.parametrize("word", ["", "Fail", "ignore"])
def test_there_are_three_things_to_do(db: Connection, word: str) -> None:
    (first,) = enqueue(db)
    with refused("22023"):
        after(db, first, on_dead=word)


def test_there_must_be_a_queue(db: Connection) -> None:
    (first,) = enqueue(db)
    with refused("PQ002"):
        call(db, "enqueue_after", [first], "nowhere", "1")
    with refused("PQ002"):
        call(db, "batch", [first], "nowhere")
    assert traces(db) == [0, 0, 0]


def test_leases_are_not_what_one_waits_for(db: Connection) -> None:
    jobs = [claim_one(db) for _ in enqueue(db, 2)]
    with refused("22023"):
        after(db, *leases(jobs))


def test_the_ring_turns_under_those_who_wait(db: Connection, clock: Clock) -> None:
    (first,) = enqueue(db)
    second = after(db, first)
    for _ in range(40):
        rotate(db)
        clock.advance(3)
    finish(db, first)
    retire_all(db)
    assert ready(db) == [second]


def test_what_is_added_to_a_batch_before_it_is_committed_is_waited_for(db: Connection, connect: Connect) -> None:
    (first,) = enqueue(db)
    batch = call(db, "batch", [first], "q")
    producer = connect(autocommit=False)
    (second,) = enqueue(producer)
    call(db, "add_to_batch", batch, [second])
    finish(db, first)
    maintain(db, 3)
    assert state(db, batch) == "waiting"
    producer.commit()
    maintain(db, 3)
    assert state(db, batch) == "waiting"
    finish(db, second)
    assert ready(db) == [batch]
    assert db.execute("SELECT headers FROM pgq.job WHERE id = %s", [batch]).fetchone() == (
        {"after": {"done": 2, "failed": 0}},
    )
