"""How long and how much: the full run, a quick one, and the smallest that still tries everything."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Plan:
    """The sizes of all workloads."""

    rounds: int = 3
    enqueue_seconds: float = 3
    drain_seconds: float = 4
    life_jobs: int = 50_000
    life_seconds: float = 6
    wakes: int = 150
    offered_seconds: float = 4
    offered_steps: int = 9
    pinned_seconds: float = 120
    settle_seconds: float = 60
    around: int = 1_000_000
    crash_jobs: int = 300
    crash_patience: float = 60
    silence: int = 10

    def as_json(self) -> dict[str, float]:
        return asdict(self)

    @property
    def edge_seconds(self) -> float:
        """The beginning and the end of the time under a pinned snapshot that are compared: half a minute of two."""
        return self.pinned_seconds / 4


FULL = Plan()
QUICK = Plan(
    rounds=1,
    enqueue_seconds=1,
    drain_seconds=1.5,
    life_jobs=10_000,
    life_seconds=3,
    wakes=40,
    offered_seconds=2,
    offered_steps=4,
    pinned_seconds=12,
    settle_seconds=2,
    around=20_000,
    crash_jobs=100,
    crash_patience=25,
)
TINY = Plan(
    rounds=1,
    enqueue_seconds=0.2,
    drain_seconds=0.05,
    life_jobs=2_000,
    life_seconds=0.1,
    wakes=5,
    offered_seconds=0.5,
    offered_steps=1,
    pinned_seconds=2,
    settle_seconds=0.5,
    around=2_000,
    crash_jobs=20,
    crash_patience=25,
    silence=2,
)
