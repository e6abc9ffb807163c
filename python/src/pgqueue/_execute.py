"""Making a call that ``_calls`` has described, on a connection."""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg.rows import tuple_row

from pgqueue import _versions
from pgqueue._calls import Call

T = TypeVar("T")


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
