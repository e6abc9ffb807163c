"""One node at a time: being the only one under a name, for as long as a block runs."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg

from pgqueue import _calls
from pgqueue._execute import async_execute, execute, with_defaults
from pgqueue.errors import PgqError, translated

if TYPE_CHECKING:
    from typing_extensions import Self

_RETRY = 0.25
"""Seconds after which who waits tries again."""
_BEAT = 0.5
"""Seconds between two looks whether the connection lives. If the server closes it, that is noticed at once."""
# If the network dies, the holder must notice before the server does (2 + 3 * 1 seconds) and another one may begin: what
# it sends is not acknowledged for 2 seconds. It is kernels that acknowledge, so a slow server is not taken for dead.
_CLIENT_SIDE = {
    "connect_timeout": "10",
    "keepalives_idle": "1",
    "keepalives_interval": "1",
    "keepalives_count": "2",
    "tcp_user_timeout": "2000",
}
_SERVER_SIDE = {
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "idle_in_transaction_session_timeout": "0",
}


def seconds(timeout: float | timedelta | None) -> float | None:
    """Return a timeout in seconds."""
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout


class ExclusiveLost(PgqError):
    """The connection was lost: from then on another one may have been exclusive under the same name."""


class _Exclusive:
    """What is the same with and without asyncio.

    The lock belongs to an open transaction, so it also holds behind a pooler, and the server gives it up with the
    connection. The transaction has neither a snapshot nor a transaction id, and so holds up nothing.
    """

    def __init__(self, dsn: str, name: str, timeout: float | timedelta | None) -> None:
        self.name = name
        self._timeout = seconds(timeout)
        defaults = {**_CLIENT_SIDE, "fallback_application_name": f"pgq-exclusive/{socket.gethostname()}:{os.getpid()}"}
        self._dsn = with_defaults(dsn, defaults)
        self._deadline = float("inf")
        self._known = False
        self._holds = False
        self._lost = False

    def __bool__(self) -> bool:
        return self._holds and not self._lost

    @property
    def lost(self) -> bool:
        """Whether the connection was lost since."""
        return self._lost

    def check(self) -> None:
        """Go on only if one is still exclusive.

        Raises:
            ExclusiveLost: one is not.
        """
        if not self:
            raise ExclusiveLost(
                f"no longer exclusive under {self.name!r}" if self._lost else f"not exclusive under {self.name!r}",
                detail="The connection was lost; another one may have begun." if self._lost else None,
                hint="Stop what must be done by one at a time, and begin again.",
            )

    def _begin(self) -> None:
        self._holds = self._lost = False
        self._deadline = float("inf") if self._timeout is None else time.monotonic() + self._timeout

    def _pause(self) -> float | None:
        """How long to wait before the next try, None if the time is over."""
        rest = self._deadline - time.monotonic()
        return None if rest <= 0 else min(_RETRY, rest)

    @staticmethod
    def _settings(server_version: int) -> bytes:
        settings = {**_SERVER_SIDE, **({"transaction_timeout": "0"} if server_version >= 170000 else {})}
        calls = ", ".join(f"set_config('{key}', '{value}', true)" for key, value in settings.items())
        return f"SELECT {calls}".encode()


class Exclusive(_Exclusive):
    """Made by :meth:`Client.exclusive`: true while one is the only one under a name.

    A thread looks after the connection. If it is lost, the object becomes false, ``on_lost`` is called in that thread,
    and the end of the block raises :class:`ExclusiveLost`, unless it raises something else. So a block that ends
    without an error was the only one all the time.
    """

    on_lost: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        self._begin()
        self._connection: psycopg.Connection[Any] | None = None
        try:
            with translated():
                self._acquire()
        except BaseException:
            self._close()
            raise
        if not self._holds:
            self._close()
            return self
        self._waker, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._watch, name=f"exclusive {self.name[:50]}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._holds:
            os.write(self._wake, b".")
            self._thread.join()
            os.close(self._wake)
            os.close(self._waker)
            self._close()
            if self._lost and value is None:
                self.check()
            self._holds = False

    def _close(self) -> None:
        """End the transaction; that it can be ended proves that it lasted until now."""
        if self._connection is not None:
            try:
                self._connection.commit()
            except psycopg.Error:
                self._lost = self._holds
            self._connection.close()

    def _acquire(self) -> None:
        while True:
            try:
                if self._connection is None:
                    self._connection = psycopg.connect(self._dsn, prepare_threshold=None)
                if execute(self._connection, _calls.try_exclusive(self.name)):
                    self._connection.execute(self._settings(self._connection.info.server_version))
                    self._holds = True
                    return
                self._known = True
                self._connection.rollback()
            except psycopg.OperationalError:
                if not self._known or self._pause() is None:
                    raise
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
            pause = self._pause()
            if pause is None:
                return
            time.sleep(pause)

    def _watch(self) -> None:
        connection = self._connection
        assert connection is not None
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        poll.register(self._waker, select.POLLIN)
        while not any(fd == self._waker for fd, _ in poll.poll(_BEAT * 1000)):
            try:
                connection.execute("SELECT 1")
            except Exception:
                self._lost = True
                if self.on_lost is not None:
                    self.on_lost()
                return


class AsyncExclusive(_Exclusive):
    """Made by :meth:`AsyncClient.exclusive`: true while one is the only one under a name.

    If the connection is lost, the task that is in the block is cancelled, and the block raises :class:`ExclusiveLost`.
    """

    async def __aenter__(self) -> Self:
        self._begin()
        self._connection: psycopg.AsyncConnection[Any] | None = None
        try:
            with translated():
                await self._acquire()
        except BaseException:
            await self._close()
            raise
        if not self._holds:
            await self._close()
            return self
        self._cancelled = False
        self._task = asyncio.current_task()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._holds:
            return
        self._watcher.cancel()
        # Also swallows a cancellation that is on its way because the connection was lost.
        while not self._watcher.done() or self._connection is not None:
            try:
                await asyncio.wait([self._watcher])
                await self._close()
                self._connection = None
            except asyncio.CancelledError:
                if not self._cancelled:
                    if self._connection is not None:
                        self._connection.pgconn.finish()
                    raise
        ours = self._cancelled and isinstance(value, asyncio.CancelledError)
        if sys.version_info >= (3, 11) and self._cancelled and self._task is not None:
            ours = self._task.uncancel() == 0 and ours  # else somebody else cancels, too
        if self._lost and (value is None or ours):
            self.check()
        self._holds = False

    async def _close(self) -> None:
        if self._connection is not None:
            try:
                await self._connection.commit()
            except psycopg.Error:
                self._lost = self._holds
            await self._connection.close()

    async def _acquire(self) -> None:
        while True:
            try:
                if self._connection is None:
                    self._connection = await psycopg.AsyncConnection.connect(self._dsn, prepare_threshold=None)
                if await async_execute(self._connection, _calls.try_exclusive(self.name)):
                    await self._connection.execute(self._settings(self._connection.info.server_version))
                    self._holds = True
                    return
                self._known = True
                await self._connection.rollback()
            except psycopg.OperationalError:
                if not self._known or self._pause() is None:
                    raise
                if self._connection is not None:
                    await self._connection.close()
                self._connection = None
            pause = self._pause()
            if pause is None:
                return
            await asyncio.sleep(pause)

    async def _watch(self) -> None:
        connection = self._connection
        assert connection is not None
        loop = asyncio.get_running_loop()
        try:
            while True:
                news = asyncio.Event()
                loop.add_reader(connection.fileno(), news.set)
                try:
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(news.wait(), _BEAT)
                finally:
                    loop.remove_reader(connection.fileno())
                await connection.execute("SELECT 1")
        except Exception:
            self._lost = True
            if self._task is not None:
                self._cancelled = self._task.cancel()
