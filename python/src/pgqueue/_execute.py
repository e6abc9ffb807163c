"""What clients and workers do with connections; above all, making a call that ``_calls`` has described."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row

from pgqueue import _versions
from pgqueue._calls import Call

T = TypeVar("T")
PID = "SELECT pg_backend_pid()"
"""Answered by the server; a pooler has process ids of its own, and may give each transaction to another session."""


def is_pooled(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], pid: tuple[Any, ...] | None) -> bool:
    """Whether there is a pooler in between, as the row tells that came back for ``PID``."""
    return pid != (connection.info.backend_pid,)


def with_defaults(dsn: str, settings: Mapping[str, str]) -> str:
    """Return a connection string with these settings, as far as it does not say otherwise itself."""
    given = conninfo_to_dict(dsn)
    return make_conninfo(dsn, **{key: value for key, value in settings.items() if key not in given})


def execute(connection: psycopg.Connection[Any], call: Call[T]) -> T:
    with connection.cursor(row_factory=tuple_row) as cursor:
        if not (call.any_version or _versions.is_checked(connection)):
            _versions.checked(connection, cursor.execute(_versions.QUERY).fetchall())
        return call.decode(cursor.execute(call.sql, call.params).fetchall())


async def async_execute(connection: psycopg.AsyncConnection[Any], call: Call[T]) -> T:
    async with connection.cursor(row_factory=tuple_row) as cursor:
        if not (call.any_version or _versions.is_checked(connection)):
            await cursor.execute(_versions.QUERY)
            _versions.checked(connection, await cursor.fetchall())
        await cursor.execute(call.sql, call.params)
        return call.decode(await cursor.fetchall())
