"""What the model is made of: queues, jobs, the one place where a job is, leases, endings; and what calls may expect."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.model.transactions import Row

ZERO = timedelta(0)


@dataclass(frozen=True)
class Settings:
    """The settings of a queue, as create_queue takes them."""

    lease: timedelta = timedelta(minutes=1)
    max_attempts: int = 20
    backoff: timedelta = timedelta(seconds=1)
    backoff_max: timedelta = timedelta(hours=1)
    retention: timedelta = timedelta(days=7)
    shards: int = 8
    notify: bool = True


@dataclass(frozen=True)
class Limits:
    """The limits of a queue, as set_limits takes them."""

    group_limit: int | None = 1
    running_limit: int | None = None
    rate: int | None = None
    rate_period: timedelta | None = None
    group_rate: int | None = None
    group_period: timedelta | None = None
    fair: bool = False
    keep_place: bool = True


@dataclass(eq=False)
class Queue(Row):
    """One version of a queue; the serial stays the same when it is altered, and is another one when it is made anew."""

    serial: int
    name: str
    settings: Settings
    paused: bool = False
    unique_until: str = "finished"
    validated: bool = False
    limits: Limits = Limits()
    dealt: int = 0
    """The event at which the limits were set: groups take their turns anew from there."""


@dataclass(eq=False, repr=False)
class Job:
    """What stays the same in the life of a job."""

    id: int
    queue: int
    queue_name: str
    enqueued_at: datetime
    payload: Any
    task: str | None = None
    max_attempts: int | None = None
    headers: Any = None
    group: str | None = None
    after: tuple[int, ...] | None = None
    """The jobs that it waits for, from the beginning; None: it is none of those that wait"""

    on_dead: str = "fail"
    """What happens if one of those is not done: fail, skip or run"""

    places: list[Place] = field(default_factory=list)

    def own(self, headers: Any, others: int, *, went_on: bool = True) -> Any:
        """What was found as its headers, without what tells how the others have ended that it waited for."""
        if self.after is None or self.on_dead != "run" or not headers:
            return headers
        if went_on or "after" in headers:
            assert sum(headers.get("after", {}).values()) == others, headers
        return {key: value for key, value in headers.items() if key != "after"} or None

    def __repr__(self) -> str:
        return f"<job {self.id} of {self.queue_name}>"


@dataclass(frozen=True)
class Failure:
    """An entry of a job's history."""

    attempt: int
    at: datetime
    error: str | None
    worker: str | None


@dataclass(eq=False, repr=False)
class Place(Row):
    """Where a job is: exactly one at a time."""

    job: Job
    state: str
    """scheduled, waiting, ready, running, dead, done, cancelled; gone: cancelled without a trace"""

    attempt: int
    priority: int = 0
    made: int = 0
    """The event at which the job came here."""

    history: tuple[Failure, ...] = ()
    front: bool = False
    run_at: datetime | None = None
    lease: Lease | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result: Any = None
    reason: str | None = None
    """Why it ended, if that is in no history"""

    def __repr__(self) -> str:
        words = [
            f"{self.state}, attempt {self.attempt}, priority {self.priority}",
            "at the front" if self.front else "",
        ]
        words += [f"by {self.born}", f"taken away by {self.died}" if self.died else ""]
        return f"<{self.job}: {', '.join(word for word in words if word)}>"

    @property
    def status(self) -> str:
        """The state, as pgq.job_status has it."""
        return "retrying" if self.state == "scheduled" and self.attempt > 1 else self.state

    @property
    def error(self) -> str | None:
        return self.reason or (self.history[-1].error if self.history else None)


@dataclass(eq=False)
class Expiry(Row):
    """A lease, or an extension of one."""

    at: datetime


@dataclass(eq=False, repr=False)
class Lease:
    """Jobs that were claimed together from one lane."""

    id: int
    queue: int
    worker: str | None
    jobs: list[Job] = field(default_factory=list)
    expiries: list[Expiry] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<lease {self.id} of {self.jobs}>"


@dataclass(eq=False)
class Ending(Row):
    """How an attempt ended: a row of the archive to come."""

    job: Job
    kind: str
    attempt: int
    priority: int
    started_at: datetime
    finished_at: datetime
    lease: int | None
    """None: it was taken back unclaimed, under a lease whose number nobody was told"""

    worker: str | None
    result: Any = None
    error: str | None = None


@dataclass(eq=False)
class Key(Row):
    """The last job that was given a unique key. Whether it still holds it depends on where the job is."""

    queue: int
    name: str
    job: int
    until_claimed: bool

    def held_by(self, place: Place | None) -> bool:
        states = {"scheduled", "waiting", "ready"} | (set() if self.until_claimed else {"running"})
        return place is not None and place.state in states and not (self.until_claimed and place.attempt > 1)


@dataclass(eq=False)
class Request(Row):
    """A running job is asked to stop. This stays until somebody sees it who ends the job, or finds it ended."""

    job: int


@dataclass(eq=False)
class Added(Row):
    """A batch, or another job that waits, has another one to wait for."""

    job: int
    other: int


@dataclass(eq=False)
class Started(Row):
    """Jobs of a queue that has a rate, or of a group that has one, were claimed."""

    queue: int
    group: str | None
    """None: it is the rate of the queue"""

    at: datetime
    jobs: int


@dataclass(eq=False)
class Turn(Row):
    """A group of a queue in which groups take turns had its turn."""

    queue: int
    group: str | None
    event: tuple[int, int]
    """That of the claim, and the place in what it returned"""

    sure: bool
    """Whether nobody else was doing anything, so that the claim saw whatever there was"""


@dataclass(eq=False)
class Grant(Row):
    """The role of the tests was given the rights of a producer, consumer or admin."""

    kind: str


@dataclass(eq=False)
class Progress(Row):
    """What a running attempt told last."""

    job: int
    lease: int
    at: datetime
    value: Any


@dataclass(frozen=True)
class Expect:
    """What a call must come back with. Without an error it succeeds, unless another transaction may hold it up."""

    error: str | None = None
    may_wait: bool = False
    must_wait: bool = False
    may_fail: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """What the model cannot know (a backoff with chance in it): the caller shall look these jobs up."""

    ids: list[int]


@dataclass(frozen=True)
class Asked:
    """Whether somebody looked after the requests just now: the caller shall tell which jobs are still asked to stop."""


@dataclass(frozen=True)
class Newest:
    """Which job is the newest: the caller shall tell the last id that was given out."""


Wish = Look | Asked | Newest
Call = Generator[Expect | Wish, Any, None]
"""A call: yields what to expect, is sent what came back, may wish to look, and writes down what has changed."""
