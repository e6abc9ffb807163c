"""What all clients have in common: orders from the conductor, connections that come back, dice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import psycopg

from tests.chaos.history import Recorder
from tests.chaos.session import Boundary, ConnectionLost, Session

STATEMENT_TIMEOUT = "30s"
"""Nothing in a run takes that long, unless it waits for something that never ends."""
TIMEOUTS = ("1ms", "3ms", "10ms", "30ms")


@dataclass(frozen=True)
class Assignment:
    """Who a client is.

    name: its role and number; incarnation: how many there were before it.
    seed: of its decisions. pace: 1 is leisurely, 0 as fast as it can.
    habits: faults that clients commit themselves: timeouts, prepared, rollback.
    """

    name: str
    incarnation: int
    dsn: str
    folder: str
    seed: str
    pace: float
    habits: frozenset[str]

    @property
    def client(self) -> str:
        return f"{self.name}.{self.incarnation}"


class Client:
    """A process that goes on until it is told to quit."""

    boundaries: ClassVar[tuple[Boundary, ...]] = ("invoked", "answered", "committed")
    """Where it can be ordered to die or to stop."""
    alone: ClassVar[bool] = False

    def __init__(self, assignment: Assignment, orders: Connection) -> None:
        self.me = assignment
        self.dice = random.Random(f"{assignment.seed} {assignment.client}")
        self._quitting = False
        self._orders = orders
        self._due: dict[Boundary, str] = {}
        self._sessions: list[Session] = []
        self._recorder = Recorder(Path(assignment.folder), assignment.client)
        self._hurried = 0

    # Orders -----------------------------------------------------------------------------------------------------------

    def boundary(self, where: Boundary) -> None:
        """Take orders, and obey the one that is due here."""
        try:
            while self._orders.poll():
                order, at = self._orders.recv()
                if order == "quit":
                    self._quitting = True
                else:
                    self._due[at] = order
            due = self._due.pop(where, None)
            if due == "stop":
                self._orders.send("stopped")
        except (EOFError, OSError):
            os._exit(1)  # the conductor is gone
        if due is not None:
            os.kill(os.getpid(), signal.SIGKILL if due == "kill" else signal.SIGSTOP)

    def going(self) -> bool:
        """Whether nobody has told it to quit."""
        return not self._quitting

    # Life -------------------------------------------------------------------------------------------------------------

    def main(self) -> None:
        """Connect and work, again and again."""
        while self.going():
            try:
                self.connect()
                while self.going():
                    self._step()
                for session in self._sessions:
                    session.look()
            except (ConnectionLost, psycopg.OperationalError):
                self.boundary("committed")
                time.sleep(self.dice.uniform(0.02, 0.2))
            finally:
                for session in self._sessions:
                    session.close()
                self._sessions = []

    def connect(self) -> None:
        """Open the sessions that step needs."""
        raise NotImplementedError

    def step(self) -> None:
        """Do something."""
        raise NotImplementedError

    def session(self, **settings: str) -> Session:
        session = Session(
            self._recorder,
            self.me.dsn,
            self.me.name,
            boundary=self.boundary,
            alone=self.alone,
            prepare_threshold=self.dice.choice([None, 1, 5]),
            options=f"-c statement_timeout={STATEMENT_TIMEOUT}",
        )
        self._sessions.append(session)
        for name, value in settings.items():
            session.set(name, value)
        return session

    def _step(self) -> None:
        self._hurry()
        try:
            self.step()
        except psycopg.Error as error:
            if isinstance(error, psycopg.OperationalError) and self._sessions[-1].connection.closed:
                raise
            for session in self._sessions:
                session.abandon()
            self.pause(0.05)

    def _hurry(self) -> None:
        """Now and then, give the server very little time for some steps."""
        if "timeouts" not in self.me.habits:
            return
        if self._hurried:
            self._hurried -= 1
            if not self._hurried:
                for session in self._sessions:
                    session.set("statement_timeout", STATEMENT_TIMEOUT)
                    session.set("lock_timeout", "0")
        elif self.dice.random() < 0.03:
            self._hurried = 5
            for session in self._sessions:
                session.set(self.dice.choice(["statement_timeout", "lock_timeout"]), self.dice.choice(TIMEOUTS))

    def pause(self, mean: float) -> None:
        """Wait for about so many seconds, by the pace."""
        if mean and self.me.pace:
            time.sleep(min(self.dice.expovariate(1 / mean), mean * 5) * self.me.pace)

    def choose(self, *ways: tuple[int, Callable[[], Any]]) -> Any:
        """Go one of the ways, by their weights."""
        (way,) = self.dice.choices([way for _, way in ways], [weight for weight, _ in ways])
        return way()
