"""What this process holds, and when it has to be extended."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pgqueue._calls import HeldJob


@dataclass
class _Lease:
    jobs: int
    extend_at: float


class Leases:
    """Counts the unsettled jobs under each lease, from any thread; times are monotonic seconds."""

    def __init__(self) -> None:
        self._leases: dict[int, _Lease] = {}
        self._lock = threading.Lock()
        self._earliest = float("inf")
        self.sooner: Callable[[], None] = lambda: None
        """Called when something has to be extended sooner than ``due`` said."""

    def add(self, jobs: Iterable[HeldJob], claimed_at: float) -> None:
        """Take over claimed jobs.

        Args:
            jobs: the jobs.
            claimed_at: when the claim was sent, so that the time on the way counts as gone.
        """
        counts: Counter[int] = Counter()
        expires_in: dict[int, float] = {}
        for job in jobs:
            counts[job.lease] += 1
            expires_in[job.lease] = job.expires_in
        with self._lock:
            for lease, count in counts.items():
                extend_at = claimed_at + expires_in[lease] / 3
                self._leases[lease] = _Lease(count, extend_at)
            earliest = min(self._leases[lease].extend_at for lease in counts)
            sooner = earliest < self._earliest
            self._earliest = min(self._earliest, earliest)
        if sooner:
            self.sooner()

    def drop(self, jobs: Iterable[HeldJob]) -> None:
        """Forget jobs that are settled."""
        counts = Counter(job.lease for job in jobs)
        with self._lock:
            for lease, count in counts.items():
                held = self._leases.get(lease)
                if held is not None:
                    held.jobs -= count
                    if held.jobs <= 0:
                        del self._leases[lease]

    def due(self, now: float) -> tuple[list[int], float]:
        """Return the leases to extend now, and how many seconds there are until the next one is due."""
        with self._lock:
            due = [key for key, lease in self._leases.items() if lease.extend_at <= now]
            self._earliest = min(
                (held.extend_at for held in self._leases.values() if held.extend_at > now), default=float("inf")
            )
            return due, min(self._earliest - now, 60.0)

    def extended(self, asked: Iterable[int], expires_in: dict[int, float], asked_at: float) -> list[int]:
        """Note which leases were extended; returns those that were lost although they had unsettled jobs."""
        with self._lock:
            lost = [key for key in asked if key not in expires_in and key in self._leases]
            for key in lost:
                del self._leases[key]
            for key, seconds in expires_in.items():
                if key in self._leases:
                    self._leases[key].extend_at = asked_at + seconds / 3
            return lost
