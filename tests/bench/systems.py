"""The competitors behind one face: create, load, count, run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from psycopg import sql

from . import pgbench
from .background import maintain, maintenance, retire
from .pgbench import BenchmarkError, Run
from .server import Database

# 100 bytes of JSON, as a small real job has them.
PAYLOAD = json.dumps({"to": "somebody@example.org", "template": "welcome", "n": 1, "text": "x" * 27})
LOAD_ARRAY = 10_000


def payloads(count: int) -> str:
    """A jsonb[] literal of `count` payloads."""
    quoted = '"' + PAYLOAD.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return "{" + ",".join([quoted] * count) + "}"


class RanDryError(BenchmarkError):
    """The queue was emptied before the time was up."""


@dataclass
class Queue:
    """A queue of one of the two systems, and what was learned about its speed."""

    database: Database
    schema: str
    name: str = "bench"
    short: float = 0  # share of the wanted jobs that claims did not get
    cpu_us: list[float] = field(default_factory=list)  # of the server per job, in each turn
    tidy_seconds: list[float] = field(default_factory=list)
    _rate: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def is_pgq(self) -> bool:
        return self.schema == "pgq"

    @property
    def variables(self) -> dict[str, str]:
        return {"queue": self.name, "payload": PAYLOAD, "payloads": payloads(100)}

    def create(self, **settings: Any) -> Queue:
        names = [sql.SQL("{} => {}").format(sql.Identifier(k), v) for k, v in settings.items()]
        self.database.rows(
            sql.SQL("SELECT {}.create_queue({})").format(
                sql.Identifier(self.schema), sql.SQL(", ").join([sql.Literal(self.name), *names])
            )
        )
        return self

    def load(self, count: int, task: str | None = None) -> None:
        """Adds at least `count` ready jobs."""
        with self.database.connect() as db:
            query = sql.SQL("SELECT count(*) FROM {}.enqueue_many(%s, array_fill(%s::jsonb, ARRAY[%s]){})").format(
                sql.Identifier(self.schema), sql.SQL(", task => {}").format(task) if task else sql.SQL("")
            )
            for _ in range(-(-count // LOAD_ARRAY)):
                db.execute(query, (self.name, PAYLOAD, min(count, LOAD_ARRAY)))

    def load_up_to(self, count: int) -> None:
        missing = count - self.count("ready")
        if missing > 0:
            self.load(missing)

    def count(self, state: str) -> int:
        query = sql.SQL("SELECT sum({}) FROM {}.stats() WHERE queue = %s").format(
            sql.Identifier(state), sql.Identifier(self.schema)
        )
        return int(self.database.value(query, self.name) or 0)

    def tidy(self) -> None:
        """The work put off during a run, so that it does not fall into the other's turn."""
        began = time.monotonic()
        with self.database.connect() as db:
            if self.is_pgq:
                while maintain(db):
                    pass
            else:
                db.execute("VACUUM (ANALYZE) conv.job, conv.archive")
        self.tidy_seconds.append(round(time.monotonic() - began, 3))

    def retire(self) -> float:
        """All the work put off, down to the last finished job; returns the seconds it took."""
        began = time.monotonic()
        self.tidy()
        if self.is_pgq:
            with self.database.connect() as db:
                retire(db)
        return time.monotonic() - began

    @contextmanager
    def work(self) -> Iterator[None]:
        """This system's maintenance runs meanwhile; the conventional one has autovacuum."""
        with maintenance(self.database) if self.is_pgq else nullcontext():
            yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        """This system's turn, with its own maintenance beside it, and nobody else's."""
        with self.work():
            yield
        self.tidy()

    def enqueue(self, batch: int, *, clients: int, seconds: int) -> float:
        """Jobs/s, checked against the queue's own count."""
        before = self.count("ready")
        run = self.pgbench(f"enqueue_{batch}.sql", clients=clients, seconds=seconds)
        added = self.count("ready") - before
        if added != run.transactions * batch:
            raise BenchmarkError(f"{run.transactions} × {batch} were enqueued, {added} arrived")
        self.cpu_us.append(run.cpu_seconds / run.transactions / batch * 1e6)
        return run.tps * batch

    def consume(self, batch: int, *, clients: int, seconds: int) -> float:
        """Jobs/s claimed and acked; loads what is needed and repeats if that was not enough."""
        key = (batch, clients)
        turns = [seconds] * 5
        if key not in self._rate:  # a first guess, and a turn to correct it
            self._rate[key] = 60_000 if batch > 1 else 8_000
            turns.insert(0, 1)
        for length in turns:
            try:
                rate = self._consume(batch, clients, length)
            except RanDryError:
                self._rate[key] *= 2
            else:
                if length == seconds:
                    return rate
        raise RanDryError(f"{self.schema}: cannot load enough jobs for {seconds} s")

    def _consume(self, batch: int, clients: int, seconds: int) -> float:
        key = (batch, clients)
        self.database.run("CHECKPOINT")
        self.load_up_to(int(self._rate[key] * seconds * 1.4) + 2 * batch * clients)
        if not self.is_pgq:
            self.database.run("VACUUM (ANALYZE) conv.job")
        before = self.count("ready")
        run, missing = self.measured(f"claim_ack_{batch}.sql", clients=clients, seconds=seconds)
        jobs = run.transactions * batch - missing
        after = self.count("ready")
        if after < batch * clients:
            raise RanDryError(f"{self.schema}: only {after} of {before} jobs are left")
        if before - after != jobs:
            raise BenchmarkError(f"{self.schema}: {jobs} jobs acked, but {before - after} are gone")
        self.short = missing / (run.transactions * batch)
        self.cpu_us.append(run.cpu_seconds / jobs * 1e6)
        self._rate[key] = jobs / run.seconds
        return self._rate[key]

    def measured(self, script: str, **options: Any) -> tuple[Run, int]:
        """A run, and by how many jobs its claims fell short."""
        self.database.run("TRUNCATE bench.short")
        run = self.pgbench(script, **options)
        missing = self.database.value("SELECT coalesce(sum(missing), 0) FROM bench.short")
        return run, int(missing)

    def drain(self) -> None:
        """Claims and acks what is left."""
        while self.count("ready"):
            self.pgbench("claim_ack_100.sql", clients=1, transactions=10)

    def raw(self) -> dict[str, Any]:
        """What was seen beside the throughput."""
        return {"cpu_us": self.cpu_us, "short": self.short, "tidy_seconds": self.tidy_seconds}

    def pgbench(self, script: str, **options: Any) -> Run:
        return pgbench.run(self.database, script, search_path=self.schema, variables=self.variables, **options)


def both(database: Database, **settings: Any) -> tuple[Queue, Queue]:
    """The same queue in pgq and in the conventional system."""
    return (
        Queue(database, "pgq").create(**settings),
        Queue(database, "conv").create(**settings),
    )
