"""Proves over a history and the final state that the queue kept its promises, or tells the story of each breach.

Pure: no database, no clock. Linear in the size of the history, but for some sorting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from tests.chaos.checks import after, attempts, cancel, final, groups, jobs, leases, order, settle, unique
from tests.chaos.dump import Dump
from tests.chaos.history import Operation
from tests.chaos.index import Index
from tests.chaos.violations import Violation

Check = Callable[[Index], Iterable[Violation]]

CHECKS: Sequence[Check] = (
    jobs.check,
    leases.check,
    settle.check,
    attempts.check,
    order.check,
    groups.check,
    after.check,
    cancel.check,
    unique.check,
    final.check,
)


def check(history: Sequence[Operation], dump: Dump) -> list[Violation]:
    """Return every breach that the history and the final state prove."""
    return list(_check(Index.build(history, dump)))


def _check(index: Index) -> Iterator[Violation]:
    for check in CHECKS:
        yield from check(index)
