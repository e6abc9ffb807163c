"""The fixtures of every test: one server per worker, one fresh database per test."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from psycopg import sql
from pytest_postgresql.janitor import DatabaseJanitor

from pgqueue.embedded import copy_installation
from pgqueue.testing import Clock as Clock
from tests.cluster import Cluster, find_binaries, kill_clusters
from tests.pgbouncer.bouncer import PgBouncer, find_program, kill_bouncers
from tests.programs import make

ROOT = Path(__file__).parent.parent
PLAIN_SQL = ROOT / "python/src/pgqueue/sql/pgqueue.sql"
TEMPLATE = "pgq_template"
_numbers = itertools.count(1)

Connection = psycopg.Connection[tuple[Any, ...]]

# Where the servers live. Belongs to the process that was started by hand, never to an xdist worker: it outlives them.
run_dir_key = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pg", default="16", help="16, 18 (from the wheel) or, as --pg=…, a bin directory")
    parser.addoption("--pgbouncer", action="store_true", help="lead the connections of the tests through PgBouncer")
    parser.addoption("--long", action="store_true", help="run the tests marked long, too")


def _home() -> str | None:
    """Where servers live: in memory if there is plenty, for a database has a thousand files and each test a new one."""
    plenty = 12 << 30
    memory = Path("/dev/shm")
    if (
        os.access(memory, os.W_OK)
        and not os.statvfs(memory).f_flag & os.ST_NOEXEC
        and min(shutil.disk_usage(memory).free, psutil.virtual_memory().available) > plenty
    ):
        return str(memory)
    return "/tmp" if len(tempfile.gettempdir()) > 60 else None


def pytest_configure(config: pytest.Config) -> None:
    if given := getattr(config, "workerinput", {}).get("run_dir"):
        config.stash[run_dir_key] = Path(given)
        return
    subprocess.run(["make", "--silent", "build"], cwd=ROOT, check=True)
    run_dir = Path(tempfile.mkdtemp(prefix="pgq-", dir=_home()))
    run_dir.chmod(0o711)
    config.stash[run_dir_key] = run_dir
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up then, too
    # Who is started with & by a script ignores this signal, and so would all that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["run_dir"] = str(node.config.stash[run_dir_key])


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and (run_dir := config.stash.get(run_dir_key, None)):
        kill_bouncers(run_dir)
        kill_clusters(run_dir)
        shutil.rmtree(run_dir, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        skip = pytest.mark.skip(reason="needs --long")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def run_dir(request: pytest.FixtureRequest) -> Path:
    """A directory with a short path, in which further servers may live; cleaned up whatever happens."""
    path = request.config.stash[run_dir_key] / os.environ.get("PYTEST_XDIST_WORKER", "main")
    path.mkdir()
    path.chmod(0o711)  # under root the servers belong to another user
    return path


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, run_dir: Path) -> Iterator[Cluster]:
    """The server under test, of the version chosen by --pg."""
    server = Cluster.create(run_dir / "cluster", bin=find_binaries(request.config.getoption("--pg")))
    yield server
    server.delete()


@pytest.fixture(scope="session")
def extended(cluster: Cluster, run_dir: Path) -> Iterator[Cluster]:
    """A server of the same version into which `make install` has put the extension."""
    if not (cluster.bin.parent / "share").is_dir():
        pytest.skip("this PostgreSQL keeps its share directory elsewhere, so it cannot be copied")
    bin_dir = copy_installation(cluster.bin, run_dir / "extended-postgresql")
    pg_config = bin_dir / "pg_config"
    if not pg_config.exists():  # the npm packages come without
        pg_config.write_text(f'#!/bin/sh\necho "{bin_dir.parent}/share/postgresql"\n')
        pg_config.chmod(pg_config.stat().st_mode | stat.S_IXUSR)
    make("install", f"PG_CONFIG={pg_config}")
    server = Cluster.create(run_dir / "extended", bin=bin_dir)
    yield server
    server.delete()


@pytest.fixture(scope="session")
def template(cluster: Cluster) -> str:
    """Name of a database in which pgq is installed, to be cloned."""
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    with psycopg.connect(cluster.dsn(TEMPLATE), autocommit=True) as connection:
        connection.execute(PLAIN_SQL.read_bytes())
    return TEMPLATE


def fresh_database(cluster: Cluster, template: str | None) -> Iterator[str]:
    """Create a database, yield its connection string, drop it."""
    name = f"t{next(_numbers)}"
    if not cluster.running:  # the test before crashed it
        cluster.start()
    # Files copied as such are there sooner than through the log, which is all that janitor.init() knows.
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
        sql.Identifier(name), sql.Identifier(template or "template1")
    )
    if cluster.version >= 15:
        create += sql.SQL(" STRATEGY file_copy")
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        connection.execute(create)
    janitor = DatabaseJanitor(user=cluster.superuser, host=cluster.host, port=cluster.port, dbname=name)
    try:
        yield cluster.dsn(name)
    finally:
        for attempt in range(50):
            try:
                janitor.drop()
                break
            except psycopg.errors.ObjectInUse:  # a pooler had begun to connect
                if attempt == 49:
                    raise
                time.sleep(0.1)


@pytest.fixture(scope="session")
def bouncer(cluster: Cluster, run_dir: Path) -> Iterator[PgBouncer]:
    """A PgBouncer in transaction mode in front of the server under test."""
    program = find_program()
    if program is None:
        pytest.skip("PgBouncer is not installed")
    pgbouncer = PgBouncer(program, run_dir / "pgbouncer", cluster)
    pgbouncer.start()
    yield pgbouncer
    pgbouncer.stop()


@pytest.fixture
def through(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """With --pgbouncer, and unless the test is marked direct: lead a connection string through PgBouncer."""
    if not request.config.getoption("--pgbouncer") or request.node.get_closest_marker("direct"):
        return lambda direct: direct
    bouncer: PgBouncer = request.getfixturevalue("bouncer")
    return bouncer.dsn


@pytest.fixture
def direct_dsn(cluster: Cluster, template: str) -> Iterator[str]:
    """Connection string of a fresh database with pgq, past any pooler."""
    yield from fresh_database(cluster, template)


@pytest.fixture
def dsn(direct_dsn: str, through: Callable[[str], str]) -> str:
    """Connection string of a fresh database with pgq."""
    return through(direct_dsn)


@pytest.fixture
def bare_dsn(cluster: Cluster, through: Callable[[str], str]) -> Iterator[str]:
    """Connection string of a fresh database without pgq."""
    yield from map(through, fresh_database(cluster, None))


@pytest.fixture
def connect(dsn: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Connection]]:
    """Open autocommit connections to the test's database: `connect(user="producer")`."""
    connections: list[Connection] = []
    defaults: dict[str, Any] = {"autocommit": True}
    if request.config.getoption("--pgbouncer"):
        defaults["prepare_threshold"] = None

    def connect(**options: Any) -> Connection:
        connections.append(psycopg.connect(dsn, **{**defaults, **options}))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.close()


@pytest.fixture
def db(connect: Callable[..., Connection]) -> Connection:
    """An autocommit connection to a fresh database with pgq."""
    return connect()


@pytest.fixture
def clock(connect: Callable[..., Connection]) -> Clock:
    """The one clock of pgq in the test's database, under the test's control."""
    return Clock(connect())
