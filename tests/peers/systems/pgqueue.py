"""pgqueue itself, through its Python package and `pgq-worker`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from tests.bench.background import maintain, retire
from tests.programs import PGQ_WORKER

from ..environment import ROOT
from ..server import Database
from ..system import System

CONCURRENCY = 8


@dataclass(frozen=True)
class _Pgqueue(System):
    """It runs as it is in this tree, not from a package."""

    archived: bool = True
    """Whether what is done is kept in the archive, as it comes."""

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
            return [*PGQ_WORKER, f"{module}:app", "--concurrency", str(CONCURRENCY), "--log-level", "warning"]
        return [sys.executable, "-m", module, verb]

    def prepare(self, database: Database, silence: int) -> None:
        super().prepare(database, silence)
        if not self.archived:
            with database.connect() as db:
                db.execute("SELECT pgq.alter_queue(name, retention => '0') FROM pgq.queue")

    def tidy(self, database: Database) -> None:
        """Archive all that is done and give its space back, which else happens some minutes later."""
        with database.connect() as db:
            while maintain(db):
                pass
            retire(db)


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
# What a job costs if it is forgotten when it is done, as some of the peers do.
UNARCHIVED = replace(
    SYSTEM,
    name="pgqueue-unarchived",
    settings={**SYSTEM.settings, "retention": "0: what is done is not kept"},
    only=("life",),
    archived=False,
)
