"""One line of figures: what the clients saw, what the database says, what the processes use."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import psutil

from . import database
from .record import Figures
from .server import Connection, Server

MB = 2**20
Sample = dict[str, Any]


@dataclass(frozen=True)
class _Usage:
    """CPU seconds since the start, of the server and of the machine, and what the sessions hold in memory."""

    server: float
    machine: float
    rss: list[int]
    private: list[int]


def _usage(server: Server) -> _Usage:
    postmaster = server.cluster.postmaster()
    for _ in range(5):  # a process that ends between the two would be counted nowhere
        ended = postmaster.cpu_times()
        usage = _usage_once(postmaster, ended.user + ended.system + ended.children_user + ended.children_system)
        if postmaster.cpu_times().children_user == ended.children_user:
            break
    return usage


def _usage_once(postmaster: psutil.Process, spent: float) -> _Usage:
    """Resident memory counts shared buffers for each session that has touched them; what is private is its own."""
    rss: list[int] = []
    private: list[int] = []
    for process in postmaster.children():
        with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
            used = process.cpu_times()
            spent += used.user + used.system
            memory = process.memory_info()
            rss.append(memory.rss)
            private.append(memory.rss - memory.shared)
    machine = psutil.cpu_times()
    return _Usage(spent, machine.user + machine.nice + machine.system + machine.irq + machine.softirq, rss, private)


class Sampler:
    """Measures the intervals between its calls."""

    def __init__(self, server: Server, db: Connection) -> None:
        self._server = server
        self._db = db
        self._began = self._last = time.monotonic()
        self._used = _usage(server)
        self._wal = self._lsn()

    def _lsn(self) -> int:
        row = self._db.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
        assert row is not None
        return int(row[0])

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def take(self, phase: str, figures: Figures) -> Sample:
        """One sample: the figures of the clients since the last one, and everything else as it is now."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return {
            "at": round(now - self._began, 1),
            "phase": phase,
            "seconds": round(seconds, 2),
            **self._clients(figures, seconds),
            **self._memory_and_cpu(seconds),
            **self._database(figures),
        }

    def _clients(self, figures: Figures, seconds: float) -> Sample:
        sample: Sample = {
            name: round(figures.counts[name] / seconds, 1)
            for name in ("enqueued", "claimed", "done", "claims", "notified")
        }
        for name in ("late", "enqueue", "claim", "empty", "ack", "lag", "wake", "maintain", "round"):
            for label, rank in (("p50", 50), ("p99", 99), ("max", 100)):
                value = figures.percentile(name, rank)
                sample[f"{name}_{label}"] = None if value is None else round(value, 2)
        return sample

    def _memory_and_cpu(self, seconds: float) -> Sample:
        before, self._used = self._used, _usage(self._server)
        return {
            "backends": len(self._used.rss),
            "rss_sum": round(sum(self._used.rss) / MB, 1),
            "rss_max": round(max(self._used.rss) / MB, 1),
            "private_sum": round(sum(self._used.private) / MB, 1),
            "private_max": round(max(self._used.private) / MB, 1),
            "cpu_server": round((self._used.server - before.server) / seconds, 2),
            "cpu_machine": round((self._used.machine - before.machine) / seconds, 2),
        }

    def _database(self, figures: Figures) -> Sample:
        lsn = self._lsn()
        wal, self._wal = lsn - self._wal, lsn
        jobs = figures.counts["done"]
        began = time.monotonic()
        waiting = database.waiting(self._db)
        stats_ms = (time.monotonic() - began) * 1000
        space = database.space(self._db)
        return {
            "stats_ms": round(stats_ms, 1),
            "ready": waiting["ready"],
            "running": waiting["running"],
            "size_live": round(space.live / MB, 1),
            "size_archive": round(space.archive / MB, 1),
            "relations": space.relations,
            "dead": database.dead_tuples(self._db),
            "free_segments": database.ring(self._db).free,
            "wal_mb": round(wal / MB, 2),
            "wal_per_job": round(wal / jobs) if jobs >= 100 else None,  # of a handful it says nothing
        }
