"""The state machine: hypothesis draws the steps, the world does them.

What is drawn never depends on the state of the world: numbers, of which a step takes what it needs to choose among what
is there. A step that makes no sense at the moment is not done. So the same draws are the same test, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.model.data import Limits, Place, Settings
from tests.model.model import Pair
from tests.model.transactions import OUTSIDE, Transaction, visible
from tests.model.world import SYNC, TICK, World

QUEUES = ["line", "wide", "o\"d'd %s", "späť", "grouped"]
GROUPED = 4
"""This queue has jobs with groups, and no others. What is enqueued elsewhere is claimed in a stricter order."""

DRIVEN: dict[str, str] = {}
"""The public functions, and the rules that call them"""

WRONG = [
    ("SELECT pgq.enqueue('line', priority => 101)", "22023"),
    ("SELECT pgq.enqueue('line', NULL)", "22004"),
    ("SELECT pgq.enqueue('line', run_at => 'now', delay => '1 s')", "22023"),
    ("SELECT pgq.enqueue_many('line', '{NULL}')", "22004"),
    ("SELECT pgq.enqueue('no such queue')", "PQ002"),
    ("SELECT pgq.claim('line', 0)", "22023"),
    ("SELECT pgq.claim(NULL)", "22004"),
    ("SELECT pgq.ack_many('{1,2}', '{16}')", "22023"),
    ("SELECT pgq.release('{1}', NULL)", "22004"),
    ("SELECT pgq.reject(1, 16, retry => NULL)", "22004"),
    ("SELECT pgq.extend_many('{16}', '0')", "22023"),
    ("SELECT pgq.create_queue('')", "22023"),
    ("SELECT pgq.create_queue('new', shards => 65)", "22023"),
    ("SELECT pgq.alter_queue('no such queue', shards => 2)", "PQ002"),
    ("SELECT pgq.job_status(NULL)", "22004"),
    ("SELECT pgq.watch('{no such queue}')", "PQ002"),
    ("SELECT pgq.enqueue('line', group_key => '')", "22023"),
    ("SELECT pgq.cancel(NULL)", "22004"),
    ("SELECT pgq.reschedule(1, 'infinity')", "22023"),
    ("SELECT pgq.set_priority(1, 101)", "22023"),
]

T = TypeVar("T")
Step = TypeVar("Step", bound=Callable[..., None])


def drives(*functions: str) -> Callable[[Step], Step]:
    """Say which functions of schema pgq a rule calls."""

    def note(step: Step) -> Step:
        DRIVEN.update(dict.fromkeys(functions, step.__name__))
        return step

    return note


MINUTES = [timedelta(0), timedelta(seconds=1), timedelta(seconds=20), timedelta(minutes=2), timedelta(hours=1)]
PASSING = [
    *[timedelta(milliseconds=50), timedelta(seconds=1), timedelta(seconds=3), timedelta(seconds=31)],
    *[timedelta(seconds=61), timedelta(minutes=6), timedelta(hours=2), timedelta(days=2)],
]
SETTINGS = [
    Settings(shards=1, lease=timedelta(seconds=30), max_attempts=3),
    Settings(shards=3, lease=timedelta(minutes=1), max_attempts=2, retention=timedelta(days=1)),
    Settings(shards=1, retention=timedelta(0), notify=False, backoff=timedelta(0), max_attempts=1),
    Settings(shards=2, backoff=timedelta(seconds=10), backoff_max=timedelta(seconds=30), lease=timedelta(seconds=5)),
]
CHANGES: list[dict[str, Any]] = [
    {"shards": 1},
    {"shards": 3},
    {"max_attempts": 1},
    {"max_attempts": 4},
    {"lease": timedelta(seconds=10)},
    {"retention": timedelta(0)},
    {"retention": timedelta(days=3)},
    {"notify": False},
    {"notify": True},
    {"backoff": timedelta(seconds=5), "backoff_max": timedelta(seconds=5)},
]
MINUTE = timedelta(minutes=1)
LIMITS = [
    Limits(),
    Limits(),
    Limits(group_limit=2, running_limit=2),
    Limits(running_limit=3, keep_place=False),
    Limits(group_limit=None),
    Limits(group_limit=None, fair=True),
    Limits(group_limit=None, fair=True),
    Limits(fair=True, running_limit=2),
    Limits(rate=2, rate_period=MINUTE),
    Limits(group_limit=None, rate=3, rate_period=MINUTE, fair=True),
    Limits(group_limit=None, group_rate=1, group_period=timedelta(seconds=20)),
    Limits(group_limit=2, rate=3, rate_period=MINUTE, group_rate=2, group_period=timedelta(seconds=20), fair=True),
]
LINES = [("*/5 * * * *", "one"), ("*/5 * * * *", "skip"), ("@hourly", "one"), ("0 */6 * * *", "all")]
ACCIDENTS = ["close", "close", "terminate", "terminate", "fast", "immediate", "immediate"]
# Mostly pairs that are good.
PICKS = [
    "held",
    "held",
    "held",
    "held",
    "held",
    "whole",
    "whole",
    "known",
    "known",
    "crossed",
    "repeated",
    "null",
    "foreign",
]

who = st.integers(0, len(SYNC) - 1)
number = st.integers(0, 999)
queue = st.sampled_from([0, 0, 0, 1, 1, 2, 3])
any_queue = st.sampled_from([0, 0, 0, 1, 1, 2, 3, GROUPED, GROUPED])
duration = st.none() | st.sampled_from([timedelta(milliseconds=1), *MINUTES[1:]])
pick = st.tuples(st.sampled_from(PICKS), number)
picks = st.lists(pick, min_size=1, max_size=5)
worker = st.none() | st.just("worker 1")
error = st.none() | st.just("bad")
changes = st.sampled_from(CHANGES)
once_in_eight = st.sampled_from([False] * 7 + [True])
job_options = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.sampled_from([0, -100, 7]),
        "delay": st.sampled_from(MINUTES),
        "max_attempts": st.sampled_from([1, 2, 5]),
        "task": st.just("task"),
        "headers": st.just({"trace": "1"}),
    },
)


AFTER_OPTIONS = {
    "on_dead": st.sampled_from(["fail", "run", "skip"]),
    "delay": st.sampled_from(MINUTES),
    "priority": st.sampled_from([0, 7]),
    "headers": st.just({"trace": "1"}),
}


class Machine(RuleBasedStateMachine):
    """Draws steps for a world."""

    world: World
    make_world: Callable[[], World]

    @initialize(shards=st.sampled_from([1, 1, 2]))
    def start(self, shards: int) -> None:
        self.world = type(self).make_world()
        self.steps = 0
        self.world.create_queue(0, QUEUES[0], Settings(shards=shards, max_attempts=3))
        self.world.create_queue(0, QUEUES[1], SETTINGS[1])
        self.world.create_queue(0, QUEUES[GROUPED], SETTINGS[0])

    # Choosing among what is there -------------------------------------------------------------------------------------

    def view(self, who: int) -> Transaction:
        return self.world.sessions[who].tx or OUTSIDE

    def frozen(self, who: int) -> bool:
        """Whether the session is in a REPEATABLE READ transaction, in which a producer only produces."""
        return self.view(who).snapshot is not None

    def pairs(self, who: int, picks: list[tuple[str, int]]) -> list[Pair]:
        """Jobs and leases to settle: good ones, and such as a confused worker might send."""
        pairs: list[Pair] = []
        held, handed = self.world.held(who), self.world.handed
        for kind, n in picks:
            if kind == "null":
                pairs.append([(None, None), (1, None), (None, 16)][n % 3])
            elif kind == "foreign":
                pairs.append((n + 1, n * 7))
            elif kind == "held" and held:
                pairs.append(held[n % len(held)])
            elif kind == "whole" and held:
                lease = self.world.model.leases[held[n % len(held)][1]]
                pairs += [(job.id, lease.id) for job in lease.jobs]
            elif kind == "known" and handed:
                pairs.append(handed[-1 - n % len(handed)])
            elif kind == "crossed" and handed:
                pairs.append((handed[n % len(handed)][0], handed[n // 7 % len(handed)][1]))
            elif kind == "repeated" and pairs:
                pairs.append(pairs[-1])
        return pairs

    def after(self, *sessions: int) -> None:
        """Compare what outsiders see, and what those sessions see who have just done something."""
        self.steps += 1
        full = self.steps % 6 == 0
        self.world.check(full=full)
        for session in sessions:
            self.world.check_session(session, full=full)

    # Transactions -----------------------------------------------------------------------------------------------------

    @rule(who=who, repeatable_read=once_in_eight, name=number)
    def begin(self, who: int, repeatable_read: bool, name: int) -> None:
        """Or a savepoint, if there is a transaction already."""
        if self.world.sessions[who].tx:
            self.world.savepoint(who, f"s{name % 2}")
        else:
            self.world.begin(who, repeatable_read=repeatable_read)

    @rule(who=who, commit=st.sampled_from([True, True, False]))
    def end(self, who: int, commit: bool) -> None:
        if self.world.sessions[who].tx:
            (self.world.commit if commit else self.world.rollback)(who)
            self.after()

    @rule(who=who, number=number, rollback=st.sampled_from([True, True, False]))
    def savepoint(self, who: int, number: int, rollback: bool) -> None:
        tx = self.world.sessions[who].tx
        if tx and tx.savepoints:
            name = tx.savepoints[number % len(tx.savepoints)][0]
            (self.world.rollback_to if rollback else self.world.release_savepoint)(who, name)
        elif tx:
            self.world.savepoint(who, f"s{number % 2}")
        self.after(who)

    @rule(who=who, finish=st.booleans(), commit=st.sampled_from([True, True, False]))
    def prepare(self, who: int, finish: bool, commit: bool) -> None:
        """Either half of a two-phase commit."""
        tx, prepared = self.world.sessions[who].tx, self.world.model.prepared
        if prepared and finish and not self.world.sessions[0].tx:
            self.world.finish_prepared(next(iter(prepared)), commit=commit)
        elif tx and not tx.wakes and not any(tx.holds(ring) for ring in ("ring", "ring shared", "ring perhaps")):
            self.world.prepare(who, f"p{self.steps}")
        self.after()

    # Producing --------------------------------------------------------------------------------------------------------

    @drives("enqueue")
    @rule(who=who, queue=queue, options=st.just({}) | job_options)
    def enqueue(self, who: int, queue: int, options: dict[str, Any]) -> None:
        self.world.enqueue(who, QUEUES[queue], **options)
        self.after(who)

    @drives("enqueue_many")
    @rule(
        who=who,
        queue=queue,
        count=st.sampled_from([0, 1, 2, 3, 10]),
        options=st.just({}) | job_options,
        at=st.none() | number,
    )
    def enqueue_many(self, who: int, queue: int, count: int, options: dict[str, Any], at: int | None) -> None:
        if at is not None and "delay" not in options:
            options = {**options, "run_at": self.world.model.now + timedelta(seconds=at - 300)}
        self.world.enqueue_many(who, QUEUES[queue], count, **options)
        self.after(who)

    @drives("enqueue_row", "enqueue_rows")
    @rule(who=who, count=st.sampled_from([1, 1, 2, 3]))
    def change_rows(self, who: int, count: int) -> None:
        self.world.change_rows(who, count)
        self.after(who)

    @drives("enqueue_after", "enqueue_many_after", "batch")
    @rule(
        who=who,
        queue=queue,
        count=st.sampled_from([1, 2]),
        others=st.lists(number, max_size=3),
        options=st.just({"on_dead": "run"}) | st.fixed_dictionaries({}, optional=AFTER_OPTIONS),
    )
    def enqueue_after(self, who: int, queue: int, count: int, others: list[int], options: dict[str, Any]) -> None:
        """After the newest jobs, of this session or another one, whatever becomes of them."""
        known = sorted(self.world.model.jobs)[-20:]
        after = [known[n % len(known)] for n in others] if known else []
        self.world.enqueue_after(who, after, QUEUES[queue], count, **options)
        self.after(who)

    @drives("add_to_batch")
    @rule(who=who, number=number, others=st.lists(number, min_size=1, max_size=2, unique=True))
    def add_to_batch(self, who: int, number: int, others: list[int]) -> None:
        """Jobs that are older than the batch. Or itself, which is refused."""
        model, view = self.world.model, self.view(who)
        if self.frozen(who):
            return
        if not model.places(view, "waiting"):
            self.world.enqueue_after(who, sorted(model.jobs)[-1:], QUEUES[0], 1, on_dead="run", priority=7)
        id = self._newest(who, "waiting", number)
        known = [id, *model.after(view, model.jobs[id])] if id in model.jobs else []
        older = [other for other in sorted(model.jobs) if other < id and other not in known][-20:]
        chosen = known[:1] if number % 8 == 0 else [older[n % len(older)] for n in others] if older else []
        if chosen:
            self.world.add_to_batch(who, id, sorted(set(chosen)))
            self.after(who)

    @drives("enqueue")
    @rule(
        who=who,
        keys=st.lists(st.sampled_from("aab"), min_size=1, max_size=4),
        priority=st.sampled_from([0, 0, 0, 7]),
        delay=st.sampled_from([None, None, timedelta(seconds=20)]),
    )
    def enqueue_grouped(self, who: int, keys: list[str], priority: int, delay: timedelta | None) -> None:
        options: dict[str, Any] = {"priority": priority, "delay": delay}
        if len(keys) == 1:
            self.world.enqueue(who, QUEUES[GROUPED], group_key=keys[0], **options)
        else:
            self.world.enqueue_many(who, QUEUES[GROUPED], len(keys), group_keys=keys, **options)
        self.after(who)

    @drives("enqueue_unique", "enqueue_unique_many")
    @rule(
        who=who,
        queue=queue,
        keys=st.lists(st.sampled_from([None, "a", "a", "b", "b"]), min_size=1, max_size=3) | st.just(["a"]),
        options=st.just({}) | job_options,
        unique_until=st.sampled_from([None, None, "claimed"]),
    )
    def enqueue_unique(
        self, who: int, queue: int, keys: list[str | None], options: dict[str, Any], unique_until: str | None
    ) -> None:
        self.world.enqueue_unique(who, QUEUES[queue], keys, unique_until=unique_until, **options)
        self.after(who)

    # Claiming and settling --------------------------------------------------------------------------------------------

    @drives("claim")
    @rule(who=who, queue=queue, batch=st.sampled_from([1, 1, 2, 3, 5, 100]), lease_for=duration, worker=worker)
    def claim(self, who: int, queue: int, batch: int, lease_for: timedelta | None, worker: str | None) -> None:
        self._fill(who, queue, batch)
        self.world.claim(who, QUEUES[queue], batch, lease_for=lease_for, worker=worker)
        self.after(who)

    @drives("claim")
    @rule(who=who, batch=st.sampled_from([1, 2, 5]))
    def claim_grouped(self, who: int, batch: int) -> None:
        if not any(place.job.group for place in self.world.model.places(self.view(who), "ready")):
            self.world.enqueue_many(who, QUEUES[GROUPED], 3, group_keys=["a", "a", "b"])
        self.world.claim(who, QUEUES[GROUPED], batch)
        self.after(who)

    @drives("set_limits")
    @rule(who=who, limits=st.sampled_from(LIMITS))
    def set_limits(self, who: int, limits: Limits) -> None:
        if not self.frozen(who):
            self.world.set_limits(who, QUEUES[GROUPED], limits)
            self.after(who)

    @drives("claim")
    @rule(who=who, queue=queue, batch=st.sampled_from([1, 1, 3]))
    def claim_simply(self, who: int, queue: int, batch: int) -> None:
        self._fill(who, queue, batch)
        self.world.claim(who, QUEUES[queue], batch)
        self.after(who)

    def _fill(self, who: int, queue: int, batch: int) -> None:
        """So that there is something to claim."""
        model, view = self.world.model, self.view(who)
        found = model.queue(view, QUEUES[queue])
        if found and not model.places(view, "ready", found.serial):
            self.world.enqueue_many(who, QUEUES[queue], min(batch + 2, 12))

    @drives("ack")
    @rule(who=who, pick=pick, result=st.none() | st.just({"ok": 1}))
    def ack(self, who: int, pick: tuple[str, int], result: Any) -> None:
        """In a REPEATABLE READ transaction, too: that of a handler that writes something."""
        for pair in self._settled(who, [pick])[:1] or self.pairs(who, [pick])[:1]:
            self.world.ack(who, pair, result)
            self.after(who)

    @drives("ack_many")
    @rule(who=who, picks=picks, results=st.booleans())
    def ack_many(self, who: int, picks: list[tuple[str, int]], results: bool) -> None:
        if pairs := self._settled(who, picks):
            self.world.ack_many(who, pairs, [{"job": id} for id, _ in pairs] if results else None)
            self.after(who)

    @drives("reject")
    @rule(who=who, pick=pick, error=error, retry_in=duration, retry=st.sampled_from([True, True, True, False]))
    def reject(
        self, who: int, pick: tuple[str, int], error: str | None, retry_in: timedelta | None, retry: bool
    ) -> None:
        for pair in self._settled(who, [pick])[:1]:
            self.world.reject(who, pair, error=error, retry_in=retry_in, retry=retry)
            self.after(who)

    @drives("reject_many")
    @rule(who=who, picks=picks, errors=st.booleans())
    def reject_many(self, who: int, picks: list[tuple[str, int]], errors: bool) -> None:
        if pairs := self._settled(who, picks):
            self.world.reject_many(who, pairs, [f"error of {id}" for id, _ in pairs] if errors else None)
            self.after(who)

    @drives("release")
    @rule(who=who, picks=picks)
    def release(self, who: int, picks: list[tuple[str, int]]) -> None:
        if pairs := self._settled(who, picks):
            self.world.release(who, pairs)
            self.after(who)

    @drives("snooze", "snooze_many")
    @rule(who=who, picks=picks, delay=st.sampled_from(MINUTES), many=st.booleans())
    def snooze(self, who: int, picks: list[tuple[str, int]], delay: timedelta, many: bool) -> None:
        pairs = self._settled(who, picks)
        if many and pairs:
            self.world.snooze_many(who, pairs, delay)
        elif pairs:
            self.world.snooze(who, pairs[0], delay)
        self.after(who)

    @drives("extend", "extend_many")
    @rule(who=who, picks=picks, lease_for=duration, many=st.booleans())
    def extend(self, who: int, picks: list[tuple[str, int]], lease_for: timedelta | None, many: bool) -> None:
        leases = [lease for _, lease in self._settled(who, picks)]
        if many and leases:
            self.world.extend_many(who, leases, lease_for)
        elif leases:
            self.world.extend(who, leases[0], lease_for)
        self.after(who)

    @drives("progress")
    @rule(who=who, pick=pick, value=number)
    def progress(self, who: int, pick: tuple[str, int], value: int) -> None:
        for pair in self._settled(who, [("held", value), pick])[:2]:
            self.world.progress(who, pair, value)
            self.after(who)

    def _settled(self, who: int, picks: list[tuple[str, int]]) -> list[Pair]:
        if self.frozen(who):
            return []
        if not self.world.held(who):
            queue = picks[0][1] % 2
            batch = [1, 2, 3, 12][picks[0][1] // 2 % 4]
            self._fill(who, queue, batch)
            self.world.claim(who, QUEUES[queue], batch)
        return self.pairs(who, picks)

    # Taking back ------------------------------------------------------------------------------------------------------

    @drives("cancel", "cancel_requested")
    @rule(who=who, state=st.sampled_from(["running", "running", "ready", "scheduled", "waiting", "any"]), number=number)
    def cancel(self, who: int, state: str, number: int) -> None:
        """One of the newest jobs; and what its worker is told then, if it runs."""
        if state == "running":
            self._settled(who, [("held", number)])
        id = self._newest(who, state, number)
        self.world.cancel(who, id)
        place = self.world.model.place(self.view(who), id)
        if place and place.lease and not self.frozen(who):
            self.world.cancel_requested(who, [place.lease.id, None])
        self.after(who)

    @drives("cancel_claimed")
    @rule(who=who, pick=pick, error=error)
    def cancel_claimed(self, who: int, pick: tuple[str, int], error: str | None) -> None:
        for pair in self._settled(who, [pick])[:1]:
            self.world.cancel_claimed(who, pair, error)
            self.after(who)

    @drives("cancel_many")
    @rule(who=who, queue=any_queue, task=st.sampled_from([None, "task"]), running=st.booleans())
    def cancel_many(self, who: int, queue: int, task: str | None, running: bool) -> None:
        self.world.cancel_many(who, QUEUES[queue], task=task, running=running)
        self.after(who)

    @drives("reschedule")
    @rule(who=who, state=st.sampled_from(["ready", "ready", "scheduled", "waiting", "any"]), number=number)
    def reschedule(self, who: int, state: str, number: int) -> None:
        run_at = self.world.model.now + MINUTES[number % len(MINUTES)] - timedelta(seconds=number % 2)
        self.world.reschedule(who, self._newest(who, state, number), run_at)
        self.after(who)

    @drives("set_priority")
    @rule(
        who=who,
        state=st.sampled_from(["ready", "ready", "scheduled", "waiting", "any"]),
        number=number,
        priority=st.sampled_from([0, -100, 7]),
    )
    def set_priority(self, who: int, state: str, number: int, priority: int) -> None:
        """Not where a crash may undo it: nobody could tell before the job is claimed."""
        if self.world.sessions[who].sync:
            self.world.set_priority(who, self._newest(who, state, number), priority)
            self.after(who)

    def _newest(self, who: int, state: str, number: int) -> int:
        return self._seen(self.view(who), state, number)

    def _seen(self, view: Transaction, state: str, number: int) -> int:
        """One of the newest jobs in a state, or of all; or one that is not known yet."""
        model = self.world.model
        places = [place for id in sorted(model.jobs) if (place := model.place(view, id))]
        ids = [place.job.id for place in places if state in ("any", place.state)][-5:]
        return ids[number % len(ids)] if ids else max(model.jobs, default=0) + 1

    # Maintenance ------------------------------------------------------------------------------------------------------

    @drives("promote", "reap", "maintain")
    @rule(who=who, what=st.sampled_from(["promote", "reap", "maintain"]), wait=st.booleans())
    def maintain(self, who: int, what: str, wait: bool) -> None:
        """At once, or when the next lease ends or the next job is due."""
        if wait:
            self.world.advance_to_next(self.view(who))
        getattr(self.world, what)(who)
        self.after(who)

    @drives("rotate")
    @rule(who=who, turns=st.integers(1, 5))
    def rotate(self, who: int, turns: int) -> None:
        for _ in range(turns):
            self.world.rotate(who)
        self.after(who)

    @drives("work")
    @rule(
        who=st.sampled_from([n for n, sync in enumerate(SYNC) if sync]), queue=queue, batch=st.sampled_from([1, 2, 10])
    )
    def work(self, who: int, queue: int, batch: int) -> None:
        """When there is nothing to do but to claim. Of one whose commits may be lost, each could be alone."""
        world, model = self.world, self.world.model
        if any(session.tx for session in world.sessions) or model.prepared or not model.queue(OUTSIDE, QUEUES[queue]):
            return
        world.maintain(who)
        self._fill(who, queue, batch)
        coming = [p.run_at for p in model.places(OUTSIDE, "scheduled")]
        coming += [model.expires_at(OUTSIDE, p.lease) for p in model.places(OUTSIDE, "running") if p.lease]
        coming += [schedule.next_at for schedule in model.schedules if visible(OUTSIDE, schedule)]
        left = [*model.places(OUTSIDE, "waiting"), *(r for r in model.requests if visible(OUTSIDE, r))]
        if not left and all(at and at > model.now + 5 * TICK for at in coming):
            world.work(who, QUEUES[queue], batch)
            self.after(who)

    # Queues -----------------------------------------------------------------------------------------------------------

    @drives("create_queue")
    @rule(who=who, queue=queue, settings=st.sampled_from(SETTINGS), if_not_exists=st.booleans())
    def create_queue(self, who: int, queue: int, settings: Settings, if_not_exists: bool) -> None:
        if not self.frozen(who):
            self.world.create_queue(who, QUEUES[queue], settings, if_not_exists=if_not_exists)
            self.after(who)

    @drives("alter_queue", "pause", "resume")
    @rule(who=who, queue=any_queue, what=st.sampled_from(["alter", "alter", "pause", "resume"]), changes=changes)
    def alter_queue(self, who: int, queue: int, what: str, changes: dict[str, Any]) -> None:
        if self.frozen(who):
            return
        if what == "alter":
            self.world.alter_queue(who, QUEUES[queue], **changes)
        else:
            (self.world.pause if what == "pause" else self.world.resume)(who, QUEUES[queue])
        self.after(who)

    @drives("set_unique", "set_validator")
    @rule(who=who, queue=queue, unique_until=st.sampled_from(["claimed", "finished"]), validated=st.booleans())
    def set_rules(self, who: int, queue: int, unique_until: str, validated: bool) -> None:
        """And one job that a validator would refuse."""
        if not self.frozen(who):
            self.world.set_unique(who, QUEUES[queue], unique_until)
            self.world.set_validator(who, QUEUES[queue], validated)
        self.world.enqueue(who, QUEUES[queue], bad=True)
        self.after(who)

    @drives("grant_producer", "grant_consumer", "grant_admin")
    @rule(who=who, kind=st.sampled_from(["producer", "consumer", "admin"]))
    def grant(self, who: int, kind: str) -> None:
        if not self.frozen(who):
            self.world.grant(who, kind)
            self.after(who)

    @drives("try_exclusive", "exclusive_holder")
    @rule(who=who, name=st.sampled_from(["a", "a", "b"]))
    def be_exclusive(self, who: int, name: str) -> None:
        self.world.try_exclusive(who, name)
        self.world.exclusive_holder(who, name)

    @drives("purge", "purge_state")
    @rule(
        who=who,
        queue=any_queue,
        state=st.sampled_from([None, None, "ready", "scheduled", "retrying", "waiting", "dead"]),
    )
    def purge(self, who: int, queue: int, state: str | None) -> None:
        """Not while others have transactions open: it would wait for them."""
        if not self.world.model.busy_elsewhere(self.view(who)):
            parked = queue == GROUPED and state == "ready"  # nobody knows which of them are
            self.world.purge(who, QUEUES[queue], None if parked else state)
            self.after(who)

    @drives("drop_queue")
    @rule(who=who, queue=queue, force=st.booleans())
    def drop_queue(self, who: int, queue: int, force: bool) -> None:
        if not self.world.model.busy_elsewhere(self.view(who)):
            self.world.drop_queue(who, QUEUES[queue], force=force)
            self.after(who)

    @drives("redrive")
    @rule(who=who, ids=st.none() | st.lists(number, max_size=3), other=once_in_eight)
    def redrive(self, who: int, ids: list[int] | None, other: bool) -> None:
        """From a queue that has dead letters, or from another one."""
        if not self.frozen(who):
            dead = self.world.model.places(self.view(who), "dead")
            names = QUEUES if other or not dead else [dead[0].job.queue_name]
            chosen = None if ids is None else [dead[n % len(dead)].job.id if dead else n for n in ids]
            self.world.redrive(who, names[0], chosen)
            self.after(who)

    def _buried(self, who: int) -> list[Place]:
        """The dead letters, of which there is one if that is possible."""
        if not self.world.model.places(self.view(who), "dead"):
            for pair in self._settled(who, [("held", 0)])[:1]:
                self.world.reject(who, pair, retry=False)
        return self.world.model.places(self.view(who), "dead")

    @drives("redrive_where")
    @rule(who=who, n=st.sampled_from([None, 1, 2]), per_second=st.sampled_from([None, 1, 2]))
    def redrive_where(self, who: int, n: int | None, per_second: float | None) -> None:
        dead = self._buried(who)
        if dead and not self.frozen(who):
            self.world.redrive_where(who, dead[0].job.queue_name, n, per_second)
            self.after(who)

    @drives("discard", "discard_where")
    @rule(who=who, ids=st.sampled_from([None, [0], [0], [1, 2]]))
    def discard(self, who: int, ids: list[int] | None) -> None:
        dead = self._buried(who)
        if dead and not self.frozen(who):
            chosen = None if ids is None else [dead[n % len(dead)].job.id for n in ids]
            self.world.discard(who, dead[0].job.queue_name, chosen)
            self.after(who)

    @drives("schedule", "unschedule", "next_runs")
    @rule(who=who, queue=queue, name=st.sampled_from(["a", "b"]), line=st.sampled_from([*LINES, None]))
    def schedule(self, who: int, queue: int, name: str, line: tuple[str, str] | None) -> None:
        """maintain and promote fire what is due."""
        if self.frozen(who):
            return
        if line:
            cron, catch_up = line
            self.world.schedule(who, name, cron, QUEUES[queue], catch_up)
            self.world.next_runs(who, cron, 3)
        else:
            self.world.unschedule(who, name)
        self.after(who)

    # Waiting workers --------------------------------------------------------------------------------------------------

    @drives("watch", "unwatch")
    @rule(queue=queue, watch=st.sampled_from([True, True, False]))
    def watch(self, queue: int, watch: bool) -> None:
        (self.world.watch if watch else self.world.unwatch)(QUEUES[queue])

    @drives("watch_job", "unwatch_job")
    @rule(state=st.sampled_from(["running", "running", "ready", "any"]), number=number, watch=st.booleans())
    def watch_job(self, state: str, number: int, watch: bool) -> None:
        """One of the newest jobs; or wait no more for one that was waited for."""
        model = self.world.model
        awaited = sorted(model.awaited)
        if model.held_up(OUTSIDE, "truncated") or model.turning(OUTSIDE):
            return
        if watch or not awaited:
            self.world.watch_job(self._seen(OUTSIDE, state, number))
        else:
            self.world.unwatch_job(awaited[number % len(awaited)])

    @drives("wait")
    @rule(who=who, state=st.sampled_from(["running", "ready", "any", "any"]), number=number)
    def wait(self, who: int, state: str, number: int) -> None:
        if not self.world.model.held_up(OUTSIDE, "truncated") and not self.world.model.turning(OUTSIDE):
            self.world.wait(who, self._seen(OUTSIDE, state, number))

    # Time, and accidents ----------------------------------------------------------------------------------------------

    @rule(by=st.sampled_from(PASSING))
    def advance(self, by: timedelta) -> None:
        self.world.advance(by)
        self.after()

    @rule(who=who, how=st.sampled_from(ACCIDENTS))
    def accident(self, who: int, how: str) -> None:
        if how in ("close", "terminate"):
            self.world.disconnect(who, terminate=how == "terminate")
            self.after()
        else:
            self.world.restart(how)

    # Looking ----------------------------------------------------------------------------------------------------------

    @drives("stats", "job_status", "doctor", "attempts", "job_progress", "dead_letters", "batch_status", "waits_for")
    @drives("queues", "jobs", "workers", "activity", "failures", "version")
    @rule(who=who, wrong=st.sampled_from(WRONG))
    def look(self, who: int, wrong: tuple[str, str]) -> None:
        """A call that is wrong in itself, and after that everything is as it was."""
        if not self.frozen(who):
            query, sqlstate = wrong
            self.world.refuses(who, query, [], sqlstate)
        self.world.look(who)
        self.world.attempts(who)
        self.world.check(full=True)
        self.world.check_session(who, full=True)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()
