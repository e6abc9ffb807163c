"""Groups and limits: what runs at once, in which order, how often."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
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
    eventually,
    heard,
    ids,
    in_background,
    leases,
    listen,
    one,
    refused,
    retire_all,
    rotate,
    stats,
    status,
    until_blocked,
)

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def db(db: Connection) -> Connection:
    create(db, backoff=SECOND, backoff_max=SECOND, max_attempts=3)
    return db


def put(db: Connection, *keys: str | None, **named: Any) -> list[int]:
    """Enqueue one job for each key."""
    names = "".join(f", {name} => %s" for name in named)
    query = f"SELECT pgq.enqueue_many('q', array_fill('1'::jsonb, ARRAY[%s]), group_keys => %s::text[]{names})"
    return column(db, query, len(keys), list(keys), *named.values())


def limit(db: Connection, **named: Any) -> None:
    call(db, "set_limits", "q", **named)


def parked(db: Connection) -> Any:
    return one(db, "SELECT parked FROM pgq.stats() WHERE queue = 'q'")


def permits(db: Connection) -> list[tuple[int, str]]:
    return db.execute("SELECT job_id, state FROM pgq.permit ORDER BY job_id").fetchall()


def reject(db: Connection, job: Job, **named: Any) -> Any:
    return call(db, "reject", job.id, job.lease, **named)


def drain(db: Connection, batch: int = 10) -> list[list[int]]:
    """What is claimed at once, until nothing is left."""
    rounds = []
    while jobs := claim(db, batch):
        rounds.append(ids(jobs))
        assert sorted(ack(db, jobs)) == sorted(ids(jobs))
    return rounds


# In order, one at a time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 10])
def test_jobs_of_a_group_run_one_at_a_time_in_the_order_in_which_they_were_enqueued(db: Connection, batch: int) -> None:
    made = put(db, "a", "a", "a")
    for id in made:
        (job,) = claim(db, batch)
        assert job.id == id
        assert claim(db, batch) == []
        assert ack(db, [job]) == [id]
    assert claim(db, batch) == []
    assert permits(db) == []
    assert stats(db) == {}


def test_groups_do_not_wait_for_each_other(db: Connection) -> None:
    a1, a2, b1, c1, b2 = put(db, "a", "a", "b", "c", "b")
    assert drain(db) == [[a1, b1, c1], [a2, b2]]


def test_a_parked_job_says_so(db: Connection) -> None:
    first, second = put(db, "a", "a")
    job = claim_one(db)
    assert claim(db) == []
    assert [status(db, id).state for id in (first, second)] == ["running", "parked"]
    assert (stats(db), parked(db)) == ({"running": 1}, 1)
    ack(db, [job])
    assert claim_one(db).id == second
    assert [status(db, id).state for id in (first, second)] == ["done", "running"]
    assert (stats(db), parked(db)) == ({"running": 1}, 0)


def test_jobs_without_a_group_go_by(db: Connection) -> None:
    a1, x, a2, y = put(db, "a", None, "a", None)
    assert sorted(ids(claim(db, 10))) == sorted([a1, x, y])
    assert claim(db) == []
    assert status(db, a2).state == "parked"


@pytest.mark.parametrize("n", [2, 3])
def test_a_group_may_have_several_places(db: Connection, n: int) -> None:
    limit(db, group_limit=n)
    made = put(db, *["a"] * 7)
    assert drain(db) == [made[i : i + n] for i in range(0, 7, n)]


def test_a_group_without_a_limit_is_just_a_name(db: Connection) -> None:
    limit(db, group_limit=None)
    made = put(db, *["a"] * 20)
    assert drain(db, 20) == [made]


def test_priority_goes_before_order_within_a_group_too(db: Connection) -> None:
    (low,) = put(db, "a", priority=5)
    (high,) = put(db, "a", priority=-5)
    (middle,) = put(db, "a")
    assert drain(db) == [[high], [middle], [low]]


def test_an_urgent_job_goes_before_parked_ones_of_other_groups(db: Connection) -> None:
    made = put(db, "a", "a", "b", "b")
    jobs = claim(db, 10)
    assert ids(jobs) == [made[0], made[2]]
    assert claim(db) == []
    (urgent,) = put(db, "z", priority=-1)
    ack(db, jobs)
    assert claim_one(db).id == urgent


def test_a_group_belongs_to_its_queue(db: Connection) -> None:
    create(db, "other")
    put(db, "a")
    call(db, "enqueue", "other", group_key="a")
    assert len(claim(db)) == len(claim(db, queue="other")) == 1


def test_a_scheduled_job_takes_its_place_by_its_id_when_it_is_due(db: Connection, clock: Clock) -> None:
    (later,) = put(db, "a", delay=MINUTE)
    assert status(db, later).state == "scheduled"
    now, last = put(db, "a", "a")
    job = claim_one(db)
    assert job.id == now
    clock.advance(61)
    call(db, "promote")
    assert claim(db) == []
    ack(db, [job])
    assert drain(db) == [[later], [last]]


@pytest.mark.parametrize("batch", [1, 8, 100])
def test_one_ack_for_all_frees_all(db: Connection, batch: int) -> None:
    keys = [f"k{n}" for n in range(batch)]
    first, second = put(db, *keys), put(db, *keys)
    assert drain(db, batch) == [first, second]


def test_with_unique_keys(db: Connection) -> None:
    query = """
        SELECT id, inserted FROM pgq.enqueue_unique_many('q', '{1,2,3}'::jsonb[], '{u,u,v}', group_keys => '{a,b,a}')
    """
    assert db.execute(query).fetchall() == [(1, True), (1, False), (3, True)]
    assert ids(claim(db, 10)) == [1]
    assert call(db, "enqueue", "q", unique_key="v", group_key="b") == 3  # parked, so it holds its key
    replace = "SELECT id, inserted FROM pgq.enqueue_unique('q', '7', unique_key => 'v', on_repeat => 'replace')"
    assert db.execute(replace).fetchall() == [(3, False)]
    assert one(db, "SELECT payload FROM pgq.parked") == 7


# Whatever ends an attempt --------------------------------------------------------------------------------------------

ENDS: dict[str, Callable[[Connection, Job, Clock], Any]] = {
    "ack": lambda db, job, clock: call(db, "ack", job.id, job.lease),
    "ack_many": lambda db, job, clock: ack(db, [job]),
    "dead": lambda db, job, clock: reject(db, job, retry=False),
    "cancelled": lambda db, job, clock: (call(db, "cancel", job.id), reject(db, job)),
    "cancelled by itself": lambda db, job, clock: call(db, "cancel_claimed", job.id, job.lease),
    "cancelled and released": lambda db, job, clock: (
        call(db, "cancel", job.id),
        call(db, "release", [job.id], [job.lease]),
    ),
}


@pytest.mark.parametrize("passage", PASSAGES)
@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_job_lets_the_next_one_run_once(db: Connection, clock: Clock, end: str, passage: str) -> None:
    made = put(db, "a", "a", "a")
    job = claim_one(db)
    assert claim(db) == []
    PASSAGES[passage](db, clock)
    ENDS[end](db, job, clock)
    assert ids(claim(db, 10)) == [made[1]]
    assert claim(db, 10) == []


def _expire(db: Connection, clock: Clock) -> None:
    clock.advance(120)
    call(db, "reap")


RETURNS: dict[str, Callable[[Connection, Job, Clock], Any]] = {
    "retry": lambda db, job, clock: reject(db, job),
    "retry_many": lambda db, job, clock: db.execute("SELECT pgq.reject_many(%s, %s)", [[job.id], [job.lease]]),
    "released": lambda db, job, clock: call(db, "release", [job.id], [job.lease]),
    "snoozed": lambda db, job, clock: call(db, "snooze", job.id, job.lease, SECOND),
    "expired": lambda db, job, clock: _expire(db, clock),
}


@pytest.mark.parametrize("passage", PASSAGES)
@pytest.mark.parametrize("back", RETURNS)
def test_a_job_that_comes_back_keeps_its_place(db: Connection, clock: Clock, back: str, passage: str) -> None:
    made = put(db, "a", "a", "b")
    job, _ = claim(db, 10)
    assert job.id == made[0]
    PASSAGES[passage](db, clock)
    RETURNS[back](db, job, clock)
    if back in ("retry", "retry_many", "snoozed"):
        assert claim(db, 10) == []
        clock.advance(5)
        call(db, "promote")
    again = claim_one(db)
    assert again.id == made[0]
    assert claim(db, 10) == [] if back != "expired" else ids(claim(db, 10)) == [made[2]]
    ack(db, [again])
    assert claim_one(db).id == made[1]


@pytest.mark.parametrize("back", RETURNS)
def test_unless_it_is_told_not_to(db: Connection, clock: Clock, back: str) -> None:
    limit(db, keep_place=False)
    first, second = put(db, "a", "a")
    job = claim_one(db)
    assert claim(db) == []
    RETURNS[back](db, job, clock)
    if back in ("retry", "retry_many", "snoozed"):
        # It is away, and its place is free.
        other = claim_one(db)
        assert other.id == second
        clock.advance(5)
        call(db, "promote")
        assert claim(db) == []
        ack(db, [other])
    assert claim_one(db).id == first
    assert claim(db) == []


def test_a_job_that_kills_its_workers_frees_its_group_when_it_is_dead(db: Connection, clock: Clock) -> None:
    first, second = put(db, "a", "a")
    for attempt in (1, 2, 3):
        job = claim_one(db)
        assert (job.id, job.attempt) == (first, attempt)
        assert claim(db) == []
        clock.advance(120)
        call(db, "reap")
    assert stats(db) == {"dead": 1}
    assert claim_one(db).id == second
    assert call(db, "redrive", "q") == 1
    assert claim(db) == []
    assert status(db, first).state == "parked"


def test_a_zombie_frees_nothing(db: Connection, clock: Clock) -> None:
    put(db, "a", "a")
    zombie = claim_one(db)
    clock.advance(120)
    call(db, "reap")
    live = claim_one(db)
    assert live.id == zombie.id
    with refused("PQ001"):
        call(db, "ack", zombie.id, zombie.lease)
    assert ack(db, [zombie]) == []
    assert claim(db) == []


@pytest.mark.parametrize("way", ["cancel", "cancel_many", "purge", "purge_state"])
def test_a_group_does_not_wait_for_a_retry_that_was_thrown_away(db: Connection, way: str) -> None:
    (first,) = put(db, "a")
    reject(db, claim_one(db))
    if way == "cancel":
        assert call(db, "cancel", first) == "cancelled"
    elif way == "purge_state":
        assert call(db, "purge_state", "q", "retrying") == 1
    else:
        assert call(db, way, "q") == 1
    (second,) = put(db, "a")
    assert claim_one(db).id == second


@pytest.mark.parametrize("end", ["commit", "rollback", "savepoint", "kill"])
@pytest.mark.direct("terminates a session")
def test_a_place_is_free_when_the_end_is_committed(db: Connection, connect: Connect, end: str) -> None:
    _, second = put(db, "a", "a")
    job = claim_one(db)
    other = connect(autocommit=False)
    other.execute("SAVEPOINT s")
    call(other, "ack", job.id, job.lease)
    assert claim(db) == []
    if end == "savepoint":
        other.execute("ROLLBACK TO SAVEPOINT s")
        other.commit()
    elif end == "kill":
        db.execute("SELECT pg_terminate_backend(%s, 20000)", [other.info.backend_pid])
    else:
        getattr(other, end)()
    assert ids(claim(db)) == ([second] if end == "commit" else [])
    if end != "commit":
        call(db, "ack", job.id, job.lease)
        assert claim_one(db).id == second


@pytest.mark.parametrize("end", ["rollback", "savepoint", "kill"])
@pytest.mark.direct("terminates a session")
def test_a_claim_that_is_undone_takes_no_place(db: Connection, connect: Connect, end: str) -> None:
    made = put(db, "a", "a", "b")
    other = connect(autocommit=False)
    other.execute("SAVEPOINT s")
    assert ids(claim(other, 10)) == [made[0], made[2]]
    assert claim(db, 10) == []  # the gate is held
    if end == "savepoint":
        other.execute("ROLLBACK TO SAVEPOINT s")
        other.commit()
    elif end == "kill":
        db.execute("SELECT pg_terminate_backend(%s, 20000)", [other.info.backend_pid])
    else:
        other.rollback()
    assert ids(claim(db, 10)) == [made[0], made[2]]


def test_the_first_use_of_a_group_makes_the_claim_look_at_it_when_it_is_committed(
    db: Connection, connect: Connect
) -> None:
    one_, two = connect(autocommit=False), connect(autocommit=False)
    (x,) = put(one_, "a")
    (y,) = put(two, "a")
    assert claim(db) == []
    two.commit()
    job = claim_one(db)
    assert job.id == y
    one_.commit()
    assert claim(db) == []
    ack(db, [job])
    assert claim_one(db).id == x


# The whole queue ------------------------------------------------------------------------------------------------------


def test_a_limit_of_the_queue_counts_all_that_run(db: Connection) -> None:
    limit(db, running_limit=3, group_limit=None)
    made = put(db, None, None, "a", None, "b", "a")
    jobs = claim(db, 10)
    assert len(jobs) == 3
    assert claim(db, 10) == []
    ack(db, jobs[:1])
    assert len(claim(db, 10)) == 1
    assert claim(db) == []
    ack(db, jobs[1:])
    assert len(claim(db, 10)) == 2
    assert len(made) == 6


def test_a_job_that_waits_for_its_next_attempt_does_not_run(db: Connection, clock: Clock) -> None:
    limit(db, running_limit=1)
    first, second = put(db, "a", "b")
    job = claim_one(db)
    assert job.id == first
    reject(db, job)
    other = claim_one(db)
    assert other.id == second
    clock.advance(5)
    call(db, "promote")
    assert claim(db) == []
    ack(db, [other])
    assert claim_one(db).id == first


def test_a_limit_may_be_changed_at_any_time(db: Connection) -> None:
    put(db, *["a"] * 6)
    assert len(claim(db, 10)) == 1
    limit(db, group_limit=3)
    assert len(claim(db, 10)) == 2
    limit(db, group_limit=1)
    assert claim(db, 10) == []
    limit(db, group_limit=None)
    assert len(claim(db, 10)) == 3


def test_a_queue_without_groups_may_be_limited_and_freed(db: Connection) -> None:
    made = put(db, *[None] * 5)
    limit(db, running_limit=2)
    first = claim(db, 10)
    assert len(first) == 2
    limit(db)
    second = claim(db, 10)
    assert sorted(ids(first + second)) == made
    assert sorted(ack(db, first + second)) == made
    assert permits(db) == [] or {state for _, state in permits(db)} == {"ended"}


# Rates ----------------------------------------------------------------------------------------------------------------


def test_a_rate_of_the_queue(db: Connection, clock: Clock) -> None:
    limit(db, rate=3, rate_period=timedelta(seconds=10))
    put(db, *[None] * 9)
    assert len(claim(db, 2)) == 2
    clock.advance(4)
    assert len(claim(db, 10)) == 1
    assert claim(db, 10) == []
    clock.advance(6.5)
    assert len(claim(db, 10)) == 2  # those of the first claim are ten seconds old
    assert claim(db, 10) == []
    clock.advance(3)
    assert len(claim(db, 10)) == 0
    clock.advance(1)
    assert len(claim(db, 10)) == 1


def test_a_rate_for_each_group(db: Connection, clock: Clock) -> None:
    limit(db, group_limit=None, group_rate=2, group_period=MINUTE)
    made = put(db, *["a"] * 5, *["b"] * 3)
    assert ids(claim(db, 10)) == [made[0], made[1], made[5], made[6]]
    assert claim(db, 10) == []
    clock.advance(61)
    assert ids(claim(db, 10)) == [made[2], made[3], made[7]]
    assert claim(db, 10) == []
    clock.advance(61)
    assert ids(claim(db, 10)) == [made[4]]


def test_in_no_period_do_more_start(db: Connection, clock: Clock) -> None:
    limit(db, group_limit=None, rate=5, rate_period=7 * SECOND, group_rate=3, group_period=5 * SECOND)
    generator = random.Random(5)
    put(db, *[generator.choice("abc") for _ in range(150)])
    keys: dict[int, str] = dict(db.execute("SELECT id, group_key FROM pgq.job").fetchall())
    began, starts = clock.now(), list[tuple[Any, str]]()
    while len(starts) < 150:
        clock.advance(generator.choice([0, 0.3, 1.1, 2.5]))
        starts += [(status(db, job.id).started_at, keys[job.id]) for job in claim(db, generator.randint(1, 4))]
    margin = timedelta(milliseconds=100)  # the claim was counted a moment before it was written down
    for at, _ in starts:
        assert sum(at - 7 * SECOND + margin < t <= at for t, _ in starts) <= 5
        for key in "abc":
            assert sum(at - 5 * SECOND + margin < t <= at for t, k in starts if k == key) <= 3
    assert clock.now() - began < 150 / 5 * 7 * SECOND * 1.5


@pytest.mark.direct("watch belongs to a session")
@pytest.mark.parametrize("which", ["", "group_"])
def test_who_waits_is_told_when_a_rate_allows_the_next(db: Connection, clock: Clock, which: str) -> None:
    limit(db, group_limit=None, **{f"{which}rate": 1, "rate_period" if not which else "group_period": MINUTE})
    put(db, "a", "a")
    assert call(db, "watch", ["q"]) is None
    job = claim_one(db)
    assert claim(db) == []
    started = one(db, "SELECT at FROM pgq.start")
    assert call(db, "watch", ["q"]) == started + MINUTE
    ack(db, [job])
    clock.advance(61)
    assert len(claim(db)) == 1


def test_what_rates_need_no_longer_is_removed(db: Connection, clock: Clock) -> None:
    limit(db, rate=10, rate_period=MINUTE)
    put(db, "a", "b")
    claim(db, 10)
    assert one(db, "SELECT count(*) FROM pgq.start") == 1
    clock.advance(60 * 10)
    call(db, "maintain")
    assert one(db, "SELECT count(*) FROM pgq.start") == 0


# Turns ----------------------------------------------------------------------------------------------------------------


def test_a_tenant_with_many_jobs_does_not_starve_another(db: Connection) -> None:
    limit(db, group_limit=None, fair=True)
    put(db, *["big"] * 500)
    small = put(db, *["small"] * 3)
    other = put(db, *["other"] * 3)
    taken = [claim_one(db).id for _ in range(12)]
    assert [id for id in taken if id in small] == small
    assert [id for id in taken if id in other] == other
    assert taken.index(small[0]) < 3
    assert len(set(taken[:3])) == 3


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_groups_take_turns(db: Connection, batch: int) -> None:
    limit(db, group_limit=None, fair=True)
    keys = [*["a"] * 30, *["b"] * 20, *["c"] * 10]
    made = dict(zip(put(db, *keys), keys, strict=True))
    order = "".join(made[id] for batch_ in iter(lambda: ids(claim(db, batch)), []) for id in batch_)
    assert Counter(order) == {"a": 30, "b": 20, "c": 10}
    assert Counter(order[:30]) == {"a": 10, "b": 10, "c": 10}
    assert Counter(order[30:50]) == {"a": 10, "b": 10}


def test_turns_are_taken_within_a_priority(db: Connection) -> None:
    limit(db, group_limit=None, fair=True)
    put(db, *["a"] * 3, *["b"] * 3)
    urgent = put(db, *["a"] * 3, priority=-1)
    assert ids(claim(db, 3)) == urgent


def test_groups_that_were_parked_before_take_turns_too(db: Connection) -> None:
    """Without turns a group stands in line by the id of its first job, which is larger than any turn."""
    limit(db, group_limit=None)
    made = dict(zip(put(db, *["a"] * 10, *["b"] * 10, *["c"] * 10), "a" * 10 + "b" * 10 + "c" * 10, strict=True))
    ack(db, [claim_one(db)])
    limit(db, group_limit=None, fair=True)
    order = "".join(made[claim_one(db).id] for _ in range(9))
    assert Counter(order) == {"a": 3, "b": 3, "c": 3}


def test_without_turns_the_oldest_comes_first_again(db: Connection) -> None:
    limit(db, group_limit=None, fair=True)
    made = put(db, *["a"] * 5, *["b"] * 5)
    first = [claim_one(db).id for _ in range(4)]
    limit(db, group_limit=None)
    assert [claim_one(db).id for _ in range(6)] == [id for id in made if id not in first]


# Changing what is parked ----------------------------------------------------------------------------------------------


def test_parked_jobs_can_be_cancelled_put_off_and_moved(db: Connection, clock: Clock) -> None:
    running, gone, later, last, urgent = put(db, *["a"] * 5)
    job = claim_one(db)
    assert claim(db) == []
    assert call(db, "cancel", gone) == "cancelled"
    assert status(db, gone).state == "cancelled"
    assert call(db, "reschedule", later, one(db, "SELECT pgq._now() + interval '1 minute'"))
    assert status(db, later).state == "scheduled"
    assert call(db, "set_priority", urgent, -1)
    assert claim(db) == []
    assert status(db, urgent).state == "parked"
    ack(db, [job])
    assert drain(db) == [[urgent], [last]]
    clock.advance(61)
    call(db, "promote")
    assert drain(db) == [[later]]
    assert call(db, "cancel", running) == "finished"


def test_a_place_that_was_kept_is_given_up_when_there_is_no_limit_any_more(db: Connection) -> None:
    put(db, "a")
    job = claim_one(db)
    call(db, "snooze", job.id, job.lease, "0")
    call(db, "promote")
    limit(db, group_limit=None)
    ack(db, [claim_one(db)])
    limit(db, group_limit=1)
    assert one(db, "SELECT count(*) FROM pgq.permit WHERE state <> 'ended'") == 0
    (next_,) = put(db, "a")
    assert claim_one(db).id == next_


@pytest.mark.parametrize("way", ["purge", "purge_state", "cancel_many"])
def test_parked_jobs_are_thrown_away_with_the_others(db: Connection, way: str) -> None:
    put(db, *["a"] * 3)
    job = claim_one(db)
    assert claim(db) == []
    put(db, "a")
    if way == "purge_state":
        assert call(db, way, "q", "parked") == 2
        assert call(db, way, "q", "ready") == 1
    else:
        assert call(db, way, "q") == 3
    assert stats(db) == {"running": 1}
    assert parked(db) == 0
    ack(db, [job])
    (next_,) = put(db, "a")
    assert claim_one(db).id == next_


def test_a_queue_with_parked_jobs_is_not_empty(db: Connection) -> None:
    put(db, "a", "a")
    claim_one(db)
    assert claim(db) == []
    with refused("PQ005"):
        call(db, "drop_queue", "q")
    call(db, "drop_queue", "q", True)
    for table in ("parked", "parked_group", "permit", "start", "line"):
        assert one(db, f"SELECT count(*) FROM pgq.{table}") == 0


@pytest.mark.parametrize("change", ["cancel", "reschedule", "replace"])
def test_who_is_changing_the_first_job_of_a_group_does_not_hold_up_the_others(
    db: Connection, connect: Connect, clock: Clock, change: str
) -> None:
    (first,) = put(db, "a")
    query = "SELECT (pgq.enqueue_unique('q', '2', unique_key => 'u', group_key => 'a', on_repeat => 'replace')).id"
    second = one(db, query)
    put(db, "a")
    job = claim_one(db)
    assert job.id == first
    assert claim(db) == []
    ack(db, [job])
    other = connect(autocommit=False)
    if change == "cancel":
        call(other, "cancel", second)
    elif change == "reschedule":
        call(other, "reschedule", second, one(db, "SELECT pgq._now() + interval '1 minute'"))
    else:
        assert one(other, query) == second
    put(db, "b")
    db.execute("SET statement_timeout = '5s'")
    (b,) = claim(db, 10)
    assert status(db, b.id).task is None
    assert b.id not in (first, second)
    other.rollback()
    clock.advance(1)
    assert claim_one(db).id == second


# The ring, a restart, a pinned snapshot -------------------------------------------------------------------------------


def test_parked_jobs_do_not_hold_a_segment(db: Connection) -> None:
    made = put(db, *["a"] * 5)
    job = claim_one(db)
    assert claim(db) == []
    ack(db, [job])
    retire_all(db)
    assert parked(db) == 4
    assert drain(db) == [[id] for id in made[1:]]
    retire_all(db)
    assert [status(db, id).state for id in made] == ["done"] * 5


def test_waiting_jobs_of_groups_are_carried_forward_in_order(db: Connection, clock: Clock) -> None:
    made = put(db, *["a", "b"] * 3)
    carried = 0
    for _ in range(10):
        carried += call(db, "rotate", seal=True).get("carried", 0)
        clock.advance(61)
    assert carried >= 6
    newer = put(db, "a", "b")
    assert drain(db) == [made[0:2], made[2:4], made[4:6], newer]


def test_old_jobs_of_a_group_go_before_those_of_a_younger_segment(db: Connection) -> None:
    made = []
    for _ in range(4):
        made += put(db, "a", "b")
        rotate(db)
    assert drain(db) == [made[n : n + 2] for n in range(0, 8, 2)]


def test_a_permit_that_nobody_has_is_found(db: Connection, clock: Clock) -> None:
    put(db, "a", "a")
    job = claim_one(db)
    assert claim(db) == []
    db.execute("ALTER TABLE pgq.permit DISABLE TRIGGER ALL")
    ack(db, [job])
    db.execute("UPDATE pgq.permit SET state = 'running'")  # as if it had not been given back
    assert claim(db) == []
    clock.advance(61)
    call(db, "maintain")
    assert len(claim(db)) == 1


def test_many_parked_jobs_of_one_group_cost_the_others_nothing(db: Connection) -> None:
    put(db, *["busy"] * 20000)
    put(db, *[f"k{n}" for n in range(50)])
    claim_one(db)
    for _ in range(10):
        claim(db)
    assert parked(db) >= 19000
    read = """
        SELECT sum(coalesce(idx_tup_fetch, 0) + seq_tup_read) FROM pg_stat_xact_user_tables
        WHERE relname IN ('parked', 'parked_group', 'permit')
    """
    with db.transaction():
        before = one(db, read)
        assert len(claim(db)) == 1
        assert one(db, read) - before < 50


# Races ----------------------------------------------------------------------------------------------------------------


class Watchman:
    """Notes what runs at once, as those see it who run it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.order: dict[str, list[int]] = defaultdict(list)

    def begin(self, key: str, id: int) -> None:
        with self.lock:
            self.running[key] += 1
            self.running["*"] += 1
            self.order[key].append(id)
            for name in (key, "*"):
                self.most[name] = max(self.most[name], self.running[name])

    def end(self, key: str) -> None:
        with self.lock:
            self.running[key] -= 1
            self.running["*"] -= 1


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"group_limit": 2},
        {"group_limit": None, "running_limit": 5},
        {"group_limit": 2, "running_limit": 5, "fair": True},
    ],
    ids=["one", "two", "five in all", "two, five in all, fair"],
)
def test_limits_are_exact_under_races(db: Connection, connect: Connect, limits: dict[str, Any]) -> None:
    limit(db, **limits)
    jobs, workers, keys = 240, 6, "abcde"
    watchman = Watchman()
    done: list[int] = []
    stop = threading.Event()

    def produce(number: int) -> None:
        session = connect(autocommit=False)
        generator = random.Random(number)
        for n in range(jobs // 2):
            while True:
                session.execute(
                    "SELECT pgq.enqueue('q', to_jsonb(%s::text), group_key => %s)",
                    [key := generator.choice(keys), key],
                )
                if generator.random() < 0.9:
                    break
                session.rollback()
            session.commit()
            if n % 30 == 15:
                rotate(session)
                session.commit()

    def work(number: int) -> None:
        session = connect()
        generator = random.Random(100 + number)
        while not stop.is_set():
            batch = claim(session, generator.choice([1, 1, 3, 10]))
            for job in batch:
                watchman.begin(job.payload, job.id)
            # Longer until the limit was reached for once, however slow the others are.
            reached = watchman.most["*"] >= limits.get("running_limit", 0)
            time.sleep(generator.random() / (500 if reached else 10))
            for job in batch:
                # Over before it is told, so that what others see is never more than what there is.
                watchman.end(job.payload)
                roll = generator.random()
                if roll < 0.1:
                    reject(session, job, retry_in=timedelta(0))
                elif roll < 0.15:
                    call(session, "release", [job.id], [job.lease])
                else:
                    call(session, "ack", job.id, job.lease)
                    done.append(job.id)
            if not batch:
                call(session, "promote")

    with ThreadPoolExecutor(workers + 2) as pool:
        futures = [pool.submit(produce, n) for n in range(2)]
        consumers = [pool.submit(work, n) for n in range(workers)]
        try:
            for future in futures:
                future.result(60)
            over = lambda: len(done) + stats(db).get("dead", 0) == jobs or any(c.done() for c in consumers)  # noqa: E731
            eventually(over, timeout=60)
        finally:
            stop.set()
        for consumer in consumers:
            consumer.result(20)
    assert len(done) == len(set(done))
    if (most := limits.get("group_limit", 1)) is not None:
        assert max(watchman.most[key] for key in keys) == most
    if "running_limit" in limits:
        assert watchman.most["*"] == limits["running_limit"]
    assert parked(db) == 0
    assert stats(db).get("ready", 0) == 0


def test_who_begins_while_a_claim_waits_for_a_lane_is_not_passed_by(db: Connection, connect: Connect) -> None:
    put(db, "x")
    assert len(drain(db)) == 1  # nothing is to be tidied up, which would take a transaction id
    (urgent,) = put(db, "x", priority=-1)
    holder, claimer, late = connect(autocommit=False), connect(), connect(autocommit=False)
    put(late, "y")  # so that it is quick next time: the claim waits for a tenth of a second
    late.rollback()
    front = "SELECT pgq._front(min(lane | 97)) FROM pgq.line WHERE lane > 0"
    holder.execute(f"SELECT pg_advisory_xact_lock(pgq._lane_key(({front})))")
    waiting = in_background(claim, claimer, 10)  # its snapshot is older than what comes now
    until_blocked(db, claimer)
    (first,), (second,) = put(late, "a"), put(db, "b")
    holder.commit()  # the claim takes the urgent job, and has a transaction id from then on
    taken = ids(waiting.result())
    late.commit()
    taken += ids(claim(db, 10))
    assert sorted(taken) == [urgent, first, second]


def test_claimers_wait_at_the_gate_instead_of_going_away_empty(db: Connection, connect: Connect) -> None:
    put(db, "a", "b")
    first, second = connect(autocommit=False), connect()
    claim_one(first)
    waiting = in_background(claim, second)
    until_blocked(db, second)
    first.commit()
    assert len(waiting.result()) == 1


# Wake-ups -------------------------------------------------------------------------------------------------------------


@pytest.mark.direct("LISTEN and watch belong to a session")
def test_the_end_of_a_job_wakes_who_waits_for_the_next_of_its_group(db: Connection, connect: Connect) -> None:
    put(db, "a", "a")
    job = claim_one(db)
    assert claim(db) == []
    listener = listen(connect, "q")
    ack(db, [job])
    assert heard(db, listener) == ["q"]
    job = claim_one(db)
    ack(db, [job])
    assert heard(db, listener) == []  # nobody is parked


# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sqlstate", "named"),
    [
        ("22023", {"group_limit": 0}),
        ("22023", {"running_limit": -1}),
        ("22023", {"rate": 0, "rate_period": SECOND}),
        ("22023", {"rate": 1}),
        ("22023", {"rate_period": SECOND}),
        ("22023", {"rate": 1, "rate_period": timedelta(0)}),
        ("22023", {"group_rate": 1}),
        ("22023", {"group_rate": 1, "group_period": timedelta(days=1000)}),
        ("22004", {"fair": None}),
        ("22004", {"keep_place": None}),
    ],
)
def test_bad_limits_are_refused(db: Connection, sqlstate: str, named: dict[str, Any]) -> None:
    with refused(sqlstate):
        limit(db, **named)


def test_limits_of_an_unknown_queue(db: Connection) -> None:
    with refused("PQ002"):
        call(db, "set_limits", "nope")


@pytest.mark.parametrize("key", ["", "x" * 1001])
def test_a_bad_group_key_is_refused(db: Connection, key: str) -> None:
    with refused("22023"):
        call(db, "enqueue", "q", group_key=key)
    with refused("22023"):
        put(db, "a", key)


def test_group_keys_go_with_payloads(db: Connection) -> None:
    with refused("22023"):
        db.execute("SELECT pgq.enqueue_many('q', '{1,2}'::jsonb[], group_keys => '{a}')")
    with refused("22023"):
        db.execute("SELECT pgq.enqueue_unique_many('q', '{1,2}'::jsonb[], '{u,v}', group_keys => '{a}')")


@pytest.mark.parametrize("key", ["ü", "'; DROP", "a%s$1", "x" * 1000])
def test_any_text_is_a_group_key(db: Connection, key: str) -> None:
    put(db, key, key)
    job = claim_one(db)
    assert claim(db) == []
    ack(db, [job])
    assert len(claim(db)) == 1


def test_limits_wait_for_who_is_claiming(db: Connection, connect: Connect) -> None:
    put(db, "a")
    other = connect(autocommit=False)
    claim_one(other)
    waiting = in_background(limit, db, group_limit=2)
    until_blocked(connect(), db)
    other.commit()
    waiting.result()


def test_a_settled_job_of_a_repeatable_read_transaction(db: Connection, connect: Connect) -> None:
    put(db, "a", "a")
    job = claim_one(db)
    other = connect(autocommit=False)
    other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    call(other, "ack", job.id, job.lease)
    other.commit()
    assert len(claim(db)) == 1
    assert leases([job])
