"""The ring of segments: each is filled, sealed, worked off, archived and truncated, whoever is in the way."""

from __future__ import annotations

import random
import threading
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

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
    eventually,
    ids,
    in_background,
    one,
    refused,
    retire_all,
    rotate,
    stats,
    status,
    until_blocked,
)

MINUTE = timedelta(minutes=1)
ALL_TABLES = ", ".join(f"pgq.{table}_{slot}" for slot in range(16) for table in ("job", "lease", "outcome"))


def states(db: Connection) -> dict[int, str]:
    """State of each segment that is not free."""
    rows = db.execute("SELECT slot, state FROM pgq.segment WHERE state <> 'free' ORDER BY generation").fetchall()
    return dict(rows)


def findings(db: Connection) -> set[tuple[str, str]]:
    return set(db.execute("SELECT code, subject FROM pgq.doctor()").fetchall())


def turn_to(db: Connection, slot: int, queue: str = "q") -> None:
    """Bring the ring to a state in which this segment is open and empty, and all others are free."""
    for _ in range(200):
        if states(db) == {slot: "open"}:
            return
        if states(db).get(slot) != "open":
            enqueue(db, queue=queue)
            ack(db, claim(db, 100, queue=queue))
        rotate(db)
    raise AssertionError(states(db))


def work_off(db: Connection) -> list[int]:
    """Claim and acknowledge everything that is there."""
    done: list[int] = []
    while jobs := claim(db, 1000):
        done += ids(jobs)
        assert sorted(ack(db, jobs)) == sorted(ids(jobs))
    return done


def lock_all(session: Connection) -> None:
    session.execute(f"LOCK TABLE {ALL_TABLES} IN ACCESS SHARE MODE".encode())


def test_a_segment_lives_step_by_step(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db)
    assert states(db) == {}
    producer = connect(autocommit=False)
    enqueue(producer, 3)
    call(db, "rotate")
    assert states(db) == {0: "open"}
    rotate(db)
    assert states(db) == {0: "sealed", 1: "open"}, "closed although a producer may still insert"
    producer.commit()
    call(db, "rotate")
    assert states(db) == {0: "closed", 1: "open"}
    jobs = claim(db, 2)
    call(db, "rotate")
    assert states(db) == {0: "closed", 1: "open"}, "not all jobs were handed out"
    jobs += claim(db, 2)
    clock.advance(3)
    call(db, "rotate")
    assert states(db) == {0: "claimed", 1: "open"}
    ack(db, jobs)
    clock.advance(3)
    assert call(db, "rotate")["archived"] == 0
    assert states(db) == {0: "archived", 1: "open"}
    assert one(db, "SELECT count(*) FROM pgq.archive") == 3
    assert call(db, "rotate")["truncated"] == 0
    assert states(db) == {1: "open"}
    assert one(db, "SELECT pg_relation_size('pgq.job_0') + pg_relation_size('pgq.lease_0')") == 0
    assert one(db, "SELECT pg_relation_size('pgq.outcome_0')") == 0
    assert status(db, jobs[0].id).state == "done"


def test_an_open_segment_is_sealed_by_age_unless_it_is_empty(db: Connection, clock: Clock) -> None:
    create(db)
    call(db, "rotate")
    clock.advance(MINUTE * 10)
    assert "sealed" not in call(db, "rotate")
    enqueue(db)
    assert call(db, "rotate")["opened"] == 1
    enqueue(db)
    assert "sealed" not in call(db, "rotate")
    clock.advance(MINUTE * 6)
    assert call(db, "rotate")["sealed"] == 1


def test_the_ring_turns_for_ever(db: Connection) -> None:
    create(db, shards=1)
    last = 0
    for _ in range(36):
        (last,) = enqueue(db)
        assert work_off(db) == [last]
        rotate(db, 2)
    assert one(db, "SELECT max(generation) FROM pgq.segment") > 16
    assert len(states(db)) < 8
    retire_all(db)
    assert one(db, "SELECT count(*) FROM pgq.archive WHERE kind = 'done'") == last


def retire_even_the_open_one(db: Connection) -> None:
    retire_all(db)
    rotate(db)
    retire_all(db)


# A rotation that is rolled back ---------------------------------------------------------------------------------------


def test_a_rotation_that_is_rolled_back_hides_no_job(db: Connection, connect: Connect) -> None:
    """The epoch is a sequence: it moves at once and for good."""
    create(db, shards=1)
    first = enqueue(db, 2)
    sealer = connect(autocommit=False)
    rotate(sealer)
    between = enqueue(db, 2)
    assert column(db, "SELECT id FROM pgq.job_1 ORDER BY id") == between
    taken = claim(db, 3)
    assert ids(taken) == [*first, between[0]]
    sealer.rollback()
    after = enqueue(db)
    taken += claim(db, 10)
    assert ids(taken) == first + between + after
    ack(db, taken)
    retire_all(db)
    assert one(db, "SELECT count(*) FROM pgq.archive WHERE kind = 'done'") == 5


def test_rotations_of_one_transaction_that_is_rolled_back_hide_no_job(db: Connection, connect: Connect) -> None:
    create(db, shards=1)
    expected = enqueue(db)
    sealer = connect(autocommit=False)
    for _ in range(5):
        rotate(sealer)
        expected += enqueue(db)
    sealer.rollback()
    expected += enqueue(db)
    rotate(db)
    expected += enqueue(db)
    jobs = claim(db, 100)
    assert sorted(ids(jobs)) == expected
    ack(db, jobs)
    retire_all(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == len(expected)


def test_rotations_of_one_transaction_that_is_committed_hide_no_job(db: Connection, connect: Connect) -> None:
    create(db, shards=1)
    expected = enqueue(db)
    sealer = connect(autocommit=False)
    for _ in range(20):
        rotate(sealer)
        expected += enqueue(db)
    sealer.commit()
    jobs = claim(db, 100)
    assert sorted(ids(jobs)) == expected
    ack(db, jobs)
    retire_all(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == len(expected)


def fill_ring(db: Connection, connect: Connect) -> None:
    """Use all sixteen segments up: all but the open one and the one before are settled, but could not be truncated."""
    reader = connect(autocommit=False)
    lock_all(reader)
    for _ in range(25):
        enqueue(db)
        work_off(db)
        rotate(db)
    assert len(states(db)) == 16, "there was still room"
    reader.rollback()


@pytest.mark.direct("a setting of the session")
def test_a_slot_that_a_transaction_truncated_is_not_opened_before_its_end(db: Connection, connect: Connect) -> None:
    create(db, shards=1)
    fill_ring(db, connect)
    turner = connect(autocommit=False)
    producer = connect(options="-c lock_timeout=100ms")
    expected: list[int] = []
    for _ in range(20):
        rotate(turner)
        expected += enqueue(producer)
    turner.commit()
    assert work_off(db) == expected


def test_a_truncation_that_is_rolled_back_takes_no_new_job_with_it(db: Connection, connect: Connect) -> None:
    create(db, shards=1)
    fill_ring(db, connect)
    turner = connect(autocommit=False)
    for _ in range(20):
        rotate(turner)
    turner.rollback()
    expected = enqueue(db, 3)
    rotate(db, 20)
    assert work_off(db) == expected


# Several at once ------------------------------------------------------------------------------------------------------


def test_many_sessions_rotate_at_once_and_one_turn_is_made_at_a_time(connect: Connect, db: Connection) -> None:
    create(db)
    expected: list[int] = []
    errors: list[BaseException] = []

    def turn(session: Connection) -> None:
        try:
            for _ in range(15):
                expected.extend(enqueue(session))
                rotate(session)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=turn, args=(connect(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(work_off(db)) == sorted(expected)
    assert list(states(db).values()).count("open") == 1
    retire_all(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == len(expected)


@pytest.mark.direct("a setting of the session")
def test_a_rotation_does_not_wait_for_another(connect: Connect, db: Connection) -> None:
    create(db)
    enqueue(db)
    other = connect(autocommit=False)
    rotate(other)
    assert call(connect(options="-c lock_timeout=100ms"), "rotate", seal=True) == {}


# A producer that takes its time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ])
def test_a_segment_waits_for_a_producer_that_is_paused_in_its_transaction(
    db: Connection, connect: Connect, clock: Clock, isolation: IsolationLevel
) -> None:
    create(db, shards=1)
    slow = connect(autocommit=False)
    slow.isolation_level = isolation
    early = enqueue(slow)
    rotate(db)
    others = enqueue(db)
    assert work_off(db) == others
    clock.advance(MINUTE * 2)
    rotate(db, 5)
    assert states(db)[0] == "sealed"
    assert ("segment_held", "segment 0") in findings(db)
    late = enqueue(slow)
    assert column(slow, "SELECT id FROM pgq.job_0") == early, "inserted into a sealed segment"
    slow.commit()
    assert not [code for code, _ in findings(db) if code == "segment_held"]
    assert work_off(db) == early + late
    retire_all(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == 3


def test_a_prepared_transaction_holds_its_segment_and_its_jobs_are_found(
    db: Connection, connect: Connect, clock: Clock
) -> None:
    create(db, shards=1, notify=False)
    slow = connect(autocommit=False)
    early = enqueue(slow)
    slow.execute("PREPARE TRANSACTION 'paused'")
    try:
        rotate(db)
        clock.advance(MINUTE * 2)
        rotate(db, 3)
        assert states(db)[0] == "sealed"
        (detail,) = column(db, "SELECT detail FROM pgq.doctor() WHERE code = 'segment_held'")
        assert "prepared transaction" in detail
        assert claim(db, 10) == []
    finally:
        db.execute("COMMIT PREPARED 'paused'")
    assert work_off(db) == early
    retire_all(db)


def test_a_producer_with_an_old_snapshot_does_not_insert_into_a_retired_segment(
    db: Connection, connect: Connect
) -> None:
    create(db, shards=1)
    enqueue(db)
    slow = connect(autocommit=False)
    slow.isolation_level = IsolationLevel.REPEATABLE_READ
    slow.execute("SELECT txid_current()")  # its snapshot says that segment 0 is open
    work_off(db)
    retire_all(db)
    late = enqueue(slow)
    slow.commit()
    assert work_off(db) == late


def test_a_producer_that_is_overtaken_by_a_seal_moves_on_to_the_open_segment(db: Connection, connect: Connect) -> None:
    """Between looking which segment is open and inserting into it, a producer may be stopped for any time."""
    create(db, shards=1)
    first = enqueue(db)
    producer, sealer = connect(autocommit=False), connect(autocommit=False)
    call(producer, "enqueue", "q")  # it knows its way
    producer.rollback()
    sealer.execute("LOCK TABLE pgq.queue IN ACCESS EXCLUSIVE MODE")
    enqueuing = in_background(call, producer, "enqueue", "q")
    until_blocked(db, producer)
    rotate(sealer, 3)
    sealer.commit()
    assert states(db) == {0: "closed", 1: "open"}
    late = enqueuing.result(20)
    assert column(producer, "SELECT id FROM pgq.job_1") == [late]
    locked = column(
        producer,
        """
        SELECT relation::regclass::text FROM pg_locks
        WHERE pid = pg_backend_pid() AND mode = 'RowExclusiveLock' AND relation::regclass::text ~ '^pgq.job_\\d+$'
        """,
    )
    assert set(locked) <= {"pgq.job_0", "pgq.job_1"}, "it keeps all other segments from being retired"
    producer.commit()
    assert work_off(db) == [*first, late]
    retire_even_the_open_one(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == 2


# Jobs that are left ---------------------------------------------------------------------------------------------------


def test_waiting_jobs_are_carried_to_the_front_of_their_line_in_order(db: Connection, clock: Clock) -> None:
    create(db, shards=1)
    first = enqueue(db, 5)
    urgent = enqueue(db, 2, priority=-1)
    rotate(db)
    second = enqueue(db, 3)
    clock.advance(MINUTE * 2)
    assert call(db, "rotate")["carried"] == 7
    assert stats(db) == {"ready": 10}
    for _ in range(5):
        call(db, "rotate")
    assert 0 not in states(db), "a queue that nobody consumes holds a segment"
    assert ids(claim(db, 100)) == [*urgent, *first, *second]


def test_carried_jobs_keep_all_that_they_were(db: Connection, clock: Clock) -> None:
    create(db, max_attempts=9)
    call(db, "enqueue", "q", {"a": 1}, task="mail", priority=3, max_attempts=5, headers={"h": 1})
    job = claim_one(db)
    call(db, "reject", job.id, job.lease, "flat tyre", retry_in="1 second")
    clock.advance(2)
    call(db, "promote")
    rotate(db)
    clock.advance(MINUTE * 2)
    assert call(db, "rotate")["carried"] == 1
    assert status(db, job.id).error == "flat tyre"
    again = claim_one(db)
    assert (again.id, again.task, again.payload, again.attempt, again.max_attempts, again.priority, again.headers) == (
        job.id, "mail", {"a": 1}, 2, 5, 3, {"h": 1},
    )  # fmt: skip
    assert again.enqueued_at == job.enqueued_at


def test_carried_jobs_do_not_overtake_those_of_an_older_segment(db: Connection, clock: Clock) -> None:
    create(db, shards=1)
    expected = enqueue(db, 2500)
    rotate(db)
    expected += enqueue(db, 5)
    rotate(db)
    expected += enqueue(db, 5)
    clock.advance(MINUTE * 2)
    call(db, "rotate")
    assert ids(claim(db, 3000)) == expected


def test_a_backlog_too_large_to_be_carried_is_not_overtaken_either(db: Connection, clock: Clock) -> None:
    create(db, shards=1)
    expected = enqueue(db, 10_001)
    rotate(db)
    expected += enqueue(db, 5)
    rotate(db)
    clock.advance(MINUTE * 2)
    call(db, "rotate")
    call(db, "rotate")
    assert ids(claim(db, 11_000)) == expected


def test_a_backlog_is_worked_off_in_order_after_the_ring_has_turned_around_it(db: Connection) -> None:
    create(db, shards=1)
    create(db, "other", retention="0")
    expected: list[int] = []
    for turn in range(20):
        if turn == 0:
            expected += enqueue(db, 10_001)  # too many to be carried
        elif turn in (2, 5, 9):
            expected += enqueue(db, 2)
        enqueue(db, queue="other")
        ack(db, claim(db, queue="other"))
        rotate(db, 3)
    assert one(db, "SELECT max(generation) FROM pgq.segment") > 16
    expected += enqueue(db, 2)
    assert ids(claim(db, 11_000)) == expected


def test_a_job_that_runs_long_does_not_hold_its_segment(db: Connection, clock: Clock) -> None:
    create(db, lease="2 hours")
    enqueue(db, 3)
    long, *short = claim(db, 1) + claim(db, 1) + claim(db, 1)
    ack(db, short)
    rotate(db)
    clock.advance(MINUTE)
    assert call(db, "rotate")["moved"] == 1
    retire_all(db)
    assert 0 not in states(db)
    assert status(db, long.id).state == "running"
    assert stats(db) == {"running": 1}
    expiry = call(db, "extend", long.lease, "3 hours")
    assert expiry > long.expires_at
    clock.advance(timedelta(hours=2, minutes=30))
    assert call(db, "reap") == 0
    assert ack(db, [long]) == [long.id]
    with refused("PQ001"):
        call(db, "ack", long.id, long.lease)
    call(db, "rotate")
    assert status(db, long.id).state == "done"
    assert one(db, "SELECT count(*) FROM pgq.archive WHERE kind = 'done'") == 3
    assert one(db, "SELECT count(*) FROM pgq.straggler") == 0


def test_a_straggler_whose_lease_expires_runs_again(db: Connection, clock: Clock) -> None:
    create(db, lease="2 minutes")
    enqueue(db)
    job = claim_one(db)
    rotate(db)
    clock.advance(MINUTE)
    assert call(db, "rotate")["moved"] == 1
    retire_all(db)
    clock.advance(MINUTE * 2)
    assert call(db, "reap") == 1
    assert call(db, "reap") == 0
    again = claim_one(db)
    assert (again.id, again.attempt) == (job.id, 2)
    with refused("PQ001"):
        call(db, "ack", job.id, job.lease)
    ack(db, [again])


def waits(db: Connection, other: Connection) -> bool:
    pid = other.info.backend_pid
    return bool(one(db, "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", pid))


@pytest.mark.direct("looks at the session")
def test_an_extension_made_while_its_job_is_moved_is_respected(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, lease="2 minutes")
    enqueue(db)
    job = claim_one(db)
    rotate(db)
    clock.advance(MINUTE)
    mover = connect(autocommit=False)
    assert call(mover, "rotate")["moved"] == 1
    worker = connect()
    extending = in_background(call, worker, "extend", job.lease, "1 hour")
    eventually(lambda: extending.done() or waits(db, worker), "the extension, or that it waits")
    mover.commit()
    extended = extending.result(20)
    assert extended > job.expires_at + MINUTE
    retire_all(db)
    clock.advance(MINUTE * 30)
    assert call(db, "reap") == 0, "reaped although the extension had been granted"
    assert ack(db, [job]) == [job.id]


# A reader that takes its time -----------------------------------------------------------------------------------------


@pytest.mark.direct("a setting of the session")
def test_when_no_segment_can_be_truncated_the_open_one_grows_and_nothing_is_lost(
    db: Connection, connect: Connect
) -> None:
    create(db, shards=1)
    dump = connect(autocommit=False)
    lock_all(dump)
    hasty = connect(options="-c statement_timeout=5s")
    done = 0
    for _ in range(25):
        expected = enqueue(hasty)
        assert work_off(hasty) == expected
        done += 1
        rotate(hasty)
    assert len(states(db)) == 16, "there was still room"
    assert list(states(db).values()).count("open") == 1
    assert {code for code, _ in findings(db)} >= {"ring_full", "segment_locked"}
    dump.rollback()
    retire_even_the_open_one(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == done
    assert not {code for code, _ in findings(db)} & {"ring_full", "segment_locked"}


@pytest.mark.direct("a setting of the session")
def test_nobody_waits_behind_a_truncation_that_has_to_wait(db: Connection, connect: Connect) -> None:
    """A lock request that waits would make all later ones wait, too."""
    create(db)
    enqueue(db, 10)
    done = len(work_off(db))
    reader = connect(autocommit=False)
    lock_all(reader)
    rotate(db, 4)
    assert "archived" in states(db).values()
    stop = threading.Event()
    turned: list[dict[str, Any]] = []

    def turn(session: Connection) -> None:
        while not stop.is_set():
            turned.append(call(session, "rotate", seal=True))

    turning = in_background(turn, connect(options="-c deadlock_timeout=10s"))
    worker = connect(options="-c lock_timeout=250ms")
    for _ in range(100):
        enqueue(worker, 3)
        done += len(work_off(worker))
    stop.set()
    turning.result(20)
    assert turned
    assert not [turn for turn in turned if "truncated" in turn]
    reader.rollback()
    retire_even_the_open_one(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == done


@pytest.mark.parametrize("table", ["job", "lease", "outcome"])
def test_one_read_table_is_enough_to_put_a_truncation_off(db: Connection, connect: Connect, table: str) -> None:
    create(db)
    enqueue(db)
    work_off(db)
    reader = connect(autocommit=False)
    reader.execute(f"LOCK TABLE pgq.{table}_0 IN ACCESS SHARE MODE".encode())
    rotate(db, 4)
    assert states(db)[0] == "archived"
    assert ("segment_locked", "segment 0") in findings(db)
    reader.rollback()
    assert call(db, "rotate")["truncated"] == 0


@pytest.mark.direct("a setting of the session")
def test_maintenance_does_not_wait_for_a_reader_of_the_archive(db: Connection, connect: Connect) -> None:
    """A dump reads it for hours, and the archive needs a new partition for today's jobs."""
    create(db)
    expected = enqueue(db, 5)
    work_off(db)
    reader = connect(autocommit=False)
    reader.execute("LOCK TABLE pgq.archive IN ACCESS SHARE MODE")
    hasty = connect(options="-c lock_timeout=2s -c statement_timeout=5s")
    for _ in range(5):
        call(hasty, "rotate", seal=True)
        call(hasty, "maintain")
    expected += enqueue(hasty, 5)
    assert len(work_off(hasty)) == 5
    reader.rollback()
    retire_even_the_open_one(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == len(expected)


def test_rotating_needs_read_committed(connect: Connect) -> None:
    db = connect(autocommit=False)
    db.isolation_level = IsolationLevel.REPEATABLE_READ
    with refused("PQ003"):
        call(db, "rotate")


def test_the_claim_of_a_zombie_is_refused_after_its_slot_was_used_again(db: Connection, clock: Clock) -> None:
    create(db, lease="1 minute", backoff="0", backoff_max="0")
    enqueue(db)
    zombie = claim_one(db)
    clock.advance(MINUTE * 2)
    assert call(db, "reap") == 1
    assert work_off(db) == [zombie.id]
    turn_to(db, 1)
    turn_to(db, 0)
    enqueue(db, 5)
    claim(db, 5)
    with refused("PQ001"):
        call(db, "ack", zombie.id, zombie.lease)
    with pytest.raises(psycopg.Error, match="lost"):
        call(db, "extend", zombie.lease)


def test_live_segments_are_named_by_age(db: Connection) -> None:
    chance = random.Random(1)
    for _ in range(200):
        ages = chance.sample(range(16), 16)
        age = sum(slot << (4 * place) for place, slot in enumerate(ages))
        live = chance.randrange(1 << 16) & chance.randrange(1 << 16)
        db.execute("SELECT setval('pgq.age', %s), setval('pgq.live', %s)", [age - (age >> 63 << 64), live])
        opened = one(db, "SELECT (pg_sequence_last_value('pgq.epoch') & 15)::int")
        assert one(db, "SELECT pgq._live_slots()") == [slot for slot in ages if live >> slot & 1 or slot == opened]
