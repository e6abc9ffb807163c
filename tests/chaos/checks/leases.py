"""At most one live lease per job at any instant, each lease id once, and no lease that is held is refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from tests.chaos.history import NEVER, Effect, Operation
from tests.chaos.index import Handout, Index, Job
from tests.chaos.violations import Kind, Violation


def check(index: Index) -> Iterator[Violation]:
    """Yield what is wrong."""
    for lease, claims in index.leases.items():
        if len(claims) > 1:
            yield Violation(Kind.LEASE_TWICE, f"lease {lease}\n" + "\n".join(map(str, claims)))
    for job in index.jobs.values():
        if job.queue not in index.unrecorded:
            for one, two in pairwise(job.handouts):
                yield from _one_after_the_other(index, job, one, two)
        for drop in index.dropped.get(job.queue, ()):
            yield from _after_the_drop(job, drop)
    yield from _extended_too_late(index)


def _one_after_the_other(index: Index, job: Job, one: Handout, two: Handout) -> Iterator[Violation]:
    """The first lease must have ended before the job was handed out for the second time."""
    if one.lease == two.lease or not one.certain or index.may_have_been_lost(one.by, two.by.ended):
        return
    if not two.certain and two.by.began <= one.by.ended:
        return  # the two overlap, so the second may have come first, and then have been undone
    ends = [end for end in index.possible_ends(one) if end.by.began <= two.by.ended]
    done = [end for end in ends if end.kind == "done" and end.accepted is Effect.YES]
    if done:
        yield Violation(Kind.AGAIN_AFTER_END, f"{job}\n{one.by}\n{done[0].by}\n{two.by}")
    if any(end.kind != "done" for end in ends):
        return
    expiry = index.expiry(one)
    latest = index.clock.latest(two.by.ended)
    if expiry is not None and expiry > latest:
        story = f"{job}: lease {one.lease} was good until {expiry}, and pgq._now() was {latest} at most\n{one.by}"
        story += "".join(f"\n{operation}" for operation, _ in index.extensions.get(one.lease, ()))
        yield Violation(Kind.TWO_LEASES, f"{story}\n{two.by}")


def _after_the_drop(job: Job, drop: Operation) -> Iterator[Violation]:
    """What was in a queue is gone with it, even if there is a new one of its name."""
    if drop.effect is not Effect.YES or job.by.effect is not Effect.YES or job.by.done_by > drop.began:
        return
    for handout in job.handouts:
        if handout.by.began >= drop.done_by:
            yield Violation(Kind.AFTER_DROP, f"{job}\n{job.by}\n{drop}\n{handout.by}")


def _extended_too_late(index: Index) -> Iterator[Violation]:
    for lease, extensions in index.extensions.items():
        claims = index.leases.get(lease, [])
        for operation, until in extensions:
            if until is None or operation.effect is not Effect.YES:
                continue
            if not claims:
                yield Violation(Kind.FOREIGN_LEASE, f"lease {lease}\n{operation}")
                continue
            ended = [_ended_by(index, row[0], lease) for row in claims[0].result if row[1] == lease]
            if max(ended) <= operation.began:
                yield Violation(Kind.LATE_EXTEND, f"lease {lease}\n{claims[0]}\n{operation}")
        if len(claims) == 1:
            yield from _extension_refused(index, lease, claims[0])


def _extension_refused(index: Index, lease: int, claim: Operation) -> Iterator[Violation]:
    """A lease that had not run out, and that holds a job which nobody has tried to end, must be extended."""
    held = [index.handouts[row[0], lease] for row in claim.result if row[1] == lease]
    if claim.effect is not Effect.YES or all(any(index.possible_ends(handout)) for handout in held):
        return
    expiry = index.expiry(held[0])
    for operation, until in index.extensions[lease]:
        refused = operation.error == "PQ001" or (operation.ok and operation.transaction is None and until is None)
        if not refused or operation.client != claim.client or operation.number < claim.number:
            continue
        latest = index.clock.latest(operation.ended)
        if expiry is not None and expiry > latest and not index.may_have_been_lost(claim, operation.ended):
            yield Violation(Kind.REFUSED, f"lease {lease}, good until {expiry}\n{claim}\n{operation}")


def _ended_by(index: Index, id: int, lease: int) -> int:
    """By when an attempt had ended for certain: because it was settled, or the job was handed out again."""
    known = [end.by.done_by for end in index.ends.get((id, lease), ()) if end.accepted is Effect.YES]
    job = index.by_id.get(id)
    if job is not None:
        handouts = [handout for handout in job.handouts if handout.certain]
        for one, two in pairwise(handouts):
            if one.lease == lease and two.lease != lease:
                known.append(two.by.ended)
    return min(known, default=NEVER)
