"""Being told that there is something to fetch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg

from pgqueue import _calls
from pgqueue.errors import QueueNotFound
from pgqueue.worker.link import Connection, Link, is_transient

T = TypeVar("T")
log = logging.getLogger("pgqueue.worker")


class _Pooled(Exception):
    """The session is not ours: it would stay registered as waiting after we are gone."""


class Listener:
    """Registers the worker as waiting, and calls back when one of its queues has something new.

    A wake-up may get lost with the connection; polling makes up for it.

    Args:
        dsn: connection string, directly to the server: LISTEN does not work through a pooler's transactions.
        queues: what to listen for.
        notified: called with the name of a queue, or with "" when the connection was lost.
    """

    def __init__(self, dsn: str, queues: Sequence[str], notified: Callable[[str], None]) -> None:
        self._link = Link(dsn, "listen", setup=self._setup)
        self._queues = queues
        self._notified = notified
        self._reading: int | None = None
        self._next_try = 0.0
        self._polling = False
        self.watching = False

    async def _setup(self, connection: Connection, pooled: bool) -> None:
        self.watching = False
        if pooled:
            raise _Pooled
        connection.add_notify_handler(lambda notify: self._notified(notify.payload))
        await connection.execute("LISTEN pgq")

    async def watch(self) -> float | None:
        """Ask to be told of new jobs.

        Returns:
            In how many seconds the next scheduled job is due; None if none is known.
        """
        try:
            due = await self._call(_calls.watch(self._queues))
        except QueueNotFound:  # one was dropped: the fetcher tells, and polls until it is back
            self._start_reading()
            return None
        if self.watching:  # each watch wants an unwatch of its own; in this order there is no gap
            await self._call(_calls.unwatch(self._queues))
        self.watching = self._reading is not None
        return due

    async def unwatch(self) -> None:
        """Ask not to be told any more, so that producers need not notify while the worker is busy."""
        if self.watching:
            self.watching = False
            await self._call(_calls.unwatch(self._queues))

    async def _call(self, call: _calls.Call[T]) -> T | None:
        loop = asyncio.get_running_loop()
        if self._polling or (self._link.failing and loop.time() < self._next_try):
            return None
        self._stop_reading()
        try:
            result = await self._link.call(call)
        except _Pooled:
            log.warning("listen: there is a pooler in between, so the worker polls; --listen-dsn can lead around it")
            self._polling = True
            return None
        except psycopg.Error as error:
            if not is_transient(error):
                raise
            self._next_try = loop.time() + self._link.pause
            self.watching = False
            return None
        self._start_reading()
        return result

    def _start_reading(self) -> None:
        connection = self._link.connection
        if connection is not None:
            self._reading = connection.fileno()
            asyncio.get_running_loop().add_reader(self._reading, self._read)
            # What came in the same packet as the answer has been read already, and nobody would wake us for it.
            self._read()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            asyncio.get_running_loop().remove_reader(self._reading)
            self._reading = None

    def _read(self) -> None:
        """Read notifications while the connection is idle."""
        connection = self._link.connection
        assert connection is not None
        try:
            connection.pgconn.consume_input()
            while notify := connection.pgconn.notifies():
                self._notified(notify.extra.decode())
        except psycopg.OperationalError:
            self._stop_reading()
            self.watching = False
            connection.pgconn.finish()
            self._notified("")

    async def close(self) -> None:
        """Close the connection, which also ends the watch."""
        self._stop_reading()
        await self._link.close()
