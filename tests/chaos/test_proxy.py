"""The proxy breaks a connection where it is told to: before or after a commit has taken effect."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.chaos.proxy import Break, Fault, Proxy
from tests.cluster import Cluster
from tests.conftest import fresh_database

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> Iterator[str]:
    """Connection string of a database with the table `written`."""
    for dsn in fresh_database(cluster, None):
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute("CREATE TABLE written (n int)")
        yield dsn


@pytest.fixture
def proxy(cluster: Cluster, run_dir: Path) -> Iterator[Proxy]:
    proxy = Proxy(run_dir / f"proxy{next(_numbers)}", Path(cluster.host), cluster.port)
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture
def through(proxy: Proxy, database: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A connection through the proxy."""
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("TRUNCATE written")
    connection = psycopg.connect(make_conninfo(database, host=str(proxy.directory)), autocommit=True)
    yield connection
    connection.close()


def written(dsn: str) -> int:
    """How many rows there are, once no other session is left that might write one."""
    others = "SELECT FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    with psycopg.connect(dsn, autocommit=True) as db:
        while db.execute(others + " AND datname = current_database()").fetchall():
            pass
        row = db.execute("SELECT count(*) FROM written").fetchone()
    assert row is not None
    return int(row[0])


CASES: list[tuple[Break, set[int]]] = [
    ("cut before", {0}),
    ("cut within", {0, 1}),
    ("cut after", {1}),
    ("freeze and cut", {1}),
]


@pytest.mark.parametrize("way", ["simple", "extended", "prepared", "transaction"])
@pytest.mark.parametrize(("kind", "rows"), CASES, ids=[kind for kind, _ in CASES])
def test_a_cut_leaves_the_client_in_doubt_and_the_server_as_told(
    proxy: Proxy,
    through: psycopg.Connection[tuple[object, ...]],
    database: str,
    way: str,
    kind: Break,
    rows: set[int],
) -> None:
    through.prepare_threshold = 0 if way == "prepared" else None
    if way == "transaction":
        through.execute("BEGIN")
        through.execute("INSERT INTO written VALUES (%s)", [1])
    proxy.arm(Fault(kind, 0.2))
    text = {"transaction": "COMMIT", "simple": "INSERT INTO written VALUES (1)"}
    with pytest.raises(psycopg.OperationalError):
        through.execute(text.get(way, "INSERT INTO written VALUES (%s)"), None if way in text else [1])
    assert through.closed
    assert written(database) in rows
    assert proxy.done == {kind: 1}


@pytest.mark.parametrize("kind", ["delay", "freeze"])
def test_what_is_late_arrives(
    proxy: Proxy, through: psycopg.Connection[tuple[object, ...]], database: str, kind: Break
) -> None:
    proxy.arm(Fault(kind, 0.1))
    through.execute("INSERT INTO written VALUES (1)")
    through.execute("INSERT INTO written VALUES (2)")
    assert proxy.done == {kind: 1}
    through.close()
    assert written(database) == 2


def test_a_fault_waits_for_the_commit(
    proxy: Proxy, through: psycopg.Connection[tuple[object, ...]], database: str
) -> None:
    proxy.arm(Fault("cut after"))
    through.execute("BEGIN")
    for n in range(3):
        through.execute("INSERT INTO written VALUES (%s)", [n])
    assert not proxy.done
    with pytest.raises(psycopg.OperationalError):
        through.execute("COMMIT")
    assert written(database) == 3
