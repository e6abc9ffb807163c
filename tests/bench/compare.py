"""Rounds, turns and medians: how two noisy figures become one ratio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """What each side reached in each round."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios: a disturbance in one round does not move it."""
        return median(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def our_median(self) -> float:
        return median(self.ours)

    @property
    def their_median(self) -> float:
        return median(self.theirs)

    def raw(self) -> dict[str, Any]:
        return {"rounds": {"pgq": self.ours, "other": self.theirs}}


def compare(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> Comparison:
    """Lets both have their turn in each round, and swaps who begins."""
    mine: list[float] = []
    other: list[float] = []
    for number in range(rounds):
        turns = [(mine, ours), (other, theirs)]
        for results, measure in turns if number % 2 == 0 else reversed(turns):
            results.append(measure())
    return Comparison(mine, other)
