"""Which figures there are, which way each is better, and what pgqueue wants of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Figure:
    """One column of a workload's table."""

    workload: str
    key: str
    title: str
    unit: str
    more_is_better: bool = False
    judged: bool = True
    """Whether one is said to win by it; else it only explains others."""
    noise: float = 0.03
    """Who is not further behind than this share is level."""
    level: float = 0
    """The same in the figure's own unit."""
    enough: float = inf
    """From here on more is not better: who does not fall does not fall, and what it rises by is chance."""

    def counted(self, value: float) -> float:
        return min(value, self.enough)

    def behind(self, ours: float, other: float) -> bool:
        """Whether ours is worse, by more than what is level."""
        ours, other = self.counted(ours), self.counted(other)
        worse = other - ours if self.more_is_better else ours - other
        return worse > max(self.noise * abs(other), self.level)


FIGURES = [
    Figure("enqueue-single", "rate", "one in each call", "jobs/s", more_is_better=True),
    Figure("enqueue-bulk", "rate", "many in each call", "jobs/s", more_is_better=True),
    Figure("drain", "rate", "drained", "jobs/s", more_is_better=True),
    Figure("offered", "rate", "highest rate with p99 below 1 s", "jobs/s", more_is_better=True),
    Figure("idle", "p50", "p50", "ms", level=1),
    Figure("idle", "p99", "p99", "ms", level=5),
    Figure("pinned", "first", "first quarter", "jobs/s", more_is_better=True),
    Figure("pinned", "last", "last quarter", "jobs/s", more_is_better=True),
    Figure("pinned", "ratio", "last : first", "", more_is_better=True, enough=1),
    Figure("pinned", "dead", "dead rows at the end", "rows", level=1000),
    Figure("pinned", "bytes", "schema at the end", "bytes", judged=False),
    Figure("unpinned", "first", "first quarter", "jobs/s", more_is_better=True, judged=False),
    Figure("unpinned", "last", "last quarter", "jobs/s", more_is_better=True, judged=False),
    Figure("unpinned", "ratio", "last : first", "", more_is_better=True, judged=False),
    Figure("unpinned", "dead", "dead rows at the end", "rows", judged=False),
    Figure("unpinned", "bytes", "schema at the end", "bytes", judged=False),
    Figure("around", "rate", "drained", "jobs/s", more_is_better=True),
    Figure("around", "share", "of the bare drain", "", judged=False),
    Figure("crash", "seconds", "until the last is done", "s", level=1),
    Figure("crash", "twice", "ran twice", "jobs", level=1),
    Figure("life", "wal", "WAL", "bytes/job"),
    Figure("life", "commits", "commits", "per job", level=0.005),
    Figure("life", "server_us", "CPU, server", "µs/job", noise=0.1),
    Figure("life", "client_us", "CPU, client", "µs/job", noise=0.1),
    Figure("life", "versions", "row versions replaced or deleted", "per job", level=0.05),
    Figure("life", "dead", "dead rows after the run", "per job", level=0.05),
    Figure("life", "bytes", "schema after the run", "bytes/job", judged=False),
]


@dataclass(frozen=True)
class Wanted:
    """What pgqueue is to reach against some systems."""

    workload: str
    key: str
    against: tuple[str, ...]
    least: float | None = None
    """The ratio of pgqueue's figure to the other's; None: not to be behind it."""


PEERS = ("pgqueuer", "awa", "absurd", "procrastinate", "graphile-worker", "pg-boss")

WANTED = [
    Wanted("drain", "rate", ("procrastinate",), 25),
    Wanted("drain", "rate", ("absurd",), 15),
    Wanted("drain", "rate", ("awa",), 4),
    Wanted("drain", "rate", ("pgqueuer",), 2),
    Wanted("drain", "rate", ("graphile-worker", "pg-boss"), 1),
    Wanted("pinned", "ratio", PEERS),
    Wanted("life", "wal", PEERS),
    Wanted("enqueue-single", "rate", PEERS),
    Wanted("enqueue-bulk", "rate", PEERS),
    Wanted("idle", "p50", PEERS),
]
# Of pgqueue alone: throughput at the end of the time under a pinned snapshot against its beginning.
PINNED_LEAST = 0.9
