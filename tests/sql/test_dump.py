"""A dump holds every job, in whatever state, and a restored queue goes on, even where transaction ids mean nothing."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from pgqueue.embedded import copy_installation
from tests.cluster import Cluster
from tests.conftest import PLAIN_SQL, Clock, fresh_database
from tests.sql.support import (
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
    refused,
    retire_all,
    rotate,
    stats,
    status,
)

pytestmark = pytest.mark.xdist_group("dump")

HOUR = timedelta(hours=1)
Restore = Callable[[], Connection]
EXTENSION = b"CREATE EXTENSION pgqueue"


@pytest.fixture(scope="module")
def installation(cluster: Cluster, run_dir: Path) -> Path:
    """The bin directory of a PostgreSQL that has the extension."""
    if not (cluster.bin.parent / "share").is_dir():
        pytest.skip("this PostgreSQL keeps its share directory elsewhere, so it cannot be copied")
    bin_dir = copy_installation(cluster.bin, run_dir / "dump-postgresql")
    pg_config = bin_dir / "pg_config"
    if not pg_config.exists():  # the npm packages come without
        pg_config.write_text(f'#!/bin/sh\necho "{bin_dir.parent}/share/postgresql"\n')
        pg_config.chmod(pg_config.stat().st_mode | stat.S_IXUSR)
    run("make", "--silent", "install", f"PG_CONFIG={pg_config}")
    return bin_dir


@pytest.fixture(scope="module")
def old(installation: Path, run_dir: Path) -> Iterator[Cluster]:
    """The cluster to dump from. Its transaction ids are far ahead."""
    server = Cluster.create(run_dir / "old", bin=installation)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE many (n int)")
        connection.execute("DO 'BEGIN FOR n IN 1..20000 LOOP INSERT INTO many VALUES (n); COMMIT; END LOOP; END'")
    yield server
    server.delete()


@pytest.fixture(scope="module")
def new(installation: Path, run_dir: Path, old: Cluster) -> Iterator[Cluster]:
    """A younger cluster, whose transaction ids are lower."""
    server = Cluster.create(run_dir / "new", bin=installation)
    yield server
    server.delete()


@pytest.fixture
def dsn(old: Cluster) -> Iterator[str]:
    """A database without pgq in the old cluster."""
    yield from fresh_database(old, None)


@pytest.fixture(params=["plain", "extension"])
def db(request: pytest.FixtureRequest, dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(PLAIN_SQL.read_bytes() if request.param == "plain" else EXTENSION)
        yield connection


@pytest.fixture(params=["same cluster", "new cluster"])
def target(request: pytest.FixtureRequest, old: Cluster, new: Cluster) -> Iterator[str]:
    """An empty database to restore into."""
    yield from fresh_database(old if request.param == "same cluster" else new, None)


@pytest.fixture
def lower(new: Cluster) -> Iterator[str]:
    """An empty database in the cluster with lower transaction ids."""
    yield from fresh_database(new, None)


def run(*command: str | Path) -> None:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def dump(server: Cluster, dsn: str, path: Path, form: str = "custom") -> Path:
    run(server.program("pg_dump"), f"--format={form}", "-f", path, dsn)
    return path


def restore(server: Cluster, dump: Path, target: str, form: str = "custom") -> Connection:
    if form == "plain":
        run(server.program("psql"), "-Xq", "-v", "ON_ERROR_STOP=1", "-d", target, "-f", dump)
    else:
        run(server.program("pg_restore"), "--exit-on-error", "-d", target, dump)
    return psycopg.connect(target, autocommit=True)


def copy(server: Cluster, dsn: str, target: str, path: Path) -> Connection:
    return restore(server, dump(server, dsn, path / "dump"), target)


def xid(db: Connection) -> int:
    return int(one(db, "SELECT txid_current()"))


def in_every_state(db: Connection) -> dict[str, list[int]]:
    """Jobs of queue q in every state that there is."""
    create(db, shards=1, lease="1 hour", max_attempts=3, backoff="1 hour")
    jobs = {}
    jobs["archived"] = enqueue(db, 2)
    done = claim(db, 2)
    for job in done:
        call(db, "ack", job.id, job.lease, {"job": job.id})
    retire_all(db)
    (straggler,) = jobs["straggler"] = enqueue(db)
    assert ids(claim(db)) == [straggler]
    rotate(db)
    db.execute("SELECT pgq._move_stragglers(slot) FROM pgq.segment WHERE state = 'claimed'")
    retire_all(db)
    (dead,) = jobs["dead"] = enqueue(db)
    call(db, "reject", dead, claim_one(db).lease, "hopeless", retry=False)
    (retrying,) = jobs["retrying"] = enqueue(db)
    call(db, "reject", retrying, claim_one(db).lease, "flat tyre")
    jobs["done"] = enqueue(db)
    job = claim_one(db)
    call(db, "ack", job.id, job.lease, {"job": job.id})
    jobs["running"] = enqueue(db, 2)
    claim(db, 2)
    jobs["ready"] = enqueue(db, 4)
    (released,) = claim(db)
    column(db, "SELECT pgq.release(%s, %s)", [released.id], [released.lease])
    rotate(db)
    jobs["ready"] += enqueue(db, 3)
    jobs["scheduled"] = enqueue(db, 2, delay="1 day")
    assert stats(db) == {"ready": 7, "running": 3, "scheduled": 2, "retrying": 1, "dead": 1}
    return jobs


@pytest.mark.parametrize(
    ("target", "form"),
    [("same cluster", "custom"), ("new cluster", "custom"), ("new cluster", "plain")],
    indirect=["target"],
)
def test_a_restored_queue_goes_on_where_the_dump_was_taken(
    db: Connection, dsn: str, target: str, old: Cluster, tmp_path: Path, form: str
) -> None:
    jobs = in_every_state(db)
    before = {id: status(db, id) for group in jobs.values() for id in group}
    there = restore(old, dump(old, dsn, tmp_path / "dump", form), target, form)

    assert stats(there) == stats(db)
    assert {id: status(there, id) for id in before} == before
    # New jobs run, after all those that waited, and ids go on.
    (fresh,) = enqueue(there)
    assert fresh == max(before) + 1
    taken = claim(there, 100)
    assert ids(taken) == [*jobs["ready"], fresh]
    assert min(job.lease for job in taken) > max(column(db, "SELECT max(id) FROM pgq.lease"))
    assert sorted(ack(there, taken)) == ids(taken)
    # The worker of a running job may have survived: its lease holds, too.
    (lease,) = column(there, "SELECT lease FROM pgq.straggler")
    call(there, "ack", jobs["straggler"][0], lease)
    # The rest comes back in its time.
    clock = Clock(there)
    clock.advance(2 * HOUR)
    assert call(there, "maintain")["reaped"] == 2
    back = claim(there, 100)
    assert [(job.id, job.attempt) for job in back] == [(id, 2) for id in [*jobs["running"], *jobs["retrying"]]]
    ack(there, back)
    clock.advance(24 * HOUR)
    assert call(there, "promote") == 2
    assert call(there, "redrive", "q") == 1
    last = claim(there, 100)
    assert sorted(ids(last)) == sorted(jobs["scheduled"] + jobs["dead"])
    ack(there, last)
    assert stats(there) == {}
    retire_all(there)
    rotate(there, 4)
    assert one(there, "SELECT count(DISTINCT id) FROM pgq.archive WHERE kind = 'done'") == len(before) + 1
    there.close()


@pytest.mark.parametrize("db", ["plain"], indirect=True)
def test_the_ring_turns_on_after_a_restore(db: Connection, dsn: str, target: str, old: Cluster, tmp_path: Path) -> None:
    create(db, shards=1)
    expected = []
    for _ in range(4):
        expected += enqueue(db, 3)
        claim(db, 1)
        rotate(db)
    there = copy(old, dsn, target, tmp_path)
    assert stats(there) == {"ready": 8, "running": 4}
    done = []
    for _ in range(12):
        done += enqueue(there, 2)
        jobs = claim(there, 100)
        expected += [id for id in ids(jobs) if id not in expected]
        ack(there, jobs)
        rotate(there)
    assert set(done) <= set(expected)
    clock = Clock(there)
    clock.advance(HOUR)
    call(there, "reap")
    ack(there, claim(there, 100))
    retire_all(there)
    rotate(there)
    retire_all(there)
    assert one(there, "SELECT count(DISTINCT id) FROM pgq.archive WHERE kind = 'done'") == len(expected)
    there.close()


@pytest.mark.parametrize("db", ["plain"], indirect=True)
def test_new_jobs_are_found_although_the_old_cursor_is_far_ahead(
    db: Connection, dsn: str, lower: str, old: Cluster, tmp_path: Path
) -> None:
    create(db, shards=1)
    enqueue(db, 3)
    ack(db, claim(db, 2))
    there = copy(old, dsn, lower, tmp_path)
    assert xid(there) + 10_000 < xid(db), "the new cluster's transaction ids are not lower"
    assert one(there, "SELECT max(cursor_xid::text::bigint) FROM pgq.lease") > xid(there)
    assert ids(claim(there, 1)) == [3]
    for expected in range(4, 9):
        assert enqueue(there) == [expected]
        assert ids(claim(there, 10)) == [expected]
    there.close()


@pytest.mark.parametrize("db", ["plain"], indirect=True)
def test_transactions_that_were_open_at_the_dump_hide_nothing_after_it(
    db: Connection, dsn: str, lower: str, old: Cluster, tmp_path: Path
) -> None:
    """The cursor lists them as late; none of them will ever end in the other cluster."""
    create(db, shards=1)
    with psycopg.connect(dsn) as late, psycopg.connect(dsn) as later:
        enqueue(late)
        expected = enqueue(db, 2)
        enqueue(later)
        expected += enqueue(db, 2)
        assert ids(claim(db, 3)) == expected[:3]
        late.commit()
        there = copy(old, dsn, lower, tmp_path)
        assert sorted(ids(claim(there, 10))) == [1, expected[3]]
        fresh = enqueue(there, 2)
        assert ids(claim(there, 10)) == fresh
    there.close()


@pytest.mark.parametrize("db", ["plain"], indirect=True)
def test_jobs_enqueued_after_a_rolled_back_rotation_are_in_the_dump(
    db: Connection, dsn: str, target: str, old: Cluster, tmp_path: Path
) -> None:
    """They lie in a segment that no table mentions yet."""
    create(db, shards=1)
    expected = enqueue(db, 2)
    with psycopg.connect(dsn) as turner:
        rotate(turner)
        turner.rollback()
    expected += enqueue(db, 2)
    there = copy(old, dsn, target, tmp_path)
    expected += enqueue(there, 2)
    assert ids(claim(there, 100)) == expected
    there.close()


@pytest.mark.parametrize("db", ["plain"], indirect=True)
@pytest.mark.parametrize("turns", [1, 3])
def test_a_dump_during_which_the_ring_turns_loses_nothing(
    db: Connection, dsn: str, target: str, old: Cluster, tmp_path: Path, turns: int
) -> None:
    """pg_dump reads tables as of one moment, but sequences as they are when it comes to them."""
    create(db, shards=1)
    expected = enqueue(db, 2)
    for _ in range(3):
        rotate(db)
        expected += enqueue(db, 2)
    with psycopg.connect(dsn) as snapshot:
        snapshot.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        name = one(snapshot, "SELECT pg_export_snapshot()")
        tables = ", ".join(
            column(
                db,
                "SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE relkind = 'r'",
            )
        )
        snapshot.execute(f"LOCK TABLE {tables} IN ACCESS SHARE MODE".encode())
        # Meanwhile all of it is worked off, and more: the epoch goes on, and the masks of segments change.
        for _ in range(turns):
            ack(db, claim(db, 100))
            rotate(db, 2)
            enqueue(db, 5)
        path = tmp_path / "dump"
        run(old.program("pg_dump"), "--format=custom", f"--snapshot={name}", "-f", path, dsn)
    there = restore(old, path, target)
    if there.info.host == db.info.host:  # only a new server looks by itself which segments have jobs
        call(there, "maintain")
    fresh = enqueue(there, 2)
    assert fresh[0] > expected[-1]
    assert ids(claim(there, 100)) == [*expected, *fresh]
    there.close()


@pytest.mark.parametrize("db", ["plain"], indirect=True)
def test_a_restart_after_the_restore_loses_none_of_the_jobs_enqueued_since(
    db: Connection, dsn: str, lower: str, old: Cluster, new: Cluster, tmp_path: Path
) -> None:
    create(db, shards=1)
    expected = enqueue(db, 3)
    ack(db, claim(db, 1))
    there = copy(old, dsn, lower, tmp_path)
    for _ in range(3):
        expected += enqueue(there, 2)
        there.close()
        new.restart()
        there = psycopg.connect(lower, autocommit=True)
    assert ids(claim(there, 100)) == expected[1:]
    there.close()


@pytest.mark.parametrize("db", ["plain"], indirect=True)
def test_a_dump_of_a_restored_database_restores_again(
    db: Connection, dsn: str, lower: str, old: Cluster, new: Cluster, tmp_path: Path
) -> None:
    create(db, shards=1)
    expected = enqueue(db, 4)
    claim(db, 1)
    there = copy(old, dsn, lower, tmp_path)
    expected += enqueue(there, 2)
    claim(there, 1)
    rotate(there)
    expected += enqueue(there, 2)
    for third in fresh_database(old, None):
        back = copy(new, lower, third, there_and_back(tmp_path))
        expected += enqueue(back, 2)
        assert ids(claim(back, 100)) == expected[2:]
        back.close()
    there.close()


def there_and_back(path: Path) -> Path:
    (path / "back").mkdir()
    return path / "back"


@pytest.mark.parametrize("db", ["plain"], indirect=True)
def test_a_restore_without_room_for_new_jobs_is_refused_with_a_hint(
    db: Connection, dsn: str, lower: str, old: Cluster, tmp_path: Path
) -> None:
    create(db, shards=1)
    for _ in range(16):
        enqueue(db)
        rotate(db)
    enqueue(db)
    there = copy(old, dsn, lower, tmp_path)
    with refused("55000") as caught:
        enqueue(there)
    assert caught.value.diag.message_hint
    there.close()


@pytest.mark.parametrize("db", ["plain"], indirect=True)
def test_a_clone_of_the_database_goes_its_own_way(db: Connection, dsn: str, old: Cluster) -> None:
    """CREATE DATABASE … TEMPLATE, the other way to copy one."""
    create(db, shards=1)
    expected = enqueue(db, 3)
    claim(db, 1)
    name = db.info.dbname
    db.close()
    for cloned in fresh_database(old, name):
        with psycopg.connect(cloned, autocommit=True) as clone, psycopg.connect(dsn, autocommit=True) as original:
            mine, theirs = enqueue(clone), enqueue(original)
            assert mine == theirs
            assert ids(claim(clone, 10)) == ids(claim(original, 10)) == expected[1:] + mine
