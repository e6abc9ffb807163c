"""The archive: one row per finished attempt, in partitions made as needed and dropped when their time is over."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

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
    retire_all,
    rotate,
    status,
)

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


def archive(db: Connection) -> list[dict[str, Any]]:
    """Everything in the archive, in the order in which it ended."""
    with db.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("SELECT * FROM pgq.archive ORDER BY finished_at, id").fetchall()


def kinds(db: Connection) -> list[tuple[int, int, str]]:
    return [(row["id"], row["attempt"], row["kind"]) for row in archive(db)]


def partitions(db: Connection) -> list[str]:
    return column(
        db,
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'pgq.archive'::regclass ORDER BY 1",
    )


def bounds(db: Connection) -> list[tuple[datetime, datetime]]:
    """From when to when the rows of each partition are to be dropped."""
    days = [name.rsplit("_", 2)[1:] for name in partitions(db)]
    first, last = ([datetime.strptime(day[n], "%Y%m%d").replace(tzinfo=timezone.utc) for day in days] for n in (0, 1))
    return list(zip(first, last, strict=True))


def test_a_finished_job_is_archived_as_it_was(db: Connection, clock: Clock) -> None:
    create(db, retention="3 days", shards=1)
    before = clock.now()
    id = call(db, "enqueue", "q", {"to": "me"}, task="mail", priority=7, headers={"trace": "x"})
    clock.advance(MINUTE)
    job = claim_one(db, worker="w1")
    clock.advance(MINUTE)
    call(db, "ack", id, job.lease, {"sent": True})
    retire_all(db)
    (row,) = archive(db)
    assert (row["id"], row["lease"], row["kind"], row["attempt"], row["priority"]) == (id, job.lease, "done", 1, 7)
    assert (row["queue"], row["worker"], row["task"]) == ("q", "w1", "mail")
    assert (row["payload"], row["headers"]) == ({"to": "me"}, {"trace": "x"})
    assert (row["result"], row["error"]) == ({"sent": True}, None)
    assert before <= row["enqueued_at"] == job.enqueued_at
    assert before + MINUTE <= row["started_at"] <= before + MINUTE * 2 <= row["finished_at"] <= clock.now()
    assert row["drop_after"] == row["finished_at"] + DAY * 3


def test_each_attempt_that_ended_has_a_row_of_its_own(db: Connection, clock: Clock) -> None:
    create(db, shards=1, lease="1 minute", max_attempts=4)
    (id,) = enqueue(db)
    first = claim_one(db, worker="w1")
    call(db, "reject", id, first.lease, "flat tyre", retry_in="1 second")
    clock.advance(2)
    call(db, "promote")
    released = claim_one(db)
    column(db, "SELECT pgq.release(%s, %s)", [id], [released.lease])
    assert claim_one(db, worker="w2").attempt == 2
    clock.advance(MINUTE * 2)
    assert call(db, "reap") == 1
    third = claim_one(db)
    call(db, "reject", id, third.lease, "no petrol", retry=False)
    assert call(db, "redrive", "q") == 1
    last = claim_one(db)
    call(db, "ack", id, last.lease, {"n": 1})
    retire_all(db)
    assert kinds(db) == [(id, 1, "retry"), (id, 2, "expired"), (id, 3, "dead"), (id, 1, "done")]
    rows = archive(db)
    assert [row["error"] for row in rows] == ["flat tyre", "lease expired", "no petrol", None]
    assert [row["worker"] for row in rows] == ["w1", "w2", None, None]
    assert [row["result"] for row in rows] == [None, None, None, {"n": 1}]
    assert len({row["enqueued_at"] for row in rows}) == 1
    assert status(db, id).state == "done"


def test_neither_carried_nor_released_nor_moved_jobs_leave_a_row(db: Connection, clock: Clock) -> None:
    create(db, shards=1, lease="1 hour")
    carried, released, moved = enqueue(db, 3)
    jobs = claim(db, 3)
    column(db, "SELECT pgq.release(%s, %s)", [carried, released], [job.lease for job in jobs[:2]])
    rotate(db)
    clock.advance(MINUTE * 2)
    assert call(db, "rotate")["carried"] == 2
    call(db, "rotate")
    clock.advance(MINUTE)
    assert call(db, "rotate")["moved"] == 1
    assert set(column(db, "SELECT kind::text FROM pgq.outcome")) == {"released", "carried", "moved"}
    retire_all(db)
    assert archive(db) == []
    ack(db, jobs[2:])
    ack(db, claim(db, 10))
    retire_all(db)
    rotate(db)
    assert sorted(kinds(db)) == [(carried, 1, "done"), (released, 1, "done"), (moved, 1, "done")]
    rows = {row["id"]: row for row in archive(db)}
    assert rows[moved]["payload"] == 3
    assert rows[moved]["started_at"] < rows[moved]["finished_at"] - MINUTE


def test_purged_jobs_are_archived_as_cancelled(db: Connection) -> None:
    create(db, shards=1)
    enqueue(db, 3)
    done = claim_one(db)
    assert call(db, "purge", "q") == 2
    ack(db, [done])
    retire_all(db)
    assert sorted(kinds(db)) == [(1, 1, "done"), (2, 1, "cancelled"), (3, 1, "cancelled")]
    assert status(db, 2).state == "cancelled"


def test_with_a_retention_of_zero_nothing_is_archived(db: Connection, clock: Clock) -> None:
    create(db, retention="0", lease="1 hour")
    create(db, "kept")
    enqueue(db, 5)
    straggler, *others = claim(db, 5)
    ack(db, others)
    (kept,) = enqueue(db, queue="kept")
    ack(db, claim(db, queue="kept"))
    rotate(db)
    clock.advance(MINUTE * 2)
    retire_all(db)
    ack(db, [straggler])
    rotate(db)
    assert kinds(db) == [(kept, 1, "done")]
    assert one(db, "SELECT count(*) FROM pgq.straggler") == 0


def test_with_retention_zero_everywhere_not_even_a_partition_is_made(db: Connection) -> None:
    create(db, retention="0")
    enqueue(db, 5)
    ack(db, claim(db, 5))
    retire_all(db)
    assert partitions(db) == []


def test_what_counts_is_the_retention_when_the_segment_is_retired(db: Connection, clock: Clock) -> None:
    create(db, retention="1 day")
    enqueue(db, 2)
    ack(db, claim(db, 2))
    call(db, "alter_queue", "q", retention="30 days")
    retire_all(db)
    enqueue(db)
    ack(db, claim(db))
    call(db, "alter_queue", "q", retention="0")
    retire_all(db)
    enqueue(db)
    ack(db, claim(db))
    call(db, "alter_queue", "q", retention="2 days")
    rotate(db)
    retire_all(db)
    kept = [(row["id"], row["drop_after"] - row["finished_at"]) for row in archive(db)]
    assert sorted(kept) == [(1, DAY * 30), (2, DAY * 30), (4, DAY * 2)]


@pytest.mark.parametrize("retention", ["7 days", "44 days", "60 days", "2 years", "100 years"])
def test_a_partition_is_made_for_whatever_retention(db: Connection, clock: Clock, retention: str) -> None:
    create(db, retention=retention)
    for _ in range(6):  # over several days and across midnight
        enqueue(db, 2)
        ack(db, claim(db, 2))
        clock.advance(timedelta(hours=11))
        rotate(db, 2)
    retire_all(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == 12
    made = bounds(db)
    assert made == sorted(made)
    assert all(last <= first for (_, last), (first, _) in pairwise(made))
    assert all(any(first <= row["drop_after"] < last for first, last in made) for row in archive(db))


def test_the_shortest_retention_is_archived_and_dropped_within_a_day_or_two(db: Connection, clock: Clock) -> None:
    create(db, retention="1 second")
    enqueue(db)
    ack(db, claim(db))
    retire_all(db)
    assert len(archive(db)) == 1
    clock.advance(DAY * 2)
    call(db, "maintain")
    assert partitions(db) == []


def test_days_become_months_far_ahead_and_the_two_do_not_overlap(db: Connection, clock: Clock) -> None:
    create(db, retention="40 days")
    for _ in range(12):
        enqueue(db)
        ack(db, claim(db))
        retire_all(db)
        clock.advance(DAY * 5)
        create(db, f"q{clock.now():%j}", retention="70 days")
    made = bounds(db)
    assert {(last - first).days for first, last in made} >= {1, 31}
    assert one(db, "SELECT count(*) FROM pgq.archive") >= 8


def test_partitions_are_dropped_when_their_time_is_over(db: Connection, clock: Clock) -> None:
    create(db, retention="2 days")
    create(db, "long", retention="20 days")
    enqueue(db)
    ack(db, claim(db))
    enqueue(db, queue="long")
    ack(db, claim(db, queue="long"))
    retire_all(db)
    assert len(archive(db)) == 2
    clock.advance(timedelta(hours=47))
    call(db, "maintain")
    assert len(archive(db)) == 2, "dropped too early"
    clock.advance(DAY + timedelta(hours=2))
    for _ in range(3):
        call(db, "maintain")
        clock.advance(MINUTE * 2)
    assert [row["queue"] for row in archive(db)] == ["long"]
    clock.advance(DAY * 20)
    for _ in range(5):
        call(db, "maintain")
        clock.advance(MINUTE * 2)
    assert archive(db) == []
    assert not [last for _, last in bounds(db) if last < clock.now()]


@pytest.mark.direct("a setting of the session")
def test_a_partition_that_somebody_reads_is_dropped_later(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db, retention="1 day")
    enqueue(db)
    ack(db, claim(db))
    retire_all(db)
    reader = connect(autocommit=False)
    assert one(reader, "SELECT count(*) FROM pgq.archive") == 1
    clock.advance(DAY * 3)
    hasty = connect(options="-c statement_timeout=5s")
    for _ in range(3):
        call(hasty, "maintain")
        clock.advance(MINUTE * 2)
    assert len(archive(db)) == 1
    reader.commit()
    call(hasty, "maintain")
    assert archive(db) == []


@pytest.mark.direct("a setting of the session")
def test_the_archive_may_be_read_by_the_day(db: Connection, clock: Clock) -> None:
    """A session in any time zone archives the same."""
    create(db, retention="1 day")
    for zone in ("Pacific/Kiritimati", "America/Los_Angeles", "Asia/Kathmandu"):
        db.execute(f"SET timezone = '{zone}'".encode())
        enqueue(db)
        ack(db, claim(db))
        clock.advance(timedelta(hours=8))
        retire_all(db)
        rotate(db)
    retire_all(db)
    assert len(archive(db)) == 3
    assert all((last - first) == DAY for first, last in bounds(db))


# In chunks ------------------------------------------------------------------------------------------------------------


def many_done(db: Connection, count: int) -> None:
    """A segment with this many finished jobs, claimed and waiting to be archived."""
    for start in range(0, count, 10_000):
        enqueue(db, min(10_000, count - start))
    jobs = claim(db, count)
    assert len(jobs) == count
    db.execute(
        "SELECT count(*) FROM pgq.ack_many(%s, %s, %s)",
        [ids(jobs), [job.lease for job in jobs], ['"' + "x" * 300 + '"' for _ in jobs]],
    )


COUNT = 30_000


def waits(db: Connection, pid: int) -> bool:
    return bool(one(db, "SELECT wait_event = 'advisory' FROM pg_stat_activity WHERE pid = %s", pid))


def kill(db: Connection, pid: int) -> None:
    """Terminate a session and wait until it is gone."""
    assert one(db, "SELECT pg_terminate_backend(%s, 20000)", pid)


def test_a_large_segment_is_archived_in_several_calls(db: Connection) -> None:
    create(db)
    many_done(db, COUNT)
    rotate(db)
    seen = [one(db, "SELECT count(*) FROM pgq.archive")]
    while one(db, "SELECT state FROM pgq.segment WHERE slot = 0") == "drained":
        assert call(db, "rotate")["more"]
        seen.append(one(db, "SELECT count(*) FROM pgq.archive"))
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert seen[-1] == COUNT
    assert one(db, "SELECT count(DISTINCT id) FROM pgq.archive") == COUNT


@pytest.mark.direct("terminates the session")
def test_a_call_that_is_killed_in_the_midst_of_archiving_loses_and_doubles_nothing(
    db: Connection, connect: Connect
) -> None:
    create(db)
    many_done(db, COUNT)
    rotate(db)  # some of it is archived
    begun = one(db, "SELECT count(*) FROM pgq.archive")
    assert begun < COUNT
    # Whoever archives waits for a moment after its insertion, and is killed in it.
    db.execute(
        """
        CREATE FUNCTION pg_temp_wait() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0
            AS 'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END';
        CREATE TRIGGER wait AFTER INSERT ON pgq.archive FOR EACH STATEMENT EXECUTE FUNCTION pg_temp_wait();
        """
    )
    for _ in range(3):
        blocker = connect(autocommit=False)
        blocker.execute("SELECT pg_advisory_xact_lock(4711)")
        victim = connect()
        archiving = in_background(call, victim, "rotate")
        pid = victim.info.backend_pid
        eventually(partial(waits, db, pid), "the insertion")
        kill(db, pid)
        with pytest.raises(psycopg.OperationalError):
            archiving.result(20)
        blocker.rollback()
        assert one(db, "SELECT count(*) FROM pgq.archive") == begun
        assert one(db, "SELECT state FROM pgq.segment WHERE slot = 0") == "drained"
    retire_all(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == COUNT
    assert one(db, "SELECT count(DISTINCT id) FROM pgq.archive") == COUNT


@pytest.mark.direct("terminates the session")
def test_a_call_that_is_killed_in_the_midst_of_carrying_loses_and_doubles_nothing(
    db: Connection, connect: Connect, clock: Clock
) -> None:
    create(db, shards=1)
    expected = enqueue(db, 1500)
    rotate(db)
    clock.advance(MINUTE * 2)
    for _ in range(2):
        victim = connect(autocommit=False)
        assert call(victim, "rotate")["carried"] == 1000
        kill(db, victim.info.backend_pid)
    assert ids(claim(db, 2000)) == expected


def test_two_sessions_that_archive_at_once_do_it_once(db: Connection, connect: Connect) -> None:
    create(db)
    many_done(db, COUNT)
    rotate(db)

    def turn(session: Connection) -> None:
        for _ in range(20):
            call(session, "rotate")

    turning = [in_background(turn, connect()) for _ in range(4)]
    for future in turning:
        future.result(30)
    retire_all(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == COUNT


def test_after_a_turn_that_only_truncates_the_open_segment_is_archived_too(db: Connection) -> None:
    """Else the tests that look into the archive after retire_all take what is not there yet for lost."""
    create(db)
    enqueue(db)
    ack(db, claim(db))
    rotate(db)
    while not column(db, "SELECT slot FROM pgq.segment WHERE state = 'archived'"):
        call(db, "rotate")
    call(db, "rotate")  # claims are told: the next turn truncates it
    (last,) = enqueue(db)
    ack(db, claim(db))
    retire_all(db)
    assert last in [row["id"] for row in archive(db)]
