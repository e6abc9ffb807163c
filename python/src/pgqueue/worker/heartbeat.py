"""Extending leases, from a thread and a connection of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

import psycopg

from pgqueue import _calls
from pgqueue._calls import HeldJob, Interval
from pgqueue.errors import LeaseLost, PgqError
from pgqueue.worker.leases import Leases
from pgqueue.worker.link import Link, is_transient
from pgqueue.worker.wake import Wake

log = logging.getLogger("pgqueue.worker")


class Heartbeat:
    """Extends every lease after a third of its time, so that a handler may run for as long as it likes.

    It asks at the same time whether jobs are to stop.

    It has an event loop of its own: a handler that blocks the worker's keeps its lease.

    Args:
        link: opened in the heartbeat's thread, when the first lease is a third old.
        leases: what to extend.
        lease_for: for how long; None: the queue's setting.
        lost: called with the leases that were lost; from the heartbeat's thread.
        cancelled: called with the jobs that are asked to stop; from the heartbeat's thread.
    """

    def __init__(
        self,
        link: Link,
        leases: Leases,
        lease_for: Interval | None,
        lost: Callable[[list[int]], None],
        cancelled: Callable[[list[int]], None],
    ) -> None:
        self._link = link
        self._leases = leases
        self._lease_for = lease_for
        self._lost = lost
        self._cancelled = cancelled
        self._overdue: deque[tuple[HeldJob, str]] = deque()
        self._stopping = False
        self._wake: Wake | None = None
        self._thread = threading.Thread(target=self._main, name="pgq-heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def reject(self, job: HeldJob, error: str) -> None:
        """Take a job from its handler, which may be blocking the event loop of all others. From any thread."""
        self._overdue.append((job, error))
        if self._wake is not None:
            self._wake.set()

    async def stop(self) -> None:
        """End the thread and close the connection."""
        self._stopping = True
        if self._wake is not None:
            self._wake.set()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, 5)

    def _main(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._wake = Wake()
        self._leases.sooner = self._wake.set
        try:
            while not self._stopping:
                due, seconds = self._leases.due(monotonic())
                if due:
                    seconds = await self._extend(due)
                if self._overdue:
                    seconds = min(seconds, await self._reject())
                await self._wake.wait(seconds)
        finally:
            await self._link.close()

    async def _extend(self, due: list[int]) -> float:
        """Extend leases; returns after how many seconds to look again."""
        asked_at = monotonic()
        try:
            expires_in = await self._link.call(_calls.extend_held(due, self._lease_for))
        except (psycopg.Error, PgqError) as error:
            if is_transient(error):
                return self._link.pause
            log.error("cannot extend %s leases: %s", len(due), str(error).strip())
            return 1.0
        lost = self._leases.extended(due, expires_in, asked_at)
        if lost:
            log.warning("leases lost, others will run their jobs: %s", lost)
            self._lost(lost)
        await self._ask(due)
        return 0

    async def _reject(self) -> float:
        """Reject what does not end; returns after how many seconds to try again."""
        while self._overdue:
            job, error = self._overdue[0]
            try:
                await self._link.call(_calls.reject(job.id, job.lease, error))
            except LeaseLost:
                log.info("job %s had lost its lease before its timeout", job.id)
            except (psycopg.Error, PgqError) as problem:
                if is_transient(problem):
                    return self._link.pause
                log.error("job %s cannot be rejected, its lease will expire: %s", job.id, str(problem).strip())
            self._overdue.popleft()
            self._leases.drop([job])
        return float("inf")

    async def _ask(self, leases: list[int]) -> None:
        """Find out which jobs are to stop. If that fails, they are extended all the same."""
        try:
            cancelled = await self._link.call(_calls.cancel_requested(leases))
        except (psycopg.Error, PgqError) as error:
            log.warning("cannot ask which jobs are to stop: %s", str(error).strip())
            return
        if cancelled:
            log.info("asked to stop: jobs %s", cancelled)
            self._cancelled(cancelled)
