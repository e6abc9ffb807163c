"""What workers may rely on when they claim: batches, leases, lanes that others hold, and transactions."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from psycopg import IsolationLevel

from tests.conftest import Clock
from tests.sql.support import (
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
    ids,
    in_background,
    leases,
    one,
    refused,
    rotate,
    stats,
)


def test_an_empty_queue_yields_nothing(db: Connection) -> None:
    create(db)
    assert claim(db) == claim(db, 1000) == []


@pytest.mark.parametrize("batch", [1, 30, 100_000])
def test_a_batch_is_filled_across_shards_priorities_and_segments(db: Connection, batch: int) -> None:
    create(db, shards=8)
    urgent = enqueue(db, 10, priority=-1)
    rotate(db)
    later = enqueue(db, 10)
    rotate(db)
    urgent += enqueue(db, 10, priority=-1)
    jobs: list[int] = []
    while taken := claim(db, batch):
        assert len(taken) == min(batch, 30 - len(jobs))
        jobs += ids(taken)
    assert sorted(jobs[:20]) == urgent
    assert sorted(jobs[20:]) == later


def test_jobs_of_one_lane_share_a_lease_and_those_of_two_do_not(db: Connection) -> None:
    create(db, shards=1)
    enqueue(db, 3)
    enqueue(db, 2, priority=1)
    lease, *others = leases(claim(db, 10))
    assert others[:2] == [lease, lease]
    assert others[2] == others[3] != lease


def test_a_job_is_claimed_once(db: Connection, connect: Connect) -> None:
    create(db)
    made = enqueue(db, 20)
    first = claim(db, 13)
    second = claim(connect(), 13)
    assert sorted(ids(first + second)) == made


@pytest.mark.parametrize("batch", [1, 5])
def test_a_lease_lasts_as_long_as_the_queue_or_the_claim_says(db: Connection, clock: Clock, batch: int) -> None:
    create(db, lease="1 hour")
    enqueue(db, 30)
    for lease_for, expected in [(None, 3600), ("10 seconds", 10), ("1 year", 86400 * 365)]:
        jobs = claim(db, batch, lease_for=lease_for)
        assert len(jobs) == batch
        for job in jobs:
            assert abs(job.expires_at - clock.now() - timedelta(seconds=expected)) < timedelta(seconds=5)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_worker_who_claimed_is_on_record(db: Connection, clock: Clock, batch: int) -> None:
    create(db, max_attempts=1)
    enqueue(db)
    claim(db, batch, worker="w-1 🛠")
    assert column(db, "SELECT worker FROM pgq.lease") == ["w-1 🛠"]
    clock.advance(timedelta(hours=1))
    call(db, "reap")
    assert one(db, "SELECT history -> 0 ->> 'worker' FROM pgq.dead") == "w-1 🛠"


def test_a_paused_queue_yields_nothing_until_it_is_resumed(db: Connection) -> None:
    create(db)
    (first, second) = enqueue(db, 2)
    running = claim_one(db)
    call(db, "pause", "q")
    assert claim(db, 10) == []
    enqueue(db)  # goes on
    ack(db, [running])  # goes on
    call(db, "resume", "q")
    assert len(claim(db, 10)) == 2
    assert running.id in (first, second)


@pytest.mark.parametrize(
    "isolation",
    [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE],
    ids=lambda isolation: isolation.name.lower(),
)
def test_what_must_see_the_newest_state_refuses_strict_transactions(
    db: Connection, connect: Connect, isolation: IsolationLevel
) -> None:
    create(db)
    strict = connect(autocommit=False)
    strict.isolation_level = isolation
    for function in ["claim('q')", "promote()", "reap()", "rotate()", "maintain()", "purge('q')", "drop_queue('q')"]:
        with refused("PQ003"):
            strict.execute(f"SELECT * FROM pgq.{function}")
        strict.rollback()


@pytest.mark.parametrize("batch", [1, 10])
def test_a_transaction_does_not_claim_what_it_has_enqueued_itself(db: Connection, connect: Connect, batch: int) -> None:
    create(db, shards=1)
    both = connect(autocommit=False)
    own = enqueue(both, 2)
    assert claim(both, batch) == []
    other = enqueue(db, 2)
    claimed = ids(claim(both, batch)) + ids(claim(both, batch))
    assert claimed == other
    own += enqueue(both, 2)
    assert claim(both, batch) == []
    both.commit()
    assert ids(claim(db, 10)) == own


@pytest.mark.parametrize("batch", [1, 10])
def test_a_rolled_back_claim_gives_the_jobs_back(db: Connection, connect: Connect, batch: int) -> None:
    create(db, shards=1)
    made = enqueue(db, 10)
    worker = connect(autocommit=False)
    assert ids(claim(worker, batch)) == made[:batch]
    worker.rollback()
    jobs = claim(db, 10)
    assert ids(jobs) == made
    assert {job.attempt for job in jobs} == {1}


def test_a_claim_rolled_back_to_a_savepoint_gives_the_jobs_back(db: Connection, connect: Connect) -> None:
    create(db, shards=1)
    made = enqueue(db, 4)
    worker = connect(autocommit=False)
    taken = ids(claim(worker))
    with worker.transaction(force_rollback=True):
        assert ids(claim(worker, 2)) == made[1:3]
    taken += ids(claim(worker))
    worker.commit()
    assert taken + ids(claim(db, 10)) == made


@pytest.mark.direct("terminates the session")
def test_claimed_jobs_of_a_killed_session_come_back(db: Connection, connect: Connect) -> None:
    create(db, shards=1)
    made = enqueue(db, 3)
    worker = connect(autocommit=False)
    claim(worker, 3)
    db.execute("SELECT pg_terminate_backend(%s, 10000)", [worker.info.backend_pid])
    assert ids(claim(db, 10)) == made


@pytest.mark.parametrize("batch", [1, 100])
def test_a_lane_held_by_an_open_transaction_holds_up_no_other(db: Connection, connect: Connect, batch: int) -> None:
    create(db, shards=4)
    enqueue(db, 40)
    holder = connect(autocommit=False)
    held = claim_one(holder)
    taken: list[int] = []
    while jobs := claim(db, batch):
        taken += ids(jobs)
    assert len(set(taken)) == 30
    assert held.id not in taken
    holder.commit()
    assert len(claim(db, 100)) == 9


def test_a_claim_never_waits_long_for_a_held_lane(db: Connection, connect: Connect) -> None:
    create(db, shards=1)
    enqueue(db, 2)
    holder = connect(autocommit=False)
    claim(holder)
    began = time.monotonic()
    assert claim(db) == claim(db, 10) == []
    assert time.monotonic() - began < 5


@pytest.mark.direct("looks at the session")
def test_more_claimers_than_shards_get_no_false_empty(db: Connection, connect: Connect) -> None:
    create(db, shards=1)
    holder, claimer = connect(autocommit=False), connect()
    seen = "SELECT state = 'active' FROM pg_stat_activity WHERE pid = %s"
    for _ in range(50):
        enqueue(db, 2)
        first = claim_one(holder)
        future = in_background(claim, claimer)
        eventually(lambda: one(db, seen, claimer.info.backend_pid) or future.done())  # noqa: B023
        holder.commit()
        second = future.result()
        ack(db, [first, *second, *claim(db, 2)])
        if second:
            return
    raise AssertionError("the second never got the other job")


@pytest.mark.parametrize("rotated", [False, True], ids=["one segment", "a new segment"])
def test_jobs_committed_late_are_not_overtaken_for_good(db: Connection, connect: Connect, rotated: bool) -> None:
    create(db, shards=1)
    slow, slower = connect(autocommit=False), connect(autocommit=False)
    late, later = enqueue(slow, 3), enqueue(slower, 3)
    if rotated:
        rotate(db, 3)
    fast = enqueue(db, 3)
    assert ids(claim(db, 10)) == fast
    late += enqueue(slow, 2)
    slow.commit()
    taken: list[int] = []
    while jobs := claim(db, 2):
        taken += ids(jobs)
    assert sorted(taken) == late
    slower.rollback()
    assert claim(db, 10) == []
    assert later


def test_counts_agree_while_a_batch_is_claimed(db: Connection, connect: Connect) -> None:
    create(db)
    enqueue(db, 10)
    worker = connect(autocommit=False)
    claim(worker, 4)
    assert stats(db) == {"ready": 10}
    worker.commit()
    assert stats(db) == {"ready": 6, "running": 4}


# Several priorities ---------------------------------------------------------------------------------------------------


def locked_lanes(db: Connection) -> int:
    """How many lanes, all of them locks of transactions, the session has locked."""
    query = "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'"
    return int(one(db, query))


@pytest.mark.direct("looks at its locks")
@pytest.mark.parametrize("batch", [1, 3])
def test_priorities_without_jobs_are_passed_by_without_a_lock(db: Connection, connect: Connect, batch: int) -> None:
    """Or claimers would wait for each other's commits in lanes where nobody finds anything."""
    create(db, shards=4)
    ack(db, [*claim_all(db, priority=-1), *claim_all(db, priority=-2)])
    (back,) = enqueue(db)
    call(db, "release", [back], [claim_one(db).lease])  # so that there is a front lane
    assert ids(claim(db)) == [back]
    rotate(db, 2)
    enqueue(db, 40)
    claimer = connect(autocommit=False)
    for _ in range(2):
        assert len(claim(claimer, batch)) == batch
        assert locked_lanes(claimer) == 1
        claimer.commit()
    (urgent,) = enqueue(db, priority=-2)
    assert ids(claim(claimer)) == [urgent]
    claimer.commit()
    assert len(claim(claimer, batch)) == batch
    assert locked_lanes(claimer) == 1


def claim_all(db: Connection, **settings: Any) -> list[Job]:
    made = enqueue(db, 8, **settings)
    jobs = claim(db, 8)
    assert sorted(ids(jobs)) == made
    return jobs


@pytest.mark.parametrize("batch", [1, 10])
@pytest.mark.parametrize("rotated", [False, True], ids=["one segment", "two segments"])
def test_a_job_of_a_high_priority_that_is_committed_late_comes_next(
    db: Connection, connect: Connect, rotated: bool, batch: int
) -> None:
    create(db, shards=3)
    ack(db, claim_all(db, priority=-1))
    slow, slower = connect(autocommit=False), connect(autocommit=False)
    late, later = enqueue(slow, 3, priority=-1), enqueue(slower, 3, priority=-1)
    early = enqueue(db, 3, priority=-1)
    if rotated:
        rotate(db, 2)
    plain = enqueue(db, 40)
    assert take(db, 3, batch) == set(early)
    assert take(db, 2, 2) < set(plain)
    slow.commit()
    assert take(db, 3, batch) == set(late)
    assert take(db, 2, 2) < set(plain)
    slower.commit()
    assert take(db, 3, batch) == set(later)
    assert take(db, 36, 10) < set(plain)
    assert claim(db) == []


def take(db: Connection, count: int, batch: int) -> set[int]:
    """So many jobs, by batches of at most this size."""
    taken: list[int] = []
    while len(taken) < count:
        taken += ids(claim(db, min(batch, count - len(taken))))
    return set(taken)
