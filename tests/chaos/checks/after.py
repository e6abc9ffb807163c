"""A job that waits for others is not handed out before all of them may have ended.

If it does not run anyway (on_dead => run), they must be done by then; and it does not die without an attempt unless one
of them may have ended otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import NEVER
from tests.chaos.index import Index, Job
from tests.chaos.violations import Kind, Violation


def check(index: Index) -> Iterator[Violation]:
    """Yield what is wrong."""
    blind = index.purged | index.unrecorded | index.redriven.keys()
    for job in index.jobs.values():
        others = [index.by_id.get(id) for id in job.by.args.get("after", ())]
        known = [other for other in others if other is not None and other.queue not in blind]
        if not others or job.queue in blind:
            continue
        anyway = job.by.args.get("on_dead") == "run"
        for other in known:
            first = min((h for h in job.handouts if h.certain), key=lambda h: h.by.ended, default=None)
            if first is not None and _may_have_ended(index, other, anyway) > first.by.ended:
                yield Violation(Kind.AFTER, f"{job} waits for {other}\n{other.by}\n{job.by}\n{first.by}")
        if any(dead.attempt == 0 for dead in job.dead) and len(known) == len(others) and all(map(_is_done, known)):
            yield Violation(Kind.EARLY_DEATH, f"{job} died although all that it waits for is done\n{job.by}")


def _is_done(job: Job) -> bool:
    return any(ended.kind == "done" for ended in job.archive) and not job.dead


def _may_have_ended(index: Index, job: Job, anyway: bool) -> int:
    """When somebody may have ended it for good, done or else."""
    ends = [end for handout in job.handouts for end in index.possible_ends(handout)]
    times = [end.by.began for end in ends if end.kind == "done"]
    if anyway:
        # One that was not answered may have made it a dead letter, and its last attempt may have run out.
        times += [end.by.began for end in ends if end.kind == "dead" or (not end.by.ok and end.kind == "retry")]
        times += [handout.by.began for handout in job.handouts if handout.attempt >= handout.max_attempts]
        if any(dead.attempt == 0 for dead in job.dead):  # it waited itself
            times.append(job.by.began)
        # A claim that was not answered may have been its last attempt, whose lease then ran out.
        seen = {handout.attempt: handout.by.began for handout in job.handouts}
        if any(dead.attempt not in seen for dead in job.dead):
            times.append(max(seen.values(), default=job.by.began))
    return min(times, default=NEVER)
