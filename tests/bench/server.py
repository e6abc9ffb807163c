"""One throw-away server with stated settings, and one database for each row of the benchmark."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
from psycopg import sql

from tests.cluster import Cluster

if TYPE_CHECKING:
    from typing_extensions import LiteralString

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PGQ_SQL = ROOT / "build" / "pgqueue.sql"
TEMPLATE = "bench_template"

# What a careful administrator sets on a machine of this size; nothing is traded for durability.
SETTINGS = {
    "shared_buffers": "1GB",
    "max_connections": "100",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "replica",
    "autovacuum": "on",
    "autovacuum_naptime": "5s",
    "track_io_timing": "off",
}

# Short claims are noted here by the scripts, so that an empty claim never counts as work.
BENCH_SCHEMA = """
    CREATE SCHEMA bench;
    CREATE UNLOGGED TABLE bench.short (
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        missing int NOT NULL
    );
"""


@dataclass(frozen=True)
class Database:
    """One database with pgq, the conventional queue and the bare table in it."""

    server: Server
    name: str

    @property
    def dsn(self) -> str:
        return self.server.cluster.dsn(self.name)

    def connect(self, **kwargs: Any) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.dsn, autocommit=True, **kwargs)

    def rows(self, query: LiteralString | sql.Composed, *args: object) -> list[tuple[Any, ...]]:
        with self.connect() as db:
            return db.execute(query, args or None).fetchall()

    def value(self, query: LiteralString | sql.Composed, *args: object) -> Any:
        return self.rows(query, *args)[0][0]

    def run(self, *statements: LiteralString | sql.Composed) -> None:
        with self.connect() as db:
            for statement in statements:
                db.execute(statement)


class Server:
    """The server under test; `database()` gives a fresh database with everything installed."""

    def __init__(self, cluster: Cluster, pgq_sql: Path) -> None:
        self.cluster = cluster
        self._numbers = itertools.count(1)
        with self._admin() as db:
            db.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
        template = Database(self, TEMPLATE)
        for script in (pgq_sql, HERE / "conventional.sql"):
            self._install(template, script)
        template.run(BENCH_SCHEMA)
        _create_bare(template)

    @classmethod
    @contextmanager
    def start(cls, bin_dir: Path, pgq_sql: Path = PGQ_SQL) -> Iterator[Server]:
        """A server in a private directory, gone with everything in it at the end."""
        with tempfile.TemporaryDirectory(prefix="pgqueue-bench-") as folder:
            cluster = Cluster.create(Path(folder), bin=bin_dir, conf=SETTINGS)
            try:
                yield cls(cluster, pgq_sql)
            finally:
                cluster.stop("immediate")

    @contextmanager
    def database(self) -> Iterator[Database]:
        name = f"bench_{next(self._numbers)}"
        with self._admin() as db:
            db.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                    sql.Identifier(name), sql.Identifier(TEMPLATE)
                )
            )
        try:
            yield Database(self, name)
        finally:
            with self._admin() as db:
                db.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def facts(self) -> dict[str, Any]:
        """What a reader must know to judge the figures."""
        return server_facts(self.cluster)

    def cpu_seconds(self) -> float:
        """CPU time that the server has used so far."""
        return server_cpu_seconds(self.cluster)

    def _admin(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.cluster.dsn("postgres"), autocommit=True)

    def _install(self, database: Database, script: Path) -> None:
        psql = self.cluster.bin / "psql"
        subprocess.run(
            [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.dsn, "-f", script],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def server_facts(cluster: Cluster, settings: Iterable[str] = SETTINGS) -> dict[str, Any]:
    """The server's version and these settings, the machine, and how fast its disk is."""
    with psycopg.connect(cluster.dsn(), autocommit=True) as db:
        version = db.execute("SELECT version()").fetchone()
        found = db.execute(
            "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS s (name)", [list(settings)]
        ).fetchall()
    return {
        "postgres": version[0] if version else "",
        "settings": dict(found),
        "cpus": os.cpu_count(),
        "cpu": cpu_model(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "platform": platform.platform(),
        "fdatasync_us": fdatasync_us(cluster.data),
    }


def server_cpu_seconds(cluster: Cluster) -> float:
    """CPU time that a server has used so far, in all its processes, ended ones included."""
    postmaster = cluster.postmaster()
    ended = postmaster.cpu_times()
    spent: float = ended.children_user + ended.children_system
    for process in postmaster.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            used = process.cpu_times()
            spent += used.user + used.system
    return spent


def fdatasync_us(folder: Path, seconds: float = 0.5) -> float:
    """Microseconds to write 8 kB and sync them where the data lives: it bounds a durable commit."""
    count, began = 0, time.perf_counter()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(bytes(8192))
        while (passed := time.perf_counter() - began) < seconds:
            os.pwrite(file.fileno(), bytes(8192), 0)
            os.fdatasync(file.fileno())
            count += 1
    return round(passed / count * 1e6, 1)


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")


def _create_bare(database: Database) -> None:
    """Plain tables with the columns, constraints, defaults and indexes of one segment's."""
    database.run("CREATE SCHEMA bare", "CREATE SEQUENCE bare.job_id_seq")
    for name in ("job", "lease", "outcome"):
        leaf = sql.Identifier("pgq", f"{name}_0")
        table = sql.Identifier("bare", name)
        database.run(
            sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(table, leaf),
            # Storage parameters are not part of LIKE; the segments are not autovacuumed either.
            sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = false)").format(table),
        )
