"""Calling the handlers: coroutines in the event loop, functions in threads."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from datetime import datetime, timedelta, timezone
from time import monotonic, perf_counter
from typing import Any, Literal, TypeAlias

from pgqueue import _calls
from pgqueue._calls import HeldJob, Interval, JsonText, to_json
from pgqueue.app import App, Handle, Job, Task
from pgqueue.middleware import Middleware
from pgqueue.outcomes import REJECT, Cancel, Outcome, Reject, Retry, Snooze, TimedOut, Verdict, retry_in
from pgqueue.worker.settle import Settler
from pgqueue.worker.slots import Item, Slots
from pgqueue.worker.timeouts import GivenUp, Run, Timeouts
from pgqueue.worker.wake import Wake

log = logging.getLogger("pgqueue.worker")

# How long coroutines that never wait may keep the event loop to themselves, in seconds.
SLICE = 0.002
LONGEST_ERROR = 20_000
REJECTED = "the handler has returned REJECT"


class Runner:
    """Runs the jobs of the slots, and tells the settler what became of them.

    Args:
        app: whose tasks they are.
        concurrency: how many jobs run at the same time.
        settler: takes results and errors.
        wake: set when the slots run low, see :class:`Slots`; the fetcher waits for it.
        overdue: called with a job that does not end after its timeout, and its error; from any thread.
    """

    def __init__(
        self, app: App, concurrency: int, settler: Settler, wake: Wake, overdue: Callable[[HeldJob, str], object]
    ) -> None:
        self.slots = Slots(concurrency, start_async=self._start_async, start_sync=self._start_sync, low=wake.set)
        self._wake = wake
        self._loop_thread = threading.get_ident()
        self._hurried = False
        self._settler = settler
        self._loop = asyncio.get_running_loop()
        self._coroutines: set[asyncio.Task[None]] = set()
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self._handle = Handle(app, self.slots.cancelled)
        self._settled = self._handle.settled
        self._call, self._call_async = calls(app.middleware)
        self._timeouts = Timeouts(self._give_up)
        self._overdue = overdue

    def _start_async(self, count: int) -> None:
        if threading.get_ident() != self._loop_thread:
            self._loop.call_soon_threadsafe(self._start_async, count)
            return
        for _ in range(count):
            self._start_task(None)

    def _start_task(self, item: Item | None) -> None:
        task = self._loop.create_task(self._run_coroutines(item))
        self._coroutines.add(task)
        task.add_done_callback(self._coroutines.discard)

    def _start_sync(self, count: int) -> None:
        while len(self._threads) < count:
            thread = threading.Thread(target=self._run_functions, name=f"pgq-run-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    async def _run_coroutines(self, item: Item | None) -> None:
        """Run this job, if it is one, and others until there is none left for a coroutine."""
        take, handle, call = self.slots.take, self._handle, self._call_async
        copy_context = contextvars.copy_context
        before = copy_context()
        if item is None:
            item = take(True, None)
        until = perf_counter() + SLICE
        try:
            while item is not None:
                try:
                    if item.task.limits.timeout is None:
                        result = await call(item, handle)
                    else:
                        result = await self._await_in_time(item, item.task.limits.timeout)
                except BaseException as error:
                    if self._stopping and isinstance(error, asyncio.CancelledError):
                        return  # whoever stopped it releases the job
                    self._failed(item, error)
                else:
                    self._finished(item, result)
                item = take(True, item)
                if not _is_like(copy_context(), before):
                    # The next one is not to see the variables that this one has set, which cannot be taken back.
                    if item is not None:
                        before.run(self._start_task, item)
                    return
                if perf_counter() > until:
                    await asyncio.sleep(0)
                    until = perf_counter() + SLICE
        except asyncio.CancelledError:
            return

    def _run_functions(self) -> None:
        """Run jobs until the slots are closed; the main function of a thread."""
        take, handle, call = self.slots.take_blocking, self._handle, self._call
        copy_context = contextvars.copy_context
        item = take(None)
        while item is not None:
            try:
                if item.task.limits.timeout is None:
                    result = copy_context().run(call, item, handle)
                else:
                    result = self._run_in_time(item, item.task.limits.timeout)
            except BaseException as error:
                self._failed(item, error)
            else:
                self._finished(item, result)
            item = take(item)

    async def _await_in_time(self, item: Item, timeout: float) -> Any:
        began = monotonic()
        run = Run(item, timeout, None)
        self._timeouts.add(run)
        try:
            return await asyncio.wait_for(self._call_async(item, self._handle), timeout)
        except asyncio.TimeoutError as error:
            if monotonic() - began < timeout:
                raise
            raise TimedOut(f"after {timeout:g} seconds") from error
        finally:
            self._timeouts.remove(run)

    def _run_in_time(self, item: Item, timeout: float) -> Any:
        run = Run(item, timeout, threading.get_ident())
        try:
            try:
                self._timeouts.add(run)
                return contextvars.copy_context().run(self._call, item, self._handle)
            finally:
                self._timeouts.remove(run)
        except TimedOut as error:
            self._timeouts.remove(run)  # it may have come in the midst of the line above
            if not error.args:
                error.args = (f"after {timeout:g} seconds",)
            raise

    def _give_up(self, item: Item) -> None:
        """Take a job from a handler that does not end. Whatever it comes back with is of no interest."""
        timeout = item.task.limits.timeout
        log.error("job %s (%s) does not end after its timeout of %g seconds", item.job.id, item.job.task, timeout)
        self._overdue(item.job, f"TimedOut: after {timeout:g} seconds, and its handler does not end")

    def _finished(self, item: Item, result: Any) -> None:
        if self._settled and self._is_settled(item.job):
            return
        if result is None:
            self._settler.ack(item.job, None)
            return
        if type(result) is Verdict:
            if result is REJECT:
                self._failed(item, Reject(REJECTED))
            else:
                self._settler.ack(item.job, None)
            return
        codec = item.task.codec
        try:
            text = JsonText(to_json(result if codec is None else codec.dump_result(result)))
        except Exception as error:
            self._failed(item, error)
        else:
            self._settler.ack(item.job, text)

    def _is_settled(self, job: HeldJob) -> bool:
        """Whether the handler has settled its job itself."""
        key = (job.id, job.lease)
        if key not in self._settled:
            return False
        self._settled.discard(key)
        self._settler.forget(job)
        return True

    def _failed(self, item: Item, error: BaseException) -> None:
        if isinstance(error, GivenUp):
            return
        job = item.job
        self._settled.discard((job.id, job.lease))
        try:
            self._settle(item, error)
        except Exception as problem:  # a delay that is none
            self._settler.reject(job, describe(problem))

    def _settle(self, item: Item, error: BaseException) -> None:
        job = item.job
        if isinstance(error, Snooze):
            log.info("job %s (%s) is %s", job.id, job.task, error)
            self._settler.settle(job, _calls.snooze(job.id, job.lease, error.delay), "snoozed")
            return
        text = describe(error)
        if isinstance(error, Cancel):
            log.info("job %s (%s) is cancelled: %s", job.id, job.task, error)
            self._settler.settle(job, _calls.cancel_claimed(job.id, job.lease, text), "cancelled")
            return
        log.warning(
            "job %s (%s) failed in attempt %s of %s: %s: %s",
            job.id, job.task, job.attempt, job.max_attempts, type(error).__name__, error,
        )  # fmt: skip
        again = _again(item, error)
        if again is None:
            self._settler.reject(job, text)
        elif again is False:
            self._settler.settle(job, _calls.reject(job.id, job.lease, text, retry=False), "rejected")
        else:
            self._settler.settle(job, _calls.reject(job.id, job.lease, text, retry_in=again), "rejected")

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
            The jobs that did not finish, or were claimed too late to begin.
        """
        deadline = self._loop.time() + grace
        while self.slots.held and not self._hurried:
            self.slots.low_mark = 0
            left = deadline - self._loop.time()
            if left <= 0:
                break
            if self.slots.held:
                await self._wake.wait(left)
        self._stopping = True
        for task in tuple(self._coroutines):
            task.cancel()
        if self._coroutines:
            await asyncio.wait(self._coroutines, timeout=1)
        self.slots.close()
        self._timeouts.stop()
        return [item.job for item in (*self.slots.shed(0), *tuple(self.slots.running.values()))]


def _is_like(now: contextvars.Context, before: contextvars.Context) -> bool:
    try:
        return now == before
    except Exception:  # values that cannot be compared
        return False


def _again(item: Item, error: BaseException) -> Interval | Literal[False] | None:
    """Return when to try again after a failure, as :func:`retry_in` does."""
    if isinstance(error, Reject) and error.final:
        return False
    if isinstance(error, Retry) and error.in_ is not None:
        return error.in_
    try:
        return retry_in(item.task.limits.retry, item.job.attempt, error)
    except Exception:
        log.exception("job %s (%s): its retry policy has failed", item.job.id, item.job.task)
        return None


Call: TypeAlias = Callable[[Item, Handle | None], Any]


def calls(middleware: Sequence[Middleware]) -> tuple[Call, Call]:
    """Return what calls a function, and what calls a coroutine function, with what the middleware wants around it."""

    def call(item: Item, handle: Handle | None) -> Any:
        return item.task.function(**arguments(item, handle))

    def call_within(item: Item, handle: Handle | None) -> Any:
        job = job_of(item, handle)
        with ExitStack() as stack:
            for one in middleware:
                stack.enter_context(one.running(job))
            return _told(item.task.function(**arguments(item, handle, job)))

    async def call_async_within(item: Item, handle: Handle | None) -> Any:
        job = job_of(item, handle)
        async with AsyncExitStack() as stack:
            for one in middleware:
                await stack.enter_async_context(one.running_async(job))
            return _told(await item.task.function(**arguments(item, handle, job)))

    return (call_within, call_async_within) if middleware else (call, call)


def _told(result: Any) -> Any:
    """Return what a handler has returned; REJECT as an exception, so that middleware sees it."""
    if result is REJECT:
        raise Reject(REJECTED)
    return result


def arguments(item: Item, handle: Handle | None = None, job: Job | None = None) -> dict[str, Any]:
    """Return the keyword arguments of a job.

    Args:
        item: the job.
        handle: for a handler that wants its job.
        job: the same, if it was made already.

    Raises:
        TypeError: its payload is no JSON object.
    """
    if not item.task.takes_payload:
        assert item.task.job_parameter is not None
        return {item.task.job_parameter: job or job_of(item, handle)}
    payload = item.job.payload
    if type(payload) is not dict:
        raise TypeError(
            f"the payload must be an object whose keys are the arguments of {item.task.name!r},"
            f" not {type(payload).__name__}"
        )
    given: dict[str, Any] = payload if item.task.codec is None else item.task.codec.load(payload)
    if item.task.job_parameter is not None:
        given[item.task.job_parameter] = job or job_of(item, handle)
    return given


def job_of(item: Item, handle: Handle | None) -> Job:
    """Return what a handler sees of the job, whose attempt begins now."""
    held, timeout = item.job, item.task.limits.timeout
    return Job(
        id=held.id,
        lease=held.lease,
        queue=held.queue,
        task=held.task,
        payload=dict(held.payload) if type(held.payload) is dict else held.payload,
        attempt=held.attempt,
        max_attempts=held.max_attempts,
        headers=held.headers,
        enqueued_at=held.enqueued_at,
        deadline=None if timeout is None else datetime.now(timezone.utc) + timedelta(seconds=timeout),
        _handle=handle,
    )


def describe(error: BaseException) -> str:
    """Return the traceback as text that PostgreSQL can store, without the frames of the worker.

    Of an :class:`Outcome` that says why, and has no other cause, only that.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if isinstance(error, Outcome) and str(error) and cause is None:
        lines = [str(error)]
    else:
        lines = traceback.format_exception(type(error), error, trace)
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
