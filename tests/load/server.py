"""One throw-away server with durable settings, and pgq in a database of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tests.bench.server import SETTINGS, server_facts
from tests.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
PGQ_SQL = ROOT / "python/src/pgqueue/sql/pgqueue.sql"
DATABASE = "load"

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True)
class Server:
    """The server under load."""

    cluster: Cluster

    @classmethod
    @contextmanager
    def start(
        cls, path: Path, bin: Path, connections: int, settings: Mapping[str, str] | None = None
    ) -> Iterator[Server]:
        """Start a server in `path` that takes so many connections and some more; at the end it is gone."""
        conf = {**SETTINGS, "max_connections": str(connections + 100), "autovacuum_naptime": "10s", **(settings or {})}
        cluster = Cluster.create(path, bin=bin, conf=conf)
        try:
            with psycopg.connect(cluster.dsn(), autocommit=True) as db:
                db.execute(f"CREATE DATABASE {DATABASE}")
            with psycopg.connect(cluster.dsn(DATABASE), autocommit=True) as db:
                db.execute(PGQ_SQL.read_bytes())
            yield cls(cluster)
        finally:
            cluster.delete()

    @property
    def dsn(self) -> str:
        return self.cluster.dsn(DATABASE)

    def connect(self, name: str = "load test") -> Connection:
        return psycopg.connect(self.dsn, autocommit=True, application_name=name)

    def facts(self) -> dict[str, Any]:
        """What a reader must know to judge the figures."""
        return server_facts(self.cluster, [*SETTINGS, "max_locks_per_transaction"])
