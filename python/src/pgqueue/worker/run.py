"""Calling the handlers: coroutines in the event loop, functions in threads."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import traceback
from collections.abc import Container, Mapping
from time import perf_counter
from typing import Any

from pgqueue._calls import HeldJob, JsonText, to_json
from pgqueue.app import Job, Task
from pgqueue.worker.settle import Settler
from pgqueue.worker.slots import Item, Slots
from pgqueue.worker.wake import Wake

log = logging.getLogger("pgqueue.worker")

# How long coroutines that never wait may keep the event loop to themselves, in seconds.
SLICE = 0.002
LONGEST_ERROR = 20_000


class Runner:
    """Runs the jobs of the slots, and tells the settler what became of them.

    Args:
        concurrency: how many jobs run at the same time.
        settler: takes results and errors.
        wake: set when the slots run low, see :class:`Slots`; the fetcher waits for it.
    """

    def __init__(self, concurrency: int, settler: Settler, wake: Wake) -> None:
        self.slots = Slots(concurrency, start_async=self._start_async, start_sync=self._start_sync, low=wake.set)
        self._wake = wake
        self._loop_thread = threading.get_ident()
        self._hurried = False
        self._settler = settler
        self._loop = asyncio.get_running_loop()
        self._coroutines: set[asyncio.Task[None]] = set()
        self._threads: list[threading.Thread] = []
        self._stopping = False

    def _start_async(self, count: int) -> None:
        if threading.get_ident() != self._loop_thread:
            self._loop.call_soon_threadsafe(self._start_async, count)
            return
        for _ in range(count):
            task = self._loop.create_task(self._run_coroutines())
            self._coroutines.add(task)
            task.add_done_callback(self._coroutines.discard)

    def _start_sync(self, count: int) -> None:
        while len(self._threads) < count:
            thread = threading.Thread(target=self._run_functions, name=f"pgq-run-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    async def _run_coroutines(self) -> None:
        """Run jobs until there is none left for a coroutine."""
        take, cancelled = self.slots.take, self.slots.cancelled
        item = take(True, None)
        until = perf_counter() + SLICE
        try:
            while item is not None:
                try:
                    result = await item.task.function(**arguments(item, cancelled))
                except BaseException as error:
                    if self._stopping and isinstance(error, asyncio.CancelledError):
                        return  # whoever stopped it releases the job
                    self._failed(item, error)
                else:
                    self._finished(item, result)
                item = take(True, item)
                if perf_counter() > until:
                    await asyncio.sleep(0)
                    until = perf_counter() + SLICE
        except asyncio.CancelledError:
            return

    def _run_functions(self) -> None:
        """Run jobs until the slots are closed; the main function of a thread."""
        take, cancelled = self.slots.take_blocking, self.slots.cancelled
        copy_context = contextvars.copy_context
        item = take(None)
        while item is not None:
            try:
                result = copy_context().run(item.task.function, **arguments(item, cancelled))
            except BaseException as error:
                self._failed(item, error)
            else:
                self._finished(item, result)
            item = take(item)

    def _finished(self, item: Item, result: Any) -> None:
        if result is None:
            self._settler.ack(item.job, None)
            return
        try:
            text = JsonText(to_json(result))
        except Exception as error:
            self._failed(item, error)
        else:
            self._settler.ack(item.job, text)

    def _failed(self, item: Item, error: BaseException) -> None:
        job = item.job
        log.warning(
            "job %s (%s) failed in attempt %s of %s: %s: %s",
            job.id, job.task, job.attempt, job.max_attempts, type(error).__name__, error,
        )  # fmt: skip
        self._settler.reject(job, describe(error))

    def cancel(self, ids: list[int]) -> None:
        """Ask jobs to stop; those that have not started do not. From any thread."""
        for item in self.slots.cancel(ids):
            self._settler.reject(item.job, "cancelled")

    def hurry(self) -> None:
        """End the grace time. From any thread."""
        self._hurried = True
        self._wake.set()

    async def stop(self, grace: float) -> list[HeldJob]:
        """Let what runs finish, and give up on what has not finished in time.

        Args:
            grace: seconds; a coroutine is cancelled after that, a thread cannot be.

        Returns:
            The jobs that did not finish.
        """
        deadline = self._loop.time() + grace
        while self.slots.held and not self._hurried:
            self.slots.low_mark = 0
            left = deadline - self._loop.time()
            if left <= 0 or (self.slots.held and not await self._wake.wait(left)):
                break
        self._stopping = True
        for task in tuple(self._coroutines):
            task.cancel()
        if self._coroutines:
            await asyncio.wait(self._coroutines, timeout=1)
        self.slots.close()
        return [item.job for item in tuple(self.slots.running.values())]


def arguments(item: Item, cancelled: Container[int] = ()) -> dict[str, Any]:
    """Return the keyword arguments of a job.

    Args:
        item: the job.
        cancelled: the jobs that are asked to stop, now and later.

    Raises:
        TypeError: its payload is no JSON object.
    """
    payload = item.job.payload
    if type(payload) is not dict:
        raise TypeError(
            f"the payload must be an object whose keys are the arguments of {item.task.name!r},"
            f" not {type(payload).__name__}"
        )
    if item.task.job_parameter is not None:
        payload[item.task.job_parameter] = job_of(item.job, cancelled)
    return payload


def job_of(held: HeldJob, cancelled: Container[int]) -> Job:
    """Return what a handler sees of the job."""
    return Job(
        id=held.id,
        lease=held.lease,
        queue=held.queue,
        task=held.task,
        payload=dict(held.payload),
        attempt=held.attempt,
        max_attempts=held.max_attempts,
        headers=held.headers,
        enqueued_at=held.enqueued_at,
        _cancelled=cancelled,
    )


def describe(error: BaseException) -> str:
    """Return the traceback as text that PostgreSQL can store, without the frames of the worker."""
    trace = error.__traceback__
    lines = traceback.format_exception(type(error), error, trace and trace.tb_next)
    text = "".join(lines).replace("\0", "\\0")
    if len(text) > LONGEST_ERROR:
        text = "…" + text[-LONGEST_ERROR:]
    return text.encode(errors="backslashreplace").decode()


def unknown(job: HeldJob, tasks: Mapping[str, Task[..., Any]]) -> str:
    """Return the error for a job that no task of this worker can run."""
    if job.task is None:
        return "the job names no task: enqueue it with task => the name of one"
    known = ", ".join(sorted(tasks)) or "none"
    return f"this worker has no task {job.task!r} (it has: {known}); is an older version running?"
