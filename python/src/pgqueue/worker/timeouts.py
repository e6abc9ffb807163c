"""Ending handlers that run for longer than they may."""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep
from typing import Literal

from pgqueue.outcomes import TimedOut
from pgqueue.worker.slots import Item

# Seconds in which a handler that was told to end has to do so.
LAST_SECOND = 1.0
LONGEST_SLEEP = 60.0


class GivenUp(Exception):
    """The handler has ended too late: its job was taken from it."""


class Run:
    """One attempt that has a timeout and begins now.

    Args:
        item: the job and its task.
        timeout: seconds.
        thread: where it runs; None: in the event loop, which ends it itself.
    """

    def __init__(self, item: Item, timeout: float, thread: int | None) -> None:
        self.item = item
        self.ends_at = monotonic() + timeout
        self.thread = thread
        self.told = False
        self._decided: dict[str, str] = {}

    def decide(self, what: Literal["told", "given up"], who: Literal["handler", "watch"]) -> bool:
        """Whether it is who decides this: the first of the two to ask, however often they do."""
        return self._decided.setdefault(what, who) == who


class Timeouts:
    """Watches the attempts that have a timeout, from a thread of its own, which is started with the first of them.

    A function is told to end by an exception in its thread. A coroutine is told by the event loop (asyncio.wait_for),
    which cannot do so while the coroutine blocks it.

    The exception may come at any step that is written in Python, also in ``remove``, and, from Python 3.14 on, between
    the steps of a ``with``. So there are no locks where it may come: what both the watch and the end of the handler
    want to decide is decided by one call of ``dict.setdefault``, which is written in C, and ``remove`` may be called
    again.

    Args:
        overdue: called with what does not end although it was told to; from the thread.
    """

    def __init__(self, overdue: Callable[[Item], object]) -> None:
        self._overdue = overdue
        self._runs: set[Run] = set()
        self._sooner: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._next_at = 0.0
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, run: Run) -> None:
        """Watch an attempt."""
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._watch, name="pgq-timeouts", daemon=True)
                    self._thread.start()
        self._runs.add(run)
        if run.ends_at < self._next_at:
            self._sooner.put(None)

    def remove(self, run: Run) -> None:
        """No longer watch an attempt. A thread that was told to end, and has not noticed yet, is told no more.

        Raises:
            GivenUp: its end comes too late.
        """
        self._runs.discard(run)
        if not run.decide("told", "handler") and run.thread is not None:
            while not run.told:
                sleep(0)
            _raise_in(run.thread, None)
        if not run.decide("given up", "handler"):
            raise GivenUp

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._sooner.put(None)

    def _watch(self) -> None:
        while not self._stopped:
            self._next_at = float("inf")  # what is added from here on says so
            now = monotonic()
            next_at = now + LONGEST_SLEEP
            for run in list(self._runs):
                if not run.told and run.ends_at <= now and run.decide("told", "watch"):
                    if run.thread is not None:
                        _raise_in(run.thread, TimedOut)
                    run.told = True
                if run.ends_at + LAST_SECOND <= now and run.decide("given up", "watch"):
                    self._runs.discard(run)
                    self._overdue(run.item)
                else:
                    next_at = min(next_at, run.ends_at + LAST_SECOND * run.told)
            self._next_at = next_at
            with suppress(queue.Empty):
                self._sooner.get(timeout=max(next_at - monotonic(), 0))


def _raise_in(thread: int, exception: type[BaseException] | None) -> None:
    """Raise an exception in a thread as soon as it executes Python code, or take that back."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if exception is None else ctypes.py_object(exception)
    )
