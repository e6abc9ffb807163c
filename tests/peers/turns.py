"""Rounds in which every system has its turn, and what a turn has found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .environment import ROOT
from .plan import Plan
from .program import Program, stopping
from .server import Database, Server
from .system import System

Found = tuple[Mapping[str, float | None], Mapping[str, Any]]


@dataclass(frozen=True)
class Run:
    """One turn of one system in one workload. A figure that is None could not be had, and `raw` says why."""

    workload: str
    system: str
    round: int
    figures: Mapping[str, float | None] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    took: float = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Bench:
    """The server, the plan, and what was learned of each system's speed."""

    server: Server
    plan: Plan
    folder: Path
    rates: dict[str, float] = field(default_factory=dict)

    def rate(self, system: System) -> float:
        """Jobs/s that one worker of this system does, as far as is known."""
        return self.rates.get(system.name, system.rate)

    def database(self, system: System) -> AbstractContextManager[Database]:
        def prepare(database: Database) -> None:
            system.prepare(database, self.plan.silence)

        return self.server.database(self.server.template(f"peer_{system.name}", prepare))

    def record(self) -> Path:
        """A new file for what a worker records."""
        path = self.folder / f"record-{time.monotonic_ns()}"
        path.touch()
        return path


@dataclass(frozen=True)
class Workload:
    """Something to measure: one turn of one system."""

    name: str
    measure: Callable[[Bench, System], Found]
    per_round: int = 1
    """Turns of each system in a round: several for what is short and wobbles; 0 for what takes minutes: one in all."""
    only_if_named: bool = False
    """Whether it is not part of a whole run."""


def turns(systems: Sequence[System], rounds: int) -> Iterator[tuple[int, System]]:
    """Everybody once in each round, and every second round the other way round."""
    for number in range(rounds):
        order = systems if number % 2 == 0 else list(reversed(systems))
        for system in order:
            yield number, system


def take(bench: Bench, workload: Workload, number: int, system: System) -> Run:
    """One turn; what goes wrong is part of the result, and the others go on."""
    began = time.monotonic()
    try:
        figures, raw = workload.measure(bench, system)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".replace(f"{ROOT}/", "")
        return Run(workload.name, system.name, number, error=text, took=_since(began))
    return Run(workload.name, system.name, number, figures, raw, took=_since(began))


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


@contextmanager
def working(system: System, database: Database, **options: Any) -> Iterator[Program]:
    """A worker that is about to work."""
    with stopping(system.work(database, **options)) as worker:
        worker.wait_ready()
        yield worker


@contextmanager
def enqueuing(system: System, database: Database, **options: Any) -> Iterator[Program]:
    """A producer that is about to enqueue."""
    with stopping(system.enqueue(database, **options)) as producer:
        producer.wait_ready()
        yield producer


def load(system: System, database: Database, jobs: int, **options: Any) -> None:
    """Enqueue so many jobs in bulk."""
    with enqueuing(system, database, plan="flood", batch=system.bulk, jobs=jobs, **options) as producer:
        producer.result(600)


def wait_done(system: System, database: Database, patience: float) -> float:
    """Wait until the database says that no job is left, and return when that was; raises TimeoutError."""
    deadline = time.monotonic() + patience
    with database.connect() as db:
        while left := system.left(db):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {patience:g} s {left} jobs are not done")
            time.sleep(0.01)
    return time.time()
