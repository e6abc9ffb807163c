"""Claiming jobs for the free slots."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, Literal

from pgqueue import _calls
from pgqueue._calls import Interval
from pgqueue.app import Task
from pgqueue.errors import QueueNotFound
from pgqueue.worker.leases import Leases
from pgqueue.worker.link import Link
from pgqueue.worker.listen import Listener
from pgqueue.worker.run import unknown
from pgqueue.worker.settle import Settler
from pgqueue.worker.slots import Item, Slots
from pgqueue.worker.wake import Wake

log = logging.getLogger("pgqueue.worker")

Mode = Literal["forever", "drain", "once"]

# Jobs are claimed ahead for so many seconds of work, by the rate at which jobs finish: none if they are slow.
AHEAD = 0.1
MOST_AHEAD = 2000
# The rate is measured over at least so many seconds.
WINDOW = 0.05
# A worker that had work for so many seconds no longer asks to be notified.
BUSY = 0.1
SHORTEST_SLEEP = 0.02
MOST_PENDING = 4 * MOST_AHEAD


class _Stopped(Exception):
    """The worker stops while the fetcher waits for the database."""


class Fetcher:
    """Fills the slots, and sleeps while there is nothing to fetch.

    Args:
        link: connection for claims; they need not be durable.
        listener: wakes it up; None: it polls.
        slots: where jobs go.
        settler: takes the jobs that have no task here; and nothing is fetched while it is behind.
        leases: told what was claimed.
        tasks: what this worker can run.
        fallback: runs the jobs of all other tasks; None: they are rejected.
        queues: where to fetch, each in its turn, and as often as it is named.
        lease_for: how long to hold jobs; None: the queue's setting.
        poll: seconds to sleep at most.
        worker: name to claim under.
        mode: ``drain`` ends when nothing is ready, ``once`` after one job.
        wake: ends its sleep.
    """

    def __init__(
        self,
        link: Link,
        listener: Listener | None,
        slots: Slots,
        settler: Settler,
        leases: Leases,
        tasks: Mapping[str, Task[..., Any]],
        fallback: Task[..., Any] | None,
        queues: Sequence[str],
        *,
        lease_for: Interval | None,
        poll: float,
        worker: str,
        mode: Mode,
        wake: Wake,
    ) -> None:
        self._link = link
        self._listener = listener
        self._slots = slots
        self._settler = settler
        self._leases = leases
        self._tasks = tasks
        self._fallback = fallback
        self._queues = deque(queues)
        self._lease_for = lease_for
        self._poll = min(poll, 50.0)  # a watch counts for a minute
        self._worker = worker
        self._mode = mode
        self._wake = wake
        self._missing: set[str] = set()
        self._started = False
        self._rate = 0.0
        self._measured = (monotonic(), 0)
        self._slept_at = monotonic()
        self._watch_again_at = 0.0
        self._due_at = float("inf")
        self.stopping = False

    def notified(self, queue: str) -> None:
        """Fetch from this queue first, and now."""
        if queue in self._queues:
            self._queues.rotate(-self._queues.index(queue))
        self._wake.set()

    def stop(self) -> None:
        """Let ``run`` end after the claim on its way. From any thread."""
        self.stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Fetch until stopped or, depending on the mode, until there is nothing more to do."""
        try:
            while not self.stopping and await self._step():
                pass
            if self._mode != "forever":
                while self._slots.held and not self.stopping:
                    await self._held_at_most(0)
        except _Stopped:
            return

    async def _step(self) -> bool:
        """Fetch once, or wait; returns whether to go on."""
        await self._settler.below(MOST_PENDING)
        room = await self._room()
        if room <= 0:
            return True
        was_empty = self._slots.held == 0
        if await self._fetch(room):
            await self._unwatch_if_busy()
            return self._mode != "once"
        if self._mode == "forever":
            await self._sleep(room)
        elif not was_empty:
            await self._held_at_most(0)
            await self._settler.idle()
        else:  # a job that ran might have enqueued another, so this counts only if none did
            return await self._link.insist(_calls.promote(), self._pause) > 0
        return True

    async def _room(self) -> int:
        """Wait until there is room for more jobs; returns for how many, and 0 to be asked again."""
        if self._mode == "once":
            return 1
        slots = self._slots
        ahead = self._ahead()
        limit = slots.limit + ahead
        mark = limit - max(1, ahead // 2)
        if slots.held > mark:
            if not await self._held_at_most(mark, BUSY):
                if slots.waiting > 2 * (ahead + slots.limit):
                    # Jobs have become slower meanwhile: others may have time for those that wait here.
                    shed = slots.shed(ahead)
                    log.info("giving back %s jobs claimed ahead", len(shed))
                    await self._settler.release([item.job for item in shed])
                await self._unwatch_if_busy()
                await self._held_at_most(mark, self._poll)
            await self._unwatch_if_busy()
            return 0
        return limit - slots.held

    async def _held_at_most(self, count: int, timeout: float | None = None) -> bool:
        """Wait until no more than so many jobs wait or run; may return early."""
        self._slots.low_mark = count
        if self._slots.held > count and not self.stopping:
            return await self._wake.wait(timeout)
        return True

    def _ahead(self) -> int:
        """Return how many jobs to claim beyond those that run."""
        now, finished = monotonic(), self._slots.finished
        then, finished_then = self._measured
        if now - then >= WINDOW:
            rate = (finished - finished_then) / (now - then)
            self._rate = rate if rate > self._rate else (rate + self._rate) / 2
            self._measured = (now, finished)
        return min(int(self._rate * AHEAD), MOST_AHEAD)

    async def _fetch(self, room: int) -> int:
        """Claim from each queue in turn until the room is used; returns how many jobs came."""
        claimed = 0
        for queue in tuple(dict.fromkeys(self._queues)):
            if claimed < room:
                claimed += await self._claim(queue, room - claimed)
        self._queues.rotate(-1)
        self._started = True
        return claimed

    async def _claim(self, queue: str, batch: int) -> int:
        claimed_at = monotonic()
        call = _calls.claim_held(queue, batch, self._lease_for, self._worker)
        try:
            jobs = await self._link.insist(call, self._pause)
        except QueueNotFound as error:
            if not self._started:
                raise
            if queue not in self._missing:
                log.error("%s; looking again until it is back", error.message)
                self._missing.add(queue)
            return 0
        self._missing.discard(queue)
        if jobs:
            self._leases.add(jobs, claimed_at)
            tasks = self._tasks
            items = []
            for job in jobs:
                task = tasks.get(job.task or "", self._fallback)
                if task is None:
                    error_text = unknown(job, tasks)
                    log.error("job %s of queue %s: %s", job.id, queue, error_text)
                    self._settler.reject(job, error_text)
                else:
                    items.append(Item(job, task))
            self._slots.put(items)
        return len(jobs)

    async def _sleep(self, room: int) -> None:
        """Sleep until there may be something to fetch."""
        now = monotonic()
        if self._listener is not None and (not self._listener.watching or now >= self._watch_again_at):
            due_in = await self._listener.watch()
            self._due_at = float("inf") if due_in is None else now + due_in
            self._watch_again_at = now + self._poll
            # What came between the last claim and the watch was not notified.
            if await self._fetch(room):
                return
        due_in = max(self._due_at - monotonic(), SHORTEST_SLEEP)
        woken = self.stopping or await self._wake.wait(min(self._poll, due_in))
        self._slept_at = monotonic()
        if not woken and self._slept_at >= self._due_at:
            self._watch_again_at = 0.0
            await self._link.insist(_calls.promote(), self._pause)

    async def _unwatch_if_busy(self) -> None:
        """Let producers be spared the notification while there is work anyway."""
        if self._listener is not None and monotonic() > self._slept_at + BUSY:
            await self._listener.unwatch()

    async def _pause(self, seconds: float) -> None:
        """Wait before the next attempt to reach the database, and give up when the worker stops."""
        if self.stopping:
            raise _Stopped
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0:
            await self._wake.wait(left)
            if self.stopping:
                raise _Stopped
