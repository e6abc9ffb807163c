"""What is read is in proportion to what is done, also with a plan that was made when the segment was full."""

from __future__ import annotations

from tests.conftest import Clock
from tests.sql.support import Connect, Connection, call, create, enqueue, flush_counts, one

LEASES = 6000


def rows_read(db: Connection, table: str = "lease") -> int:
    """Index entries of leases, or jobs, that all sessions have read so far."""
    flush_counts(db)
    query = "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname ~ %s"
    return int(one(db, query, f"^{table}_"))


def fill(db: Connection) -> None:
    """Claim so many jobs one by one and settle them: each has a lease of its own, which all expire together."""
    create(db, lease="1 hour")
    enqueue(db, LEASES)
    claim_each(db, "pgq.ack(c.id, c.lease)")


def claim_each(db: Connection, then: str = "c") -> None:
    """Claim so many jobs one by one, and do this with each."""
    loop = f"FOR v_turn IN 1..{LEASES} LOOP PERFORM {then} FROM pgq.claim('q') c; END LOOP;"
    db.execute(f"DO $$ BEGIN {loop} END; $$".encode())


def test_the_reaper_reads_each_expired_lease_a_few_times(db: Connection, connect: Connect, clock: Clock) -> None:
    fill(db)
    clock.advance(7200)
    fresh = connect()
    before = rows_read(fresh)
    assert call(fresh, "reap") == 0
    assert rows_read(fresh) - before < 10 * LEASES


def test_extending_a_lease_reads_only_its_own_rows(db: Connection, connect: Connect) -> None:
    fill(db)
    enqueue(db, 1)
    lease = one(db, "SELECT lease FROM pgq.claim('q', lease_for => '1 second')")  # the earliest to expire
    fresh = connect()
    before = rows_read(fresh)
    call(fresh, "extend", lease)
    assert rows_read(fresh) - before < 100


def test_listing_what_runs_reads_each_lease_a_few_times(db: Connection, connect: Connect) -> None:
    fill(db)
    enqueue(db, 1)
    call(db, "claim", "q", lease_for="1 second")
    fresh = connect()
    before = rows_read(fresh)
    assert one(fresh, "SELECT count(*) FROM pgq.jobs('q')") == 1
    assert one(fresh, "SELECT jobs FROM pgq.workers()") == 1
    assert rows_read(fresh) - before < 20 * LEASES
    enqueue(db, LEASES)
    claim_each(db)
    before = rows_read(fresh)
    assert one(fresh, "SELECT count(*) FROM pgq.jobs('q')") == 100
    assert rows_read(fresh) - before < 20 * 2 * LEASES


def test_a_claim_does_not_read_what_a_running_transaction_enqueues(db: Connection, connect: Connect) -> None:
    create(db)
    enqueue(db, priority=-1)
    loading = connect(autocommit=False)
    enqueue(loading, 20_000, priority=-1)
    enqueue(db, 100)
    claimer = connect()
    before = rows_read(claimer, "job")
    assert len([call(claimer, "claim", "q") for _ in range(50)]) == 50
    assert rows_read(claimer, "job") - before < 1000
    loading.commit()
    assert one(claimer, "SELECT priority FROM pgq.claim('q')") == -1
