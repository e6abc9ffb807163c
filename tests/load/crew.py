"""Client processes, each with some threads: they are started, listened to and stopped from here."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Protocol

import psycopg

from .record import Figures, Recorder
from .server import Connection
from .tally import Tally

# A client whose work is done ends within this time, also on a machine that others keep busy.
PATIENCE = 120


class CrewError(RuntimeError):
    """A client failed, or did not end."""


@dataclass
class Site:
    """What a task finds in its process."""

    dsn: str
    recorder: Recorder = field(default_factory=Recorder)
    enqueued: Tally = field(default_factory=Tally)
    done: Tally = field(default_factory=Tally)
    stopping: threading.Event = field(default_factory=threading.Event)

    def connect(self, name: str) -> Connection:
        return psycopg.connect(self.dsn, autocommit=True, application_name=name)


class Task(Protocol):
    """What one thread of a client process does until it is done, or `site.stopping` is set."""

    def run(self, site: Site) -> None: ...


@dataclass(frozen=True)
class _Report:
    figures: Figures
    failure: str | None = None
    ended: bool = False


def _work(tasks: Sequence[Task], dsn: str, folder: Path, flush: float, pipe: Pipe[Any, Any]) -> None:
    """The main thread of a client process. It stops when it is told to, or when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    site = Site(dsn)
    failures: list[str] = []

    def guarded(task: Task) -> None:
        try:
            task.run(site)
        except BaseException:
            failures.append(traceback.format_exc())
            site.stopping.set()

    threads = [threading.Thread(target=guarded, args=[task], daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            if pipe.poll(flush):
                pipe.recv()
                site.stopping.set()
                for thread in threads:
                    thread.join(PATIENCE)
            pipe.send(_Report(site.recorder.take()))
        name = multiprocessing.current_process().name
        site.enqueued.save(folder / f"{name}.enqueued")
        site.done.save(folder / f"{name}.done")
        pipe.send(_Report(site.recorder.take(), "\n".join(failures) or None, ended=True))
    except (EOFError, BrokenPipeError):
        pass


@dataclass
class Member:
    """A client process, as its parent sees it."""

    process: multiprocessing.process.BaseProcess
    pipe: Pipe[Any, Any]
    ended: threading.Event = field(default_factory=threading.Event)
    listener: threading.Thread = field(init=False)


class Crew:
    """All client processes of a run."""

    def __init__(self, dsn: str, folder: Path, flush: float = 0.5) -> None:
        self._dsn, self._folder, self._flush = dsn, folder, flush
        self._context = multiprocessing.get_context("spawn")
        self.members: list[Member] = []
        self._failures: list[str] = []
        self._lock = threading.Lock()
        self._recent = Recorder()
        self.totals: Counter[str] = Counter()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.process.kill()
            member.process.join(PATIENCE)
            member.listener.join(PATIENCE)
            member.pipe.close()

    def start(self, name: str, tasks: Sequence[Task]) -> Member:
        """Start a process with a thread for each task."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, name=name, args=[tasks, self._dsn, self._folder, self._flush, theirs], daemon=True
        )
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        member = Member(process, ours)
        self.members.append(member)
        member.listener = threading.Thread(target=self._listen, args=[name, member, ours], daemon=True)
        member.listener.start()
        return member

    def _listen(self, name: str, member: Member, pipe: Pipe[Any, Any]) -> None:
        try:
            while not member.ended.is_set():
                report: _Report = pipe.recv()
                with self._lock:
                    self.totals.update(report.figures.counts)
                    self._recent.add(report.figures)
                    if report.failure:
                        self._failures.append(f"{name}: {report.failure}")
                if report.ended:
                    member.ended.set()
        except (EOFError, OSError):
            with self._lock:
                self._failures.append(f"{name} ended without a word")
            member.ended.set()

    def take(self) -> Figures:
        """What all clients reported since the last call."""
        return self._recent.take()

    def check(self) -> None:
        """Raise if a client has failed."""
        with self._lock:
            if self._failures:
                raise CrewError("\n".join(self._failures))

    def wait(self, members: Iterable[Member], seconds: float) -> bool:
        """Wait until these processes have ended by themselves; whether they have."""
        until = time.monotonic() + seconds
        for member in members:
            while not member.ended.wait(0.1):
                self.check()
                if time.monotonic() > until:
                    return False
        self.check()
        return True

    def stop(self, members: Iterable[Member]) -> None:
        """Ask these processes to end, and wait for it."""
        members = list(members)
        for member in members:
            with contextlib.suppress(BrokenPipeError):  # it has just ended by itself
                member.pipe.send("stop")
        if not self.wait(members, PATIENCE):
            names = ", ".join(m.process.name for m in members if not m.ended.is_set())
            raise CrewError(f"not ended within {PATIENCE} s: {names}")
        for member in members:
            member.process.join(PATIENCE)

    def enqueued(self) -> Tally:
        """All ids that were enqueued, once the processes have ended."""
        return Tally.load(self._folder.glob("*.enqueued"))

    def done(self) -> Tally:
        """All ids whose ack took effect, once the processes have ended."""
        return Tally.load(self._folder.glob("*.done"))
