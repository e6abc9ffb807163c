"""What a session sees while others have transactions open: the part of MVCC that the model needs, and no more.

A row is never changed. It is born in one transaction and dies in another; who sees it follows from that. A change is a
death and a birth. Undoing (rollback, rollback to a savepoint) takes the newest entries of the transaction's log back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

NEVER = 1 << 60


@dataclass(eq=False)
class Row:
    """Something that a transaction has written."""

    born: Transaction
    died: Transaction | None


@dataclass(frozen=True)
class Hold:
    """Something that others cannot have until the transaction ends, or has gone back before it: a lock, mostly."""

    what: str
    of: int | None = None
    """The serial of a queue, or a lease; None: all"""


@dataclass(frozen=True)
class Wake:
    """A notification that is due when the transaction commits."""

    word: str
    """The name of a queue, or the id of a job"""


Entry = tuple[str, Row] | Hold | Wake


@dataclass(eq=False, repr=False)
class Transaction:
    """A transaction and what it has done so far."""

    sync: bool = True
    snapshot: int | None = None
    """Under REPEATABLE READ the event after which nothing of others is seen; None: READ COMMITTED."""

    began: int = NEVER
    """When it got its number, which decides its place in line."""

    ended: int = NEVER
    state: str = "open"
    log: list[Entry] = field(default_factory=list)
    savepoints: list[tuple[str, int]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.state} transaction, events {self.began} to {self.ended if self.ended < NEVER else '…'}>"

    def sees(self, other: Transaction) -> bool:
        if other is self:
            return True
        return other.state == "committed" and (self.snapshot is None or other.ended <= self.snapshot)

    def holds(self, what: str, of: int | None = None) -> bool:
        """Whether it holds this: of the given queue or lease, or of any."""
        holds = [entry for entry in self.log if isinstance(entry, Hold) and entry.what == what]
        return any(of is None or entry.of in (of, None) for entry in holds)

    def hold(self, what: str, of: int | None = None) -> None:
        self.log.append(Hold(what, of))

    @property
    def wrote(self) -> bool:
        """Whether it has changed anything."""
        return any(isinstance(entry, tuple) for entry in self.log)

    @property
    def wakes(self) -> set[str]:
        return {entry.word for entry in self.log if isinstance(entry, Wake)}


def visible(viewer: Transaction, row: Row) -> bool:
    return viewer.sees(row.born) and not (row.died is not None and viewer.sees(row.died))


def contested(viewer: Transaction, row: Row) -> bool:
    """Whether another open transaction has ended this row: who wants to do the same has to wait."""
    return row.died is not None and row.died is not viewer and row.died.state == "open"


RowT = TypeVar("RowT", bound=Row)


def first_visible(viewer: Transaction, rows: list[RowT]) -> RowT | None:
    """The one row of these that is seen; more than one would be a mistake of the model."""
    seen = [row for row in rows if visible(viewer, row)]
    assert len(seen) <= 1, f"the model contradicts itself: {seen}"
    return seen[0] if seen else None


def undo(transaction: Transaction, down_to: int) -> None:
    """Take back what was done since the log had this length."""
    while len(transaction.log) > down_to:
        entry = transaction.log.pop()
        if isinstance(entry, (Hold, Wake)):
            continue
        kind, row = entry
        if kind == "died":
            row.died = None
        else:
            row.born = UNDONE


UNDONE = Transaction(state="rolled back")
"""Where rows that were taken back come from."""

OUTSIDE = Transaction(state="open")
"""A viewer that writes nothing: sees what is committed."""
