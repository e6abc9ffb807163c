"""The crowd of idle workers: they listen, are registered as waiting, and have nothing to do."""

from __future__ import annotations

import selectors
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from .crew import Site
from .server import Connection

# Producers stop looking for waiting workers if none began to wait within the last minute.
AGAIN_SECONDS = 20


@dataclass(frozen=True)
class Crowd:
    """Many sessions in one thread, each of which waits for jobs of one of the queues that never come.

    Every NOTIFY wakes them all, because there is one channel for all queues; that they read it is part of the load.
    """

    queues: Sequence[str]
    sessions: int

    def run(self, site: Site) -> None:
        with ExitStack() as stack, selectors.DefaultSelector() as selector:
            crowd = [stack.enter_context(site.connect("idle worker")) for _ in range(self.sessions)]
            for number, db in enumerate(crowd):
                db.execute("LISTEN pgq")
                self._watch(number, db)
                selector.register(db.fileno(), selectors.EVENT_READ, db)
            site.recorder.count("idle sessions", len(crowd))
            # One after the other, so that all have watched anew after this time.
            step = AGAIN_SECONDS / max(len(crowd), 1)
            number, due = 0, time.monotonic() + step
            while crowd and not site.stopping.is_set():
                for key, _ in selector.select(timeout=min(max(due - time.monotonic(), 0), 0.5)):
                    self._read(site, key.data)
                if time.monotonic() >= due:
                    self._watch(number % len(crowd), crowd[number % len(crowd)], again=True)
                    number, due = number + 1, due + step

    def _watch(self, number: int, db: Connection, again: bool = False) -> None:
        queue = [self.queues[number % len(self.queues)]]
        db.execute("SELECT pgq.watch(%s)", [queue])
        if again:  # each watch wants an unwatch of its own; in this order there is no gap
            db.execute("SELECT pgq.unwatch(%s)", [queue])

    def _read(self, site: Site, db: Connection) -> None:
        db.pgconn.consume_input()
        while db.pgconn.notifies():
            site.recorder.count("notified")
