"""How a claimed job ends, wherever its segment is by then: ack, release, extend, and the loss of a lease."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import psycopg
import pytest
from psycopg import IsolationLevel

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
    create,
    enqueue,
    fingerprint,
    ids,
    leases,
    one,
    refused,
    retire_all,
    rows,
    stats,
    status,
)


@across
def test_ack_ends_a_job_with_its_result(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 hour")
    enqueue(db, task="t")
    job = claim_one(db)
    passage(db, clock)
    assert status(db, job.id).state == "running"
    assert call(db, "ack", job.id, job.lease, {"rows": 3}) == ""
    done = status(db, job.id)
    assert (done.state, done.result, done.task, done.attempt, done.error) == ("done", {"rows": 3}, "t", 1, None)
    assert done.enqueued_at <= (done.started_at or clock.now()) <= (done.finished_at or done.enqueued_at) <= clock.now()
    assert stats(db) == {}
    retire_all(db)
    assert status(db, job.id) == done
    assert claim(db) == []


@across
def test_ack_many_settles_those_that_are_held_and_names_them(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 hour", shards=2)
    enqueue(db, 8)
    jobs = claim(db, 10)
    good, (acked, released, rejected) = [jobs[0], *jobs[4:]], jobs[1:4]
    other = jobs[-1]
    assert other.lease != good[0].lease
    passage(db, clock)
    ack(db, [acked])
    rows(db, "release", [released.id], [released.lease])
    call(db, "reject", rejected.id, rejected.lease)
    batch = [(job.id, job.lease) for job in [acked, good[0], released, rejected, *good]]
    batch += [(good[0].id, other.lease), (good[0].id, 0), (0, good[0].lease), (10**12, -1)]  # good[0] twice, too
    results = [f'"{n}"' for n in range(len(batch))]
    done = rows(db, "ack_many", [id for id, _ in batch], [lease for _, lease in batch], results)
    assert sorted(done) == sorted(ids(good))
    assert status(db, good[1].id).result == "5"
    assert [status(db, job.id).state for job in good] == ["done"] * 5
    assert [status(db, job.id).state for job in (acked, released, rejected)] == ["done", "ready", "retrying"]
    assert ack(db, jobs) == []


def test_ack_many_of_nothing_settles_nothing(db: Connection) -> None:
    assert rows(db, "ack_many", [], []) == rows(db, "reject_many", [], []) == rows(db, "release", [], []) == []
    assert db.execute("SELECT * FROM pgq.extend_many('{}')").fetchall() == []


@across
def test_a_lease_of_another_job_settles_nothing(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 hour")
    enqueue(db, 2)
    first, second = claim_one(db), claim_one(db)
    passage(db, clock)
    before = fingerprint(db)
    with refused("PQ001"):
        call(db, "ack", first.id, second.lease)
    with refused("PQ001"):
        call(db, "reject", second.id, first.lease)
    swapped = [[first.id, second.id], [second.lease, first.lease]]
    assert rows(db, "ack_many", *swapped) == rows(db, "reject_many", *swapped) == rows(db, "release", *swapped) == []
    assert fingerprint(db) == before
    assert sorted(ack(db, [first, second])) == sorted([first.id, second.id])


@across
def test_release_gives_jobs_back_to_the_front_and_does_not_count_the_attempt(
    db: Connection, clock: Clock, passage: Passage
) -> None:
    create(db, lease="1 hour", shards=1)
    enqueue(db, 3, task="t", headers={"a": 1}, max_attempts=4)
    jobs = claim(db, 3)
    passage(db, clock)
    waiting = enqueue(db)
    urgent = enqueue(db, priority=-1)
    back = [jobs[2], jobs[0], jobs[2]]
    assert sorted(rows(db, "release", ids(back), leases(back))) == [jobs[0].id, jobs[2].id]
    assert stats(db) == {"ready": 4, "running": 1}
    again = claim(db, 10)
    assert [again[0].id, again[-1].id] == urgent + waiting
    for job, first in zip(sorted(again[1:3], key=lambda job: job.id), [jobs[0], jobs[2]], strict=True):
        assert (job.id, job.payload, job.attempt, job.enqueued_at) == (first.id, first.payload, 1, first.enqueued_at)
        assert (job.task, job.headers, job.max_attempts) == ("t", {"a": 1}, 4)
    assert len(ack(db, [*again, jobs[1]])) == 5
    assert stats(db) == {}


@across
def test_a_job_can_be_released_again_and_again(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 hour", max_attempts=1)
    enqueue(db)
    for _ in range(3):
        job = claim_one(db)
        assert job.attempt == 1
        passage(db, clock)
        assert rows(db, "release", [job.id], [job.lease]) == [job.id]
        assert status(db, job.id).state == "ready"


@across
def test_extend_moves_the_expiry(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="10 minutes")
    enqueue(db, 2)
    jobs = claim(db, 2)
    passage(db, clock)
    for job in jobs:
        expires_at = call(db, "extend", job.lease, "1 hour")
        assert abs(expires_at - clock.now() - timedelta(hours=1)) < timedelta(seconds=5)
    clock.advance(timedelta(minutes=11))
    assert call(db, "reap") == 0
    clock.advance(timedelta(minutes=48))
    for job in jobs:
        expires_at = call(db, "extend", job.lease)
        assert abs(expires_at - clock.now() - timedelta(minutes=10)) < timedelta(seconds=5)
    clock.advance(timedelta(minutes=9))
    assert call(db, "reap") == 0
    clock.advance(timedelta(minutes=2))
    assert call(db, "reap") == 2
    assert stats(db) == {"ready": 2}


@across
def test_extend_never_shortens_a_lease(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 hour")
    enqueue(db)
    job = claim_one(db)
    passage(db, clock)
    assert call(db, "extend", job.lease, "1 second") == job.expires_at
    clock.advance(timedelta(minutes=58))
    assert call(db, "reap") == 0


@across
def test_extend_many_returns_the_leases_that_are_held(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 hour", shards=1)
    enqueue(db, 6)
    half, lost, whole = claim(db, 2), claim(db, 2), claim(db, 2)
    passage(db, clock)
    ack(db, [half[0], *lost])
    asked = [*leases(half), *leases(lost), *leases(whole), 0, -1, 10**15]
    extended = db.execute("SELECT * FROM pgq.extend_many(%s, '2 hours')", [asked]).fetchall()
    assert sorted(lease for lease, _ in extended) == [half[0].lease, whole[0].lease]
    for _, expires_at in extended:
        assert abs(expires_at - clock.now() - timedelta(hours=2)) < timedelta(seconds=5)
    with refused("PQ001"):
        call(db, "extend", lost[0].lease)
    clock.advance(timedelta(minutes=90))
    assert call(db, "reap") == 0


@across
def test_an_expired_lease_gives_the_job_another_attempt_at_the_front(
    db: Connection, clock: Clock, passage: Passage
) -> None:
    create(db, lease="1 hour", shards=1)
    enqueue(db, task="t")
    job = claim_one(db, worker="w")
    passage(db, clock)
    enqueue(db)
    clock.advance(timedelta(minutes=58))
    assert call(db, "reap") == 0
    clock.advance(timedelta(minutes=3))
    assert call(db, "reap") == 1
    assert call(db, "reap") == 0
    state = status(db, job.id)
    assert (state.state, state.attempt, state.error) == ("ready", 2, "lease expired")
    again = claim(db, 2)[0]
    assert (again.id, again.attempt, again.task, again.enqueued_at) == (job.id, 2, "t", job.enqueued_at)


@across
def test_an_expired_lease_is_good_until_it_is_reaped(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 hour")
    enqueue(db, 3)
    jobs = claim(db, 3)
    passage(db, clock)
    clock.advance(timedelta(hours=2))
    call(db, "ack", jobs[0].id, jobs[0].lease)
    call(db, "extend", jobs[1].lease)
    assert call(db, "reap") == len({job.lease for job in jobs} - {jobs[0].lease, jobs[1].lease})
    assert status(db, jobs[0].id).state == "done"
    assert status(db, jobs[1].id).state == "running"


def test_a_single_lease_loses_all_its_jobs_but_the_settled_ones(db: Connection, clock: Clock) -> None:
    create(db, shards=1)
    enqueue(db, 5)
    jobs = claim(db, 5)
    ack(db, jobs[:2])
    clock.advance(timedelta(hours=1))
    assert call(db, "reap") == 3
    assert ack(db, jobs) == []
    assert ids(claim(db, 10)) == ids(jobs[2:])


def _reaped(db: Connection, clock: Clock, job: Job) -> None:
    clock.advance(timedelta(hours=2))
    assert call(db, "reap") == 1


def _acked(db: Connection, clock: Clock, job: Job) -> None:
    call(db, "ack", job.id, job.lease)


def _rejected(db: Connection, clock: Clock, job: Job) -> None:
    assert call(db, "reject", job.id, job.lease, retry_in="1 second") == "retry"
    clock.advance(62)
    assert call(db, "promote") == 1


def _buried(db: Connection, clock: Clock, job: Job) -> None:
    assert call(db, "reject", job.id, job.lease, retry=False) == "dead"


def _released(db: Connection, clock: Clock, job: Job) -> None:
    assert rows(db, "release", [job.id], [job.lease]) == [job.id]


def assert_powerless(db: Connection, job: Job) -> None:
    """Nothing can be done with this lease, and trying changes nothing."""
    before = fingerprint(db)
    for function, arguments in {
        "ack": [job.id, job.lease, {"zombie": True}],
        "reject": [job.id, job.lease, "zombie"],
        "extend": [job.lease, "1 hour"],
    }.items():
        with refused("PQ001"):
            call(db, function, *arguments)
    with refused("PQ001"):
        call(db, "reject", job.id, job.lease, retry=False)
    for function in ["ack_many", "reject_many", "release"]:
        assert rows(db, function, [job.id], [job.lease]) == []
    assert db.execute("SELECT * FROM pgq.extend_many(%s)", [[job.lease]]).fetchall() == []
    assert fingerprint(db) == before


@across
@pytest.mark.parametrize("lose", [_reaped, _acked, _rejected, _buried, _released], ids=lambda lose: lose.__name__[1:])
def test_a_zombie_can_do_nothing_after_its_lease_is_lost(
    db: Connection, clock: Clock, passage: Passage, lose: Callable[[Connection, Clock, Job], None]
) -> None:
    create(db, lease="1 hour")
    enqueue(db)
    zombie = claim_one(db, worker="zombie")
    passage(db, clock)
    lose(db, clock, zombie)
    assert_powerless(db, zombie)
    for heir in claim(db):
        assert heir.id == zombie.id
        assert_powerless(db, zombie)
        call(db, "ack", heir.id, heir.lease)
    retire_all(db)
    assert_powerless(db, zombie)


def test_a_lease_that_never_was_can_do_nothing(db: Connection) -> None:
    create(db)
    enqueue(db)
    for lease in [0, 1, -1, 2**63 - 1, -(2**63)]:
        for id in [1, 0, -1, 2**63 - 1]:
            with refused("PQ001"):
                call(db, "ack", id, lease)
            with refused("PQ001"):
                call(db, "reject", id, lease)
            assert rows(db, "release", [id], [lease]) == []


@across
def test_ack_commits_or_rolls_back_with_what_the_handler_wrote(
    db: Connection, connect: Connect, clock: Clock, passage: Passage
) -> None:
    create(db, lease="1 hour")
    db.execute("CREATE TABLE effect (job bigint)")
    enqueue(db)
    zombie = claim_one(db)
    passage(db, clock)
    handler = connect(autocommit=False)
    handler.execute("INSERT INTO effect VALUES (%s)", [zombie.id])
    call(handler, "ack", zombie.id, zombie.lease)
    handler.rollback()
    assert status(db, zombie.id).state == "running"

    _reaped(db, clock, zombie)
    with refused("PQ001"), handler.transaction():
        handler.execute("INSERT INTO effect VALUES (%s)", [zombie.id])
        call(handler, "ack", zombie.id, zombie.lease)

    heir = claim_one(db)
    handler.execute("INSERT INTO effect VALUES (%s)", [heir.id])
    call(handler, "ack", heir.id, heir.lease)
    handler.commit()
    assert one(db, "SELECT count(*) FROM effect") == 1
    assert status(db, heir.id).state == "done"


@across
@pytest.mark.parametrize("lost", [False, True], ids=["held", "lost"])
def test_a_strict_handler_acks_only_what_it_holds(
    db: Connection, connect: Connect, clock: Clock, passage: Passage, lost: bool
) -> None:
    create(db, lease="1 hour")
    enqueue(db)
    job = claim_one(db)
    handler = connect(autocommit=False)
    handler.isolation_level = IsolationLevel.REPEATABLE_READ
    passage(db, clock)
    handler.execute("SELECT 1")  # takes the snapshot
    if not lost:
        call(handler, "ack", job.id, job.lease)
        handler.commit()
        assert status(db, job.id).state == "done"
        return
    _reaped(db, clock, job)
    before = fingerprint(db)
    with pytest.raises(psycopg.Error) as caught:
        call(handler, "ack", job.id, job.lease)
    assert caught.value.sqlstate in ("PQ001", "40001")
    handler.rollback()
    assert fingerprint(db) == before
