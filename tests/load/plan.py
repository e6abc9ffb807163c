"""How much of what, and how it is split over sessions."""

from __future__ import annotations

from dataclasses import dataclass

MAIN = "load"
PROBE = "probe"


@dataclass(frozen=True)
class Plan:
    """The size of a run; the defaults are the hour that is published."""

    minutes: float = 60
    rate: int = 2800  # jobs per second offered to the one queue
    queues: int = 10_000
    connections: int = 500
    sample_seconds: float = 10
    wide_minutes: float | None = None  # the phase with many queues; None: a sixth of the rest
    hold_seconds: float = 75  # how long nobody consumes from them: a waiting segment is carried forward after a minute
    bulk: int = 9  # jobs through the one queue for each job that waits in the many
    processes: int = 2  # of producers, and as many of consumers
    maintainers: int = 3
    lease: str = "1 minute"

    @property
    def jobs(self) -> int:
        """Jobs through the one queue at a steady rate."""
        return round(self.minutes * 60 * self.rate)

    @property
    def wide_seconds(self) -> float:
        return 60 * (self.minutes / 6 if self.wide_minutes is None else self.wide_minutes)

    @property
    def wide_rate(self) -> int:
        """Jobs per second over the many queues: each claim of theirs finds little, and costs as much."""
        return max(self.rate // 4, 1)

    @property
    def turn_seconds(self) -> float:
        """Pause between two turns of the ring in the warm-up, which takes no more than a tenth of the time."""
        return min(self.minutes * 60 / 10 / 17, 3)

    @property
    def pinned_from(self) -> float:
        """Seconds after the start at which a snapshot is pinned, for a sixth of the time."""
        return self.minutes * 60 * 5 / 12

    @property
    def pinned_seconds(self) -> float:
        return self.minutes * 60 / 6

    @property
    def wide_names(self) -> list[str]:
        return [f"wide-{n}" for n in range(self.queues)]

    @property
    def single_jobs(self) -> int:
        """One job in ten is enqueued by itself, the others twenty at a time."""
        return self.jobs // 10


def shares(total: int, parts: int) -> list[int]:
    """Split a number into nearly equal parts that add up to it."""
    return [total // parts + (n < total % parts) for n in range(parts)]
