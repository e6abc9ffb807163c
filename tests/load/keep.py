"""What goes on beside the jobs: maintenance, the wake-up probe, somebody else's long transaction."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .crew import Site
from .plan import PROBE
from .server import Connection


@dataclass(frozen=True)
class Maintainer:
    """Calls pgq.maintain() each second, as every worker does, and notes what it did."""

    pause: float = 1.0

    def run(self, site: Site) -> None:
        with site.connect("maintainer") as db:
            while not site.stopping.is_set():
                began = time.monotonic()
                row = db.execute("SELECT pgq.maintain()").fetchone()
                site.recorder.time("maintain", time.monotonic() - began)
                assert row is not None
                done = row[0]
                for event in ("sealed", "archived", "truncated"):
                    if event in done:
                        site.recorder.count(event)
                for number in ("carried", "moved", "reaped"):
                    site.recorder.count(number, done.get(number) or 0)
                if not done["more"]:
                    site.stopping.wait(self.pause)


@dataclass(frozen=True)
class Probe:
    """About each second enqueues a job for a worker that sleeps, and measures from its commit until it is claimed.

    The worker follows the protocol of pgq-worker: LISTEN, watch, look once more, sleep until it is notified. If no
    notification came it would poll after some seconds, and that would be its time.
    """

    pause: float = 1.0
    poll: float = 5.0

    def run(self, site: Site) -> None:
        with site.connect("probe worker") as worker, site.connect("probe producer") as producer:
            worker.execute("LISTEN pgq")
            while not site.stopping.wait(self.pause):
                worker.execute("SELECT pgq.watch(%s)", [[PROBE]])
                if self._claim(worker):
                    raise AssertionError("the probe's queue has a job that it did not enqueue")
                site.enqueued.add(id for (id,) in producer.execute("SELECT pgq.enqueue(%s)", [PROBE]).fetchall())
                began = time.monotonic()
                site.recorder.count("enqueued")
                self._sleep(worker)
                jobs = self._claim(worker)
                site.recorder.time("wake", time.monotonic() - began)
                worker.execute("SELECT pgq.unwatch(%s)", [[PROBE]])
                for id, lease in jobs:
                    worker.execute("SELECT pgq.ack(%s, %s)", [id, lease])
                    site.done.add([id])
                    site.recorder.count("done")

    def _claim(self, worker: Connection) -> list[tuple[int, int]]:
        return [(id, lease) for id, lease in worker.execute("SELECT id, lease FROM pgq.claim(%s)", [PROBE])]

    def _sleep(self, worker: Connection) -> None:
        """Until this queue is named, or it is time to poll."""
        until = time.monotonic() + self.poll
        while (left := until - time.monotonic()) > 0:
            for notification in worker.notifies(timeout=left, stop_after=1):
                if notification.payload == PROBE:
                    return
