"""First in, first out where a queue has one shard; lower priority numbers first; nothing out of a paused queue.

Order can be proved only where one consumer claims at a time. Those who do begin each session alone: no earlier session
of theirs is left. Looked at is when a job was first handed out, and only if that was its first attempt: else somebody
has claimed it before, and nobody knows. A crash may undo such a claim, too, but then all claims after it as well: so a
claim proves nothing that may itself have been lost before the other one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

from tests.chaos.history import NEVER, Effect, Operation
from tests.chaos.index import Index, Job
from tests.chaos.violations import Kind, Violation


def check(index: Index) -> Iterator[Violation]:
    """Yield what is wrong."""
    fresh: dict[str, list[First]] = defaultdict(list)
    for job in index.jobs.values():
        args = job.by.args
        if job.by.effect is not Effect.YES or args.keys() & {"delay", "run_at", "after"} or not job.handouts:
            continue
        fresh[job.queue].append(First.of(job))
    claims: dict[str, list[Operation]] = defaultdict(list)
    for claim in index.named["claim"]:
        claims[claim.args["queue"]].append(claim)
    for queue, firsts in fresh.items():
        if not _ordered(index, queue, claims[queue]):
            continue
        for _, of_one in groupby(sorted(firsts, key=lambda f: f.priority), key=lambda f: f.priority):
            yield from fifo(index, list(of_one))
        yield from _priority(index, firsts)
    yield from _paused(index, claims)


@dataclass(frozen=True)
class First:
    """When a job was enqueued, and when it was handed out for the first time."""

    job: Job
    enqueued_by: int
    began: int
    out_began: int
    out_ended: int
    untouched: bool
    priority: int

    @classmethod
    def of(cls, job: Job) -> First:
        out = min(job.handouts, key=lambda h: h.by.began)
        began = job.by.transaction.began if job.by.transaction is not None else job.by.began
        untouched = out.attempt == 1
        return cls(job, job.by.done_by, began, out.by.began, out.by.ended, untouched, job.by.args.get("priority", 0))


def _ordered(index: Index, queue: str, claims: Sequence[Operation]) -> bool:
    """Whether a queue has one shard, and one consumer at a time."""
    if str(index.settings.get(queue, {}).get("shards")) != "1" or queue in index.unrecorded or index.redriven[queue]:
        return False
    spans: dict[str, tuple[int, int]] = {}
    for claim in claims:
        began, ended = spans.get(claim.client, (NEVER, 0))
        spans[claim.client] = (min(began, claim.began), max(ended, claim.done_by))
    return all(one[1] <= two[0] for one, two in pairwise(sorted(spans.values())))


def _latest(firsts: Sequence[First]) -> list[First]:
    """Up to each position, the one that was handed out last."""

    def later(one: First, two: First) -> First:
        return one if one.out_began > two.out_began else two

    return list(accumulate(firsts, later))


def _story(one: First, two: First) -> str:
    return f"{two.job} before {one.job}\n" + "\n".join(
        str(operation) for first in (one, two) for operation in (first.job.by, first.job.handouts[0].by)
    )


def _overtaken(index: Index, one: First, two: First) -> bool:
    """Whether the second was handed out before the first."""
    return one.out_began > two.out_ended and not index.may_have_been_lost(two.job.handouts[0].by, one.out_began)


def fifo(index: Index, firsts: list[First]) -> Iterator[Violation]:
    """Nobody is handed out before one whose transaction was committed before his began, or who is before him in it."""
    firsts.sort(key=lambda f: f.enqueued_by)
    waiting = [first for first in firsts if first.untouched]
    latest = _latest(waiting)
    committed = [first.enqueued_by for first in waiting]
    told: set[int | None] = set()  # one story for each who was overtaken is enough
    for two in firsts:
        n = bisect_right(committed, two.began)
        if n and latest[n - 1].job.id not in told and _overtaken(index, latest[n - 1], two):
            told.add(latest[n - 1].job.id)
            yield Violation(Kind.ORDER, _story(latest[n - 1], two))
    together: dict[object, list[First]] = defaultdict(list)
    for first in firsts:
        together[first.job.by.transaction or first.job.by].append(first)
    for same in together.values():
        same.sort(key=lambda f: (f.job.by.number, f.job.id or 0))
        before: First | None = None
        for two in same:
            if before is not None and _overtaken(index, before, two):
                yield Violation(Kind.ORDER, _story(before, two))
            if two.untouched and (before is None or two.out_began > before.out_began):
                before = two


def _priority(index: Index, firsts: list[First]) -> Iterator[Violation]:
    """Who claims takes the lowest number there is. Maintenance may hold a lane meanwhile."""
    maintenance = Spans(
        [
            o
            for name in ("rotate", "maintain", "purge", "drop_queue")
            for o in index.named[name]
            if o.effect is not Effect.NO
        ]
    )
    best: list[First] = []
    by_priority = {
        priority: sorted(of_one, key=lambda f: f.enqueued_by)
        for priority, of_one in groupby(sorted(firsts, key=lambda f: f.priority), key=lambda f: f.priority)
    }
    for priority, of_one in sorted(by_priority.items()):
        committed = [first.enqueued_by for first in best]
        latest = _latest(best)
        told: set[int | None] = set()
        for two in of_one:
            n = bisect_right(committed, two.out_began)
            if not n or latest[n - 1].job.id in told or not _overtaken(index, latest[n - 1], two):
                continue
            if not maintenance.touch(two.out_began, two.out_ended):
                told.add(latest[n - 1].job.id)
                yield Violation(Kind.PRIORITY, _story(latest[n - 1], two))
        best = sorted([*best, *(first for first in of_one if first.untouched)], key=lambda f: f.enqueued_by)
        assert all(first.priority <= priority for first in best)


class Spans:
    """Intervals of database time, to ask whether one touches another."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        spans = sorted((o.began, o.ended if o.answered and o.transaction is None else o.done_by) for o in operations)
        self._began = [began for began, _ in spans]
        self._latest = list(accumulate((ended for _, ended in spans), max))

    def touch(self, began: int, ended: int) -> bool:
        n = bisect_right(self._began, ended)
        return bool(n) and self._latest[n - 1] >= began


def _paused(index: Index, claims: dict[str, list[Operation]]) -> Iterator[Violation]:
    switches = sorted((*index.named["pause"], *index.named["resume"]), key=lambda o: o.began)
    by_queue: dict[str, list[Operation]] = defaultdict(list)
    for switch in switches:
        by_queue[switch.args["queue"]].append(switch)
    for queue, own in by_queue.items():
        resumes = [o.began for o in own if o.name == "resume" and o.effect is not Effect.NO]
        pauses = sorted((o for o in own if o.name == "pause" and o.effect is Effect.YES), key=lambda o: o.done_by)
        starts = [pause.done_by for pause in pauses]
        for claim in claims.get(queue, ()):
            if not claim.ok or not claim.result:
                continue
            n = bisect_right(starts, claim.began)
            if not n or starts[n - 1] >= NEVER:
                continue
            pause = pauses[n - 1]
            # A resume that began after the pause, by the time that the claim had its jobs, may have come first.
            after = bisect_left(resumes, pause.began)
            if after == len(resumes) or resumes[after] > claim.ended:
                yield Violation(Kind.PAUSED, f"{pause}\n{claim}")
