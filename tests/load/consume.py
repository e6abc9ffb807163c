"""Claim and ack with handlers that take no time, as many workers in one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from pgqueue.errors import LeaseLost

from .crew import Site
from .server import Connection

CLAIM = "SELECT id, lease, date_part('epoch', enqueued_at), payload FROM pgq.claim(%s, %s, worker => %s)"


@dataclass(frozen=True)
class Consumer:
    """A worker: it claims with synchronous_commit = off on one connection, as pgq-worker does, and acks on another.

    After a claim that came back short it waits a moment, and longer each time that it finds nothing.
    """

    queues: Sequence[str]
    batch: int = 100
    pause: float = 0.02
    longest_pause: float = 0.5

    def run(self, site: Site) -> None:
        pause = self.pause
        with site.connect("claimer") as claims, site.connect("acker") as acks:
            claims.execute("SET synchronous_commit = off")
            while not site.stopping.is_set():
                began, found = time.monotonic(), 0
                for queue in self.queues:
                    if site.stopping.is_set():
                        return
                    found += self._turn(site, queue, claims, acks)
                site.recorder.time("round", time.monotonic() - began)
                if found < self.batch * len(self.queues):
                    pause = self.pause if found else min(pause * 2, self.longest_pause)
                    site.stopping.wait(pause)

    def _turn(self, site: Site, queue: str, claims: Connection, acks: Connection) -> int:
        before = time.monotonic()
        jobs = claims.execute(CLAIM, [queue, self.batch, "load"]).fetchall()
        claimed = time.monotonic()
        now = time.time()
        site.recorder.count("claims")
        if not jobs:
            site.recorder.time("empty", claimed - before)
            return 0
        site.recorder.time("claim", claimed - before)
        site.recorder.times("lag", (max(now - enqueued_at, 0) for _, _, enqueued_at, _ in jobs))
        site.recorder.count("claimed", len(jobs))
        before = time.monotonic()
        done = self.ack(acks, [job[0] for job in jobs], [job[1] for job in jobs])
        site.recorder.time("ack", time.monotonic() - before)
        site.done.add(done)
        site.recorder.count("done", len(done))
        site.recorder.count("lost leases", len(jobs) - len(done))
        return len(jobs)

    def ack(self, acks: Connection, ids: list[int], leases: list[int]) -> list[int]:
        """The ids whose ack took effect."""
        if self.batch > 1:
            return [id for (id,) in acks.execute("SELECT pgq.ack_many(%s, %s)", [ids, leases]).fetchall()]
        try:
            acks.execute("SELECT pgq.ack(%s, %s)", [ids[0], leases[0]])
        except psycopg.Error as error:
            if error.sqlstate != LeaseLost.sqlstate:
                raise
            return []
        return ids
