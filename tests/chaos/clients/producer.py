"""Producers: single jobs, many at once, in transactions of all kinds, and for later."""

from __future__ import annotations

from typing import Any, ClassVar

from tests.chaos.clients.base import Client
from tests.chaos.session import BOUNDARIES, Boundary, Session

PRIORITIES = (0, 0, 0, 0, -3, 4)


class Producer(Client):
    """Enqueues to all queues."""

    boundaries: ClassVar[tuple[Boundary, ...]] = tuple(b for b in BOUNDARIES if b != "handler")

    def connect(self) -> None:
        self._session: Session = super().session()
        self._count = getattr(self, "_count", 0)
        self._last: list[int] = []

    def step(self) -> None:
        prepared = 4 if "prepared" in self.me.habits else 0
        self.choose(
            (30, self._single),
            (15, self._many),
            (10, self._later),
            (12, self._unique),
            (14, self._grouped),
            (8, self._chained),
            (8, self._called_off),
            (4, self._unique_in_transaction),
            (15, self._transaction),
            (6, self._rolled_back),
            (6, self._savepoints),
            (5, self._isolated),
            (2, self._long),
            (prepared, self._prepared),
        )
        self.pause(0.02)

    # What -------------------------------------------------------------------------------------------------------------

    def _payload(self) -> dict[str, Any]:
        self._count += 1
        return {"k": f"{self.me.client}-{self._count}", "n": self.dice.randrange(100), "text": "ü'\"\\ 'x'"}

    def _where(self) -> tuple[str, dict[str, Any]]:
        """A queue, and options that suit it."""
        queue = self.dice.choices(["main", "twophase", "fifo", "real", "passing"], [20, 8, 8, 8, 1])[0]
        if queue == "real":
            return queue, {"task": "work"}
        options: dict[str, Any] = {"priority": self.dice.choice(PRIORITIES)}
        if self.dice.random() < 0.3:
            options["task"] = self.dice.choice(["mail", "thumb nail"])
        if self.dice.random() < 0.2:
            options["headers"] = {"trace": self.dice.randrange(1000)}
        if self.dice.random() < 0.1 and queue != "fifo":
            options["max_attempts"] = self.dice.choice([1, 2, 10])
        return queue, options

    def _put(self, queue: str, options: dict[str, Any], most: int = 5) -> None:
        if self.dice.random() < 0.6:
            self._session.enqueue(queue, self._payload(), **options)
        else:
            payloads = [self._payload() for _ in range(self.dice.randint(1, most))]
            self._session.enqueue_many(queue, payloads, **options)

    # How --------------------------------------------------------------------------------------------------------------

    def _single(self) -> None:
        queue, options = self._where()
        self._session.enqueue(queue, self._payload(), **options)

    def _many(self) -> None:
        queue, options = self._where()
        self._put(queue, options, most=self.dice.choice([5, 50, 200]))

    def _later(self) -> None:
        queue, options = self._where()
        self._put(queue, {**options, "delay": f"{self.dice.choice([50, 300, 1500])} ms"})

    def _unique(self) -> None:
        delay = {"delay": f"{self.dice.choice([50, 300])} ms"} if self.dice.random() < 0.2 else {}
        self._session.enqueue_unique("keyed", self._payload(), f"key {self.dice.randrange(6)}", **delay)

    def _grouped(self) -> None:
        delay = {"delay": f"{self.dice.choice([50, 300])} ms"} if self.dice.random() < 0.1 else {}
        self._session.enqueue("grouped", self._payload(), group_key=f"group {self.dice.randrange(8)}", **delay)

    def _chained(self) -> None:
        """Jobs that wait for others of this transaction, and for one of the last, which may have ended."""
        self._session.begin()
        ids = [*self._last[-1:], *(self._session.enqueue("chained", self._payload()) for _ in range(2))]
        for _ in range(self.dice.randint(1, 4)):
            after = self.dice.sample(ids, self.dice.randint(1, len(ids)))
            on_dead = self.dice.choice(["fail", "run"])
            ids.append(self._session.enqueue("chained", self._payload(), after=after, on_dead=on_dead))
        self._session.commit()
        self._last = ids

    def _called_off(self) -> None:
        """A job that is cancelled, before or after somebody has taken it."""
        delay = {"delay": f"{self.dice.choice([50, 300])} ms"} if self.dice.random() < 0.3 else {}
        id = self._session.enqueue("called off", self._payload(), **delay)
        self.pause(self.dice.choice([0, 0.05, 0.3]))
        self._session.cancel(id)

    def _unique_in_transaction(self) -> None:
        """One key only: two transactions that take two in different order would wait for each other."""
        self._session.begin()
        self._unique()
        self._put(*self._where())
        if self.dice.random() < 0.3:
            self._session.rollback()
        else:
            self._session.commit()

    def _transaction(self) -> None:
        self._session.begin()
        for _ in range(self.dice.randint(1, 4)):
            self._put(*self._where())
        self._session.commit()

    def _rolled_back(self) -> None:
        self._session.begin()
        self._put(*self._where())
        self._session.rollback()

    def _savepoints(self) -> None:
        self._session.begin()
        self._put(*self._where())
        for name in ("a", "b"):
            self._session.savepoint(name)
            self._put(*self._where())
            if self.dice.random() < 0.5:
                self._session.rollback_to(name)
                self._put(*self._where())
        self._session.commit()

    def _isolated(self) -> None:
        self._session.begin(self.dice.choice(["REPEATABLE READ", "SERIALIZABLE"]))
        self._put(*self._where())
        self.pause(0.1)
        self._put(*self._where())
        self._session.commit()

    def _long(self) -> None:
        self._session.begin()
        self._put(*self._where())
        self.pause(1)
        self._put(*self._where())
        self._session.commit()

    def _prepared(self) -> None:
        gid = f"{self.me.folder.rpartition('/')[2]} {self.me.client} {self._count}"
        self._session.begin()
        self._put("twophase", {"priority": self.dice.choice(PRIORITIES)})
        self._session.prepare(gid)
        self.pause(0.2)
        if self.dice.random() < 0.7:
            self._session.commit_prepared(gid)
        else:
            self._session.rollback_prepared(gid)
