"""One throw-away server for the whole field; each turn has a database of its own, copied from its system's template."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from tests.bench.server import SETTINGS, server_cpu_seconds, server_facts
from tests.cluster import Cluster

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True)
class Database:
    """One database of the server."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        """The one form of a connection string that the drivers of all systems understand."""
        cluster = self.server.cluster
        user, host = quote(cluster.superuser), quote(cluster.host, safe="")
        return f"postgresql:///{self.name}?host={host}&port={cluster.port}&user={user}"

    def connect(self) -> Connection:
        return psycopg.connect(self.server.cluster.dsn(self.name), autocommit=True, application_name="harness")

    def run(self, *statements: sql.SQL | sql.Composed) -> None:
        with self.connect() as db:
            for statement in statements:
                db.execute(statement)


class Server:
    """The server under test."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._numbers = itertools.count(1)
        self._templates: set[str] = set()

    @classmethod
    @contextmanager
    def start(cls, bin_dir: Path) -> Iterator[Server]:
        """A server in a private directory, gone with everything in it at the end."""
        with tempfile.TemporaryDirectory(prefix="pgqueue-peers-") as folder:
            cluster = Cluster.create(Path(folder), bin=bin_dir, conf=SETTINGS)
            try:
                yield cls(cluster)
            finally:
                cluster.stop("immediate")

    def template(self, name: str, prepare: Callable[[Database], None]) -> str:
        """The template of a system, prepared at its first use."""
        if name not in self._templates:
            self._admin("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
            self._admin("CREATE DATABASE {}", name)
            prepare(Database(self, name))
            self._templates.add(name)
        return name

    @contextmanager
    def database(self, template: str) -> Iterator[Database]:
        """A copy of a template; making it is a checkpoint, too, so that all turns begin alike."""
        name = f"turn_{next(self._numbers)}"
        self._admin("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy", name, template)
        try:
            yield Database(self, name)
        finally:
            self._admin("DROP DATABASE {} WITH (FORCE)", name)

    def cpu_seconds(self) -> float:
        """CPU time that the server has used so far, in all its processes, ended ones included."""
        return server_cpu_seconds(self.cluster)

    def facts(self) -> dict[str, Any]:
        """What a reader must know to judge the figures."""
        return server_facts(self.cluster)

    def _admin(self, statement: Any, *names: str) -> None:
        with psycopg.connect(self.cluster.dsn("postgres"), autocommit=True) as db:
            db.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
