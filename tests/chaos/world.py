"""A database in which a story is played, with everything on record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from tests.chaos import dump
from tests.chaos.checker import check
from tests.chaos.drain import drain, retire
from tests.chaos.history import Recorder, added, load
from tests.chaos.session import Session
from tests.chaos.violations import Violation

LEASE_LOST = "PQ001"
# A story is short: what has not come to an end after so many turns never does.
PATIENCE = 12


class World:
    """Sessions on record, and a clock. The queue `q` holds jobs for a minute and has one shard."""

    def __init__(self, dsn: str, folder: Path, **settings: Any) -> None:
        self.dsn = dsn
        self.folder = folder
        self._sessions: list[Session] = []
        self._ahead = 0.0
        self.conductor = self.session("conductor")
        defaults = {"max_attempts": 3, "backoff": "20 minutes", "backoff_max": "1 hour", "shards": 1}
        self.conductor.create_queue("q", **{**defaults, **settings})

    def session(self, name: str) -> Session:
        session = Session(Recorder(self.folder, name), self.dsn, name)
        self._sessions.append(session)
        return session

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._ahead += seconds
        self.conductor.set_clock(self._ahead)
        self.conductor.look()

    def await_lock(self, session: Session, call: Future[Any]) -> None:
        """Wait until a session waits for a lock, or its call has returned after all."""
        query = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
        while not call.done():
            ((waits,),) = self.conductor.connection.execute(query, [session.connection.info.backend_pid]).fetchall()
            if waits:
                return
            time.sleep(0.002)

    def finish(self) -> list[Violation]:
        """Work off what is left, and check."""
        for session in self._sessions[1:]:
            session.look()
            session.close()
        self.conductor.quiet()
        ahead = drain(self.conductor, ["q"], self._ahead, PATIENCE)
        retire(self.conductor, ahead, PATIENCE)
        operations = load(self.folder)
        ids = [id for operation in operations for id in added(operation)]
        return check(operations, dump.read(self.conductor.connection, ids))

    def close(self) -> None:
        for session in self._sessions:
            session.close()


@contextmanager
def refused() -> Iterator[None]:
    """Something that an engine in order refuses because the lease is lost."""
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate != LEASE_LOST:
            raise
