"""Which lines claims look at: those of priorities in use, and no longer those of priorities that were in use once."""

from __future__ import annotations

from datetime import timedelta

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
    ids,
    one,
    rotate,
)


def turn(db: Connection, clock: Clock, turns: int = 1) -> None:
    """Open a new segment, again and again, each with a job of priority 0; retire the old ones, and tidy up."""
    for _ in range(turns):
        enqueue(db, queue="other")
        ack(db, claim(db, queue="other"))
        rotate(db)
        clock.advance(timedelta(minutes=2))
        while call(db, "maintain")["more"]:
            pass


@pytest.fixture
def db(db: Connection) -> Connection:
    create(db, lease="1 year")
    create(db, "other", shards=1)
    return db


def lines(db: Connection) -> list[tuple[int, int]]:
    """Priority and shard of the lines of a queue: 0 is the front line, 1 all shards, 96 and 97 those of the gate."""
    rows = db.execute("""
        SELECT pgq._priority(l.lane), (l.lane & 127)::int FROM pgq.line l JOIN pgq.queue q ON q.id = l.queue_id
        WHERE q.name = 'q' AND l.lane > 0 ORDER BY l.lane
    """)
    return rows.fetchall()


def work_off(db: Connection, priority: int) -> None:
    enqueue(db, 3, priority=priority)
    ack(db, claim(db, 3))


def test_a_line_that_is_no_longer_used_is_forgotten(db: Connection, clock: Clock) -> None:
    for priority in (-7, 0, 7):
        work_off(db, priority)
    (back,) = enqueue(db)
    call(db, "release", [back], [claim_one(db).lease])
    ack(db, claim(db))
    assert lines(db) == [(-7, 1), (0, 0), (0, 1), (7, 1)]
    turn(db, clock, 10)
    assert lines(db) == [(0, 1)]
    (late,) = enqueue(db, priority=7)
    (early,) = enqueue(db, priority=-7)
    assert lines(db) == [(-7, 1), (0, 1), (7, 1)]
    assert [*ids(claim(db)), *ids(claim(db))] == [early, late]


def test_the_lines_of_a_gate_are_forgotten_and_the_gate_is_not(db: Connection, clock: Clock) -> None:
    call(db, "set_limits", "q", group_limit=1)
    first, second = enqueue(db, 2, priority=3, group_keys=["a", "a"])
    running = claim(db, 2)
    assert ids(running) == [first]
    turn(db, clock, 10)
    assert lines(db) == [(0, 1)]
    assert one(db, "SELECT count(*) FROM pgq.line WHERE lane = -1") == 1
    ack(db, running)
    (third,) = enqueue(db, priority=3, group_keys=["a"])
    for job in (second, third):
        running = claim(db, 2)
        assert ids(running) == [job]
        ack(db, running)


@pytest.mark.parametrize("pause", [1, 3, 4, 5, 9])
def test_a_priority_that_is_used_now_and_then_is_known_whenever_it_is_used(
    db: Connection, clock: Clock, pause: int
) -> None:
    for _ in range(6):
        (job,) = enqueue(db, priority=-3)
        clock.advance(timedelta(minutes=2))
        call(db, "maintain")
        assert ids(claim(db)) == [job]
        turn(db, clock, pause)


def test_jobs_that_wait_keep_their_line(db: Connection, clock: Clock) -> None:
    waiting = enqueue(db, 3, priority=-3)
    turn(db, clock, 12)
    assert sorted(ids(claim(db, 10))) == waiting


@pytest.mark.parametrize("isolation", [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ])
def test_a_transaction_that_is_older_than_what_was_forgotten_loses_no_job(
    db: Connection, connect: Connect, clock: Clock, isolation: IsolationLevel
) -> None:
    work_off(db, -3)
    old = connect(autocommit=False)
    old.isolation_level = isolation
    assert lines(old) == [(-3, 1), (0, 1)]
    turn(db, clock, 10)
    assert lines(db) == [(0, 1)]
    (job,) = enqueue(old, priority=-3)
    old.commit()
    assert ids(claim(db)) == [job]


def test_a_producer_that_takes_long_keeps_its_line(db: Connection, connect: Connect, clock: Clock) -> None:
    work_off(db, -3)
    turn(db, clock, 3)
    producer = connect(autocommit=False)
    (job,) = enqueue(producer, priority=-3)  # adds no line: there is one that counts for this segment
    assert lines(producer) == [(-3, 1), (0, 1)]
    turn(db, clock, 10)
    producer.commit()
    assert ids(claim(db)) == [job]


def open_in_vain(session: Connection) -> None:
    while "opened" not in call(session, "rotate", seal=True):
        session.commit()  # it has truncated one
    session.rollback()


def test_a_segment_that_was_opened_in_vain_keeps_its_lines(db: Connection, connect: Connect, clock: Clock) -> None:
    """Opening one is not undone by a rollback, but what the tables say of it is."""
    work_off(db, -3)
    until = one(db, "SELECT min(until) FROM pgq.line")
    while one(db, "SELECT coalesce(max(generation), 0) FROM pgq.segment") < until - 1:
        turn(db, clock)
    enqueue(db, queue="other")
    other = connect(autocommit=False)
    open_in_vain(other)
    (job,) = enqueue(db, priority=-3)  # adds no line: there is one that counts for this segment
    open_in_vain(other)
    assert lines(db) == [(-3, 1), (0, 1)]
    ack(db, claim(db, queue="other"))
    for _ in range(10):  # no minute may pass, or the job would be carried forward
        db.execute("DELETE FROM pgq.mark WHERE kind = 'tidy'")
        rotate(db)
    assert ids(claim(db)) == [job]


def test_a_line_that_is_listed_twice_is_removed_once(db: Connection, connect: Connect, clock: Clock) -> None:
    """Of two rows the one stays that counts for longer, wherever it is."""
    first, second = connect(autocommit=False), connect(autocommit=False)
    enqueue(first, priority=-3)
    turn(db, clock, 2)
    enqueue(second, priority=-3)
    second.commit()
    first.commit()
    assert lines(db) == [(-3, 1), (-3, 1), (0, 1)]
    latest = one(db, "SELECT max(until) FROM pgq.line WHERE until < 9223372036854775807")
    turn(db, clock)
    assert lines(db) == [(-3, 1), (0, 1)]
    assert column(db, "SELECT until FROM pgq.line WHERE until < 9223372036854775807") == [latest]
    assert len(claim(db, 3)) == 2
