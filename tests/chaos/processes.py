"""The processes of a run: clients, which take orders, and real workers, which take signals. All can be killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from psycopg.conninfo import make_conninfo

from tests.chaos.clients.base import Assignment
from tests.chaos.clients.cast import Part, play
from tests.programs import PGQ_WORKER

ROOT = Path(__file__).parents[2]
_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(["tests.chaos.clients.cast"])


class Performer(Protocol):
    """A process that the conductor has on stage."""

    name: str
    stopped: bool

    @property
    def alive(self) -> bool: ...
    @property
    def failure(self) -> str | None:
        """How it has ended by itself, which it never should; None: it has not."""

    def start(self, dsn: str, folder: Path, seed: str) -> None: ...
    def order(self, what: str, where: str) -> None:
        """Let it be killed or stopped at a boundary, or at once if that is `any`."""

    def stopped_itself(self) -> bool:
        """Whether it has obeyed an order to stop since the last question."""

    def proceed(self) -> None: ...
    def quit(self) -> None: ...
    def end(self, timeout: float) -> bool:
        """Wait for it; kill it if it takes too long. Returns whether that was not necessary."""


class _Signalled:
    """What both kinds have in common."""

    stopped = False

    @property
    def pid(self) -> int | None:
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        raise NotImplementedError

    def signal(self, number: int) -> None:
        if self.pid is not None and self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def proceed(self) -> None:
        self.stopped = False
        self.signal(signal.SIGCONT)

    def _at_once(self, what: str) -> None:
        if what == "stop":
            self.stopped = True
        self.signal(signal.SIGKILL if what == "kill" else signal.SIGSTOP)


class Actor(_Signalled):
    """A client."""

    def __init__(self, part: Part, pace: float, habits: frozenset[str]) -> None:
        self.name = part.name
        self._part = part
        self._pace = pace
        self._habits = habits
        self._incarnation = 0
        self._process: Any = None
        self._orders: Connection | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    @property
    def failure(self) -> str | None:
        code = self._process.exitcode if self._process is not None else None
        return f"{self.name} has ended with exit code {code}, see above" if code and code > 0 else None

    def start(self, dsn: str, folder: Path, seed: str) -> None:
        self._incarnation += 1
        self.stopped = False
        assignment = Assignment(self.name, self._incarnation, dsn, str(folder), seed, self._pace, self._habits)
        if self._orders is not None:
            self._orders.close()
        self._orders, theirs = _forkserver.Pipe()
        self._process = _forkserver.Process(target=play, args=(self.name, assignment, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def order(self, what: str, where: str) -> None:
        if where == "any":
            self._at_once(what)
        else:
            self._send((what, where))

    def stopped_itself(self) -> bool:
        with contextlib.suppress(EOFError, OSError):
            if self._orders is not None and self._orders.poll():
                self._orders.recv()
                self.stopped = True
                return True
        return False

    def quit(self) -> None:
        self._send(("quit", ""))

    def _send(self, order: tuple[str, str]) -> None:
        with contextlib.suppress(OSError):
            if self._orders is not None:
                self._orders.send(order)

    def end(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self.alive and time.monotonic() < deadline:
            self.proceed()  # it may obey an order to stop while we wait
            self._process.join(0.2)
        peaceful = not self.alive
        if not peaceful:
            self.signal(signal.SIGKILL)
            self._process.join(30)
        return peaceful


class RealWorker(_Signalled):
    """A process of pgq-worker."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._incarnation = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def failure(self) -> str | None:
        code = self._process.poll() if self._process is not None else None
        if self._log is None or code is None or code < 0:
            return None
        return f"{self.name} has ended with exit code {code}:\n{self._log.read_text()[-2000:]}"

    def start(self, dsn: str, folder: Path, seed: str) -> None:
        self._incarnation += 1
        self.stopped = False
        dice = random.Random(f"{seed} {self.name} {self._incarnation}")
        command = ["tests.chaos.handlers:app", "--queue", "real", "--no-maintain", "--poll", "0.3", "--grace", "5"]
        command += ["--concurrency", str(dice.choice([1, 4, 20])), "--name", f"{self.name}.{self._incarnation}"]
        command += ["--dsn", make_conninfo(dsn, application_name=self.name)]
        client = f"{self.name}.{self._incarnation}"
        self._log = folder / f"{client}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*PGQ_WORKER, *command],
                cwd=ROOT,
                env={**os.environ, "CHAOS_HISTORY": str(folder), "CHAOS_CLIENT": client},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def order(self, what: str, where: str) -> None:
        self._at_once(what)

    def stopped_itself(self) -> bool:
        return False

    def quit(self) -> None:
        self.signal(signal.SIGTERM)

    def end(self, timeout: float) -> bool:
        if self._process is None:
            return True
        try:
            self.proceed()
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self._process.wait(30)
            return False
        return True
