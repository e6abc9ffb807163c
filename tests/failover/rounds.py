"""Rounds of failover under load."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests.conftest import PLAIN_SQL
from tests.failover.check import Losses, Verdict, compare, read
from tests.failover.history import Event, Reader
from tests.failover.load import QUEUE, Load, prepare
from tests.failover.pair import Node, Pair, eventually, paired
from tests.sql.support import retire_all, stats

DBNAME = "app"


def install(node: Node) -> None:
    """Make the database of the load."""
    node.fetch(f"CREATE DATABASE {DBNAME}")
    with psycopg.connect(node.dsn(DBNAME), autocommit=True) as db:
        db.execute(PLAIN_SQL.read_bytes())
        prepare(db)


@dataclass
class Report:
    """What some rounds have shown."""

    mode: str
    verdict: Verdict = field(default_factory=Verdict)
    outages: list[float] = field(default_factory=list)
    lost_txns: int = 0

    def json(self) -> str:
        """The figures, for other programs."""
        return json.dumps(
            {
                "rounds": len(self.outages),
                "mode": self.mode,
                "jobs": self.verdict.jobs,
                "acks": self.verdict.acks,
                "lost": self.verdict.lost,
                "doubled": self.verdict.doubled,
                "violations": self.verdict.broken,
                "lost_transactions": self.lost_txns,
                "outage_seconds": [round(outage, 3) for outage in self.outages],
            },
            indent=2,
        )


class Rounds:
    """A pair under load, of which the primary is killed again and again.

    Args:
        pair: the two servers, in sync.
        path: directory for histories and logs.
        seed: what happens is drawn from it.
    """

    def __init__(self, pair: Pair, path: Path, seed: int) -> None:
        path.mkdir()
        self.pair = pair
        self.load = Load(pair.dsn(DBNAME), path, seed)
        self.report = Report("synchronous" if pair.synchronous else "asynchronous")
        self._dice = random.Random(seed)
        self._reader = Reader(path)
        self._txns: set[tuple[int, int]] = set()
        self._spans: list[tuple[float, float]] = []
        self._in_sync_since = time.monotonic()

    def round(self, jobs: int, *, behind: bool = False) -> float:
        """Kill the primary, promote, and bring the old one back.

        Args:
            jobs: how many are enqueued and how many done before the kill, at least.
            behind: an asynchronous standby that has fallen behind by as many again.

        Returns:
            The outage in seconds: from the kill until a producer and a worker were served again.
        """
        self._progress(jobs)
        if behind:
            self.pair.cut()
            self._progress(jobs)
        killed = time.monotonic()
        self.pair.fail()
        self.pair.promote()
        promoted = time.monotonic()
        if not self.pair.synchronous:
            self._txns |= self.pair.lost()
            self._spans.append((self._in_sync_since, promoted))
        served = max(self._first(self._enqueue, promoted), self._first(self._ack_by_worker, promoted))
        self.report.outages.append(served - killed)
        self.pair.rejoin()
        self._in_sync_since = time.monotonic()
        return served - killed

    def finish(self) -> Report:
        """Let the workers do what is left, and compare."""
        self.load.stop_producing()
        dsn = self.pair.dsn(DBNAME)
        with psycopg.connect(dsn, autocommit=True) as db:
            self._wait(lambda: stats(db, QUEUE) == {}, "everything is done", 180)
            self.load.stop()
            retire_all(db)
        losses = Losses(frozenset(self._txns), self._spans)
        self.report.verdict = compare(self._reader.refresh(), read(dsn), losses)
        self.report.lost_txns = len(self._txns)
        return self.report

    def _progress(self, jobs: int) -> None:
        """Let at least so many jobs be enqueued, and done by workers."""
        since = time.monotonic()
        wanted = self._dice.randint(jobs, 2 * jobs)
        for kind in (self._enqueue, self._ack_by_worker):
            self._wait(
                lambda kind=kind: sum(kind(e) and e.at > since for e in self._news()) >= wanted,  # type: ignore[misc]
                f"{wanted} jobs enqueued and done",
            )

    def _first(self, kind: Callable[[Event], bool], after: float) -> float:
        """Wait for the first event of a kind after a moment, and return when it was."""
        found: list[float] = []

        def look() -> bool:
            found.extend(event.at for event in self._news() if kind(event) and event.at > after)
            return bool(found)

        self._wait(look, "service after the promotion")
        return min(found)

    def _news(self) -> list[Event]:
        """The youngest events; enough of them for one step."""
        return self._reader.refresh()[-5000:]

    @staticmethod
    def _enqueue(event: Event) -> bool:
        return event.what == "enqueue" and event.outcome == "ok"

    @staticmethod
    def _ack_by_worker(event: Event) -> bool:
        return event.what == "ack" and event.outcome == "ok" and event.by.startswith("worker")

    def _wait(self, condition: Callable[[], object], what: str, timeout: float = 120) -> None:
        def met() -> object:
            self.load.check()
            return condition()

        eventually(met, what, timeout)


@contextmanager
def rounds(path: Path, bin_dir: Path, *, synchronous: bool, seed: int) -> Iterator[Rounds]:
    """A pair under load, in a directory that is made for it."""
    path.mkdir()
    path.chmod(0o711)
    with paired(path / "pair", bin_dir, install, synchronous=synchronous) as pair:
        running = Rounds(pair, path / "history", seed)
        running.load.start()
        try:
            yield running
        finally:
            running.load.stop()
