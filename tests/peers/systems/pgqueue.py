"""pgqueue itself, through its Python package and `pgq-worker`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from psycopg import sql

from tests.bench.background import maintain

from ..environment import ROOT
from ..program import PeerError
from ..server import Connection, Database
from ..system import System

WORKER = [sys.executable, "-c", "from pgqueue.cli import worker; worker()"]
CONCURRENCY = 8
ROTATIONS = 1000


@dataclass(frozen=True)
class _Pgqueue(System):
    """It runs as it is in this tree, not from a package."""

    def install(self) -> dict[str, str]:
        return {"python": sys.version.split()[0], "pgqueue": version("pgqueue"), "psycopg": version("psycopg")}

    @property
    def folder(self) -> Path:
        return ROOT

    @property
    def path(self) -> str:
        return os.pathsep.join([str(ROOT / "python" / "src"), str(ROOT)])

    def command(self, verb: str) -> Sequence[str | Path]:
        module = f"tests.peers.systems.{self.program}"
        if verb == "work":
            return [*WORKER, f"{module}:app", "--concurrency", str(CONCURRENCY), "--log-level", "warning"]
        return [sys.executable, "-m", module, verb]

    def tidy(self, database: Database) -> None:
        """Archive all that is done and give its space back, which else happens some minutes later."""
        with database.connect() as db:
            for _ in range(ROTATIONS):
                while maintain(db):
                    pass
                if _empty(db):
                    return
                db.execute("SELECT pgq.rotate(true)")
        raise PeerError("finished segments were not retired")


def _empty(db: Connection) -> bool:
    row = db.execute(
        sql.SQL("SELECT sum(pg_relation_size(relid)) = 0 FROM pg_partition_tree('pgq.job') WHERE isleaf")
    ).fetchone()
    return bool(row and row[0])


SYSTEM = _Pgqueue(
    name="pgqueue",
    language="Python",
    program="pgqueue_program",
    packages=(),
    schemas=("pgq",),
    unfinished="SELECT coalesce(sum(ready + running + retrying), 0)::bigint FROM pgq.stats()",
    settings={"handler": "a function, not a coroutine", "--concurrency": str(CONCURRENCY), "lease": "10 s"},
    rate=60_000,
    recovery="the lease of its jobs runs out, which was set to 10 s",
)
