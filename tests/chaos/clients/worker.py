"""Workers that do all that workers may do, in good faith and in bad."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, ClassVar

from tests.chaos.clients.base import Client
from tests.chaos.session import BOUNDARIES, Boundary, Job, Session


class Worker(Client):
    """Claims and settles. Like the real worker it does not wait for its claims to reach the disk, but for its acks."""

    boundaries: ClassVar[tuple[Boundary, ...]] = BOUNDARIES
    queues: ClassVar[tuple[str, ...]] = ("main", "main", "twophase", "keyed", "grouped", "chained", "called off")

    def connect(self) -> None:
        self._claimer: Session = self.session(synchronous_commit="off")
        self._settler: Session = self.session()
        self._count = getattr(self, "_count", 0)
        self._old: deque[Job] = getattr(self, "_old", deque(maxlen=50))

    def step(self) -> None:
        if self._old and self.dice.random() < 0.1:
            self._haunt(self.dice.choice(self._old))
        jobs = self.choose(
            (65, self._claim),
            (10, self._claim_durably),
            (15, self._claim_in_transaction),
            (5, self._claim_between_savepoints),
            (5, self._pass_on),
        )
        if not jobs:
            self.pause(0.05)
            return
        self.boundary("handler")
        self._old.extend(jobs)
        self.choose(
            (25, lambda: self._each(jobs, self._ack)),
            (12, lambda: self._each(jobs, self._ack_with_effect)),
            (30, lambda: self._ack_all(jobs)),
            (8, lambda: self._each(jobs, self._reject)),
            (4, lambda: self._reject_all(jobs)),
            (5, lambda: self._release(jobs)),
            (4, lambda: self._each(jobs[:3], self._snooze)),
            (7, lambda: self._extend_and_ack(jobs)),
            (3, lambda: self._mix_up(jobs)),
            (3, lambda: self._oversleep(jobs)),
            (3, lambda: None),
        )

    # Claim ------------------------------------------------------------------------------------------------------------

    def _wanted(self) -> tuple[str, int, dict[str, Any]]:
        batch = self.dice.choice([1, 1, 1, 3, 10, 100])
        lease_for = self.dice.choice([None, None, None, "1 second", "5 seconds"])
        return self.dice.choice(self.queues), batch, {"lease_for": lease_for, "worker": self.me.client}

    def _claim(self) -> list[Job]:
        queue, batch, options = self._wanted()
        return self._claimer.claim(queue, batch, **options)

    def _claim_durably(self) -> list[Job]:
        queue, batch, options = self._wanted()
        return self._settler.claim(queue, batch, durable=True, **options)

    def _claim_in_transaction(self) -> list[Job]:
        queue, batch, options = self._wanted()
        self._claimer.begin()
        jobs = self._claimer.claim(queue, batch, **options)
        if self.dice.random() < 0.2:
            self._claimer.rollback()
            return []
        self._claimer.commit()
        return jobs

    def _claim_between_savepoints(self) -> list[Job]:
        queue, batch, options = self._wanted()
        self._claimer.begin()
        kept = self._claimer.claim(queue, batch, **options)
        self._claimer.savepoint("s")
        for job in self._claimer.claim(queue, batch, **options)[:3]:
            self._claimer.ack(job.id, job.lease)
        self._claimer.rollback_to("s")
        kept += self._claimer.claim(queue, batch, **options)
        self._claimer.commit()
        return kept

    def _pass_on(self) -> list[Job]:
        """Take a job, do it, and enqueue another one, all in one transaction; nothing of it may be taken meanwhile."""
        queue, batch, options = self._wanted()
        self._count += 1
        self._settler.begin()
        self._settler.enqueue(queue, {"k": f"{self.me.client}-{self._count}"})
        jobs = self._settler.claim(queue, batch, durable=True, **options)
        done, kept = jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]
        for job in done[:5]:
            self._settler.effect(job.id, job.lease)
            self._settler.ack(job.id, job.lease, {"of": job.id})
        self._settler.commit()
        return kept + done[5:]

    # Settle -----------------------------------------------------------------------------------------------------------

    def _each(self, jobs: list[Job], settle: Any) -> None:
        for job in jobs[:20]:
            settle(job)
            self.boundary("handler")
        if rest := jobs[20:]:
            self._ack_all(rest)

    def _ack(self, job: Job) -> None:
        self._settler.ack(job.id, job.lease, self.dice.choice([None, {"of": job.id}]))

    def _ack_with_effect(self, job: Job) -> None:
        self._settler.begin()
        self._settler.effect(job.id, job.lease)
        self._settler.ack(job.id, job.lease, {"of": job.id})
        if self.dice.random() < 0.1:
            self._settler.rollback()
        else:
            self._settler.commit()

    def _ack_all(self, jobs: list[Job]) -> None:
        results = self.dice.choice([None, [{"of": job.id} for job in jobs]])
        self._settler.ack_many([job.id for job in jobs], [job.lease for job in jobs], results)

    def _reject(self, job: Job) -> None:
        ways: list[dict[str, Any]] = [{}, {}, {"retry": False}]
        ways += [{"retry_in": "0 ms"}, {"retry_in": "300 ms"}, {"retry_in": "2 seconds"}]
        options = self.dice.choice(ways)
        self._settler.reject(job.id, job.lease, error="it failed", **options)

    def _reject_all(self, jobs: list[Job]) -> None:
        self._settler.reject_many([job.id for job in jobs], [job.lease for job in jobs], ["all failed"] * len(jobs))

    def _snooze(self, job: Job) -> None:
        self._settler.snooze(job.id, job.lease, self.dice.choice(["0 ms", "100 ms", "1 second"]))

    def _release(self, jobs: list[Job]) -> None:
        some = self.dice.sample(jobs, self.dice.randint(1, len(jobs)))
        self._settler.release([job.id for job in some], [job.lease for job in some])

    def _extend_and_ack(self, jobs: list[Job]) -> None:
        lease_for = self.dice.choice([None, "3 seconds"])
        if self.dice.random() < 0.5:
            self._settler.extend(jobs[0].lease, lease_for)
        else:
            self._settler.extend_many(sorted({job.lease for job in jobs}), lease_for)
        self.pause(0.5)
        self._ack_all(jobs)

    def _mix_up(self, jobs: list[Job]) -> None:
        """Settle jobs under each other's leases, twice, and some that are not held at all."""
        others = self.dice.sample([*self._old], min(len(self._old), 5))
        leases = [job.lease for job in (*jobs[1:], *others, jobs[0])]
        self._settler.ack_many([job.id for job in (*jobs, *others)], leases)
        self._ack_all([*jobs, *jobs[:1]])

    def _oversleep(self, jobs: list[Job]) -> None:
        time.sleep(self.dice.uniform(0.5, 3))
        self._ack_all(jobs)

    def _haunt(self, job: Job) -> None:
        """Come back for a job that was settled or lost long ago."""
        self.choose(
            (4, lambda: self._settler.ack(job.id, job.lease, {"by": "a zombie"})),
            (2, lambda: self._settler.ack_many([job.id], [job.lease])),
            (2, lambda: self._settler.reject(job.id, job.lease, error="a zombie")),
            (2, lambda: self._settler.release([job.id], [job.lease])),
            (2, lambda: self._settler.extend(job.lease)),
        )


class InLine(Worker):
    """The only consumer of a queue that is first in, first out."""

    alone: ClassVar[bool] = True
    queues: ClassVar[tuple[str, ...]] = ("fifo",)

    def connect(self) -> None:
        # One session, or the second would end the first.
        self._claimer = self._settler = self.session()
        self._old = getattr(self, "_old", deque(maxlen=50))

    def _claim(self) -> list[Job]:
        queue, batch, options = self._wanted()
        self._claimer.begin()
        self._claimer.set("synchronous_commit", "off", local=True)
        jobs = self._claimer.claim(queue, min(batch, 10), **options)
        self._claimer.commit()
        return jobs

    def _claim_durably(self) -> list[Job]:
        return self._claim()

    def _claim_in_transaction(self) -> list[Job]:
        return self._claim()

    def _claim_between_savepoints(self) -> list[Job]:
        return self._claim()

    def _pass_on(self) -> list[Job]:
        return self._claim()
