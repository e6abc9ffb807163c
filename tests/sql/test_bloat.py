"""What a job costs: no dead rows, whoever pins a snapshot, and few bytes of WAL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from psycopg import IsolationLevel

from tests.conftest import Clock
from tests.sql.support import Connect, Connection, call, column, create, flush_counts, one


@contextmanager
def pinned(connect: Connect) -> Iterator[Connection]:
    """A report, a dump or a replica that holds its snapshot: vacuum can remove nothing."""
    reader = connect(autocommit=False)
    reader.isolation_level = IsolationLevel.REPEATABLE_READ
    reader.execute("SELECT txid_current(), count(*) FROM pgq.queue")
    yield reader
    reader.rollback()


def work(db: Connection, jobs: int, batch: int) -> None:
    """Enqueue, claim and acknowledge, with maintenance as often as workers would call it."""
    for n in range(0, jobs, batch):
        if batch == 1:
            db.execute("SELECT pgq.enqueue('q')")
            db.execute("SELECT pgq.ack(id, lease) FROM pgq.claim('q')")
        else:
            db.execute("SELECT count(*) FROM pgq.enqueue_many('q', array_fill('{}'::jsonb, ARRAY[%s]))", [batch])
            db.execute("SELECT pgq.ack_many(array_agg(id), array_agg(lease)) FROM pgq.claim('q', %s)", [batch])
        if n % 100 == 0:
            db.execute("SELECT pgq.maintain()")
            db.execute("SELECT pgq.maintain()")


def dead(db: Connection) -> dict[str, int]:
    """Dead rows of each table, and what was updated or deleted, whether vacuum has been there or not."""
    flush_counts(db)
    rows = db.execute(
        """
        SELECT relname, greatest(n_dead_tup, n_tup_upd + n_tup_del) FROM pg_stat_user_tables
        WHERE schemaname = 'pgq' AND greatest(n_dead_tup, n_tup_upd + n_tup_del) > 0
        """
    )
    return dict(rows.fetchall())


@pytest.mark.parametrize("batch", [1, 50])
def test_jobs_leave_no_dead_rows_under_a_pinned_snapshot(db: Connection, connect: Connect, batch: int) -> None:
    create(db, retention="0")
    db.execute("SELECT pgq.maintain()")
    with pinned(connect):
        work(db, 10 * batch + 500, batch)
        first = dead(db)
        assert sum(first.values()) < 500, first
        work(db, 40 * batch + 2000, batch)
        second = dead(db)
        assert sum(second.values()) < 500, second
        grown = sum(second.values()) - sum(first.values())
        assert grown <= sum(first.values()) + 100, (first, second)
    assert column(db, "SELECT pgq.enqueue('q')")


def test_not_even_with_segments_that_turn(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db)
    with pinned(connect):
        for _ in range(12):  # an hour
            work(db, 1000, 100)
            clock.advance(301)
            for _ in range(4):
                db.execute("SELECT pgq.maintain()")
                clock.advance(1)
        assert one(db, "SELECT max(generation) FROM pgq.segment") >= 10
        found = dead(db)
        assert sum(found.values()) < 500, found
        assert not [table for table in found if table.startswith(("job", "lease", "outcome"))]


def test_retries_and_schedules_leave_as_many_dead_rows_as_there_were_retries(db: Connection, connect: Connect) -> None:
    """They are kept in a mutable table, and only who uses it pays."""
    create(db, backoff="0", backoff_max="0")
    with pinned(connect):
        for _ in range(100):
            db.execute("SELECT pgq.enqueue('q')")
            db.execute("SELECT pgq.reject(id, lease) FROM pgq.claim('q')")
            db.execute("SELECT pgq.promote()")
            db.execute("SELECT pgq.ack(id, lease) FROM pgq.claim('q')")
        found = dead(db)
        assert found["scheduled"] == 100
        assert sum(found.values()) < 500, found


def test_an_idle_queue_leaves_few_dead_rows(db: Connection, connect: Connect, clock: Clock) -> None:
    create(db)
    with pinned(connect):
        for _ in range(60):  # a minute
            for _ in range(4):  # of four workers
                db.execute("SELECT count(*) FROM pgq.claim('q')")
                db.execute("SELECT pgq.maintain()")
            clock.advance(1)
        found = dead(db)
        assert sum(found.values()) < 200, found


def wal(db: Connection) -> int:
    return int(one(db, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"))


def test_a_job_costs_at_most_700_bytes_of_wal(db: Connection) -> None:
    """Enqueued, claimed and acknowledged by the hundred, with 100 bytes of payload, and not archived."""
    create(db, retention="0")
    payload = '{"padding": "' + "x" * 80 + '"}'
    assert one(db, "SELECT pg_column_size(%s::jsonb)", payload) in range(95, 111)

    def turn(times: int) -> None:
        for _ in range(times):
            db.execute("SELECT count(*) FROM pgq.enqueue_many('q', array_fill(%s::jsonb, ARRAY[100]))", [payload])
            db.execute("SELECT pgq.ack_many(array_agg(id), array_agg(lease)) FROM pgq.claim('q', 100)")

    turn(20)
    db.execute("CHECKPOINT")
    before = wal(db)
    turn(200)
    call(db, "maintain")
    cost = (wal(db) - before) / 20_000
    assert 200 < cost <= 700
