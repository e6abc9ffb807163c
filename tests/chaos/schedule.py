"""When which fault happens to whom: all of it decided by the seed, before the run begins."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tests.chaos.clients.cast import CAST, REAL_WORKERS
from tests.chaos.proxy import BREAKS

CRASHES = ("immediate", "postmaster", "everything", "backend")
"""pg_ctl stop -m immediate; kill -9 of the postmaster; of all its processes at once; of one backend."""
JUMPS = (0, 0, 0.5, 3, 20, 65, 130, 400)
"""How far the clock may be ahead, in seconds. It jumps back as well."""

# Mean seconds between two faults of a kind, and how long one lasts.
EVERY: dict[str, float] = {
    "kill": 0.8,
    "stop": 3,
    "terminate": 1.5,
    "cancel": 1,
    "crash": 8,
    "proxy": 0.5,
    "disk": 25,
    "clock": 5,
    "connections": 20,
    "snapshot": 12,
    "dump": 10,
    "notify": 20,
}
HABITS = frozenset({"timeouts", "prepared", "rollback"})
"""Faults that clients commit themselves, at random: statement_timeout and lock_timeout, PREPARE TRANSACTION, and
maintenance that is rolled back."""
FAULTS: tuple[str, ...] = (*EVERY, *sorted(HABITS))


@dataclass(frozen=True, order=True)
class Event:
    """A fault: when, in seconds since the beginning; what; who or how; for how long."""

    at: float
    fault: str
    target: str = ""
    detail: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        words = [f"{self.at:.1f}", self.fault, self.target, self.detail, f"{self.seconds:g} s" if self.seconds else ""]
        return " ".join(word for word in words if word)


def schedule(seed: str, seconds: float, faults: Collection[str], times: float = 1) -> list[Event]:
    """Return what happens within so many seconds, this many times as often as usual; each fault at least once."""
    events: list[Event] = []
    for fault in EVERY:
        if fault in faults:
            dice = random.Random(f"{seed} {fault}")
            events += (_event(fault, at, dice) for at in _times(dice, EVERY[fault] / times, seconds))
    return sorted(events)


def _times(dice: random.Random, every: float, seconds: float) -> Iterator[float]:
    at = dice.uniform(0.1, 0.6) * min(seconds, every)
    while at < seconds:
        yield round(at, 1)
        at += max(dice.expovariate(1 / every), 0.1)


def _event(fault: str, at: float, dice: random.Random) -> Event:
    everybody = [part.name for part in CAST] + list(REAL_WORKERS)
    if fault in ("kill", "stop"):
        name = dice.choice(everybody)
        boundaries = next((part.role.boundaries for part in CAST if part.name == name), ("any",))
        where = dice.choice([*boundaries, "any"])
        return Event(at, fault, name, where, round(dice.uniform(0.2, 4), 1) if fault == "stop" else 0)
    if fault in ("terminate", "cancel"):
        return Event(at, fault, dice.choice([*everybody, "dump", "snapshot"]))
    if fault == "crash":
        return Event(at, fault, dice.choice(CRASHES))
    if fault == "proxy":
        if dice.random() < 0.05:
            return Event(at, fault, "cut all")
        return Event(at, fault, dice.choice(BREAKS), seconds=round(dice.uniform(0.05, 2), 2))
    if fault == "clock":
        return Event(at, fault, str(dice.choice(JUMPS)))
    return Event(at, fault, seconds=round(dice.uniform(*_LENGTH[fault]), 1))


_LENGTH = {"disk": (1, 3), "connections": (0.5, 2), "snapshot": (3, 20), "dump": (2, 10), "notify": (3, 10)}
