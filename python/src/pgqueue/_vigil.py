"""Waiting for the end of a job: looking again and again at first, then asleep until the server tells."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import aclosing, closing, suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg

from pgqueue import _calls
from pgqueue._calls import JobState
from pgqueue._execute import async_execute, execute
from pgqueue.errors import PgqError, translated
from pgqueue.exclusive import seconds

if TYPE_CHECKING:
    from typing_extensions import Self

_PATIENCE = 0.05
"""Seconds of looking before a connection is opened, which costs about as much as a few looks."""
_AGAIN = 20.0
"""Seconds after which the watch is renewed; it counts for a minute."""
_PID = "SELECT pg_backend_pid()"


class _Vigil:
    """What is the same with and without asyncio."""

    def __init__(self, id: int, timeout: float | timedelta | None, dsn: str | None, ears: threading.Semaphore) -> None:
        self._id = id
        self._dsn = dsn
        self._ears = ears
        self._timeout = seconds(timeout)
        self._began = time.monotonic()
        self._watched_at = 0.0
        self._unknown = 0
        self.state: JobState | None = None

    def over(self, state: JobState | None) -> bool:
        """Take a look at what was found; raise TimeoutError if it is too late for another one."""
        self.state = state
        if state is None:  # look twice: see sql/85_wait.sql
            self._unknown += 1
            return self._unknown == 2
        if state.state in ("done", "dead", "cancelled"):
            return True
        if self._timeout is not None and time.monotonic() - self._began >= self._timeout:
            raise TimeoutError(f"job {self._id} is {state.state} after {self._timeout:g} seconds")
        return False

    def _wants_to_be_told(self) -> bool:
        now = time.monotonic()
        return self._dsn is not None and now - self._began > _PATIENCE and now - self._watched_at > _AGAIN

    def _may_listen(self) -> None:
        if not self._ears.acquire(blocking=False):
            raise psycopg.NotSupportedError("so many connections of this client listen already")

    def _pause(self, told: bool) -> float:
        waited = time.monotonic() - self._began
        pause = 1.0 if told else min(max(waited / 10, 0.002), 0.25)
        return pause if self._timeout is None else max(min(pause, self._timeout - waited), 0)


class Vigil(_Vigil):
    """Sleeps between two looks at a job, in a thread."""

    _ear: psycopg.Connection[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_up()

    def sleep(self) -> None:
        """Return when it is time to look again."""
        if self._wants_to_be_told():
            try:
                self._listen()
                return  # what came before the watch was not told
            except (psycopg.Error, PgqError):
                self._give_up()
        if self._ear is None:
            time.sleep(self._pause(told=False))
            return
        try:
            with closing(self._ear.notifies(timeout=self._pause(told=True))) as notifies:
                for notify in notifies:
                    if notify.payload == str(self._id):
                        return
        except psycopg.OperationalError:
            self._give_up()

    def _listen(self) -> None:
        assert self._dsn is not None
        if self._ear is None:
            self._may_listen()
            try:
                self._ear = psycopg.connect(self._dsn, autocommit=True, prepare_threshold=None)
            except BaseException:
                self._ears.release()
                raise
            row = self._ear.execute(_PID).fetchone()
            if row != (self._ear.info.backend_pid,):
                raise psycopg.NotSupportedError("there is a pooler in between")
            self._ear.execute("LISTEN pgq_job")
        with translated():
            if not execute(self._ear, _calls.watch_job(self._id)):
                raise psycopg.NotSupportedError("the queue does not notify")
        self._watched_at = time.monotonic()

    def _give_up(self) -> None:
        self._dsn = None
        ear, self._ear = self._ear, None
        if ear is not None:
            self._ears.release()
            ear.close()


class AsyncVigil(_Vigil):
    """Sleeps between two looks at a job, in a task."""

    _ear: psycopg.AsyncConnection[Any] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._give_up()

    async def sleep(self) -> None:
        """Return when it is time to look again."""
        if self._wants_to_be_told():
            try:
                await self._listen()
                return
            except (psycopg.Error, PgqError):
                await self._give_up()
        if self._ear is None:
            await asyncio.sleep(self._pause(told=False))
            return
        try:
            async with aclosing(self._ear.notifies(timeout=self._pause(told=True))) as notifies:
                async for notify in notifies:
                    if notify.payload == str(self._id):
                        return
        except psycopg.OperationalError:
            await self._give_up()

    async def _listen(self) -> None:
        assert self._dsn is not None
        if self._ear is None:
            self._may_listen()
            try:
                self._ear = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True, prepare_threshold=None)
            except BaseException:
                self._ears.release()
                raise
            row = await (await self._ear.execute(_PID)).fetchone()
            if row != (self._ear.info.backend_pid,):
                raise psycopg.NotSupportedError("there is a pooler in between")
            await self._ear.execute("LISTEN pgq_job")
        with translated():
            if not await async_execute(self._ear, _calls.watch_job(self._id)):
                raise psycopg.NotSupportedError("the queue does not notify")
        self._watched_at = time.monotonic()

    async def _give_up(self) -> None:
        self._dsn = None
        ear, self._ear = self._ear, None
        if ear is not None:
            self._ears.release()
            with suppress(psycopg.Error):
                await ear.close()
