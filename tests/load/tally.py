"""How often each id was seen, a byte each: ten million ids are ten megabytes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path


class Tally:
    """A count for each id; ids are small numbers, as they come from a sequence of this very run."""

    def __init__(self, counts: bytes = b"") -> None:
        self.counts = bytearray(counts)
        self._lock = threading.Lock()

    def add(self, ids: Iterable[int]) -> None:
        """Count each id once more."""
        with self._lock:
            for id in ids:
                while id >= len(self.counts):
                    self.counts.extend(bytes(max(id + 1 - len(self.counts), 1 << 16)))
                self.counts[id] += 1  # 256 times the same id raises ValueError, and should

    def merge(self, other: Tally) -> None:
        """Add the counts of another tally."""
        length = max(len(self.counts), len(other.counts))
        mine, theirs = self.padded(length), other.padded(length)
        self.counts = bytearray(map(sum, zip(mine, theirs, strict=True)))

    def padded(self, length: int) -> bytes:
        return bytes(self.counts).ljust(length, b"\0")

    def total(self) -> int:
        return sum(self.counts)

    def distinct(self) -> int:
        return len(self.counts) - self.counts.count(0)

    def save(self, path: Path) -> None:
        path.write_bytes(self.counts)

    @classmethod
    def load(cls, paths: Iterable[Path]) -> Tally:
        """The sum of saved tallies."""
        tally = cls()
        for path in paths:
            tally.merge(cls(path.read_bytes()))
        return tally


def differences(left: Tally, right: Tally) -> Iterator[tuple[int, int, int]]:
    """The ids whose counts differ, with both counts."""
    length = max(len(left.counts), len(right.counts))
    ours, theirs = left.padded(length), right.padded(length)
    if ours != theirs:
        yield from ((id, a, b) for id, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
