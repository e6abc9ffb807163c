"""Settling: results and errors go back to the database in batches."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import psycopg

from pgqueue import _calls
from pgqueue._calls import Call, HeldJob, JsonText
from pgqueue.errors import LeaseLost, PgqError
from pgqueue.worker.leases import Leases
from pgqueue.worker.link import Link
from pgqueue.worker.wake import Wake

log = logging.getLogger("pgqueue.worker")

T = TypeVar("T")
LARGEST_BATCH = 2000
# A bit of the lease says that its jobs count against a limit, so that another one may start when they have ended.
COUNTED = 16


class Settler:
    """Takes what became of jobs from any thread, and writes it at once.

    There is no timer: while a batch is on its way the next one gathers, so a batch is as large as the database is
    slow, and a single job is settled immediately.

    Args:
        link: connection with durable commits.
        leases: told what is no longer held.
        freed: called when jobs have ended that others may have been waiting for.
    """

    def __init__(self, link: Link, leases: Leases, freed: Callable[[], object]) -> None:
        self._link = link
        self._leases = leases
        self._freed = freed
        self._busy = False
        self._acks: deque[tuple[HeldJob, JsonText | None]] = deque()
        self._rejects: deque[tuple[HeldJob, str]] = deque()
        self._others: deque[tuple[HeldJob, Call[Any], str]] = deque()
        self._wake = Wake()
        self._room = Wake()
        self._stopped = asyncio.Event()

    def ack(self, job: HeldJob, result: JsonText | None) -> None:
        """Take the result of a job. From any thread."""
        self._acks.append((job, result))
        self._wake.set()

    def reject(self, job: HeldJob, error: str) -> None:
        """Take the error of a job. From any thread."""
        self._rejects.append((job, error))
        self._wake.set()

    def settle(self, job: HeldJob, call: Call[Any], what: str) -> None:
        """Take a call that settles a job otherwise, and what that is called. From any thread."""
        self._others.append((job, call, what))
        self._wake.set()

    def forget(self, job: HeldJob) -> None:
        """Note that its handler has settled a job. From any thread."""
        self._leases.drop([job])
        if job.lease & COUNTED:
            self._freed()

    @property
    def pending(self) -> int:
        """How many jobs have an outcome that is not written yet, apart from a batch on its way."""
        return len(self._acks) + len(self._rejects) + len(self._others)

    async def below(self, limit: int) -> None:
        """Wait until fewer jobs than this are pending, which slows the fetcher down to what can be settled."""
        while self.pending >= limit and not self._stopped.is_set():
            await self._room.wait(1)

    async def idle(self) -> None:
        """Wait until everything is written."""
        while (self.pending or self._busy) and not self._stopped.is_set():
            await self._room.wait(1)

    async def run(self) -> None:
        """Write what comes in, until ``stop`` and nothing is left."""
        while not (self._stopped.is_set() and not self.pending):
            if not self.pending:
                await self._wake.wait()
            self._busy = True
            await self._flush()
            self._busy = False
            self._room.set()

    def stop(self) -> None:
        """Let ``run`` end as soon as everything is written."""
        self._stopped.set()
        self._wake.set()

    async def release(self, jobs: Sequence[HeldJob]) -> None:
        """Give jobs back to the front of their queue."""
        if jobs:
            ids, leases = _columns(jobs)
            await self._send(_calls.release(ids, leases), jobs, "released")

    async def _flush(self) -> None:
        if acks := _take(self._acks):
            await self._ack(acks)
        if rejects := _take(self._rejects):
            await self._reject(rejects)
        for job, call, what in _take(self._others):
            await self._settle(job, call, what)

    async def _settle(self, job: HeldJob, call: Call[Any], what: str) -> None:
        one = replace(call, decode=lambda rows: [job.id])
        try:
            await self._send(one, [job], what)
        except LeaseLost:
            self._leases.drop([job])
            log.warning("lease lost, so not %s: job %s", what, job.id)
        except (psycopg.Error, PgqError) as error:
            log.error("job %s cannot be %s: %s", job.id, what, error)
            await self._reject([(job, f"the job cannot be {what}: {error}")])

    async def _ack(self, batch: list[tuple[HeldJob, JsonText | None]]) -> None:
        jobs = [job for job, _ in batch]
        ids, leases = _columns(jobs)
        results = None
        if any(result is not None for _, result in batch):
            results = [result for _, result in batch]
        try:
            await self._send(_calls.ack_many(ids, leases, results), jobs, "acknowledged")
        except (psycopg.Error, PgqError) as error:
            if len(batch) > 1:
                await self._one_by_one(self._ack, batch)
            else:
                log.error("job %s: its result cannot be stored: %s", ids[0], error)
                await self._reject([(jobs[0], f"the result cannot be stored: {error}")])

    async def _reject(self, batch: list[tuple[HeldJob, str]]) -> None:
        jobs = [job for job, _ in batch]
        ids, leases = _columns(jobs)
        errors = [error for _, error in batch]
        try:
            await self._send(_calls.reject_many(ids, leases, errors), jobs, "rejected")
        except (psycopg.Error, PgqError) as error:
            if len(batch) > 1:
                await self._one_by_one(self._reject, batch)
            else:
                log.error("job %s cannot be rejected, its lease will expire: %s", ids[0], error)
                self._leases.drop(jobs)

    async def _one_by_one(self, settle: Callable[[list[T]], object], batch: list[T]) -> None:
        """Settle a batch in which something is wrong so that only the wrong ones fail."""
        for one in batch:
            await settle([one])  # type: ignore[misc]

    async def _send(self, call: Call[list[int]], jobs: Sequence[HeldJob], what: str) -> None:
        attempts = 0

        async def pause(seconds: float) -> None:
            nonlocal attempts
            attempts += 1
            await asyncio.sleep(seconds)

        settled = await self._link.insist(call, pause)
        self._leases.drop(jobs)
        log.debug("%s: jobs %s", what, settled)
        if any(job.lease & COUNTED for job in jobs):
            self._freed()
        if len(settled) < len(jobs):
            lost = sorted({job.id for job in jobs} - set(settled))
            if attempts:
                # The attempt before may have been committed although its answer got lost.
                log.info("not %s now, but perhaps before the connection broke: %s", what, lost)
            else:
                log.warning("lease lost, so not %s: jobs %s", what, lost)


def _take(queue: deque[T]) -> list[T]:
    return [queue.popleft() for _ in range(min(len(queue), LARGEST_BATCH))]


def _columns(jobs: Iterable[HeldJob]) -> tuple[list[int], list[int]]:
    return [job.id for job in jobs], [job.lease for job in jobs]
