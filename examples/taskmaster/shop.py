"""A shop's tasks, and the middleware around them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pgqueue import ACK, REJECT, App, Job, Middleware, Outcome
from pgqueue.middleware import Request

clerk: ContextVar[str] = ContextVar("clerk", default="nobody")
"""On whose behalf the code runs, in the program that enqueues and in the handler alike."""


class Clerks(Middleware):
    """Lets the clerk travel in the headers of jobs."""

    @contextmanager
    def enqueuing(self, request: Request) -> Iterator[None]:
        request.headers["clerk"] = clerk.get()
        yield

    @contextmanager
    def running(self, job: Job) -> Iterator[None]:
        token = clerk.set(job.headers["clerk"])
        try:
            yield
        finally:
            clerk.reset(token)


class Counts(Middleware):
    """Counts the attempts of each task, and those that an exception has ended."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def running(self, job: Job) -> Iterator[None]:
        task = job.task or ""
        with self._lock:
            self.attempts[task] += 1
        try:
            yield
        except Outcome:
            raise
        except Exception:
            with self._lock:
                self.errors[task] += 1
            raise


class Stock:
    """How many of each thing there are."""

    def __init__(self, **things: int) -> None:
        self._things = Counter(things)
        self._lock = threading.Lock()

    def add(self, thing: str) -> None:
        """Put one more there."""
        with self._lock:
            self._things[thing] += 1

    def take(self, thing: str) -> bool:
        """Take one; returns whether there was one."""
        with self._lock:
            if self._things[thing] == 0:
                return False
            self._things[thing] -= 1
            return True


counts = Counts()
stock = Stock(tea=2, cups=1)
labels: dict[int, int] = {}
"""The jobs of the labels by their orders."""
app = App(middleware=[Clerks(), counts])


@app.task("ship", queue="orders", retry=0.5)
def ship(order: int, thing: str) -> object:
    """Ship an order; if there is no such thing, ask the supplier and have it tried again."""
    if not stock.take(thing):
        supply.enqueue(thing)
        return REJECT
    labels[order] = label.enqueue(order)
    return ACK


@app.task("supply", queue="supplies")
async def supply(thing: str) -> None:
    """Bring one of a thing that the shop is out of."""
    if thing == "unicorns":
        raise LookupError("there are no unicorns")
    stock.add(thing)


@app.task("label", queue="labels")
async def label(order: int) -> str:
    """Return the text of a label."""
    return f"order {order}, sold by {clerk.get()}"
