"""Ending handlers that run for longer than they may."""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from pgqueue.outcomes import TimedOut
from pgqueue.worker.slots import Item

# Seconds in which a handler that was told to end has to do so.
LAST_SECOND = 1.0
LONGEST_SLEEP = 60.0


@dataclass
class _Run:
    item: Item
    ends_at: float
    thread: int | None
    told: bool = False


class Timeouts:
    """Watches the attempts that have a timeout, from a thread of its own, which is started with the first of them.

    A function is told to end by an exception in its thread. A coroutine is told by the event loop (asyncio.wait_for),
    which cannot do so while the coroutine blocks it.

    The exception may come at any step that is written in Python, also here. So threads only enter a plain lock, and put
    something into a queue, both of which are written in C and never left half-way; a Condition or an Event would stay
    locked.

    Args:
        overdue: called with what does not end although it was told to; from the thread.
    """

    def __init__(self, overdue: Callable[[Item], object]) -> None:
        self._overdue = overdue
        self._runs: dict[int, _Run] = {}
        self._lock = threading.Lock()
        self._sooner: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._next_at = 0.0
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, item: Item, timeout: float, *, in_thread: bool) -> None:
        """Watch an attempt that begins now, in this thread or in the event loop."""
        thread = threading.get_ident() if in_thread else None
        run = _Run(item, monotonic() + timeout, thread)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="pgq-timeouts", daemon=True)
                self._thread.start()
            self._runs[id(item)] = run
            if run.ends_at < self._next_at:
                self._next_at = run.ends_at
                self._sooner.put(None)

    def remove(self, item: Item) -> None:
        """No longer watch an attempt. A thread that was told to end, and has not noticed yet, is told no more."""
        with self._lock:
            run = self._runs.pop(id(item), None)
            if run is not None and run.told and run.thread is not None:
                _raise_in(run.thread, None)

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._sooner.put(None)

    def _watch(self) -> None:
        while not self._stopped:
            now = monotonic()
            with self._lock:
                for run in self._runs.values():
                    if not run.told and run.ends_at <= now:
                        run.told = True
                        if run.thread is not None:
                            _raise_in(run.thread, TimedOut)
                overdue = [run.item for run in self._runs.values() if run.ends_at + LAST_SECOND <= now]
                for item in overdue:
                    del self._runs[id(item)]
                coming = (run.ends_at + LAST_SECOND * run.told for run in self._runs.values())
                self._next_at = min(coming, default=now + LONGEST_SLEEP)
            for item in overdue:
                self._overdue(item)
            with suppress(queue.Empty):
                self._sooner.get(timeout=max(self._next_at - monotonic(), 0))


def _raise_in(thread: int, exception: type[BaseException] | None) -> None:
    """Raise an exception in a thread as soon as it executes Python code, or take that back."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if exception is None else ctypes.py_object(exception)
    )
