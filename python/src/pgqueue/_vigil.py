"""Waiting for the end of a job: looking again and again at first, then asleep until the server tells."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import aclosing, closing, suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg

from pgqueue import _calls
from pgqueue._calls import JobState
from pgqueue._execute import PID, async_execute, execute, is_pooled
from pgqueue.errors import PgqError, translated
from pgqueue.exclusive import seconds

if TYPE_CHECKING:
    from typing_extensions import Self

C = TypeVar("C", bound="psycopg.Connection[Any] | psycopg.AsyncConnection[Any]")

_MOST_EARS = 4
_PATIENCE = 0.05
"""Seconds of looking before a connection is opened, which costs about as much as a few looks."""
_AGAIN = 20.0
"""Seconds after which the watch is renewed; it counts for a minute."""
_DEAF = "UNLISTEN *; SELECT pg_advisory_unlock_all()"
"""What a connection that nobody reads from must have done, or the server would wait for it one day."""


class Ears(Generic[C]):
    """The connections on which a client is told: four at most, and kept for the next wait."""

    def __init__(self) -> None:
        self._idle: list[C] = []
        self._left = threading.Semaphore(_MOST_EARS)

    def __bool__(self) -> bool:
        """Whether one is there and idle."""
        return bool(self._idle)

    def take(self) -> C | None:
        """Return an idle one, if there is one."""
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def may_open(self) -> None:
        """Count a new one, or raise if there are enough."""
        if not self._left.acquire(blocking=False):
            raise psycopg.NotSupportedError("so many connections of this client listen already")

    def give_back(self, ear: C) -> None:
        """Keep one that no longer listens."""
        self._idle.append(ear)

    def closed(self) -> None:
        """Count one less."""
        self._left.release()


class _Vigil(Generic[C]):
    """What is the same with and without asyncio."""

    def __init__(self, id: int, timeout: float | timedelta | None, dsn: str | None, ears: Ears[C]) -> None:
        self._id = id
        self._dsn = dsn
        self._ears = ears
        self._ear: C | None = None
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
        if self._dsn is None or now - self._watched_at <= _AGAIN:
            return False
        return bool(self._ears) or now - self._began > _PATIENCE

    def _pause(self, told: bool) -> float:
        waited = time.monotonic() - self._began
        # Who was about to commit the end of the job when the watch began, tells nobody. He will not be long.
        pause = min(max(waited, 0.01), 1.0) if told else min(max(waited / 10, 0.002), 0.25)
        return pause if self._timeout is None else max(min(pause, self._timeout - waited), 0)


class Vigil(_Vigil["psycopg.Connection[Any]"]):
    """Sleeps between two looks at a job, in a thread."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._give_back()
        finally:
            self._close()

    def sleep(self) -> None:
        """Return when it is time to look again."""
        if self._wants_to_be_told():
            known = bool(self._ear or self._ears)
            try:
                self._listen()
                return  # what came before the watch was not told
            except (psycopg.Error, PgqError):
                self._close()
                if not known:
                    self._dsn = None
        if self._ear is None:
            time.sleep(self._pause(told=False))
            return
        try:
            with closing(self._ear.notifies(timeout=self._pause(told=True))) as notifies:
                for notify in notifies:
                    if notify.payload == str(self._id):
                        return
        except psycopg.OperationalError:
            self._close()
            self._dsn = None

    def _listen(self) -> None:
        if self._ear is None:
            self._ear = self._ears.take() or self._open()
        self._ear.execute("LISTEN pgq_job", prepare=False)
        with translated():
            if execute(self._ear, _calls.watch_job(self._id)):
                self._watched_at = time.monotonic()
            else:  # the queue does not notify
                self._dsn = None
                self._give_back()

    def _open(self) -> psycopg.Connection[Any]:
        assert self._dsn is not None
        self._ears.may_open()
        try:
            ear = self._ear = psycopg.connect(self._dsn, autocommit=True)
        except BaseException:
            self._ears.closed()
            raise
        if is_pooled(ear, ear.execute(PID, prepare=False).fetchone()):
            raise psycopg.NotSupportedError("there is a pooler in between")
        return ear

    def _give_back(self) -> None:
        if self._ear is not None:
            try:
                self._ear.execute(_DEAF, prepare=False)
            except psycopg.Error:
                self._close()
            else:
                self._ears.give_back(self._ear)
                self._ear = None

    def _close(self) -> None:
        ear, self._ear = self._ear, None
        if ear is not None:
            self._ears.closed()
            ear.close()


class AsyncVigil(_Vigil["psycopg.AsyncConnection[Any]"]):
    """Sleeps between two looks at a job, in a task."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not isinstance(value, asyncio.CancelledError):  # then there is no time for an answer
                await self._give_back()
        finally:
            await self._close()

    async def sleep(self) -> None:
        """Return when it is time to look again."""
        if self._wants_to_be_told():
            known = bool(self._ear or self._ears)
            try:
                await self._listen()
                return
            except (psycopg.Error, PgqError):
                await self._close()
                if not known:
                    self._dsn = None
        if self._ear is None:
            await asyncio.sleep(self._pause(told=False))
            return
        try:
            async with aclosing(self._ear.notifies(timeout=self._pause(told=True))) as notifies:
                async for notify in notifies:
                    if notify.payload == str(self._id):
                        return
        except psycopg.OperationalError:
            await self._close()
            self._dsn = None

    async def _listen(self) -> None:
        if self._ear is None:
            self._ear = self._ears.take() or await self._open()
        await self._ear.execute("LISTEN pgq_job", prepare=False)
        with translated():
            if await async_execute(self._ear, _calls.watch_job(self._id)):
                self._watched_at = time.monotonic()
            else:  # the queue does not notify
                self._dsn = None
                await self._give_back()

    async def _open(self) -> psycopg.AsyncConnection[Any]:
        assert self._dsn is not None
        self._ears.may_open()
        try:
            ear = self._ear = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
        except BaseException:
            self._ears.closed()
            raise
        if is_pooled(ear, await (await ear.execute(PID, prepare=False)).fetchone()):
            raise psycopg.NotSupportedError("there is a pooler in between")
        return ear

    async def _give_back(self) -> None:
        if self._ear is not None:
            try:
                await self._ear.execute(_DEAF, prepare=False)
            except psycopg.Error:
                await self._close()
            else:
                self._ears.give_back(self._ear)
                self._ear = None

    async def _close(self) -> None:
        ear, self._ear = self._ear, None
        if ear is not None:
            self._ears.closed()
            with suppress(psycopg.Error):
                await ear.close()
