"""What pgq._now() may have been at an instant of database time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate

from tests.chaos.history import NEVER, Effect, Operation


class Clock:
    """pgq._now() is the server's clock plus an offset, which is changed by operations named `clock`, one at a time."""

    def __init__(self, changes: Iterable[Operation]) -> None:
        changes = sorted((c for c in changes if c.effect is not Effect.NO), key=lambda c: c.began)
        # An offset counts from when its change began until the next one was committed for certain.
        self._began = [0] + [change.began for change in changes]
        self._offset = [0] + [int(change.args["ahead"]) for change in changes]
        replaced = [change.done_by for change in changes] + [NEVER]
        # What comes later cannot have been replaced earlier.
        self._replaced = list(accumulate(reversed(replaced), min))[::-1]
        self._latest = list(
            accumulate((end + offset for end, offset in zip(self._replaced, self._offset, strict=True)), max)
        )

    def latest(self, until: int) -> int:
        """The latest time that pgq._now() may have returned to anybody by an instant of database time."""
        if until >= NEVER:
            return NEVER
        known = bisect_right(self._began, until)
        over = min(bisect_right(self._replaced, until), known)
        latest = self._latest[over - 1] if over else 0
        return max([latest, *(until + offset for offset in self._offset[over:known])])
