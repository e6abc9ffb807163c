"""The jobs that this process has claimed and not yet finished, and who may start the next one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from pgqueue._calls import HeldJob
from pgqueue.app import Task


class Item(NamedTuple):
    """A claimed job and the task that runs it."""

    job: HeldJob
    task: Task[..., Any]


class Slots:
    """A queue of claimed jobs, of which at most ``limit`` run at the same time and start in order.

    Coroutines and threads take from it themselves, one after the other, so a job costs no hand-over. Whoever
    finishes a job takes the next one; nobody is woken for it. Since the order is kept between both kinds of
    handlers too, only the head of the queue decides who may take.

    Args:
        limit: how many jobs run at the same time.
        start_async: called to have up to so many coroutines take; from any thread.
        start_sync: called to have at least so many threads exist.
        low: called when the jobs held have become as few as ``low_mark``; from any thread.
    """

    def __init__(
        self,
        limit: int,
        *,
        start_async: Callable[[int], None],
        start_sync: Callable[[int], None],
        low: Callable[[], None],
    ) -> None:
        self.limit = limit
        self.running: dict[int, Item] = {}
        self.finished = 0
        self.cancelled: set[int] = set()
        """The jobs that run and are asked to stop."""
        self.low_mark = -1
        self._waiting: deque[Item] = deque()
        self._lock = threading.Lock()
        self._threads = threading.Condition(self._lock)
        self._start_async = start_async
        self._start_sync = start_sync
        self._low = low
        self._closed = False
        self._kinds: set[bool] = set()
        self._mixed = False

    @property
    def waiting(self) -> int:
        """How many jobs wait for a slot."""
        return len(self._waiting)

    @property
    def held(self) -> int:
        """How many jobs wait or run."""
        return len(self._waiting) + len(self.running)

    def put(self, items: list[Item]) -> None:
        """Add claimed jobs."""
        asyncs = sum(item.task.is_async for item in items)
        with self._lock:
            free = self.limit - len(self.running)
            self._waiting.extend(items)
            self._kinds |= {item.task.is_async for item in items}
            self._mixed = len(self._kinds) > 1
            if asyncs < len(items):
                wanted = min(free, len(items) - asyncs)
                self._start_sync(min(self.limit, len(self.running) + len(self._waiting)))
                self._threads.notify(wanted)
        if asyncs:
            self._start_async(min(free, asyncs))

    def take(self, is_async: bool, done: Item | None) -> Item | None:
        """Give back the slot of a finished job, and take the next job if it is this kind's turn.

        Args:
            is_async: the kind of handler that the caller can run.
            done: what the caller has finished, None if it comes for its first.
        """
        with self._lock:
            return self._take(is_async, done)

    def take_blocking(self, done: Item | None) -> Item | None:
        """Do the same for threads, and wait for work; None means the end."""
        with self._lock:
            while not self._closed:
                item = self._take(False, done)
                if item is not None:
                    return item
                done = None
                self._threads.wait()
            self._take(False, done)
            return None

    def _take(self, is_async: bool, done: Item | None) -> Item | None:
        running = self.running
        if done is not None:
            del running[id(done)]
            self.finished += 1
        item = None
        waiting = self._waiting
        if waiting and len(running) < self.limit and waiting[0].task.is_async == is_async:
            item = waiting.popleft()
            running[id(item)] = item
        if len(waiting) + len(running) <= self.low_mark:
            self.low_mark = -1
            self._low()
        if self._mixed and waiting and len(running) < self.limit:
            # Somebody of the other kind may have come for this head too early and left.
            if waiting[0].task.is_async:
                self._start_async(1)
            else:
                self._threads.notify()
        return item

    def lose(self, leases: Collection[int]) -> None:
        """Drop the jobs of leases that were lost, as far as they have not started."""
        with self._lock:
            self._take_back(lambda item: item.job.lease in leases)

    def cancel(self, ids: Collection[int]) -> list[Item]:
        """Ask running jobs to stop, and take back those of them that wait."""
        with self._lock:
            self.cancelled.intersection_update(item.job.id for item in self.running.values())
            self.cancelled.update(ids)
            return self._take_back(lambda item: item.job.id in ids)

    def _take_back(self, chosen: Callable[[Item], bool]) -> list[Item]:
        items = tuple(self._waiting)
        self._waiting.clear()
        self._waiting.extend(item for item in items if not chosen(item))
        return [item for item in items if chosen(item)]

    def shed(self, keep: int) -> list[Item]:
        """Take back the last jobs that wait, until only ``keep`` wait."""
        with self._lock:
            shed = [self._waiting.pop() for _ in range(len(self._waiting) - keep)]
        shed.reverse()
        return shed

    def close(self) -> None:
        """Let the threads end."""
        with self._lock:
            self._closed = True
            self._threads.notify_all()
