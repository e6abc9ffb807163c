"""Who is notified, and who is not: NOTIFY takes a lock of the whole cluster, so only those are who wait."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.conftest import Clock
from tests.sql.support import (
    Connect,
    Connection,
    call,
    claim,
    claim_one,
    create,
    enqueue,
    eventually,
    heard,
    listen,
    one,
    refused,
    rows,
    status,
)

pytestmark = pytest.mark.direct("LISTEN and watch belong to a session")


def test_enqueue_tells_who_waits_the_name_of_the_queue(db: Connection, connect: Connect) -> None:
    create(db)
    worker = listen(connect, "q")
    call(db, "enqueue", "q")
    assert heard(db, worker) == ["q"]
    enqueue(db, 10)
    assert heard(db, worker) == ["q"]
    call(db, "enqueue", "q", priority=3)
    assert heard(db, worker) == ["q"]


def test_enqueue_is_silent_while_nobody_waits(db: Connection, connect: Connect) -> None:
    create(db)
    listener = listen(connect)
    call(db, "enqueue", "q")
    enqueue(db, 3)
    assert heard(db, listener) == []


def test_a_worker_hears_only_of_the_queues_it_watches(db: Connection, connect: Connect) -> None:
    for queue in ["a", "b", "c"]:
        create(db, queue)
    worker = listen(connect, "a", "b", "a")
    for queue in ["c", "b", "a"]:
        call(db, "enqueue", queue)
    assert heard(db, worker) == ["b", "a"]


def test_a_worker_hears_of_a_job_when_it_is_committed_and_not_before(db: Connection, connect: Connect) -> None:
    create(db)
    worker = listen(connect, "q")
    producer = connect(autocommit=False)
    enqueue(producer)
    assert heard(db, worker) == []
    producer.commit()
    assert heard(db, worker) == ["q"]
    enqueue(producer)
    producer.rollback()
    assert heard(db, worker) == []


def test_a_worker_hears_of_every_way_in_which_jobs_become_ready(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, lease="1 hour")
    enqueue(db, 3)
    released, dead, expired = claim(db, 3)
    worker = listen(connect, "q")
    enqueue(db, delay="1 minute")
    call(db, "reject", dead.id, dead.lease, retry=False)
    assert heard(db, worker) == []
    clock.advance(61)
    call(worker, "watch", ["q"])
    call(db, "promote")
    assert heard(db, worker) == ["q"]
    rows(db, "release", [released.id], [released.lease])
    assert heard(db, worker) == ["q"]
    call(db, "redrive", "q")
    assert heard(db, worker) == ["q"]
    assert status(db, expired.id).state == "running"
    clock.advance(timedelta(hours=2))
    call(worker, "watch", ["q"])
    call(db, "reap")
    assert heard(db, worker) == ["q"]
    call(db, "resume", "q")
    assert heard(db, worker) == ["q"]


def test_maintenance_without_anything_to_do_is_silent(db: Connection, connect: Connect) -> None:
    create(db)
    worker = listen(connect, "q")
    assert call(db, "redrive", "q") == 0
    call(db, "maintain")
    call(db, "pause", "q")
    enqueue(db, delay="1 hour")
    assert heard(db, worker) == []


def test_watches_nest(db: Connection, connect: Connect) -> None:
    create(db)
    worker = listen(connect, "q")
    call(worker, "watch", ["q"])
    call(worker, "unwatch", ["q"])
    enqueue(db)
    assert heard(db, worker) == ["q"]
    call(worker, "unwatch", ["q"])
    enqueue(db)
    assert heard(db, worker) == []
    call(worker, "unwatch", ["q"])  # once too often
    call(worker, "watch", ["q"])
    enqueue(db)
    assert heard(db, worker) == ["q"]


def test_a_watch_counts_for_a_minute_unless_somebody_watches_anew(
    db: Connection, connect: Connect, clock: Clock
) -> None:
    create(db)
    worker, other = listen(connect, "q"), connect()
    for _ in range(3):
        clock.advance(54)
        enqueue(db)
        assert heard(db, worker) == ["q"]
        call(other, "watch", ["q"])
    clock.advance(61)
    enqueue(db)
    assert heard(db, worker) == []
    call(worker, "watch", ["q"])
    enqueue(db)
    assert heard(db, worker) == ["q"]


def test_one_worker_that_goes_leaves_the_others_their_notifications(db: Connection, connect: Connect) -> None:
    create(db)
    first, second = listen(connect, "q"), listen(connect, "q")
    call(first, "unwatch", ["q"])
    enqueue(db)
    assert heard(db, second) == ["q"]


@pytest.mark.parametrize("how", ["closed", "terminated"])
def test_a_watch_ends_with_its_session(db: Connection, connect: Connect, how: str) -> None:
    create(db)
    listener, worker = listen(connect), listen(connect, "q")
    pid = worker.info.backend_pid
    if how == "closed":
        worker.close()
    else:
        db.execute("SELECT pg_terminate_backend(%s)", [pid])
    eventually(lambda: not one(db, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", pid))
    enqueue(db)
    assert heard(db, listener) == []


def test_a_watch_outlives_the_transaction_that_made_it(db: Connection, connect: Connect) -> None:
    create(db)
    listener = listen(connect)
    worker = connect(autocommit=False)
    call(worker, "watch", ["q"])
    worker.rollback()
    enqueue(db)
    assert heard(db, listener) == ["q"]


def test_a_queue_without_notify_is_always_silent(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, notify=False)
    worker = listen(connect, "q")
    enqueue(db, 2)
    job = claim_one(db)
    rows(db, "release", [job.id], [job.lease])
    call(db, "resume", "q")
    enqueue(db, delay="1 minute")
    clock.advance(61)
    call(db, "promote")
    assert heard(db, worker) == []
    call(worker, "unwatch", ["q"])


def test_turning_notify_off_silences_those_who_watch_already(db: Connection, connect: Connect) -> None:
    create(db)
    worker = listen(connect, "q")
    call(db, "alter_queue", "q", notify=False)
    call(db, "enqueue", "q")
    enqueue(db)
    assert heard(db, worker) == []
    producer = connect(autocommit=False)
    enqueue(producer)
    producer.execute("PREPARE TRANSACTION 'quiet'")
    producer.rollback()
    db.execute("ROLLBACK PREPARED 'quiet'")


def test_turning_notify_on_counts_from_the_next_watch(db: Connection, connect: Connect) -> None:
    create(db, notify=False)
    worker = listen(connect, "q")
    call(db, "alter_queue", "q", notify=True)
    call(worker, "watch", ["q"])
    enqueue(db)
    assert heard(db, worker) == ["q"]


def test_watching_an_unknown_queue_watches_none(db: Connection, connect: Connect) -> None:
    create(db)
    worker = listen(connect)
    with refused("PQ002"):
        call(worker, "watch", ["q", "nowhere"])
    enqueue(db)
    assert heard(db, worker) == []


def test_watch_says_when_the_next_job_is_due(db: Connection, connect: Connect, clock: Clock) -> None:
    for queue in ["a", "b", "c"]:
        create(db, queue)
    assert call(db, "watch", ["a", "b"]) is call(db, "watch", []) is None
    enqueue(db, queue="a", run_at=clock.now() + timedelta(hours=2))
    enqueue(db, queue="c", run_at=clock.now() + timedelta(minutes=1))
    due = clock.now() + timedelta(hours=1)
    enqueue(db, queue="b", run_at=due)
    assert call(db, "watch", ["a", "b"]) == due
    clock.advance(timedelta(minutes=61))
    assert call(db, "watch", ["a", "b"]) == due  # now
    call(db, "promote")
    later = call(db, "watch", ["a", "b"])
    assert timedelta(minutes=55) < later - clock.now() < timedelta(hours=1)
    assert call(db, "watch", ["c"]) is None


def test_watch_says_when_the_next_retry_is_due(db: Connection, clock: Clock) -> None:
    create(db)
    enqueue(db)
    job = claim_one(db)
    call(db, "reject", job.id, job.lease, retry_in="1 hour")
    assert timedelta(minutes=59) < call(db, "watch", ["q"]) - clock.now() <= timedelta(hours=1)


def test_who_claims_once_more_after_watch_misses_nothing(db: Connection, connect: Connect) -> None:
    """The idle protocol: what came before the watch is found by the claim, what comes after it is notified."""
    create(db)
    worker, listener = connect(), connect()
    worker.execute("LISTEN pgq")
    for before in [True, False]:
        assert claim(worker) == []
        if before:
            enqueue(db)
        call(worker, "watch", ["q"])
        found = len(claim(worker))
        if not before:
            enqueue(db)
        told = heard(db, worker)
        assert (found, told) == ((1, []) if before else (0, ["q"]))
        call(worker, "unwatch", ["q"])
        claim(worker)
    listener.close()
