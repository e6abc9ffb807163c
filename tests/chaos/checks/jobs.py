"""Every job that was enqueued exists once, and no other does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from tests.chaos.history import Effect, Transaction
from tests.chaos.index import Index, Job
from tests.chaos.violations import Kind, Violation


def check(index: Index) -> Iterator[Violation]:
    """Yield what is wrong."""
    for id, payload, where in index.strangers:
        yield Violation(Kind.GHOST, f"job {id} with payload {payload} was never enqueued; seen in {where}")
    owners: dict[int, Job] = {}
    for job in index.jobs.values():
        yield from _check(index, job)
        for id in job.ids:
            if (other := owners.setdefault(id, job)) is not job:
                yield Violation(Kind.ENQUEUED_TWICE, f"id {id} belongs to {other} and {job}\n{other.by}\n{job.by}")
    yield from _torn(index)


def _check(index: Index, job: Job) -> Iterator[Violation]:
    if job.by.effect is Effect.NO and job.exists:
        yield Violation(Kind.GHOST, f"{job} exists, but\n{job.by}\n{signs(job)}")
    if job.by.effect is Effect.YES and not (job.archive or job.dead or job.left or job.queue in index.purged):
        yield Violation(Kind.LOST, f"{job} is nowhere to be found\n{job.by}\n{signs(job)}")
    if len(job.ids) > 1:
        yield Violation(Kind.ENQUEUED_TWICE, f"token {job.token} has the ids {sorted(job.ids)}\n{job.by}\n{signs(job)}")
    for handout in job.handouts:
        if handout.by.ended < job.by.commit_began:
            yield Violation(Kind.DIRTY_READ, f"{job}\n{handout.by}\n{job.by}")
        if handout.queue != job.queue or (handout.by.name == "claim" and handout.by.args["queue"] != job.queue):
            yield Violation(Kind.WRONG_QUEUE, f"{job}\n{handout.by}\n{job.by}")
        wanted = _promised(index, job)
        found = (handout.payload, handout.task, _own(job, handout.headers), handout.priority)
        if found != wanted or handout.max_attempts != _max_attempts(index, job, handout.max_attempts):
            yield Violation(Kind.CHANGED, f"{job} was {wanted} and is {found}\n{handout.by}\n{job.by}")
    for ended in job.archive:
        if (ended.payload, ended.task, _own(job, ended.headers), ended.priority) != _promised(
            index, job
        ) or ended.queue != job.queue:
            yield Violation(Kind.CHANGED, f"{job} in the archive: {ended}\n{job.by}")
    for dead in job.dead:
        if (dead.payload, dead.task, _own(job, dead.headers)) != _promised(index, job)[:3] or dead.queue != job.queue:
            yield Violation(Kind.CHANGED, f"{job} among the dead letters: {dead}\n{job.by}")


def _promised(index: Index, job: Job) -> tuple[object, object, object, object]:
    args = job.by.args
    return job.payload, args.get("task"), args.get("headers"), args.get("priority", 0)


def _own(job: Job, headers: Any) -> object:
    """The headers of a job without what tells how those have ended that it waited for, if that adds up."""
    waited = len(set(job.by.args.get("after", ())))
    if job.by.args.get("on_dead") != "run" or not headers or sum(headers.get("after", {}).values()) != waited:
        return headers
    return {key: value for key, value in headers.items() if key != "after"} or None


def _max_attempts(index: Index, job: Job, default: int) -> int:
    own = job.by.args.get("max_attempts")
    return int(own or index.settings.get(job.queue, {}).get("max_attempts") or default)


def signs(job: Job) -> str:
    """Where a job was seen."""
    lines = [str(handout.by) for handout in job.handouts]
    lines += [f"archive: {ended}" for ended in job.archive]
    lines += [f"dead letter: {dead}" for dead in job.dead]
    lines += [f"left: {left}" for left in job.left]
    return "\n".join(lines) or "no sign of it"


def _torn(index: Index) -> Iterator[Violation]:
    """A transaction that may or may not have been committed, or one call, is there as a whole or not at all."""
    together: dict[Transaction | object, list[Job]] = defaultdict(list)
    for job in index.jobs.values():
        transaction = job.by.transaction
        if job.by.effect is Effect.MAYBE and job.queue not in index.purged:
            together[transaction if transaction is not None else job.by].append(job)
    for jobs in together.values():
        there = [job for job in jobs if job.exists]
        if there and len(there) < len(jobs):
            missing = next(job for job in jobs if not job.exists)
            yield Violation(Kind.TORN, f"{there[0]} exists, {missing} does not\n{there[0].by}\n{missing.by}")
