"""A connection that comes back."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
from psycopg.rows import TupleRow

from pgqueue import _versions
from pgqueue._calls import Call
from pgqueue._execute import is_pooled, with_defaults
from pgqueue.errors import PgqError, from_psycopg

log = logging.getLogger("pgqueue.worker")

T = TypeVar("T")
Connection = psycopg.AsyncConnection[TupleRow]

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 3.0
# A dead network must be noticed well within a lease, and libpq's own defaults take hours.
DEFAULTS = {
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
_FIRST = f"{_versions.QUERY}, pg_backend_pid()"
# connection exception, conflict with others, out of resources, operator intervention, system error
TRANSIENT_CLASSES = {"08", "40", "53", "57", "58"}
# read-only (the server is a standby now), lock_timeout
TRANSIENT_STATES = {"25006", "55P03"}


def is_transient(error: psycopg.Error | PgqError) -> bool:
    """Return whether the same statement may well work later, perhaps on another connection."""
    if isinstance(error, PgqError):
        return False
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    return state[:2] in TRANSIENT_CLASSES or state in TRANSIENT_STATES


class Link:
    """One autocommit connection of the worker. Opened when needed, and again after it was lost.

    Args:
        dsn: connection string.
        name: what pg_stat_activity shows: ``pgq-worker/<name>``.
        setup: called with every new connection, and whether a pooler is in between.
        prepare_threshold: psycopg's setting.
    """

    def __init__(
        self,
        dsn: str,
        name: str,
        *,
        setup: Callable[[Connection, bool], Awaitable[None]] | None = None,
        prepare_threshold: int | None = 5,
    ) -> None:
        self._conninfo = with_defaults(dsn, DEFAULTS | {"application_name": f"pgq-worker/{name}"})
        self.name = name
        self.pooled = False
        self._setup = setup
        self._prepare_threshold = prepare_threshold
        self._failures = 0
        self._connecting = asyncio.Lock()
        self.connection: Connection | None = None

    async def connected(self) -> Connection:
        """Return the connection, opened if need be."""
        connection = self.connection
        if connection is None or connection.closed:
            async with self._connecting:
                connection = await self._connect()
        return connection

    async def _connect(self) -> Connection:
        connection = self.connection
        if connection is None or connection.closed:
            await self.close()
            connection = await psycopg.AsyncConnection.connect(
                self._conninfo, autocommit=True, prepare_threshold=self._prepare_threshold
            )
            try:
                cursor = await connection.execute(_FIRST, prepare=False)
                rows = await cursor.fetchall()
                _versions.checked(connection, rows)
                self.pooled = is_pooled(connection, rows[0][1:])
                if self.pooled:
                    connection.prepare_threshold = None
                if self._setup is not None:
                    await self._setup(connection, self.pooled)
            except BaseException:
                await connection.close()
                raise
            self.connection = connection
        return connection

    async def call(self, call: Call[T]) -> T:
        """Make a call, once.

        Raises:
            psycopg.Error: as it came; see :func:`is_transient`.
            PgqError: an error of the queue.
        """
        try:
            connection = await self.connected()
            cursor = await connection.execute(call.sql, call.params)
            rows = await cursor.fetchall()
        except psycopg.Error as error:
            if error.sqlstate == "25006":
                await self.close()
            if (mine := from_psycopg(error)) is not None:
                raise mine from error
            if is_transient(error):
                self._failed(error)
            raise
        if self._failures:
            log.info("%s: connected again", self.name)
            self._failures = 0
        return call.decode(rows)

    async def insist(self, call: Call[T], sleep: Callable[[float], Awaitable[Any]]) -> T:
        """Make a call, again and again while the failure is a transient one.

        Args:
            call: may be executed twice: when the connection breaks, the first one may have taken effect.
            sleep: how to wait between two attempts; raises to give up.
        """
        while True:
            try:
                return await self.call(call)
            except psycopg.Error as error:
                if not is_transient(error):
                    raise
                await sleep(self.pause)

    @property
    def pause(self) -> float:
        """Seconds to wait before the next attempt; longer with each failure, and different in each worker."""
        longest: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures, 10))
        return longest * random.uniform(0.5, 1.0)

    @property
    def failing(self) -> bool:
        """Whether the last call failed for want of a connection."""
        return self._failures > 0

    def _failed(self, error: psycopg.Error) -> None:
        self._failures += 1
        level = logging.WARNING if self._failures == 1 else logging.DEBUG
        log.log(level, "%s: %s; trying again", self.name, str(error).strip() or repr(error))

    async def close(self) -> None:
        """Close the connection. The next call opens another one."""
        connection, self.connection = self.connection, None
        if connection is not None:
            await connection.close()
