"""The queue, as simple as it can be said: one place per job, and rules that move it.

Every function of schema pgq has its counterpart here, under its name. It takes the transaction that calls and yields
what the call must come back with; then it is sent what did, checks it, and moves the jobs. There is no SQL in here and
nothing of how the engine works: no segments, no cursors, no outcomes.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from tests.model.data import (
    Added,
    Asked,
    Call,
    Ending,
    Expect,
    Expiry,
    Failure,
    Grant,
    Job,
    Key,
    Lease,
    Limits,
    Look,
    Newest,
    Place,
    Progress,
    Queue,
    Request,
    Settings,
    Wish,
)
from tests.model.limits import LOOK_AGAIN, Book, check_running
from tests.model.order import Line, check_claim, check_turns
from tests.model.ticks import Schedule, fired, next_tick
from tests.model.transactions import (
    NEVER,
    OUTSIDE,
    Row,
    Transaction,
    Wake,
    contested,
    first_visible,
    undo,
    visible,
)
from tests.sql.support import Job as Claimed
from tests.sql.support import State

EXPIRED = "lease expired"
MAINTENANCE = "pgq.maintain"
WATCHED_FOR = timedelta(seconds=54)
"""Producers look for waiting sessions for a minute after the last pgq.watch, which is noted to five seconds."""

FULL_PROMOTE = timedelta(minutes=1)
FULL_REAP = timedelta(minutes=5)
"""How often promote and reap look at everything, and not only at what has become due since the last time."""

PURSUE = timedelta(seconds=1)
"""How often maintain looks after jobs that are asked to stop."""

OVERDUE = timedelta(seconds=1)
"""Nobody stays awake for a tick that should have been fired before."""

PROGRESS = timedelta(seconds=1)
"""How often an attempt may tell how far it is, at most."""

UNCLAIMED = ("scheduled", "waiting", "ready")

NEVER_YET = datetime.min.replace(tzinfo=timezone.utc)

Pair = tuple[int | None, int | None]
T = TypeVar("T")


def handler_fails(payload: Any) -> bool:
    """Whether the handler of pgq.work, a function of the test's database, fails for this payload."""
    return bool(payload.get("n", 1) % 4 == 0)


def distinct(items: Iterable[T]) -> list[T]:
    """Each once, in their order."""
    return list(dict.fromkeys(items))


@dataclass
class Model:
    """All queues and jobs, the transactions that are open, and the time."""

    now: datetime = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)
    events: int = 0
    serials: int = 0
    jobs: dict[int, Job] = field(default_factory=dict)
    queues: list[Queue] = field(default_factory=list)
    leases: dict[int, Lease] = field(default_factory=dict)
    keys: list[Key] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    added: list[Added] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    progresses: list[Progress] = field(default_factory=list)
    grants: list[Grant] = field(default_factory=list)
    book: Book = field(default_factory=Book)
    schedules: list[Schedule] = field(default_factory=list)
    open: list[Transaction] = field(default_factory=list)
    prepared: dict[str, Transaction] = field(default_factory=dict)
    watching: dict[int, int] = field(default_factory=dict)
    watched_at: datetime | None = None
    awaited: dict[int, int] = field(default_factory=dict)
    """How often the end of a job is waited for"""

    awaited_at: datetime | None = None
    reaped_at: datetime | None = None
    promoted_at: datetime | None = None
    pursued_at: datetime | None = None
    carried_at: int = 0
    """When jobs were last carried out of an old segment."""

    resharded: set[int] = field(default_factory=set)
    """Queues whose number of shards has changed: which shard a job is in cannot be told from its id."""

    # Transactions -----------------------------------------------------------------------------------------------------

    def event(self) -> int:
        self.events += 1
        return self.events

    def begin(self, *, sync: bool = True, repeatable_read: bool = False) -> Transaction:
        transaction = Transaction(sync=sync, snapshot=self.event() if repeatable_read else None)
        self.open.append(transaction)
        return transaction

    def number(self, tx: Transaction) -> None:
        """The transaction has its number now."""
        if tx.began == NEVER:
            tx.began = self.event()

    def commit(self, tx: Transaction) -> None:
        self.number(tx)
        tx.state, tx.ended = "committed", self.event()
        tx.log.clear()
        self.open.remove(tx)

    def rollback(self, tx: Transaction) -> None:
        undo(tx, 0)
        tx.state, tx.ended = "rolled back", self.event()
        self.open.remove(tx)

    def savepoint(self, tx: Transaction, name: str) -> None:
        tx.savepoints.append((name, len(tx.log)))

    def rollback_to(self, tx: Transaction, name: str) -> None:
        """To the newest savepoint of this name, which stays."""
        while tx.savepoints[-1][0] != name:
            tx.savepoints.pop()
        undo(tx, tx.savepoints[-1][1])

    def release_savepoint(self, tx: Transaction, name: str) -> None:
        while tx.savepoints.pop()[0] != name:
            pass

    def prepare(self, tx: Transaction, name: str) -> None:
        """The first half of a two-phase commit: the transaction belongs to nobody now, and survives a crash."""
        self.prepared[name] = tx

    def finish_prepared(self, name: str, *, commit: bool) -> None:
        tx = self.prepared.pop(name)
        if commit:
            self.commit(tx)
        else:
            self.rollback(tx)

    def crashed(self) -> Model:
        """A copy in which every open transaction has been rolled back."""
        other = copy.deepcopy(self)
        for tx in list(other.open):
            if tx not in other.prepared.values():
                other.rollback(tx)
        return other

    def forget_lost_jobs(self) -> None:
        """After a crash the ids of jobs that were lost may never have been given out."""
        self.jobs = {
            id: job
            for id, job in self.jobs.items()
            if any(place.born.state == "committed" or place.born in self.open for place in job.places)
        }

    def others(self, tx: Transaction) -> list[Transaction]:
        return [other for other in self.open if other is not tx]

    def held_up(self, tx: Transaction, what: str, of: int | None = None) -> bool:
        """Whether another open transaction holds this."""
        return any(other.holds(what, of) for other in self.others(tx))

    def turning(self, tx: Transaction) -> bool:
        """Whether another open transaction turns the ring, as far as is known."""
        return self.held_up(tx, "ring") or self.held_up(tx, "ring perhaps")

    def busy_elsewhere(self, tx: Transaction) -> bool:
        """Whether another open transaction has done anything at all."""
        return any(other.log for other in self.others(tx))

    # Rows -------------------------------------------------------------------------------------------------------------

    def die(self, tx: Transaction, row: Row) -> None:
        assert not contested(tx, row), f"the model let two transactions end {row}"
        row.died = tx
        tx.log.append(("died", row))

    def move(self, tx: Transaction, place: Place, state: str, **changes: Any) -> Place:
        """End a place and begin the next."""
        self.die(tx, place)
        fresh = {"lease": None, "run_at": None, "started_at": None, "finished_at": None, "result": None, "front": False}
        fresh["reason"] = None
        new = replace(place, born=tx, died=None, state=state, made=self.events, **{**fresh, **changes})
        place.job.places.append(new)
        tx.log.append(("born", new))
        if state in ("done", "dead", "cancelled") or (state == "gone" and place.state in UNCLAIMED):
            self._tell(tx, place.job.id)
        return new

    def _tell(self, tx: Transaction, id: int) -> None:
        """Who waits for the end of this job will be told when the transaction commits."""
        if self.awaited.get(id) and self.awaited_at and self.now < self.awaited_at + WATCHED_FOR:
            tx.log.append(Wake(str(id)))

    def place(self, viewer: Transaction, id: int) -> Place | None:
        return first_visible(viewer, self.jobs[id].places) if id in self.jobs else None

    def places(self, viewer: Transaction, state: str, queue: int | None = None) -> list[Place]:
        """The jobs in a state, oldest id first."""
        found = [self.place(viewer, id) for id in sorted(self.jobs)]
        return [p for p in found if p and p.state == state and (queue is None or p.job.queue == queue)]

    def queue(self, viewer: Transaction, name: str) -> Queue | None:
        return first_visible(viewer, [queue for queue in self.queues if queue.name == name])

    def queue_of(self, viewer: Transaction, serial: int) -> Queue | None:
        return first_visible(viewer, [queue for queue in self.queues if queue.serial == serial])

    def settings_of(self, viewer: Transaction, serial: int) -> Settings:
        queue = self.queue_of(viewer, serial)
        assert queue is not None
        return queue.settings

    def retentions(self, serial: int) -> set[timedelta]:
        """How long the queue has ever kept its archive: which of them counted depends on when a segment was retired."""
        return {queue.settings.retention for queue in self.queues if queue.serial == serial}

    def may_be_dropped(self, serial: int, finished_at: datetime) -> bool:
        """Whether the archive may be without an attempt that ended then."""
        shortest = min(self.retentions(serial))
        return not shortest or self.now > finished_at + shortest

    def forgotten(self, viewer: Transaction, place: Place) -> bool:
        """Whether a job that has ended may be gone without a trace."""
        if place.state not in ("done", "cancelled") or place.finished_at is None:
            return False
        dropped = self.queue_of(viewer, place.job.queue) is None
        return dropped or self.may_be_dropped(place.job.queue, place.finished_at)

    def expires_at(self, viewer: Transaction, lease: Lease) -> datetime:
        return max(expiry.at for expiry in lease.expiries if visible(viewer, expiry))

    # Producing --------------------------------------------------------------------------------------------------------

    def enqueue_many(
        self,
        tx: Transaction,
        queue: str,
        payloads: Sequence[Any],
        *,
        run_at: datetime | None = None,
        delay: timedelta | None = None,
        **properties: Any,
    ) -> Call:
        """Also pgq.enqueue, which is the case of one payload."""
        found = self.queue(tx, queue)
        expect = self._producing(tx, found)
        if found and found.validated and any("bad" in payload for payload in payloads):
            expect = replace(expect, error=expect.error or "PQ004")
        ids = yield expect
        assert found
        assert ids == sorted(set(ids)), f"ids out of order: {ids}"
        assert len(ids) == len(payloads)
        self._add_jobs(tx, found, ids, payloads, run_at=run_at, delay=delay, **properties)

    def enqueue_many_after(
        self, tx: Transaction, after: Sequence[int], queue: str, payloads: Sequence[Any], **properties: Any
    ) -> Call:
        """Also pgq.enqueue_after and pgq.batch, which are cases of one payload."""
        yield from self.enqueue_many(tx, queue, payloads, after=tuple(after), **properties)

    def _add_jobs(
        self,
        tx: Transaction,
        queue: Queue,
        ids: Sequence[int],
        payloads: Sequence[Any],
        *,
        run_at: datetime | None = None,
        delay: timedelta | None = None,
        priority: int = 0,
        group_key: str | None = None,
        group_keys: Sequence[str] | None = None,
        **properties: Any,
    ) -> None:
        groups: Sequence[str | None] = group_keys or [group_key] * len(ids)
        if delay is not None:
            run_at = self.now + delay
        later = run_at is not None and run_at > self.now
        for id, payload, group in zip(ids, payloads, groups, strict=True):
            taken = id in self.jobs and any(
                place.born.state == "committed" or place.born in self.open for place in self.jobs[id].places
            )
            assert not taken, f"job id {id} was given out twice"
            job = Job(id, queue.serial, queue.name, self.now, payload, group=group, **properties)
            state = "waiting" if job.after is not None else "scheduled" if later else "ready"
            place = Place(tx, None, job, state, 1, priority, self.events)
            place.run_at = run_at if later or job.after is not None else None
            job.places.append(place)
            self.jobs[id] = job
            tx.log.append(("born", place))
        tx.hold("jobs")
        if ids and (not later or "after" in properties):
            self.wake(tx, queue.serial)

    def after(self, viewer: Transaction, job: Job) -> list[int]:
        """The jobs that it waits for, or has waited for."""
        added = [row.other for row in self.added if row.job == job.id and visible(viewer, row)]
        return distinct([*(job.after or ()), *added])

    def add_to_batch(self, tx: Transaction, id: int, ids: Sequence[int]) -> Call:
        place = self.place(tx, id)
        waits = place is not None and place.state == "waiting"
        error = "PQ006" if not waits else "22023" if id in ids else None
        yield Expect(error=error, may_wait=self.busy_elsewhere(tx))
        for other in ids:
            row = Added(tx, None, id, other)
            self.added.append(row)
            tx.log.append(("born", row))

    def enqueue_unique_many(
        self,
        tx: Transaction,
        queue: str,
        payloads: Sequence[Any],
        keys: Sequence[str | None],
        unique_until: str | None = None,
        **properties: Any,
    ) -> Call:
        """Also pgq.enqueue_unique, which is the case of one payload."""
        found = self.queue(tx, queue)
        if not found or tx.snapshot is not None:
            yield Expect(error="PQ003" if found else "PQ002")
            return
        rows = {name: self._key(tx, found.serial, name) for name in keys if name is not None}
        held = {name: row.job for name, row in rows.items() if row and row.held_by(self.place(tx, row.job))}
        taken = [name for name in rows if name not in held]
        must = any(self._being_taken(tx, found.serial, name) for name in taken)
        expect = self._producing(tx, found)
        answers: list[tuple[int, bool]] = yield replace(
            expect, must_wait=expect.must_wait or must, may_wait=bool(taken) and self.turning(tx)
        )
        seen = set(held)
        for name, (id, inserted) in zip(keys, answers, strict=True):
            assert inserted == (name not in seen), f"key {name}: {answers}, while {held} are held"
            assert name not in held or id == held[name], f"key {name}: {answers}, while {held} are held"
            if name is not None:
                seen.add(name)
                held[name] = id
            if inserted and name is not None:
                if row := rows[name]:
                    row.died = tx
                    tx.log.append(("died", row))
                key = Key(tx, None, found.serial, name, id, (unique_until or found.unique_until) == "claimed")
                self.keys.append(key)
                tx.log.append(("born", key))
        new = [(id, payload) for (id, inserted), payload in zip(answers, payloads, strict=True) if inserted]
        self._add_jobs(tx, found, [id for id, _ in new], [payload for _, payload in new], **properties)

    def _key(self, viewer: Transaction, queue: int, name: str) -> Key | None:
        return first_visible(viewer, [key for key in self.keys if (key.queue, key.name) == (queue, name)])

    def _being_taken(self, tx: Transaction, queue: int, name: str) -> bool:
        """Whether another session has taken the key and not yet committed."""
        return any(k.born in self.others(tx) for k in self.keys if (k.queue, k.name) == (queue, name))

    def _producing(self, tx: Transaction, queue: Queue | None) -> Expect:
        if not queue:
            return Expect(error="PQ002")
        if tx.snapshot is not None and self.queue_of(OUTSIDE, queue.serial) is None:
            return Expect(error="40001")  # dropped since the snapshot was taken
        return Expect(must_wait=self.held_up(tx, "drop", queue.serial))

    def wake(self, tx: Transaction, serial: int) -> None:
        """Who waits for this queue will be told when the transaction commits."""
        queue = self.queue_of(tx, serial)
        if not queue or not queue.settings.notify or not self.watching.get(serial) or self.watched_at is None:
            return
        if self.now < self.watched_at + WATCHED_FOR:
            tx.log.append(Wake(queue.name))

    # Claiming ---------------------------------------------------------------------------------------------------------

    def claim(
        self, tx: Transaction, queue: str, batch: int, lease_for: timedelta | None = None, worker: str | None = None
    ) -> Call:
        found = self.queue(tx, queue)
        if tx.snapshot is not None:
            yield Expect(error="PQ003")
            return
        jobs: list[Claimed] = yield Expect(error=None if found else "PQ002")
        assert found
        if found.paused:
            assert jobs == [], "claimed from a paused queue"
            return
        # What this transaction has made ready itself may yet be rolled back: not for it.
        candidates = {p.job.id: p for p in self.places(tx, "ready", found.serial) if p.born is not tx}
        busy = self.held_up(tx, "lanes", found.serial)
        wrong = [job.id for job in jobs if job.id not in candidates]
        assert not wrong, f"jobs {wrong} were not there to be claimed: {[self.place(tx, id) for id in wrong]}"
        taken = [candidates[job.id] for job in jobs]
        assert not [p for p in taken if contested(tx, p)], "claimed what another session has claimed"
        free = [p for p in candidates.values() if not contested(tx, p)]
        grouped = any(place.job.group for place in free) or found.limits != Limits()
        # What was carried is this transaction's own now, and it cannot claim that.
        if grouped and not tx.holds("carried"):
            check_turns(free, taken, batch)
            self._check_limited(tx, found, batch, free, taken)
        elif not tx.holds("carried"):
            line = Line(
                candidates=free,
                shards=None if found.serial in self.resharded else found.settings.shards,
                carried_at=self.carried_at,
                complete=not busy,
            )
            check_claim(line, taken, batch)
        self._check_claimed(tx, found, jobs, taken, self.now + (lease_for or found.settings.lease))

        for job, place in zip(jobs, taken, strict=True):
            lease = self.leases.get(job.lease)
            if lease is None:
                lease = self.leases[job.lease] = Lease(job.lease, found.serial, worker)
                expiry = Expiry(tx, None, job.expires_at)
                lease.expiries.append(expiry)
                tx.log.append(("born", expiry))
            lease.jobs.append(place.job)
            self.move(tx, place, "running", lease=lease, started_at=self.now)
        if grouped:
            again = [place for place in self._unclaimed_of(tx, found) if place.attempt > 1 or place.front]
            ever = [version.limits for version in self.queues if version.serial == found.serial]
            check_running(found, ever, taken, self.places(tx, "running", found.serial), again)
            self.book.start(tx, found, self.now, taken)
        tx.hold("lanes", found.serial)
        if len(jobs) < batch:
            yield from self._looked_around(tx)

    def _unclaimed_of(self, tx: Transaction, queue: Queue) -> list[Place]:
        return [place for state in UNCLAIMED for place in self.places(tx, state, queue.serial)]

    def _check_limited(self, tx: Transaction, queue: Queue, batch: int, free: list[Place], taken: list[Place]) -> None:
        """What limits allow is claimed, and groups take their turns, if nobody else does anything meanwhile."""
        sure = not self.busy_elsewhere(tx)
        if queue.limits.fair:
            self.book.take_turns(tx, queue, self.event(), free, taken, sure=sure)
        if not sure:
            self.book.disturbed[queue.serial] = self.now
        elif self.now > self.book.disturbed.get(queue.serial, NEVER_YET) + LOOK_AGAIN:
            begun = [p for p in self._unclaimed_of(tx, queue) if any(q.state == "running" for q in p.job.places)]
            busy = self.places(tx, "running", queue.serial) + begun
            least = self.book.least(tx, queue, self.now, batch, free, busy)
            assert len(taken) >= least, f"claimed {taken} of {free}, and {least} could run"

    def _check_claimed(
        self, tx: Transaction, queue: Queue, jobs: list[Claimed], taken: list[Place], expires_at: datetime
    ) -> None:
        known = [job.lease for job in jobs if job.lease in self.leases]
        assert not known, f"leases {known} were given out before"
        for claimed, place in zip(jobs, taken, strict=True):
            job = place.job
            expected = Claimed(
                job.id, claimed.lease, queue.name, job.task, job.payload, place.attempt,
                job.max_attempts or queue.settings.max_attempts, place.priority, job.enqueued_at, expires_at,
                job.headers,
            )  # fmt: skip
            claimed = replace(claimed, headers=job.own(claimed.headers, len(self.after(tx, job))))
            assert claimed == expected, f"{claimed}, and not {expected}"

    # Settling ---------------------------------------------------------------------------------------------------------

    def held(self, tx: Transaction, pair: Pair) -> Place | None:
        """The running attempt that this pair is good for."""
        id, lease = pair
        place = self.place(tx, id) if id is not None else None
        if place and place.state == "running" and place.lease and place.lease.id == lease:
            return place
        return None

    def _settling(self, tx: Transaction, pairs: Sequence[Pair], *, lost: str | None = None) -> Expect:
        """Nobody ends an attempt that another session is ending; `lost`: the error if a pair is good for nothing."""
        places = [place for pair in pairs if (place := self.held(tx, pair))]
        leases = [lease for _, lease in pairs if lease is not None]
        if places and tx.snapshot is not None and any(p.died and p.died.state == "committed" for p in places):
            return Expect(error="40001")  # ended by somebody else since the snapshot was taken
        if places and tx.snapshot is not None:
            # Others of the same lease may have ended since the snapshot was taken, or its segment been retired.
            return Expect(may_fail=("40001", "PQ001"), must_wait=any(contested(tx, place) for place in places))
        if lost and not places:
            return Expect(error=lost, may_wait=self.held_up(tx, "truncated") or self._being_settled(tx, leases))
        must = any(contested(tx, place) for place in places)
        may = self.held_up(tx, "moved") or self.held_up(tx, "truncated") or self._being_settled(tx, leases)
        return Expect(may_wait=may and not must, must_wait=must)

    def _being_settled(self, tx: Transaction, leases: Sequence[int]) -> bool:
        """Whether another session is ending jobs of these leases: who ends the first of many, locks the whole lease."""
        return any(self.held_up(tx, "settling", lease) for lease in leases)

    def _settles(self, tx: Transaction, pairs: Sequence[Pair]) -> None:
        for lease in distinct(lease for _, lease in pairs if lease is not None):
            tx.hold("settling", lease)

    def _end(self, tx: Transaction, place: Place, kind: str, *, result: Any = None, error: str | None = None) -> None:
        assert place.lease
        assert place.started_at
        ending = Ending(
            tx, None, place.job, kind, place.attempt, place.priority, place.started_at, self.now, place.lease.id,
            place.lease.worker, result, error,
        )  # fmt: skip
        self.endings.append(ending)
        tx.log.append(("born", ending))

    def _effective(self, tx: Transaction, pairs: Sequence[Pair], ids: list[int]) -> list[Place]:
        self._settles(tx, pairs)
        places = [place for pair in distinct(pairs) if (place := self.held(tx, pair))]
        assert sorted(ids) == sorted(p.job.id for p in places), f"took effect: {ids}, and not {places}"
        return places

    def ack(self, tx: Transaction, id: int | None, lease: int | None, result: Any = None) -> Call:
        lost = "22004" if id is None or lease is None else "PQ001"
        yield self._settling(tx, [(id, lease)], lost=lost)
        (place,) = self._effective(tx, [(id, lease)], [id] if id is not None else [])
        self._done(tx, place, result)

    def ack_many(self, tx: Transaction, pairs: Sequence[Pair], results: Sequence[Any] | None = None) -> Call:
        ids = yield self._settling(tx, pairs)
        for place in self._effective(tx, pairs, ids):
            at = next(n for n, (id, lease) in enumerate(pairs) if self.held(tx, (id, lease)) is place)
            self._done(tx, place, results[at] if results is not None else None)

    def _done(self, tx: Transaction, place: Place, result: Any) -> None:
        self._end(tx, place, "done", result=result)
        self.move(tx, place, "done", started_at=place.started_at, finished_at=self.now, result=result)

    def reject(
        self,
        tx: Transaction,
        id: int | None,
        lease: int | None,
        *,
        error: str | None = None,
        retry_in: timedelta | None = None,
        retry: bool = True,
    ) -> Call:
        lost = "22004" if id is None or lease is None else "PQ001"
        kind = yield self._settling(tx, [(id, lease)], lost=lost)
        (place,) = self._effective(tx, [(id, lease)], [id] if id is not None else [])
        asked = self.request(tx, place.job.id)
        again = self._fail(tx, place, error, retry)
        expected = "cancelled" if asked else "retry" if again else "dead"
        assert kind == expected, f"job {id}: {kind}, and not {expected}, after {place.attempt} attempts"
        if again:
            yield from self._await_backoff(tx, [again], retry_in)

    def reject_many(self, tx: Transaction, pairs: Sequence[Pair], errors: Sequence[str | None] | None = None) -> Call:
        ids = yield self._settling(tx, pairs)
        again = []
        for place in self._effective(tx, pairs, ids):
            at = next(n for n, (id, lease) in enumerate(pairs) if self.held(tx, (id, lease)) is place)
            again.append(self._fail(tx, place, errors[at] if errors is not None else None, True))
        yield from self._await_backoff(tx, [place for place in again if place], None)

    def _may_retry(self, tx: Transaction, place: Place) -> bool:
        limit = place.job.max_attempts or self.settings_of(tx, place.job.queue).max_attempts
        return place.attempt < limit

    def _fail(self, tx: Transaction, place: Place, error: str | None, retry: bool) -> Place | None:
        """The attempt has failed: returns where the job waits for the next one, None if there is none."""
        assert place.lease
        history = (*place.history, Failure(place.attempt, self.now, error, place.lease.worker))
        tx.hold("jobs")
        if self._stopped(tx, place, error):
            return None
        if retry and self._may_retry(tx, place):
            self._end(tx, place, "retry", error=error)
            return self.move(tx, place, "scheduled", attempt=place.attempt + 1, history=history, run_at=self.now)
        self._end(tx, place, "dead", error=error)
        self.move(tx, place, "dead", history=history, finished_at=self.now)
        return None

    def _await_backoff(self, tx: Transaction, places: list[Place], retry_in: timedelta | None) -> Call:
        """The delay doubles with each attempt, and half of it is chance."""
        if not places:
            return
        found: dict[int, State] = yield Look([place.job.id for place in places])
        for place in places:
            settings = self.settings_of(tx, place.job.queue)
            state = found[place.job.id]
            assert state.state == "retrying", state
            assert state.run_at is not None
            if retry_in is not None:
                longest = shortest = retry_in
            else:
                longest = min(settings.backoff_max, settings.backoff * 2.0 ** (place.attempt - 2))
                shortest = longest / 2
            tick = timedelta(microseconds=1)
            assert self.now + shortest - tick <= state.run_at <= self.now + longest + tick, state
            place.run_at = state.run_at

    def release(self, tx: Transaction, pairs: Sequence[Pair]) -> Call:
        ids = yield self._settling(tx, pairs)
        tx.hold("jobs")
        for place in self._effective(tx, pairs, ids):
            if not self._stopped(tx, place):
                self.move(tx, place, "ready", front=True)
                self.wake(tx, place.job.queue)

    def snooze(self, tx: Transaction, id: int | None, lease: int | None, delay: timedelta) -> Call:
        lost = "22004" if id is None or lease is None else "PQ001"
        yield self._settling(tx, [(id, lease)], lost=lost)
        self._snoozed(tx, self._effective(tx, [(id, lease)], [id] if id is not None else []), delay)

    def snooze_many(self, tx: Transaction, pairs: Sequence[Pair], delay: timedelta) -> Call:
        ids = yield self._settling(tx, pairs)
        self._snoozed(tx, self._effective(tx, pairs, ids), delay)

    def _snoozed(self, tx: Transaction, places: list[Place], delay: timedelta) -> None:
        tx.hold("jobs")
        for place in places:
            if not self._stopped(tx, place):
                self.move(tx, place, "scheduled", run_at=self.now + delay)

    def extend(self, tx: Transaction, lease: int | None, lease_for: timedelta | None = None) -> Call:
        if lease is None:
            yield Expect(error="22004")
            return
        inner = self.extend_many(tx, [lease], lease_for)
        expect = next(inner)
        assert isinstance(expect, Expect)
        lost = not self._extendable(tx, [lease])
        until = yield Expect(error="PQ001" if lost else None, may_wait=expect.may_wait)
        with_result(inner, [(lease, until)])

    def extend_many(self, tx: Transaction, leases: Sequence[int | None], lease_for: timedelta | None = None) -> Call:
        ending = any(contested(tx, p) for lease in leases for p in self._holding(tx, lease))
        extending = self.held_up(tx, "extended")
        may = ending or extending or self.held_up(tx, "moved") or self.held_up(tx, "truncated")
        extended: list[tuple[int, datetime]] = yield Expect(may_wait=may)
        expected = self._extendable(tx, leases)
        assert sorted(lease for lease, _ in extended) == sorted(expected), f"extended: {extended}, not {expected}"
        for id, until in extended:
            lease = self.leases[id]
            wanted = self.now + (lease_for or self.settings_of(tx, lease.queue).lease)
            before = self.expires_at(tx, lease)
            assert until == max(before, wanted), f"lease {id} until {until}"
            expiry = Expiry(tx, None, until)
            lease.expiries.append(expiry)
            tx.log.append(("born", expiry))
            tx.hold("extended")

    def _holding(self, tx: Transaction, lease: int | None) -> list[Place]:
        jobs = self.leases[lease].jobs if lease in self.leases else []
        return [place for job in jobs if (place := self.held(tx, (job.id, lease)))]

    def _extendable(self, tx: Transaction, leases: Sequence[int | None]) -> list[int]:
        return [lease for lease in distinct(leases) if lease is not None and self._holding(tx, lease)]

    def progress_of(self, viewer: Transaction, place: Place) -> Progress | None:
        """What the attempt told last that runs there."""
        if not place.lease:
            return None
        own = (place.job.id, place.lease.id)
        return first_visible(viewer, [told for told in self.progresses if (told.job, told.lease) == own])

    def progress(self, tx: Transaction, id: int | None, lease: int | None, value: Any) -> Call:
        """What comes too soon after the last one is left out."""
        place = self.held(tx, (id, lease))
        if not place or id is None or lease is None:
            yield Expect(
                error="22004" if id is None or lease is None else "PQ001", may_wait=self.held_up(tx, "truncated")
            )
            return
        assert place.started_at
        last = self.progress_of(tx, place)
        pause = max(PROGRESS, (self.now - place.started_at) / 100)
        early = last is not None and last.at > self.now - pause
        told = yield Expect(
            must_wait=not early and self.held_up(tx, f"progress of {id}", lease), may_wait=self.held_up(tx, "truncated")
        )
        assert told != early, f"progress({id}): {told}, after {last} and not within {pause}"
        if told:
            if last:
                self.die(tx, last)
            new = Progress(tx, None, id, lease, self.now, value)
            self.progresses.append(new)
            tx.log.append(("born", new))
            tx.hold(f"progress of {id}", lease)

    # Taking back ------------------------------------------------------------------------------------------------------

    def request(self, viewer: Transaction, id: int) -> Request | None:
        return first_visible(viewer, [request for request in self.requests if request.job == id])

    def _ask(self, tx: Transaction, id: int) -> None:
        request = Request(tx, None, id)
        self.requests.append(request)
        tx.log.append(("born", request))

    def _being_asked(self, tx: Transaction, id: int) -> bool:
        """Whether another session is about to ask this job to stop, or has found that it did."""
        return any(
            request.job == id and (request.born in self.others(tx) or contested(tx, request))
            for request in self.requests
        )

    def _stopped(self, tx: Transaction, place: Place, error: str | None = None) -> bool:
        """Whoever ends an attempt in any other way than as done cancels the job, if he sees that this was asked for."""
        request = self.request(tx, place.job.id)
        if request is None:
            return False
        self._end(tx, place, "cancelled", error=error)
        self.move(tx, place, "cancelled", started_at=place.started_at, finished_at=self.now, reason=error)
        self.die(tx, request)
        return True

    def _withdraw(self, tx: Transaction, place: Place) -> None:
        """A job is cancelled that nobody has claimed."""
        ending = Ending(
            tx, None, place.job, "cancelled", place.attempt, place.priority, self.now, self.now, None, None
        )  # fmt: skip
        self.endings.append(ending)
        tx.log.append(("born", ending))
        if place.state == "ready":
            tx.hold("lanes", place.job.queue)
            tx.hold("ring shared")
        tx.hold("jobs")
        self.move(tx, place, "cancelled", finished_at=self.now)

    def _take_back(self, tx: Transaction, place: Place) -> None:
        """Nobody claims from its lane until the end of the transaction, nor counts the jobs of its segment."""
        if place.state == "ready":
            tx.hold("lanes", place.job.queue)
            tx.hold("ring shared")
        tx.hold("jobs")

    def _taking_back(self, tx: Transaction, *, must_wait: bool) -> Expect:
        """Who takes jobs back may have to wait for whatever others have done to them, to their lanes or the ring."""
        if tx.snapshot is not None:
            return Expect(error="PQ003")
        return Expect(must_wait=must_wait, may_wait=not must_wait and self.busy_elsewhere(tx))

    def cancel(self, tx: Transaction, id: int) -> Call:
        place = self.place(tx, id)
        state = place.state if place else "gone"
        request = self.request(tx, id)
        if state == "running":
            must = self._being_asked(tx, id)
        else:
            must = state in UNCLAIMED and place is not None and contested(tx, place)
        answer = yield self._taking_back(tx, must_wait=must)
        expected = dict.fromkeys([*UNCLAIMED, "cancelled"], "cancelled") | dict.fromkeys(["done", "dead"], "finished")
        expected |= {"running": "requested", "gone": "not found"}
        forgotten = answer == "not found" and place is not None and self.forgotten(tx, place)
        assert answer == expected[state] or forgotten, f"cancel({id}): {answer}, and it was {place}"
        if answer == "requested":
            if not request:
                self._ask(tx, id)
            return
        if place and state in UNCLAIMED:
            self._withdraw(tx, place)
        if request:
            self.die(tx, request)

    def cancel_claimed(self, tx: Transaction, id: int | None, lease: int | None, reason: str | None = None) -> Call:
        """Asks its own job to stop, and stops."""
        expect = self._settling(tx, [(id, lease)], lost="22004" if id is None or lease is None else "PQ001")
        asked = id is not None and self._being_asked(tx, id)
        lost = expect.error is not None
        yield replace(
            expect,
            must_wait=expect.must_wait or (asked and not lost),
            may_wait=expect.may_wait or (asked and lost),
        )
        assert id is not None
        (place,) = self._effective(tx, [(id, lease)], [id])
        if not self.request(tx, id):
            self._ask(tx, id)
        assert self._stopped(tx, place, reason)

    def cancel_many(self, tx: Transaction, name: str, task: str | None = None, running: bool = False) -> Call:
        found = self.queue(tx, name)
        if tx.snapshot is not None or not found:
            yield Expect(error="PQ002" if tx.snapshot is None else "PQ003")
            return
        ready = self.places(tx, "ready", found.serial)
        chosen = [p for state in UNCLAIMED for p in self.places(tx, state, found.serial) if task in (None, p.job.task)]
        asked = [p.job.id for p in self.places(tx, "running", found.serial) if running and task in (None, p.job.task)]
        asked = [id for id in asked if not self.request(tx, id) or self._being_asked(tx, id)]
        must = any(contested(tx, place) for place in [*ready, *chosen]) or self.held_up(tx, "drop", found.serial)
        count = yield self._taking_back(tx, must_wait=must or any(self._being_asked(tx, id) for id in asked))
        assert count == len(chosen) + len(asked), f"cancelled {count}, and not {chosen} and {asked}"
        for place in chosen:
            self._withdraw(tx, place)
        for id in asked:
            self._ask(tx, id)
        tx.hold("lanes", found.serial)
        tx.hold("ring shared")

    def cancel_requested(self, tx: Transaction, leases: Sequence[int | None]) -> Call:
        ids = yield Expect(may_wait=self.held_up(tx, "truncated"))
        running = [p for p in self.places(tx, "running") if p.lease and p.lease.id in leases]
        expected = [p.job.id for p in running if self.request(tx, p.job.id)]
        assert sorted(ids) == expected, f"asked to stop: {ids}, and not {expected}"

    def _pursued(self, tx: Transaction) -> Generator[Expect | Wish, Any, int]:
        """Jobs that came back unseen are cancelled after all, and requests of jobs that have ended are removed.

        This comes last in maintain; here it is first, and returns how many jobs may have been promoted in between.
        """
        requests = [request for request in self.requests if visible(tx, request)]
        if not requests:
            return 0
        left: set[int] = yield Asked()
        sure = not self.busy_elsewhere(tx) and self.now >= (self.pursued_at or NEVER_YET) + PURSUE
        self.pursued_at = self.now
        promoted = 0
        for request in requests:
            place = self.place(tx, request.job)
            running = place is not None and place.state == "running"
            if request.job in left:
                assert running or not sure, f"{place} was asked to stop, and nobody looked after it"
            elif not running:
                if place and place.state in UNCLAIMED:
                    promoted += place.state == "scheduled"
                    self._withdraw(tx, place)
                self.die(tx, request)
        return promoted

    def reschedule(self, tx: Transaction, id: int, run_at: datetime) -> Call:
        place = self._unclaimed(tx, id)
        due = place is not None and place.state == "ready" and run_at <= self.now
        changed = yield self._changing_job(tx, None if due else place)
        assert changed == (place is not None), f"reschedule({id}): {changed} for {place}"
        if place and not due:
            waits = place.state == "waiting"
            self._take_back(tx, place)
            self.move(tx, place, "waiting" if waits else "scheduled", run_at=run_at if waits else max(run_at, self.now))

    def set_priority(self, tx: Transaction, id: int, priority: int) -> Call:
        """A ready job that has the priority already keeps its place in line."""
        place = self._unclaimed(tx, id)
        same = place is not None and place.state == "ready" and place.priority == priority
        changed = yield self._changing_job(tx, None if same else place)
        assert changed == (place is not None), f"set_priority({id}): {changed} for {place}"
        if place and not same:
            self._take_back(tx, place)
            self.move(tx, place, place.state, run_at=place.run_at, priority=priority)
            self.wake(tx, place.job.queue)

    def _unclaimed(self, viewer: Transaction, id: int) -> Place | None:
        place = self.place(viewer, id)
        return place if place and place.state in UNCLAIMED else None

    def _changing_job(self, tx: Transaction, place: Place | None) -> Expect:
        """`place`: where the job is that is to be moved; None: it stays where it is."""
        dropped = place is not None and self.held_up(tx, "drop", place.job.queue)
        return self._taking_back(tx, must_wait=dropped or (place is not None and contested(tx, place)))

    # Maintenance ------------------------------------------------------------------------------------------------------

    def promote(self, tx: Transaction) -> Call:
        count = yield self._maintaining(tx)
        ticks = self._fired(tx)
        yield from self._enqueue_ticks(tx, ticks)
        yield from self._promoted(tx, count - len(ticks))

    def reap(self, tx: Transaction) -> Call:
        count = yield self._maintaining(tx)
        yield from self._reaped(tx, count)

    def rotate(self, tx: Transaction) -> Call:
        """Nothing that a user of the queue could see changes."""
        done = yield self._maintaining(tx)
        self._rotated(tx, done)

    def maintain(self, tx: Transaction) -> Call:
        done = yield self._maintaining(tx)
        first, second = self._fired(tx), self._fired(tx)  # promote does it once more
        assert done.pop("fired") == len(first), f"fired other schedules than {first}"
        yield from self._enqueue_ticks(tx, first + second)
        yield from self._resolved(tx)
        pursued = yield from self._pursued(tx)
        yield from self._promoted(tx, done.pop("promoted") - len(second), pursued)
        yield from self._reaped(tx, done.pop("reaped"))
        self._rotated(tx, done)

    def _maintaining(self, tx: Transaction) -> Expect:
        return Expect(error="PQ003" if tx.snapshot is not None else None, may_wait=self.held_up(tx, "truncated"))

    def _promoted(self, tx: Transaction, count: int, pursued: int = 0) -> Call:
        """`pursued`: so many more may have been promoted, only to be cancelled then."""
        if self.held_up(tx, "promote"):
            assert count == 0, "promoted while another transaction does"
            return
        tx.hold("promote")
        due = [p for p in self.places(tx, "scheduled") if p.run_at and p.run_at <= self.now and not contested(tx, p)]
        # Who commits late, when that time has been looked at, is found by the full look that is taken every minute.
        seen = self.promoted_at or NEVER_YET
        sure = [p for p in due if (p.run_at and p.run_at >= seen) or self.now >= seen + FULL_PROMOTE]
        moved = due if count == len(due) else (yield from self._which(due, {"ready"}))
        assert 0 <= count - len(moved) <= pursued, f"promoted {count}, and not {[p.job.id for p in moved]}"
        assert set(sure) <= set(moved), f"not promoted: {[p.job.id for p in sure if p not in moved]}"
        for place in moved:
            self.move(tx, place, "ready")
            self.wake(tx, place.job.queue)
        tx.hold("jobs")
        self.promoted_at = self.now

    def _looked_around(self, tx: Transaction) -> Call:
        """Who found nothing to claim may have let others go on that waited, and then promoted whatever is due."""
        waiting = [p for p in self.places(tx, "waiting") if not contested(tx, p)]
        yield from self._resolved(tx)
        if not any(p.died and p.job.places[-1].state == "scheduled" for p in waiting):
            return
        yield from self._enqueue_ticks(tx, self._fired(tx))
        if not self.held_up(tx, "promote"):
            tx.hold("promote")
            self.promoted_at = self.now
            due = [
                p for p in self.places(tx, "scheduled") if p.run_at and p.run_at <= self.now and not contested(tx, p)
            ]
            for place in (yield from self._which(due, {"ready"})):
                self.move(tx, place, "ready")
                self.wake(tx, place.job.queue)

    def _resolved(self, tx: Transaction) -> Call:
        """Jobs that waited for others go on, or die. That none stays behind is seen in the end, when all has ended."""
        waiting = [p for p in self.places(tx, "waiting") if not contested(tx, p)]
        if not waiting:
            return
        found: dict[int, State] = yield Look([place.job.id for place in waiting])
        for place in waiting:
            state, job = found[place.job.id], place.job
            if state.state == "waiting":
                continue
            after = self.after(tx, job)
            others = [self.jobs.get(id) for id in after]
            bad = [any(p.state in ("dead", "cancelled", "gone") for p in o.places) if o else True for o in others]
            seen = [self.place(tx, id) for id in after]
            done = [p is not None and p.state == "done" for p in seen]
            if state.state in ("dead", "cancelled"):
                wanted = {"dead": "fail", "cancelled": "skip"}[state.state]
                assert job.on_dead == wanted, f"{job} is {state.state}, and should not be"
                known = [p is not None and d and not self.forgotten(tx, p) for p, d in zip(seen, done, strict=True)]
                assert not all(known), f"{job} is {state.state}, and all are done that it waits for: {seen}"
                if state.state == "cancelled":
                    self._withdraw(tx, place)
                    continue
                assert state.attempt == 0, state
                self.move(tx, place, "dead", attempt=0, finished_at=self.now, reason=state.error, run_at=place.run_at)
                continue
            ended = [d or (job.on_dead == "run" and (p is None or b)) for d, p, b in zip(done, seen, bad, strict=True)]
            assert all(ended), f"{job} went on, and these have not ended as it wants: {seen}"
            self.move(tx, place, "scheduled", run_at=max(place.run_at or self.now, self.now))

    def _reaped(self, tx: Transaction, count: int) -> Call:
        if self.held_up(tx, "reap"):
            assert count == 0, "reaped while another transaction does"
            return
        tx.hold("reap")
        running = [(p, p.lease) for p in self.places(tx, "running") if p.lease]
        expired = {p: self.expires_at(tx, lease) for p, lease in running if self.expires_at(tx, lease) <= self.now}
        busy = {p.lease for p in expired if p.lease and (contested(tx, p) or self._being_settled(tx, [p.lease.id]))}
        possible = [p for p in expired if not contested(tx, p)]
        unsure = self.held_up(tx, "extended") or self.held_up(tx, "moved") or len(busy) >= 10
        seen = self.reaped_at or NEVER_YET
        sure = [
            p
            for p in possible
            if not unsure and p.lease not in busy and (expired[p] > seen or self.now >= seen + FULL_REAP)
        ]
        ended = (
            possible if count == len(possible) else (yield from self._which(possible, {"ready", "dead", "cancelled"}))
        )
        assert count == len(ended), f"reaped {count}, and not {[p.job.id for p in ended]}"
        assert set(sure) <= set(ended), f"not reaped: {[p.job.id for p in sure if p not in ended]}"
        for place in ended:
            assert place.lease
            tx.hold("settling", place.lease.id)
            if self._stopped(tx, place, EXPIRED):
                continue
            self._end(tx, place, "expired", error=EXPIRED)
            history = (*place.history, Failure(place.attempt, self.now, EXPIRED, place.lease.worker))
            self.wake(tx, place.job.queue)
            if self._may_retry(tx, place):
                self.move(tx, place, "ready", front=True, attempt=place.attempt + 1, history=history)
            else:
                self.move(tx, place, "dead", history=history, finished_at=self.now)
        tx.hold("jobs")
        self.reaped_at = self.now

    def _which(self, places: list[Place], states: set[str]) -> Generator[Expect | Wish, Any, list[Place]]:
        found: dict[int, State] = yield Look([place.job.id for place in places])
        return [place for place in places if found[place.job.id].state in states]

    def _rotated(self, tx: Transaction, done: dict[str, Any]) -> None:
        if self.held_up(tx, "ring"):
            assert done in ({}, {"more": False}), f"rotated while another transaction does: {done}"
            return
        if done in ({}, {"more": False}) and (self.held_up(tx, "ring shared") or self.turning(tx)):
            tx.hold("ring perhaps")
            return
        known = {"more", "sealed", "opened", "carried", "moved", "archived", "truncated"}
        assert set(done) <= known, done
        tx.hold("ring")
        if "truncated" in done:
            tx.hold("truncated")
        if done.get("moved"):
            tx.hold("moved")
        if done.get("carried"):
            tx.hold("carried")
            tx.hold("lanes")
            tx.hold("jobs")
            self.carried_at = self.event()

    # Schedules --------------------------------------------------------------------------------------------------------

    def _schedule(self, viewer: Transaction, name: str) -> Schedule | None:
        return first_visible(viewer, [schedule for schedule in self.schedules if schedule.name == name])

    def _reschedule(self, tx: Transaction, old: Schedule | None, new: Schedule) -> None:
        if old:
            self.die(tx, old)
        self.schedules.append(new)
        tx.log.append(("born", new))

    def schedule(self, tx: Transaction, name: str, cron: str, queue: str, payload: Any, catch_up: str) -> Call:
        expect = self._producing(tx, self.queue(tx, queue))
        yield replace(expect, must_wait=expect.must_wait or self.held_up(tx, f"schedule {name}"))
        tx.hold(f"schedule {name}")
        old = self._schedule(tx, name)
        next_at = old.next_at if old and old.cron == cron else next_tick(cron, self.now)
        self._reschedule(tx, old, Schedule(tx, None, name, queue, cron, catch_up, payload, next_at))

    def unschedule(self, tx: Transaction, name: str) -> Call:
        old = self._schedule(tx, name)
        must = old is not None and self.held_up(tx, f"schedule {name}")
        yield Expect(error=None if old else "42704", must_wait=must)
        assert old
        tx.hold(f"schedule {name}")
        self.die(tx, old)

    def next_runs(self, cron: str, n: int) -> Call:
        runs = yield Expect()
        expected = [self.now]
        for _ in range(n):
            expected.append(next_tick(cron, expected[-1]))
        assert runs == expected[1:], f"next_runs({cron!r}): {runs}, and not {expected[1:]}"

    def _fired(self, tx: Transaction) -> list[tuple[Schedule, datetime]]:
        """The ticks that become jobs now, in the order in which they do. What somebody else has to do with waits."""
        ticks = []
        due = [schedule for schedule in self.schedules if visible(tx, schedule) and schedule.next_at <= self.now]
        for schedule in sorted(due, key=lambda schedule: (schedule.next_at, schedule.name)):
            queue = self.queue(tx, schedule.queue)
            if not queue or self.held_up(tx, "drop", queue.serial) or self.held_up(tx, f"schedule {schedule.name}"):
                continue
            now, next_at = fired(schedule, self.now)
            ticks += [(schedule, tick) for tick in now]
            tx.hold(f"schedule {schedule.name}")
            self._reschedule(tx, schedule, replace(schedule, born=tx, died=None, next_at=next_at))
        return ticks

    def _enqueue_ticks(self, tx: Transaction, ticks: Sequence[tuple[Schedule, datetime]]) -> Call:
        """The ids of their jobs are the last ones that were given out."""
        if not ticks:
            return
        last: int = yield Newest()
        for id, (schedule, tick) in enumerate(ticks, last - len(ticks) + 1):
            queue = self.queue(tx, schedule.queue)
            assert queue
            headers = {"schedule": schedule.name, "scheduled_at": f"{tick:%Y-%m-%dT%H:%M:%SZ}"}
            self._add_jobs(tx, queue, [id], [schedule.payload], headers=headers)

    # Queues -----------------------------------------------------------------------------------------------------------

    def create_queue(self, tx: Transaction, name: str, settings: Settings, *, if_not_exists: bool = False) -> Call:
        found = self.queue(tx, name)
        coming = any(q.name == name and q.born in self.others(tx) for q in self.queues)
        error = "42710" if found and not if_not_exists else None
        yield Expect(error=error, may_wait=bool(found) and contested(tx, found or self.queues[0]), must_wait=coming)
        if not found:
            self.serials += 1
            self._write(tx, Queue(tx, None, self.serials, name, settings))

    def _write(self, tx: Transaction, queue: Queue) -> None:
        self.queues.append(queue)
        tx.log.append(("born", queue))

    def _changing(self, tx: Transaction, name: str) -> Generator[Expect | Wish, Any, Queue]:
        """The queue that a call is about to change."""
        found = self.queue(tx, name)
        yield Expect(error=None if found else "PQ002", must_wait=bool(found) and contested(tx, found or self.queues[0]))
        assert found
        return found

    def alter_queue(self, tx: Transaction, name: str, **settings: Any) -> Call:
        found = yield from self._changing(tx, name)
        self._replace(tx, found, settings=replace(found.settings, **settings))
        if settings.get("shards", found.settings.shards) != found.settings.shards:
            self.resharded.add(found.serial)

    def _replace(self, tx: Transaction, queue: Queue, **changes: Any) -> None:
        self.die(tx, queue)
        self._write(tx, replace(queue, born=tx, died=None, **changes))

    def pause(self, tx: Transaction, name: str) -> Call:
        found = yield from self._changing(tx, name)
        self._replace(tx, found, paused=True)

    def resume(self, tx: Transaction, name: str) -> Call:
        found = yield from self._changing(tx, name)
        self._replace(tx, found, paused=False)
        self.wake(tx, found.serial)

    def set_unique(self, tx: Transaction, name: str, unique_until: str) -> Call:
        found = yield from self._changing(tx, name)
        self._replace(tx, found, unique_until=unique_until)

    def set_validator(self, tx: Transaction, name: str, validated: bool) -> Call:
        found = yield from self._changing(tx, name)
        self._replace(tx, found, validated=validated)

    def set_limits(self, tx: Transaction, name: str, limits: Limits) -> Call:
        """Nobody claims by the limits until the transaction ends."""
        found = self.queue(tx, name)
        must = found is not None and contested(tx, found)
        may = found is not None and self.held_up(tx, "lanes", found.serial)
        yield Expect(error=None if found else "PQ002", must_wait=must, may_wait=may and not must)
        assert found
        self._replace(tx, found, limits=limits, dealt=self.event())
        tx.hold("lanes", found.serial)

    def purge(self, tx: Transaction, name: str, state: str | None = None) -> Call:
        """Also pgq.purge_state, for one state."""
        found = self.queue(tx, name)
        if tx.snapshot is not None:
            yield Expect(error="PQ003" if found or not state else "PQ002")
            return
        if state == "dead":
            yield from self.discard(tx, name)
            return
        count = yield Expect(error=None if found else "PQ002")
        assert found
        ready = [p for p in self.places(tx, "ready", found.serial) if p.born is not tx and state in (None, "ready")]
        carried = tx.holds("carried")  # then some are this transaction's own now
        scheduled = self.places(tx, "scheduled", found.serial) + self.places(tx, "waiting", found.serial)
        scheduled = [p for p in scheduled if state in (None, p.status)]
        assert count == len(ready) + len(scheduled) or carried, f"purged {count} of {ready} and {scheduled}"
        if carried and count != len(ready) + len(scheduled):
            ready = yield from self._which(ready, {"cancelled"})
            assert count == len(ready) + len(scheduled)
        for place in ready:
            self._withdraw(tx, place)
        for place in scheduled:
            self.move(tx, place, "gone")
        if state in (None, "ready"):
            tx.hold("lanes", found.serial)
        tx.hold("jobs")

    def try_exclusive(self, tx: Transaction, name: str) -> Call:
        alone = yield Expect()
        assert alone != self.held_up(tx, f"exclusive {name}"), f"try_exclusive({name}): {alone}"
        if alone:
            tx.hold(f"exclusive {name}")

    def drop_queue(self, tx: Transaction, name: str, *, force: bool = False) -> Call:
        found = self.queue(tx, name)
        if found and tx.snapshot is not None:
            yield Expect(error="PQ003")
            return
        states = ("ready", "scheduled", "waiting", "running", "dead")
        left = [p for state in states for p in self.places(tx, state, found.serial)] if found else []
        yield Expect(error="PQ002" if not found else "PQ005" if left and not force else None)
        assert found
        for place in left:
            self.move(tx, place, "gone")
        self.die(tx, found)
        for schedule in [s for s in self.schedules if visible(tx, s) and s.queue == name]:
            self.die(tx, schedule)
            tx.hold(f"schedule {schedule.name}")
        tx.hold("drop", found.serial)
        tx.hold("lanes", found.serial)
        tx.hold("jobs")

    def redrive(self, tx: Transaction, name: str, ids: Sequence[int] | None = None) -> Call:
        found = self.queue(tx, name)
        dead = self.places(tx, "dead", found.serial) if found else []
        chosen = [place for place in dead if ids is None or place.job.id in ids]
        expect = self._producing(tx, found)
        count = yield replace(expect, must_wait=expect.must_wait or any(contested(tx, p) for p in chosen))
        assert found
        assert count == len(chosen), f"redrove {count}, and not {chosen}"
        for place in chosen:
            self.move(tx, place, "ready" if place.attempt else "waiting", attempt=1, run_at=place.run_at)
            self.wake(tx, found.serial)
        tx.hold("jobs")

    def redrive_where(self, tx: Transaction, name: str, n: int | None = None, per_second: float | None = None) -> Call:
        found = self.queue(tx, name)
        chosen = self.places(tx, "dead", found.serial)[:n] if found else []
        expect = self._producing(tx, found)
        count = yield replace(expect, must_wait=expect.must_wait or any(contested(tx, p) for p in chosen))
        assert found
        assert count == len(chosen), f"redrove {count}, and not {chosen}"
        for nth, place in enumerate(chosen):
            if not place.attempt:
                self.move(tx, place, "waiting", attempt=1, run_at=place.run_at)
            elif per_second:
                self.move(tx, place, "scheduled", attempt=1, run_at=self.now + timedelta(seconds=nth / per_second))
            else:
                self.move(tx, place, "ready", attempt=1)
        if not per_second and chosen:
            self.wake(tx, found.serial)
        tx.hold("jobs")

    def discard(self, tx: Transaction, name: str, ids: Sequence[int] | None = None) -> Call:
        """Without ids: pgq.discard_where."""
        found = self.queue(tx, name)
        dead = self.places(tx, "dead", found.serial) if found else []
        chosen = [place for place in dead if ids is None or place.job.id in ids]
        error = None if found else "PQ002"
        count = yield Expect(error=error, must_wait=any(contested(tx, p) for p in chosen))
        assert count == len(chosen), f"threw {count} away, and not {chosen}"
        for place in chosen:
            self.move(tx, place, "gone")

    def work(self, tx: Transaction, name: str) -> Call:
        """A whole run of the procedure, while nobody else does anything and there is nothing for pgq.maintain to do.

        Is sent what became of each job: its lease, the worker, and the error if the handler failed.
        """
        found = self.queue(tx, name)
        claimed: dict[int, tuple[int, str, str | None]] = yield Expect(error=None if found else "PQ002")
        assert found
        self.carried_at = self.event()
        ready = [] if found.paused else self.places(tx, "ready", found.serial)
        assert sorted(claimed) == [place.job.id for place in ready], f"worked on {claimed}, and not on {ready}"
        again = []
        for place in ready:
            number, worker, error = claimed[place.job.id]
            lease = self.leases.setdefault(number, Lease(number, found.serial, worker))
            lease.jobs.append(place.job)
            running = self.move(tx, place, "running", lease=lease, started_at=self.now)
            fails = handler_fails(place.job.payload)
            assert fails == (error is not None), f"{place.job} of {place.job.payload}: {error}"
            if fails:
                again.append(self._fail(tx, running, error, True))
            else:
                self._done(tx, running, {"worked": place.job.payload})
        yield from self._await_backoff(tx, [place for place in again if place], None)
        self.promoted_at = self.reaped_at = self.pursued_at = self.now

    def grant(self, tx: Transaction, kind: str) -> Call:
        """Two who give the same rights at the same time are in each other's way."""
        yield Expect(must_wait=self.held_up(tx, "grants"))
        row = Grant(tx, None, kind)
        self.grants.append(row)
        tx.log.append(("born", row))
        tx.hold("grants")

    # Waiting workers: not part of a transaction -----------------------------------------------------------------------

    def watch(self, name: str) -> Call:
        found = self.queue(OUTSIDE, name)
        due = yield Expect(error=None if found else "PQ002")
        assert found
        if found.settings.notify:
            self.watching[found.serial] = self.watching.get(found.serial, 0) + 1
        self.watched_at = self.now
        times = [p.run_at for p in self.places(OUTSIDE, "scheduled", found.serial) if p.run_at]
        sure = [at for at in times if at >= (self.promoted_at or NEVER_YET)]
        ticks = [s.next_at for s in self.schedules if visible(OUTSIDE, s) and s.queue == name]
        sure += [at for at in ticks if at > self.now - OVERDUE]
        times += sure
        assert due in times if due else not sure, f"due at {due}, and not at one of {sure}"
        assert not due or not sure or due <= min(sure), f"due at {due}, and not at {min(sure)}"

    def unwatch(self, name: str) -> Call:
        yield Expect()
        found = self.queue(OUTSIDE, name)
        if found and self.watching.get(found.serial):
            self.watching[found.serial] -= 1

    def watch_job(self, id: int) -> Call:
        place = self.place(OUTSIDE, id)
        queue = self.queue_of(OUTSIDE, place.job.queue) if place and place.state != "gone" else None
        watches = yield Expect()
        notified = queue is not None and queue.settings.notify
        assert watches == notified or (place and self.forgotten(OUTSIDE, place)), f"watch_job({id}): {watches}"
        if watches:
            self.awaited[id] = self.awaited.get(id, 0) + 1
            self.awaited_at = self.now

    def unwatch_job(self, id: int) -> Call:
        yield Expect()
        if self.awaited.get(id):
            self.awaited[id] -= 1

    def nobody_watches(self) -> None:
        self.watching.clear()
        self.awaited.clear()


def with_result(call: Call, value: Any) -> None:
    """Send a call what came back; it must not ask for more."""
    try:
        call.send(value)
    except StopIteration:
        return
    raise AssertionError("the call asks for more")
