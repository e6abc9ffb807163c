"""Jobs of one group run one at a time, in the order in which they were enqueued, and wait for one that failed.

What can be proved: a job holds its group at least from the moment when its first claim is known to be committed until
somebody may have ended it for good. While it does, no other job of the group is handed out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.checks.order import First, fifo
from tests.chaos.history import NEVER, Effect
from tests.chaos.index import Handout, Index, Job
from tests.chaos.violations import Kind, Violation


def check(index: Index) -> Iterator[Violation]:
    """Yield what is wrong."""
    groups: dict[tuple[str, str], list[Job]] = defaultdict(list)
    for job in index.jobs.values():
        key = job.by.args.get("group_key")
        if key and job.handouts and job.queue not in index.purged | index.unrecorded and not index.redriven[job.queue]:
            groups[job.queue, key].append(job)
    for jobs in groups.values():
        yield from _together(jobs)
        yield from _one_at_a_time(index, jobs)
        in_line = (First.of(job) for job in jobs if job.by.effect is Effect.YES and "delay" not in job.by.args)
        yield from fifo(index, list(in_line))


def _together(jobs: list[Job]) -> Iterator[Violation]:
    """No claim returns two of them."""
    by: dict[int, Job] = {}
    for job in jobs:
        for handout in job.handouts:
            if handout.certain and by.setdefault(id(handout.by), job) is not job:
                yield Violation(Kind.GROUP, f"{job} and {by[id(handout.by)]} are of one group\n{handout.by}")


def _one_at_a_time(index: Index, jobs: list[Job]) -> Iterator[Violation]:
    """Each handout against the two jobs before it that may have held the group longest: one of them is another job."""
    first = {job: certain[0] for job in jobs if (certain := [h for h in job.handouts if h.certain])}
    holders = sorted(first, key=lambda job: first[job].by.ended)
    until = {job: _holds_until(index, job) for job in holders}
    began = [first[job].by.ended for job in holders]
    longest: list[list[Job]] = [[]]
    for job in holders:
        longest.append(sorted([*longest[-1], job], key=until.__getitem__)[-2:])
    for job in jobs:
        for handout in job.handouts:
            for other in longest[bisect_left(began, handout.by.began)] if handout.certain else ():
                if other is not job and until[other] > handout.by.ended and not _undone(index, first[other], handout):
                    story = f"{other} held the group of {job}\n{other.by}\n{first[other].by}\n{job.by}\n{handout.by}"
                    yield Violation(Kind.GROUP, story)


def _undone(index: Index, claim: Handout, by: Handout) -> bool:
    """Whether a crash may have undone one claim before another one."""
    return index.may_have_been_lost(claim.by, by.by.ended)


def _holds_until(index: Index, job: Job) -> int:
    """How long nobody can have ended it for good, which its last attempt may do by running out."""
    last = [h.by.began for h in job.handouts if h.attempt >= h.max_attempts]
    ends = (end for handout in job.handouts for end in index.possible_ends(handout))
    # One that was not answered may have made it a dead letter.
    final = [end.by.began for end in ends if end.kind in ("done", "dead") or (not end.by.ok and end.kind == "retry")]
    return min([*last, *final], default=NEVER)
