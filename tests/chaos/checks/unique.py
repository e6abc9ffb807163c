"""Of the jobs with one unique key, one is live.

What can be proved: a job is live at least from the moment when its enqueue is known to be committed until somebody may
have ended it for good. While it is, no other job with its key is added; and a repeat is never told of a job that has
ended for certain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.history import NEVER, Effect
from tests.chaos.index import Index, Job
from tests.chaos.violations import Kind, Violation


def check(index: Index) -> Iterator[Violation]:
    """Yield what is wrong."""
    holders: dict[tuple[str, str], list[Job]] = defaultdict(list)
    for job in index.jobs.values():
        if job.by.name == "enqueue_unique" and job.by.effect is Effect.YES and job.queue not in index.purged:
            holders[job.queue, job.by.args["unique_key"]].append(job)
    for jobs in holders.values():
        yield from _together(index, sorted(jobs, key=lambda job: job.by.began))
    for operation in index.named["enqueue_unique"]:
        if not operation.ok or operation.effect is Effect.NO or operation.result[0][1]:
            continue
        holder = index.by_id.get(operation.result[0][0])
        if holder is None or holder.queue in index.purged:
            continue
        if holder.by.args.get("unique_key") != operation.args["unique_key"]:
            yield Violation(Kind.UNIQUE, f"{holder} does not have this key\n{operation}\n{holder.by}")
        elif _ended_by(index, holder) <= operation.began:
            yield Violation(Kind.UNIQUE, f"{holder} had ended before\n{operation}\n{holder.by}")


def _together(index: Index, jobs: list[Job]) -> Iterator[Violation]:
    """Each job against those before it that may have lived longest."""
    longest: Job | None = None
    for job in jobs:
        if longest is not None and longest.by.done_by <= job.by.began and _lives_until(index, longest) >= job.by.ended:
            yield Violation(Kind.UNIQUE, f"{longest} was live when {job} was added\n{longest.by}\n{job.by}")
        if longest is None or _lives_until(index, job) > _lives_until(index, longest):
            longest = job


def _lives_until(index: Index, job: Job) -> int:
    """How long nobody can have ended it for good."""
    if job.dead or index.redriven[job.queue]:
        return min((handout.by.began for handout in job.handouts), default=NEVER)
    ends = (end.by.began for handout in job.handouts for end in index.possible_ends(handout) if end.kind != "released")
    return min(ends, default=NEVER)


def _ended_by(index: Index, job: Job) -> int:
    """When it had ended for good, for certain."""
    ends = (end for handout in job.handouts for end in index.possible_ends(handout))
    return min((end.by.done_by for end in ends if end.kind == "done" and end.accepted is Effect.YES), default=NEVER)
