"""A system of the field behind four verbs: prepare, enqueue, work, count."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import environment
from .environment import ROOT
from .program import Program, stopping
from .server import Connection, Database

if TYPE_CHECKING:
    from typing_extensions import LiteralString

HERE = Path(__file__).resolve().parent
BULK = 1000
# The peers want a newer one than many a machine has.
NODE = "node@22.23.3"


@dataclass(frozen=True)
class System:
    """What the harness must know of a system; its program is beside its file in systems/."""

    name: str
    language: str
    program: str
    packages: tuple[str, ...]
    """What its environment is made of, with pinned versions."""
    schemas: tuple[str, ...]
    """Where its tables are."""
    unfinished: LiteralString
    """How many jobs are due and not durably done, as its public tables or functions say."""
    settings: Mapping[str, str]
    """What was set other than as it comes, for the page."""
    rate: int
    """Jobs/s that one worker does on a small machine: how long the first turns are, nothing else."""
    bulk: int = BULK
    """Jobs in one call that enqueues many."""
    only: tuple[str, ...] = ()
    """The workloads that it takes part in; empty: all."""
    recovery: str = ""
    """How jobs of a killed worker come back, for the page."""
    kept: tuple[LiteralString, ...] = ()
    """Makes `{count}` finished jobs out of one; left out where its worker is fast enough to do a million."""
    kept_for_later: tuple[LiteralString, ...] = ()
    """The same for scheduled jobs."""

    def install(self) -> dict[str, str]:
        """Make its environment, and return the versions of what is in it."""
        raise NotImplementedError

    def command(self, verb: str) -> Sequence[str | Path]:
        raise NotImplementedError

    @property
    def folder(self) -> Path:
        """Where its programs run."""
        return environment.BUILD / self.name

    @property
    def path(self) -> str:
        """Where its programs look for modules: this harness, for what they share."""
        return str(ROOT)

    def prepare(self, database: Database, silence: int) -> None:
        """Create its schema and its queue, whose workers may be silent for so many seconds."""
        with stopping(self._start("prepare", database, {"silence": silence})) as program:
            program.ended_well()

    def enqueue(self, database: Database, **options: Any) -> Program:
        """Start a producer; see the plans in kit.py."""
        return self._start("enqueue", database, options)

    def work(self, database: Database, **options: Any) -> Program:
        """Start a worker with a handler that does nothing but count itself."""
        return self._start("work", database, options)

    def count(self, database: Database) -> int:
        """Jobs that are due and not durably done."""
        with database.connect() as db:
            return self.left(db)

    def left(self, db: Connection) -> int:
        """The same over an open connection."""
        row = db.execute(self.unfinished).fetchone()
        assert row is not None
        return int(row[0])

    def tidy(self, database: Database) -> None:
        """Do what it has put off, if there is such a thing."""

    def _start(self, verb: str, database: Database, options: Mapping[str, Any]) -> Program:
        variables = {
            "PEER_DSN": database.url,
            "PEER_OPTIONS": json.dumps(options),
            "PATH": os.pathsep.join([str(database.server.cluster.program("psql").parent), os.environ["PATH"]]),
            "PYTHONPATH": self.path,
            "PGHOST": database.server.cluster.host,
            "PGUSER": database.server.cluster.superuser,
            "PGDATABASE": database.name,
        }
        return Program(self.command(verb), variables, self.folder)


@dataclass(frozen=True)
class PythonSystem(System):
    """A system from PyPI."""

    def install(self) -> dict[str, str]:
        environment.venv(self.name, self.packages)
        return {"python": sys.version.split()[0], **environment.versions(self.name)}

    def command(self, verb: str) -> Sequence[str | Path]:
        return [self.folder / "bin" / "python", "-m", f"tests.peers.systems.{self.program}", verb]


@dataclass(frozen=True)
class NodeSystem(System):
    """A system from npm. Its program is copied to where its packages are, for that is where modules look for them."""

    def install(self) -> dict[str, str]:
        environment.node_modules(self.name, self.packages)
        shutil.copy(HERE / "kit.mjs", self.folder)
        shutil.copy(HERE / "systems" / self.program, self.folder)
        return environment.versions(self.name)

    def command(self, verb: str) -> Sequence[str | Path]:
        return [self.folder / "node_modules" / "node" / "bin" / "node", self.program, verb]
