"""History and final state, put in order by job and by lease, so that each check walks over them once."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from tests.chaos.clock import Clock
from tests.chaos.dump import Dead, Dump, Ended, Left
from tests.chaos.history import Effect, Operation

ENDS = {
    "ack": "done",
    "ack_many": "done",
    "reject": "retry",
    "reject_many": "retry",
    "release": "released",
    "snooze": "released",
}
"""What the calls that end an attempt make of it; a rejected one may be dead as well."""


DURABLE = ("enqueue", "enqueue_many", "enqueue_unique", "ack", "ack_many", "reject")
"""Calls whose commit is always waited for."""


@dataclass(eq=False, slots=True)
class Handout:
    """A job in the result of a claim, or seen by a handler."""

    id: int
    lease: int
    queue: str
    task: str | None
    payload: Any
    attempt: int
    max_attempts: int
    priority: int
    expires_at: int | None
    headers: Any
    by: Operation

    @classmethod
    def of(cls, row: Sequence[Any], by: Operation) -> Handout:
        id, lease, queue, task, payload, attempt, max_attempts, priority, expires_at, headers = row
        return cls(id, lease, queue, task, payload, attempt, max_attempts, priority, expires_at, headers, by)

    @property
    def certain(self) -> bool:
        return self.by.effect is Effect.YES


@dataclass(eq=False, slots=True)
class End:
    """One call that ends, or fails to end, one attempt."""

    id: int
    lease: int
    by: Operation
    kind: str
    accepted: Effect
    result: Any = None

    @property
    def possible(self) -> bool:
        return self.accepted is not Effect.NO


@dataclass(eq=False, slots=True)
class Job:
    """Everything about one job. Its token is the "k" in its payload, by which it is known even before it has an id."""

    token: str
    queue: str
    payload: Any
    by: Operation
    id: int | None = None
    ids: set[int] = field(default_factory=set)
    handouts: list[Handout] = field(default_factory=list)
    archive: list[Ended] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    @property
    def exists(self) -> bool:
        """Whether there is a sign of it other than the answer of enqueue."""
        return bool(self.handouts or self.archive or self.dead or self.left)

    def __str__(self) -> str:
        return f"job {self.id} ({self.token})"


@dataclass
class Index:
    """What the checks look at."""

    dump: Dump
    clock: Clock
    operations: Sequence[Operation]
    jobs: dict[str, Job] = field(default_factory=dict)
    by_id: dict[int, Job] = field(default_factory=dict)
    strangers: list[tuple[int, Any, object]] = field(default_factory=list)
    handouts: dict[tuple[int, int], Handout] = field(default_factory=dict)
    leases: dict[int, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[tuple[int, int], list[End]] = field(default_factory=lambda: defaultdict(list))
    extensions: dict[int, list[tuple[Operation, int | None]]] = field(default_factory=lambda: defaultdict(list))
    named: dict[str, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    unrecorded: set[str] = field(default_factory=set)
    """Queues that real workers claim from, who do not write down what they do."""
    dropped: dict[str, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    """When queues were, or may have been, dropped: what had been in them is gone, the records as well."""
    purged: set[str] = field(default_factory=set)
    """Queues whose jobs may be gone."""
    redriven: Counter[str] = field(default_factory=Counter)
    _flushed: list[int] = field(default_factory=list)

    @classmethod
    def build(cls, history: Sequence[Operation], dump: Dump) -> Index:
        index = cls(dump, Clock(o for o in history if o.name == "clock"), history)
        for operation in history:
            index.named[operation.name].append(operation)
        index._add_queues()
        index._add_jobs()
        index._add_handouts()
        index._add_ends()
        index._add_final()
        for job in index.jobs.values():
            job.handouts.sort(key=lambda h: (h.by.began, h.attempt))
        index._add_crashes()
        return index

    def _add_queues(self) -> None:
        for operation in self.named["create_queue"]:
            self.settings.setdefault(operation.args["queue"], dict(operation.args))
        self.unrecorded = {operation.args["queue"] for operation in self.named["unrecorded"]}
        self.purged = {o.args["queue"] for o in self.named["purge"] if o.effect is not Effect.NO}
        for operation in self.named["drop_queue"]:
            if operation.effect is not Effect.NO:
                self.dropped[operation.args["queue"]].append(operation)
                self.purged.add(operation.args["queue"])
        for operation in self.named["redrive"]:
            if operation.effect is not Effect.NO:
                self.redriven[operation.args["queue"]] += 1

    def _add_jobs(self) -> None:
        for operation in (*self.named["enqueue"], *self.named["enqueue_many"]):
            payloads = operation.args["payloads"] if "payloads" in operation.args else [operation.args["payload"]]
            ids = operation.result if operation.ok else [None] * len(payloads)
            for payload, id in zip(payloads, ids, strict=True):
                job = Job(payload["k"], operation.args["queue"], payload, operation)
                self.jobs[job.token] = job
                # The ids of a transaction that was rolled back by a crash may be given out again.
                if id is not None and operation.effect is Effect.YES:
                    job.id = id
                    self._known(job, id)
        for operation in self.named["enqueue_unique"]:
            payload = operation.args["payload"]
            id, inserted = operation.result[0] if operation.ok else (None, True)
            # One that was not added must not be seen anywhere.
            by = operation if inserted else replace(operation, effect=Effect.NO)
            job = self.jobs[payload["k"]] = Job(payload["k"], operation.args["queue"], payload, by)
            if id is not None and by.effect is Effect.YES:
                self._known(job, id)

    def _known(self, job: Job, id: int) -> None:
        job.ids.add(id)
        if job.id is None:
            job.id = id
        self.by_id.setdefault(id, job)

    def _job(self, id: int, payload: Any, where: object) -> Job | None:
        token = payload.get("k") if isinstance(payload, dict) else None
        job = self.jobs.get(token) if isinstance(token, str) else None
        if job is None:
            # A payload that was changed: known by its id.
            job = self.by_id.get(id)
            if job is None:
                self.strangers.append((id, payload, where))
                return None
        self._known(job, id)
        return job

    def _add_handouts(self) -> None:
        for operation in (*self.named["claim"], *self.named["ran"]):
            if not operation.ok or operation.effect is Effect.NO:
                continue
            rows = operation.result if operation.name == "claim" else [operation.args["row"]]
            for row in rows:
                handout = Handout.of(row, operation)
                self.handouts.setdefault((handout.id, handout.lease), handout)
                if job := self._job(handout.id, handout.payload, operation):
                    job.handouts.append(handout)
            if operation.name == "claim":
                for lease in {row[1] for row in rows}:
                    self.leases[lease].append(operation)

    def _add_ends(self) -> None:
        for name, kind in ENDS.items():
            for operation in self.named[name]:
                for end in _ends(operation, kind):
                    self.ends[end.id, end.lease].append(end)
        for operation in self.named["extend"]:
            result = operation.result[0] if operation.ok else None
            self.extensions[operation.args["lease"]].append((operation, result))
        for operation in self.named["extend_many"]:
            extended = dict(operation.result) if operation.ok else {}
            for lease in set(operation.args["leases"]):
                self.extensions[lease].append((operation, extended.get(lease)))

    def _add_final(self) -> None:
        for ended in self.dump.archive:
            if job := self._job(ended.id, ended.payload, ended):
                job.archive.append(ended)
        for dead in self.dump.dead:
            if job := self._job(dead.id, dead.payload, dead):
                job.dead.append(dead)
        for left in self.dump.left:
            if job := self._job(left.id, left.payload, left):
                job.left.append(left)

    # Crashes and claims that were not waited for ----------------------------------------------------------------------

    def _add_crashes(self) -> None:
        self.crashes = sorted(self.named["crash"], key=lambda o: o.began)
        durable = sorted(o.ended for o in self.operations if o.ok and o.effect is Effect.YES and o.name in DURABLE)
        self._crash_began = [crash.began for crash in self.crashes]
        # What was committed before a commit that was waited for began has reached the disk before the crash.
        flushed = [durable[n - 1] if (n := bisect_left(durable, began)) else 0 for began in self._crash_began]
        self._flushed = list(accumulate(flushed, max))

    def may_have_been_lost(self, operation: Operation, until: int) -> bool:
        """Whether a claim that was not waited for may have been lost in a crash by an instant."""
        if operation.args.get("durable"):
            return False
        first = bisect_left([c.ended for c in self.crashes], operation.began)
        for n in range(first, len(self.crashes)):
            if self.crashes[n].began > until:
                return False
            if operation.done_by > self._flushed[n]:
                return True
        return False

    def crashed_between(self, began: int, until: int) -> bool:
        """Whether the server may have crashed in an interval."""
        first = bisect_right([c.ended for c in self.crashes], began)
        return first < len(self.crashes) and self.crashes[first].began <= until

    # Leases -----------------------------------------------------------------------------------------------------------

    def expiry(self, handout: Handout) -> int | None:
        """When a lease ends at the earliest; None: only its worker knows."""
        if handout.expires_at is None:
            return None
        expiry = handout.expires_at
        for operation, until in sorted(self.extensions.get(handout.lease, ()), key=lambda e: e[0].began):
            if until is None or operation.effect is not Effect.YES:
                continue
            # Of a lease that had run out, some jobs may have been taken away before it was extended for the others.
            if expiry > self.clock.latest(operation.ended) or self._alone(handout):
                expiry = max(expiry, until)
        return expiry

    @staticmethod
    def _alone(handout: Handout) -> bool:
        return handout.by.name == "claim" and sum(row[1] == handout.lease for row in handout.by.result) == 1

    def possible_ends(self, handout: Handout) -> Iterator[End]:
        return (end for end in self.ends.get((handout.id, handout.lease), ()) if end.possible)


def _ends(operation: Operation, kind: str) -> Iterator[End]:
    if "id" in operation.args:
        if operation.name == "reject" and operation.ok:  # retry or dead, or cancelled if that was asked for
            kind = operation.result[0]
        yield End(
            operation.args["id"],
            operation.args["lease"],
            operation,
            kind,
            operation.effect,
            operation.args.get("result"),
        )
        return
    ids, leases = operation.args["ids"], operation.args["leases"]
    results = operation.args.get("results") or [None] * len(ids)
    times = Counter(operation.result) if operation.ok else Counter()
    pairs = Counter(ids)
    seen: set[tuple[int, int]] = set()
    for id, lease, result in zip(ids, leases, results, strict=True):
        if (id, lease) in seen:
            continue
        seen.add((id, lease))
        accepted = operation.effect
        if operation.ok and not times[id]:
            accepted = Effect.NO
        elif operation.ok and pairs[id] > 1 and accepted is Effect.YES:
            accepted = Effect.MAYBE  # which of the pairs with this id it was, the answer does not say
        yield End(id, lease, operation, kind, accepted, result)
