"""Ending handlers that run for longer than they may."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from pgqueue.outcomes import TimedOut
from pgqueue.worker.slots import Item

# Seconds in which a handler that was told to end has to do so.
LAST_SECOND = 1.0


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

    Args:
        overdue: called with what does not end although it was told to; from the thread.
    """

    def __init__(self, overdue: Callable[[Item], object]) -> None:
        self._overdue = overdue
        self._runs: dict[int, _Run] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, item: Item, timeout: float, *, in_thread: bool) -> None:
        """Watch an attempt that begins now, in this thread or in the event loop."""
        thread = threading.get_ident() if in_thread else None
        with self._changed:
            self._runs[id(item)] = _Run(item, monotonic() + timeout, thread)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="pgq-timeouts", daemon=True)
                self._thread.start()
            self._changed.notify()

    def remove(self, item: Item) -> None:
        """No longer watch an attempt. A thread that was told to end, and has not noticed yet, is told no more."""
        with self._changed:
            run = self._runs.pop(id(item), None)
            if run is not None and run.told and run.thread is not None:
                _raise_in(run.thread, None)

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._stopped:
                    return
                now = monotonic()
                for run in self._runs.values():
                    if not run.told and run.ends_at <= now:
                        run.told = True
                        if run.thread is not None:
                            _raise_in(run.thread, TimedOut)
                overdue = [run.item for run in self._runs.values() if run.ends_at + LAST_SECOND <= now]
                for item in overdue:
                    del self._runs[id(item)]
                next_at = min((run.ends_at + LAST_SECOND * run.told for run in self._runs.values()), default=None)
                if not overdue:
                    self._changed.wait(None if next_at is None else max(next_at - now, 0))
            for item in overdue:
                self._overdue(item)


def _raise_in(thread: int, exception: type[BaseException] | None) -> None:
    """Raise an exception in a thread as soon as it executes Python code, or take that back."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if exception is None else ctypes.py_object(exception)
    )
