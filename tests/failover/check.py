"""Compares what the clients were told with what the database knows in the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import psycopg

from tests.failover.history import Event


@dataclass(frozen=True)
class Done:
    """A finished attempt in the archive."""

    id: int
    lease: int
    worker: str
    tag: str


@dataclass(frozen=True)
class Final:
    """The database after everything was worked off and archived."""

    done: Sequence[Done]
    requests: frozenset[str]
    effects: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Losses:
    """What may be lost: nothing with a synchronous standby.

    Attributes:
        txns: timeline and xid of the transactions that were committed, but not yet on the standby when it was promoted.
        spans: when such transactions were committed, for what is known without its transaction.
    """

    txns: frozenset[tuple[int, int]] = frozenset()
    spans: Sequence[tuple[float, float]] = ()

    def survives(self, event: Event) -> bool | None:
        """Return whether what the event confirms must be there, must not be there (False), or may be (None)."""
        if event.txn is not None:
            return event.txn not in self.txns
        return None if any(since <= event.at <= until for since, until in self.spans) else True


@dataclass
class Verdict:
    """What the comparison found.

    Attributes:
        jobs: acknowledged enqueues.
        acks: acknowledged acks.
        lost: what was acknowledged and is not there, the permitted losses of an asynchronous standby included.
        doubled: jobs that were done twice.
        broken: everything that breaks a promise, in words.
    """

    jobs: int = 0
    acks: int = 0
    lost: int = 0
    doubled: int = 0
    broken: list[str] = field(default_factory=list)


def read(dsn: str) -> Final:
    """Read the end of the story; everything must have been archived."""
    with psycopg.connect(dsn, autocommit=True) as db:
        done = db.execute("SELECT id, lease, worker, payload->>'tag' FROM pgq.archive WHERE kind = 'done'").fetchall()
        requests = db.execute("SELECT tag FROM request").fetchall()
        effects = db.execute("SELECT job, lease FROM effect").fetchall()
    return Final(
        [Done(*row) for row in done], frozenset(tag for (tag,) in requests), [(job, lease) for job, lease in effects]
    )


def compare(events: Iterable[Event], final: Final, losses: Losses) -> Verdict:
    """Compare. The rules do not depend on each other, so a single flaw may break several of them."""
    told: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in events:
        told[event.what, event.outcome].append(event)
    verdict = Verdict(jobs=len(told["enqueue", "ok"]), acks=len(told["ack", "ok"]))
    _enqueued(told, final, losses, verdict)
    _acknowledged(told, final, losses, verdict)
    _leased(told, verdict)
    return verdict


Told = dict[tuple[str, str], list[Event]]


def _enqueued(told: Told, final: Final, losses: Losses, verdict: Verdict) -> None:
    """Each acknowledged enqueue is one job, together with the application's own row; a rolled back one is none."""
    found = Counter(done.tag for done in final.done)
    for event in told["enqueue", "ok"]:
        assert event.tag is not None
        must = losses.survives(event)
        if not found[event.tag]:
            verdict.lost += 1
            if must:
                verdict.broken.append(f"job lost: {event}")
        elif must is False:
            verdict.broken.append(f"its transaction is lost, but the job is there: {event}")
        if event.txn is not None and (event.tag in final.requests) != (event.tag in found):
            verdict.broken.append(f"half of a transaction: {event}")
    for event in told["enqueue", "undone"]:
        if found[event.tag or ""]:
            verdict.broken.append(f"rolled back, but there: {event}")
    tried = {e.tag for outcome in ("ok", "unknown") for e in told["enqueue", outcome]}
    for tag, count in found.items():
        if count > 1:
            verdict.broken.append(f"{count} jobs were done for {tag}")
        if tag not in tried:
            verdict.broken.append(f"nobody has enqueued {tag}")
    surviving = [e for e in told["enqueue", "ok"] if losses.survives(e)]
    for id, count in Counter(event.id for event in surviving).items():
        if count > 1:
            verdict.broken.append(f"id {id} was given to {count} jobs")
    names = {done.id: done.tag for done in final.done}
    for event in surviving:
        if event.id in names and names[event.id] != event.tag:
            verdict.broken.append(f"id {event.id} is {names[event.id]}: {event}")


def _acknowledged(told: Told, final: Final, losses: Losses, verdict: Verdict) -> None:
    """Each acknowledged ack is there with its effect, and no job has two."""
    by_lease = {(done.id, done.lease) for done in final.done}
    by_worker = {(done.id, done.worker) for done in final.done}
    for event in told["ack", "ok"]:
        assert event.id is not None
        found = (event.id, event.by) in by_worker if event.lease is None else (event.id, event.lease) in by_lease
        must = losses.survives(event)
        if must and not found:
            verdict.broken.append(f"ack lost: {event}")
        elif must is False and found:
            verdict.broken.append(f"its transaction is lost, but the ack is there: {event}")
    rows = Counter(done.id for done in final.done)
    answers = Counter(event.id for event in told["ack", "ok"] if losses.survives(event))
    for id in {id for counter in (rows, answers) for id, count in counter.items() if count > 1}:
        verdict.doubled += 1
        verdict.broken.append(f"job {id} was done {rows[id or 0]} times, acknowledged {answers[id]} times")
    consumers = {event.by for event in told["ack", "ok"] if event.lease is not None}
    expected = Counter((done.id, done.lease) for done in final.done if done.worker in consumers)
    if (wrong := Counter(final.effects) - expected) or (wrong := expected - Counter(final.effects)):
        verdict.broken.append(f"acks and effects do not go together: {dict(wrong)}")


def _leased(told: Told, verdict: Verdict) -> None:
    """No lease id was given to two workers. What was claimed may be lost, its number must not come back."""
    holders: dict[int, set[str]] = defaultdict(set)
    for events in told.values():
        for event in events:
            if event.lease is not None:
                holders[event.lease].add(event.by)
    for lease, names in holders.items():
        if len(names) > 1:
            verdict.broken.append(f"lease {lease} was given to {sorted(names)}")
