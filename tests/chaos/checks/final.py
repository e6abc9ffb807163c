"""In the end every job is in exactly one place."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.checks.jobs import signs
from tests.chaos.index import Index, Job
from tests.chaos.violations import Kind, Violation

# The lease is lost; out of resources; cancelled, or the server is going down; a lock was not granted in time;
# serialization, deadlock; what follows an error in the same transaction; a prepared transaction that is not there, in
# doubt; the NOTIFY queue is full.
EXPECTED = ("PQ001", "53", "57", "55P03", "40", "25P02", "42704", "54000")

NO_QUEUE = "PQ002"


def check(index: Index) -> Iterator[Violation]:
    """Yield what is wrong."""
    for job in index.jobs.values():
        yield from _places(job, purged=job.queue in index.purged)
        yield from _status(index, job)
    for (queue, name), count in index.dump.counts.items():
        yield Violation(Kind.STATUS, f"after the drain stats() says that queue {queue} has {count} {name} jobs")
    for operation in index.operations:
        if operation.error == NO_QUEUE and operation.args.get("queue") in index.dropped:
            continue
        if operation.error is not None and not operation.error.startswith(EXPECTED):
            yield Violation(Kind.ERROR, str(operation))
    for operation in index.named["leak"]:
        yield Violation(Kind.LEAK, str(operation))
    for operation in index.named["crashed_by_itself"]:
        yield Violation(Kind.CRASH, str(operation))


def _places(job: Job, purged: bool) -> Iterator[Violation]:
    done = [ended for ended in job.archive if ended.kind == "done"]
    cancelled = [ended for ended in job.archive if ended.kind == "cancelled"]
    if len(done) > 1:
        yield Violation(Kind.DONE_TWICE, f"{job}\n{signs(job)}")
    places = len(done) + len(cancelled) + len(job.dead) + len(job.left)
    if job.left:
        yield Violation(Kind.STUCK, f"{job} should have been worked off\n{job.by}\n{signs(job)}")
    if places > 1 and len(done) < 2:
        yield Violation(Kind.NOT_ONE_PLACE, f"{job}\n{signs(job)}")
    if places == 0 and job.archive and not purged:
        yield Violation(Kind.LOST, f"{job} has neither ended nor is there another attempt\n{signs(job)}")


def _status(index: Index, job: Job) -> Iterator[Violation]:
    if job.id not in index.dump.states:
        return
    kinds = {ended.kind for ended in job.archive} & {"done", "cancelled"}
    expected: set[str] | set[None] = {"dead"} if job.dead else kinds or {None}
    if not job.left and index.dump.states[job.id] not in expected:
        story = f"{job}: job_status says {index.dump.states[job.id]}, expected {expected}\n{signs(job)}"
        yield Violation(Kind.STATUS, story)
