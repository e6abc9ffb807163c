"""Counts and durations on their way from the clients to the sampler."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Figures:
    """What happened during an interval: how often, and how many milliseconds each took."""

    counts: Counter[str] = field(default_factory=Counter)
    times: dict[str, array[float]] = field(default_factory=dict)

    def add(self, other: Figures) -> None:
        self.counts.update(other.counts)
        for name, values in other.times.items():
            self.times.setdefault(name, array("d")).extend(values)

    def percentile(self, name: str, rank: float) -> float | None:
        """The nearest-rank percentile, None if nothing was measured."""
        values = sorted(self.times.get(name, ()))
        return values[min(int(len(values) * rank / 100), len(values) - 1)] if values else None


class Recorder:
    """Collects figures from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._figures = Figures()

    def count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._figures.counts[name] += by

    def time(self, name: str, *seconds: float) -> None:
        self.times(name, seconds)

    def times(self, name: str, seconds: Iterable[float]) -> None:
        with self._lock:
            self._figures.times.setdefault(name, array("d")).extend(s * 1000 for s in seconds)

    def add(self, figures: Figures) -> None:
        with self._lock:
            self._figures.add(figures)

    def take(self) -> Figures:
        """What came in since the last call."""
        with self._lock:
            taken, self._figures = self._figures, Figures()
        return taken
