"""The primary dies, the standby takes over, and the clients find it by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cluster import Cluster
from tests.failover.pair import Pair, eventually, paired
from tests.failover.rounds import DBNAME, install, rounds
from tests.sql.support import (
    ack,
    call,
    claim,
    claim_one,
    create,
    enqueue,
    ids,
    in_background,
    leases,
    one,
    stats,
    status,
)

Connect = Callable[[], psycopg.Connection[Any]]


@pytest.fixture
def bin_dir(cluster: Cluster) -> Path:
    """The binaries under test, where the server's user can run them."""
    return cluster.bin


@pytest.fixture(scope="module")
def module_pair(cluster: Cluster, run_dir: Path) -> Iterator[Pair]:
    """A primary and its synchronous standby."""
    with paired(run_dir / "pair", cluster.bin, install, synchronous=True) as pair:
        yield pair


@pytest.fixture
def pair(module_pair: Pair) -> Pair:
    """A primary and its synchronous standby, whatever the test before has done to them."""
    module_pair.mend()
    return module_pair


@pytest.fixture
def connect(pair: Pair) -> Iterator[Connect]:
    """Connect to the primary, whichever it is."""
    connections: list[psycopg.Connection[Any]] = []

    def connect() -> psycopg.Connection[Any]:
        connections.append(psycopg.connect(pair.dsn(DBNAME), autocommit=True))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.close()


def test_there_and_back_with_a_synchronous_standby_nothing_is_lost_and_nothing_done_twice(
    run_dir: Path, bin_dir: Path
) -> None:
    with rounds(run_dir / "synchronous", bin_dir, synchronous=True, seed=1) as running:
        first = running.pair.primary
        running.round(jobs=30)
        assert running.pair.primary is not first
        running.round(jobs=30)
        assert running.pair.primary is first
        report = running.finish()
    assert report.verdict.broken == []
    assert (report.verdict.lost, report.verdict.doubled) == (0, 0)
    assert report.verdict.jobs > 160


def test_an_asynchronous_standby_loses_exactly_what_it_had_not_received(run_dir: Path, bin_dir: Path) -> None:
    """No acknowledged transaction that was on it, every one that was not; and from there the queue goes on."""
    with rounds(run_dir / "asynchronous", bin_dir, synchronous=False, seed=1) as running:
        running.round(jobs=30, behind=True)
        report = running.finish()
    assert report.verdict.broken == []
    assert report.verdict.doubled == 0
    assert report.verdict.lost >= 20, "the producers of transactions have enqueued more than that meanwhile"
    assert report.lost_txns >= 20


@pytest.mark.xdist_group("pair")
def test_a_lease_that_was_lost_with_the_primary_is_not_given_out_again(pair: Pair, connect: Connect) -> None:
    """Claims are not durable. Whoever holds one that the new primary does not know cannot settle another's."""
    db = connect()
    create(db, "leases", shards=1)
    jobs = enqueue(db, 100, "leases")
    pair.cut()
    db.execute("SET synchronous_commit = off")
    zombie = [claim_one(db, "leases") for _ in range(90)]
    pair.fail()
    pair.promote()
    db = connect()
    held = [claim_one(db, "leases") for _ in range(100)]
    assert sorted(ids(held)) == jobs
    assert set(leases(held)) & set(leases(zombie)) == set()
    assert ack(db, zombie) == []
    assert sorted(ack(db, held)) == jobs


@pytest.mark.xdist_group("pair")
def test_job_ids_go_on_behind_those_that_are_known(pair: Pair, connect: Connect) -> None:
    known: list[int] = []
    call(connect(), "create_queue", "ids")
    for _ in range(2):
        db, interrupted = connect(), connect()
        for _ in range(50):
            known += enqueue(db, 1, "ids")
        interrupted.execute("BEGIN")
        enqueue(interrupted, 50, "ids")
        pair.fail()
        pair.promote()
        pair.rejoin()
    db = connect()
    known += enqueue(db, 1, "ids")
    assert sorted(set(known)) == known
    assert stats(db, "ids") == {"ready": 101}


@pytest.mark.xdist_group("pair")
def test_prepared_transactions_survive_a_promotion_and_their_jobs_are_found(pair: Pair, connect: Connect) -> None:
    db, open_one = connect(), connect()
    create(db, "prepared", shards=1, notify=False)
    early: dict[str, int] = {}
    for name in ("kept", "undone"):
        db.execute("BEGIN")
        (early[name],) = enqueue(db, 1, "prepared")
        db.execute(f"PREPARE TRANSACTION '{name}'")
    open_one.execute("BEGIN")
    enqueue(open_one, 5, "prepared")
    late = enqueue(db, 3, "prepared")
    assert ids(claim(db, 2, "prepared")) == late[:2]
    pair.wait_in_sync()  # also of the claim, which nobody has waited for
    pair.fail()
    pair.promote()
    db = connect()
    assert ids(claim(db, 10, "prepared")) == late[2:]
    db.execute("COMMIT PREPARED 'kept'")
    db.execute("ROLLBACK PREPARED 'undone'")
    more = enqueue(db, 1, "prepared")
    assert ids(claim(db, 10, "prepared")) == [early["kept"], *more]


@pytest.mark.xdist_group("pair")
def test_a_commit_whose_wait_for_the_standby_was_cancelled_is_reported_with_a_warning(
    pair: Pair, connect: Connect
) -> None:
    """PostgreSQL answers it with success although it is on the primary alone; only the warning says so."""
    warnings: list[str] = []
    db, watcher = connect(), connect()
    create(db, "sync")
    safe = enqueue(db, 1, "sync")
    pair.standby.stop("immediate")
    db.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    waiting = in_background(enqueue, db, 1, "sync")
    event = "SELECT wait_event FROM pg_stat_activity WHERE pid = %s"
    eventually(lambda: one(watcher, event, db.info.backend_pid) == "SyncRep", "the wait for the standby")
    # Until then nobody else sees it, so no worker can begin what may yet be lost.
    assert stats(watcher, "sync") == {"ready": 1}
    watcher.execute("SELECT pg_cancel_backend(%s)", [db.info.backend_pid])
    unsafe = waiting.result(60)
    pair.fail()
    assert warnings == ["canceling wait for synchronous replication due to user request"]
    pair.standby.start()
    pair.promote()
    db = connect()
    assert stats(db, "sync") == {"ready": 1}
    assert status(db, safe[0]).state == "ready"
    assert one(db, "SELECT count(*) FROM pgq.job_status(%s)", unsafe[0]) == 0


@pytest.mark.xdist_group("pair")
def test_the_standby_can_be_asked_how_the_queues_are_and_refuses_the_rest(pair: Pair, connect: Connect) -> None:
    db = connect()
    create(db, "read")
    job = call(db, "enqueue", "read", task="t")
    assert claim_one(db, "read").id == job
    enqueue(db, 3, "read")
    replayed = one(db, "SELECT pg_current_wal_flush_lsn()")
    eventually(lambda: pair.standby.fetch(f"SELECT pg_last_wal_replay_lsn() >= '{replayed}'"), "the replay")
    with psycopg.connect(pair.standby.tcp(DBNAME), autocommit=True) as reader:
        assert stats(reader, "read") == {"ready": 3, "running": 1}
        assert status(reader, job).state == "running"
        assert one(reader, "SELECT count(*) FROM pgq.doctor() WHERE severity = 'error'") == 0
        for query in ("pgq.enqueue('read')", "pgq.claim('read')", "pgq.maintain()"):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                reader.execute(f"SELECT {query}")
