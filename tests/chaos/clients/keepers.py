"""Those who keep the queues: the admin and the maintainers."""

from __future__ import annotations

from typing import ClassVar

from tests.chaos.clients.base import Client
from tests.chaos.clients.queues import QUEUES, SETTINGS
from tests.chaos.session import Boundary, Session

WITH_TRANSACTIONS: tuple[Boundary, ...] = ("invoked", "answered", "open", "committed")


class Admin(Client):
    """Pauses, changes, redrives, looks at everything, and purges a queue of its own."""

    alone: ClassVar[bool] = True

    def connect(self) -> None:
        self._session: Session = self.session()
        self._count = getattr(self, "_count", 0)
        # The one before may have died in between.
        self._session.resume("main")
        self._session.create_queue("passing", **{**SETTINGS, **QUEUES["passing"]}, if_not_exists=True)

    def step(self) -> None:
        self.choose(
            (3, self._pause),
            (3, lambda: self._session.redrive(self.dice.choice(["main", "twophase"]))),
            (4, self._purge),
            (2, self._drop),
            (2, lambda: self._session.alter_queue("main", shards=self.dice.choice([1, 2, 4, 8]))),
            (3, self._look),
        )
        self.pause(0.2)

    def _pause(self) -> None:
        self._session.pause("main")
        self._session.look()
        self.pause(0.2)
        self._session.resume("main")

    def _purge(self) -> None:
        for _ in range(3):
            self._count += 1
            delay = self.dice.choice([None, None, "1 second"])
            self._session.enqueue("scratch", {"k": f"{self.me.client}-{self._count}"}, delay=delay)
        if self.dice.random() < 0.3:
            self._session.claim("scratch", 1)
        self._session.purge("scratch")

    def _drop(self) -> None:
        """Drop a queue into which others enqueue, and make it anew."""
        for job in self._session.claim("passing", self.dice.choice([1, 5])):
            if self.dice.random() < 0.5:
                self._session.ack(job.id, job.lease)
        self._session.drop_queue("passing", force=True)
        self._session.create_queue("passing", **{**SETTINGS, **QUEUES["passing"]}, if_not_exists=True)

    def _look(self) -> None:
        function = self.dice.choice(["pgq.stats()", "pgq.doctor()", f"pgq.job_status({self.dice.randint(1, 5000)})"])
        self._session.call("read", {"what": function}, f"(SELECT count(*) FROM {function}) f", [], "f.count")


class Maintainer(Client):
    """Promotes, reaps and turns the ring, more often than anybody should."""

    alone: ClassVar[bool] = True
    boundaries: ClassVar[tuple[Boundary, ...]] = WITH_TRANSACTIONS

    def connect(self) -> None:
        self._session: Session = self.session()

    def step(self) -> None:
        rollback = 3 if "rollback" in self.me.habits else 0
        self.choose(
            (6, self._session.maintain),
            (3, self._session.promote),
            (3, self._session.reap),
            (8, lambda: self._session.rotate(seal=True)),
            (2, lambda: self._session.rotate(seal=False)),
            (2, lambda: self._in_transaction(rolled_back=False)),
            (rollback, lambda: self._in_transaction(rolled_back=True)),
        )
        self.pause(0.1)

    def _in_transaction(self, rolled_back: bool) -> None:
        self._session.begin()
        for _ in range(self.dice.randint(1, 3)):
            self.choose(
                (1, self._session.promote),
                (1, self._session.reap),
                (2, lambda: self._session.rotate(seal=True)),
            )
        if rolled_back:
            self._session.rollback()
        else:
            self._session.commit()
