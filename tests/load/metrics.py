"""Which figures a sample has, and which of them must stay flat."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A figure of each sample.

    `limit` is what the last tenth may be of the first (for rates: of which it must not fall short by as much); what
    lies below `noise` is as good as nothing. None: it is shown and not judged. `peak`: what goes up and down with the
    segments, which is slower than a tenth, is judged by its highest, and all else by its median.
    """

    key: str
    title: str
    unit: str
    limit: float | None = None
    noise: float = 0
    more_is_better: bool = False
    peak: bool = False

    def flat(self, first: float, last: float) -> bool | None:
        if self.limit is None:
            return None
        if self.more_is_better:
            return last * self.limit >= first
        return last <= max(first, self.noise) * self.limit


METRICS = [
    Metric("enqueued", "jobs enqueued", "jobs/s", 1.05, more_is_better=True),
    Metric("done", "jobs done", "jobs/s", 1.05, more_is_better=True),
    Metric("ready", "jobs waiting", "jobs", 1.25, noise=1000),
    Metric("late_p99", "producer late, p99", "ms", 1.25, noise=20),
    Metric("enqueue_p50", "enqueue, p50", "ms", 1.25, noise=5),
    Metric("enqueue_p99", "enqueue, p99", "ms", 1.25, noise=20),
    Metric("claim_p50", "claim, p50", "ms", 1.25, noise=5),
    Metric("claim_p99", "claim, p99", "ms", 1.25, noise=20),
    Metric("ack_p50", "ack, p50", "ms", 1.25, noise=5),
    Metric("ack_p99", "ack, p99", "ms", 1.25, noise=20),
    Metric("lag_p50", "enqueue to claim, polling, p50", "ms", 1.25, noise=50),
    Metric("lag_p99", "enqueue to claim, polling, p99", "ms", 1.25, noise=100),
    Metric("wake_p50", "enqueue to claim, woken, p50", "ms", 1.25, noise=10),
    Metric("wake_p99", "enqueue to claim, woken, p99", "ms", 1.25, noise=50),
    Metric("maintain_p50", "maintain(), p50", "ms", 1.25, noise=10),
    Metric("maintain_max", "maintain(), longest", "ms"),
    Metric("stats_ms", "stats()", "ms", 1.25, noise=50),
    Metric("private_sum", "backends' own memory, sum", "MB", 1.1, noise=10),
    Metric("private_max", "backends' own memory, largest", "MB", 1.1, noise=10),
    Metric("rss_sum", "backends' resident memory, sum", "MB"),
    Metric("rss_max", "backends' resident memory, largest", "MB"),
    Metric("size_live", "schema without the archive, highest", "MB", 1.1, noise=50, peak=True),
    Metric("size_archive", "archive", "MB"),
    Metric("dead", "dead tuples", "rows", 1.25, noise=5000),
    Metric("relations", "relations", "", 1.05),
    Metric("free_segments", "free segments", "of 16"),
    Metric("wal_per_job", "WAL per job", "bytes", 1.25),
    Metric("cpu_server", "CPU of the server", "cores", 1.25),
    Metric("cpu_machine", "CPU of the machine", "cores"),
    Metric("backends", "processes of the server", ""),
]
