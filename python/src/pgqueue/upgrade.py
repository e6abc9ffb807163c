"""Bringing an installed pgq to the version of this package."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors, sql

from pgqueue._versions import QUERY, numbers
from pgqueue.errors import PgqError, SchemaMissing, VersionMismatch, translated

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.abc import Traversable

    Connection = psycopg.Connection[Any]

_SCRIPT = re.compile(r"pgqueue--(.+)--(.+)\.sql")
# Who waits for a table holds up everybody behind it: rather give way, and try again. And before deadlock_timeout is
# over, or if somebody whom this waits for waits for this, his call would be the one that is undone.
LOCK_TIMEOUT = """
    SELECT set_config('lock_timeout', greatest(100, s.setting::int * 8 / 10)::text, true)
    FROM pg_settings s WHERE s.name = 'deadlock_timeout'
"""
ATTEMPTS = 20
PAUSE = 0.5


def upgrade(connection: Connection, scripts: Iterable[Traversable], wanted: str) -> tuple[str, list[str]]:
    """Upgrade pgq in one transaction, as its owner, extension or not. An error leaves everything as it was.

    Args:
        connection: an autocommit connection of the owner of schema pgq, or of a role that may become the owner.
        scripts: the packed upgrade scripts.
        wanted: the version to reach.

    Returns:
        The version that was found, and the steps that were taken.

    Raises:
        SchemaMissing: there is no pgq.
        VersionMismatch: there is no way from the installed version to the wanted one.
        PgqError: sessions that use pgq did not let go of it.
    """
    scripts = list(scripts)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with connection.transaction():
                return _upgrade(connection, scripts, wanted)
        except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
            if attempt == ATTEMPTS:
                raise PgqError(
                    "pgq is in use, and could not be upgraded",
                    detail=str(error).strip(),
                    hint="Nothing was changed. End long transactions that use pgq (a dump?), and try again.",
                ) from error
            time.sleep(PAUSE)
    raise AssertionError  # pragma: no cover


def _upgrade(connection: Connection, scripts: list[Traversable], wanted: str) -> tuple[str, list[str]]:
    # One upgrade at a time. Whatever is made belongs to the owner, who is not always the one that upgrades.
    connection.execute(LOCK_TIMEOUT)
    connection.execute("SELECT pg_advisory_xact_lock(7014353)")
    owner = _value(connection, "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'pgq'")
    if owner is None:
        raise SchemaMissing("there is no pgq in this database", hint="Install it: pgqueue install")
    if _value(connection, "SELECT current_setting('is_superuser')") == "on":
        _become(connection, owner)  # even pgq.version() is code of his
    with translated():
        installed: str = _value(connection, QUERY)
    if numbers(installed) > numbers(wanted):
        raise VersionMismatch(
            f"pgq {installed} in this database is newer than this package, {wanted}",
            hint="There is no way back. Upgrade the package: pip install --upgrade pgqueue. Nothing was changed.",
        )
    if installed == wanted:
        return installed, []
    _become(connection, owner)
    if _value(connection, "SELECT extversion FROM pg_extension WHERE extname = 'pgqueue'"):
        steps = _update_extension(connection, installed, wanted)
    else:
        path = _path(scripts, installed, wanted)
        for script in path:
            connection.execute(script.read_bytes())
        steps = [script.name for script in path]
    if (reached := _value(connection, QUERY)) != wanted:
        raise VersionMismatch(
            f"the upgrade would have ended at pgq {reached}, not at {wanted}",
            hint="This is a bug of the upgrade script. Nothing was changed.",
        )
    return installed, steps


def _update_extension(connection: Connection, installed: str, wanted: str) -> list[str]:
    query = "SELECT path FROM pg_extension_update_paths('pgqueue') WHERE source = %s AND target = %s"
    path = _value(connection, query, installed, wanted)
    if path is None:
        raise VersionMismatch(
            f"the server has no files to update extension pgqueue from {installed} to {wanted}",
            hint="Install them on the server's machine: `make install` in the sources of that version, or its package. "
            "Then run this again. Nothing was changed.",
        )
    connection.execute(sql.SQL("ALTER EXTENSION pgqueue UPDATE TO {}").format(wanted))
    return [f"ALTER EXTENSION pgqueue UPDATE ({path})"]


def _path(scripts: list[Traversable], installed: str, wanted: str) -> list[Traversable]:
    """Return the scripts that lead from one version to another: each leads to the next version."""
    steps = {match[1]: (match[2], script) for script in scripts if (match := _SCRIPT.fullmatch(script.name))}
    path: list[Traversable] = []
    at = installed
    while at != wanted:
        if at not in steps:
            raise VersionMismatch(
                f"this package has no script to upgrade pgq {installed} to {wanted}",
                detail=f"It has scripts for these versions: {', '.join(sorted(steps, key=numbers)) or 'none'}.",
                hint="A version that was never released cannot be upgraded. Nothing was changed.",
            )
        at, script = steps.pop(at)
        path.append(script)
    return path


def _become(connection: Connection, owner: str) -> None:
    connection.execute("SELECT set_config('role', %s, true)", [owner])


def _value(connection: Connection, query: str, *values: Any) -> Any:
    row = connection.execute(query.encode(), values or None).fetchone()
    return row and row[0]
