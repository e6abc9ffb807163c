"""Which versions of the schema this package works with: from the one it needs up to the next major version."""

from __future__ import annotations

import re
from typing import Any
from weakref import WeakSet

from pgqueue import __version__
from pgqueue.errors import VersionMismatch

# The oldest schema that has everything this package calls. A function added to SQL and used here raises it.
REQUIRED = "0.2.0"
QUERY = "SELECT pgq.version()"

# Each connection is asked once: the next one may lead to another database.
_checked: WeakSet[Any] = WeakSet()


def numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers, which compare as they should."""
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def check(installed: str) -> None:
    """Refuse a schema that is too old for this package, or too new.

    Raises:
        VersionMismatch: with what to do about it.
    """
    if numbers(installed) < numbers(REQUIRED):
        raise VersionMismatch(
            f"pgq {installed} in this database is older than this package needs",
            detail=f"Package pgqueue {__version__} needs pgq {REQUIRED} or newer.",
            hint="Upgrade the schema first: pgqueue upgrade. Or use the package of its version.",
        )
    if numbers(installed)[:1] > numbers(__version__)[:1]:
        raise VersionMismatch(
            f"pgq {installed} in this database is newer than this package knows",
            detail=f"Package pgqueue {__version__} works with every pgq of its major version.",
            hint="Upgrade the package: pip install --upgrade pgqueue.",
        )


def is_checked(connection: object) -> bool:
    """Return whether the schema at the other end of a connection was found to be good."""
    return connection in _checked


def checked(connection: object, rows: list[tuple[Any, ...]]) -> None:
    """Check what a connection has answered to ``QUERY``, and remember that it was asked."""
    check(rows[0][0])
    _checked.add(connection)
