"""What goes wrong, one class per SQLSTATE.

The rules of the queue are in SQL, so its errors come from there. Every class here names the SQLSTATE it stands for;
:func:`translated` turns the error of psycopg into it and keeps message, detail and hint. Errors that are not about
the queue (a lost connection, a syntax error in one's own SQL) stay what psycopg made of them.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import ClassVar

import psycopg


class PgqError(Exception):
    """Base of every error of pgqueue.

    Attributes:
        sqlstate: the five characters, None if the error did not come from the database.
        message: what happened.
        detail: more about it, or None.
        hint: what to do about it, or None.
    """

    sqlstate: ClassVar[str | None] = None

    def __init__(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.detail:
            lines.append(f"DETAIL:  {self.detail}")
        if self.hint:
            lines.append(f"HINT:  {self.hint}")
        return "\n".join(lines)


class LeaseLost(PgqError):
    """The job is no longer yours: its lease expired, or it was settled before. Nothing was changed."""

    sqlstate = "PQ001"


class QueueNotFound(PgqError):
    """There is no queue of this name; queues are created explicitly."""

    sqlstate = "PQ002"


class NotReadCommitted(PgqError):
    """The transaction is REPEATABLE READ or SERIALIZABLE, and a claim needs READ COMMITTED."""

    sqlstate = "PQ003"


class PayloadRejected(PgqError):
    """The payload cannot be a job of this queue."""

    sqlstate = "PQ004"


class QueueNotEmpty(PgqError):
    """The queue still has jobs, so it is not dropped without force."""

    sqlstate = "PQ005"


class NotWaiting(PgqError):
    """The batch has nothing left to wait for, so nothing can be added to it; or it is none."""

    sqlstate = "PQ006"


class QueueExists(PgqError):
    """There is already a queue of this name."""

    sqlstate = "42710"


class InvalidArgument(PgqError, ValueError):
    """An argument is out of its range, or cannot be sent to PostgreSQL at all."""

    sqlstate = "22023"


class NullArgument(InvalidArgument):
    """An argument that must have a value is null."""

    sqlstate = "22004"


class FeatureNotSupported(PgqError, NotImplementedError):
    """The installed version of pgq reserves this, but does not have it yet."""

    sqlstate = "0A000"


class SchemaMissing(PgqError):
    """The database has no schema pgq."""

    sqlstate = "3F000"


class VersionMismatch(PgqError):
    """The schema pgq of this database and this package do not fit together: one of them is too old."""

    sqlstate = "42883"


class PermissionDenied(PgqError):
    """The role may not do this; see pgq.grant_producer, grant_consumer and grant_admin."""

    sqlstate = "42501"


_CLASSES: dict[str, type[PgqError]] = {
    str(cls.sqlstate): cls
    for cls in (
        LeaseLost,
        QueueNotFound,
        NotReadCommitted,
        PayloadRejected,
        QueueNotEmpty,
        NotWaiting,
        QueueExists,
        InvalidArgument,
        NullArgument,
        FeatureNotSupported,
        SchemaMissing,
        VersionMismatch,
        PermissionDenied,
    )
}
_HINTS = {
    "3F000": "Install it into this database: pgqueue install",
    "42883": "Compare `pgqueue version` with this package, then run `pgqueue upgrade` or upgrade the package.",
    "42501": "Let the owner of pgq call pgq.grant_producer, pgq.grant_consumer or pgq.grant_admin for this role.",
}


def from_psycopg(error: psycopg.Error) -> PgqError | None:
    """Return the error of pgqueue that an error of psycopg stands for, None if it is not about the queue."""
    if isinstance(error, psycopg.DataError) and error.sqlstate is None:  # psycopg's own, for instance NUL in a text
        return InvalidArgument(str(error), hint="Pass values that PostgreSQL can store.")
    cls = _CLASSES.get(error.sqlstate or "")
    if cls is None:
        return None
    diag = error.diag
    return cls(
        diag.message_primary or str(error),
        detail=diag.message_detail,
        hint=_HINTS.get(cls.sqlstate or "") or diag.message_hint,
    )


@contextmanager
def translated() -> Generator[None]:
    """Raise the errors of the queue as classes of this module, with psycopg's error as the cause."""
    try:
        yield
    except psycopg.Error as error:
        mine = from_psycopg(error)
        if mine is None:
            raise
        raise mine from error
