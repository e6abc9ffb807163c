"""The open loop that enqueues: at its times, whether the server keeps up or not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from .crew import Site

# About a hundred bytes, like most jobs: an id, a name, a number.
PADDING = "x" * 60


def payload(number: int) -> str:
    return f'{{"number": {number}, "padding": "{PADDING}"}}'


@dataclass(frozen=True)
class Pile:
    """One session that enqueues the same number of jobs in each of many queues, a hundred queues in a transaction.

    Alone, so that the ids of a queue follow on each other and reach all its shards.
    """

    queues: Sequence[str]
    each: int

    def run(self, site: Site) -> None:
        payloads = [payload(n) for n in range(self.each)]
        query = "SELECT id FROM unnest(%s::text[]) AS q (name), pgq.enqueue_many(q.name, %s::jsonb[]) AS id"
        with site.connect("producer") as db:
            for first in range(0, len(self.queues), 100):
                ids = [id for (id,) in db.execute(query, [list(self.queues[first : first + 100]), payloads])]
                site.enqueued.add(ids)
                site.recorder.count("enqueued", len(ids))


@dataclass(frozen=True)
class Producer:
    """One session that enqueues `jobs` jobs, `batch` in a transaction, over its queues in turn.

    The times at which it should begin are fixed beforehand (an open loop). If one comes late, because the one before
    it took so long, that is its lateness, and it counts for the latency: a producer that waits politely would hide it.
    `rate` None: one after the other, as fast as possible.
    """

    queues: Sequence[str]
    jobs: int
    batch: int = 1
    rate: float | None = None  # jobs per second

    def run(self, site: Site) -> None:
        with site.connect("producer") as db:
            began = time.monotonic()
            sent, turn = 0, 0
            while sent < self.jobs and not site.stopping.is_set():
                due = began + sent / self.rate if self.rate else time.monotonic()
                if site.stopping.wait(max(due - time.monotonic(), 0)):
                    break
                size = min(self.batch, self.jobs - sent)
                queue = self.queues[turn % len(self.queues)]
                started = time.monotonic()
                if self.batch == 1:
                    rows = db.execute("SELECT pgq.enqueue(%s, %s)", [queue, payload(sent)]).fetchall()
                else:
                    payloads = [payload(n) for n in range(sent, sent + size)]
                    rows = db.execute("SELECT pgq.enqueue_many(%s, %s::jsonb[])", [queue, payloads]).fetchall()
                ended = time.monotonic()
                site.enqueued.add(id for (id,) in rows)
                if len(rows) != size:
                    raise AssertionError(f"{size} jobs sent, {len(rows)} ids came back")
                site.recorder.count("enqueued", size)
                site.recorder.time("late", max(started - due, 0))
                site.recorder.time("enqueue", ended - due)
                sent += size
                turn += 1
