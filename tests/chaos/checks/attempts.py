"""Attempts are numbered 1, 2, 3 …, are never more than allowed, and never begin too early."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from tests.chaos.history import Effect
from tests.chaos.index import End, Handout, Index, Job
from tests.chaos.intervals import microseconds
from tests.chaos.violations import Kind, Violation


def check(index: Index) -> Iterator[Violation]:
    """Yield what is wrong."""
    for job in index.jobs.values():
        yield from _numbers(index, job)
        yield from _too_early(index, job)


def _numbers(index: Index, job: Job) -> Iterator[Violation]:
    for handout in job.handouts:
        if handout.attempt > handout.max_attempts:
            yield Violation(Kind.TOO_MANY_ATTEMPTS, f"{job}\n{handout.by}")
    ended = Counter(ended.attempt for ended in job.archive if ended.kind != "cancelled")
    # From 1 on without a gap, for the first time and once more for each time that it was sent back to work.
    rounds = 1 + index.redriven[job.queue]
    for attempt in range(1, max(ended, default=0) + 1):
        if not ended[attempt]:
            released = [end for h in job.handouts if h.attempt == attempt for end in _releases(index, h)]
            kind = Kind.RELEASE_COUNTED if released else Kind.ATTEMPT_NUMBERS
            story = "\n".join(map(str, [*(end.by for end in released), *job.archive]))
            yield Violation(kind, f"{job} has no attempt {attempt}\n{story}")
        elif ended[attempt] > (rounds if attempt == 1 else ended[attempt - 1]) or ended[attempt] > rounds:
            story = "\n".join(map(str, job.archive))
            yield Violation(Kind.ATTEMPT_NUMBERS, f"{job} has attempt {attempt} {ended[attempt]} times\n{story}")
    for dead in job.dead:
        yield from _died_too_early(index, job, dead.attempt, ended)


def _releases(index: Index, handout: Handout) -> Iterator[End]:
    return (end for end in index.possible_ends(handout) if end.kind == "released")


def _died_too_early(index: Index, job: Job, attempt: int, ended: Counter[int]) -> Iterator[Violation]:
    allowed = job.by.args.get("max_attempts") or index.settings.get(job.queue, {}).get("max_attempts")
    if allowed is None or attempt >= allowed or job.queue in index.unrecorded:
        return
    if attempt == 0 and job.by.args.get("after"):  # see checks/after.py
        return
    for row in job.archive:
        for end in index.ends.get((row.id, row.lease), ()):
            if end.possible and end.by.args.get("retry") is False:
                return
    story = "\n".join(map(str, job.archive))
    yield Violation(Kind.EARLY_DEATH, f"{job} died after {attempt} of {allowed} attempts\n{story}")


# Not before its time --------------------------------------------------------------------------------------------------


def _too_early(index: Index, job: Job) -> Iterator[Violation]:
    if job.handouts and (due := _first_due(job)) is not None:
        latest = index.clock.latest(job.handouts[0].by.ended)
        if latest < due:
            story = f"{job} was due at {due}, and pgq._now() was {latest} at most\n{job.by}\n{job.handouts[0].by}"
            yield Violation(Kind.EARLY_RUN, story)
    if job.queue in index.unrecorded:
        return
    for one, two in pairwise(job.handouts):
        for end in index.possible_ends(one):
            if end.accepted is Effect.YES and end.by.name == "snooze" and end.by.now is not None:
                due = end.by.now + microseconds(end.by.args["delay"])
                latest = index.clock.latest(two.by.ended)
                if two.lease != one.lease and latest < due:
                    story = f"{job} was put off until {due}, and pgq._now() was {latest} at most\n{end.by}\n{two.by}"
                    yield Violation(Kind.EARLY_RUN, story)
            if end.accepted is Effect.YES and end.kind == "retry" and two.attempt == one.attempt + 1:
                due = _retry_due(index, end, one)
                latest = index.clock.latest(two.by.ended)
                if due is not None and latest < due:
                    story = f"{job} was to wait until {due}, and pgq._now() was {latest} at most\n{end.by}\n{two.by}"
                    yield Violation(Kind.EARLY_RETRY, story)


def _first_due(job: Job) -> int | None:
    """When a job is due at the earliest; run_at is given in seconds from the epoch."""
    args = job.by.args
    if (run_at := args.get("run_at")) is not None:
        return microseconds(run_at)
    if (delay := args.get("delay")) is not None and job.by.now is not None:
        return job.by.now + microseconds(delay)
    return None


def _retry_due(index: Index, end: End, handout: Handout) -> int | None:
    if end.by.now is None:
        return None
    if (retry_in := end.by.args.get("retry_in")) is not None:
        return end.by.now + microseconds(retry_in)
    settings = index.settings.get(handout.queue, {})
    if "backoff" not in settings:
        return None
    longest = microseconds(settings.get("backoff_max", "1 hour"))
    full: int = min(longest, microseconds(settings["backoff"]) * 2 ** min(handout.attempt - 1, 40))
    return end.by.now + full // 2
