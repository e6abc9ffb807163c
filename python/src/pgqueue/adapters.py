"""The psycopg connection inside of what other libraries call a connection or a session."""

from __future__ import annotations

from typing import Any

import psycopg


def sync_connection(given: Any) -> Any:
    """Return the psycopg connection of a SQLAlchemy Session or Connection, or of a Django connection.

    Args:
        given: one of these, over the driver psycopg 3, or a cursor; anything else is returned as it is.
    """
    if isinstance(given, psycopg.Cursor):
        return given.connection
    match _library(given):
        case "sqlalchemy":
            connection = given.connection() if callable(getattr(given, "connection", None)) else given
            if not connection.in_transaction():  # it does not see what is done beneath it, and would not commit it
                connection.begin()
            return connection.connection.driver_connection
        case "django":
            given.ensure_connection()
            return given.connection
        case _:
            return given


async def async_connection(given: Any) -> Any:
    """Return the psycopg connection of a SQLAlchemy AsyncSession or AsyncConnection; else what was given."""
    if isinstance(given, psycopg.AsyncCursor):
        return given.connection
    if _library(given) != "sqlalchemy":
        return given
    connection = await given.connection() if hasattr(given, "sync_session") else given
    if not connection.in_transaction():
        await connection.begin()
    return (await connection.get_raw_connection()).driver_connection


def _library(given: Any) -> str:
    # A Django connection is usually a proxy, whose class says what is behind it.
    return str(given.__class__.__module__).partition(".")[0]
