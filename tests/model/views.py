"""What the queue says of itself (stats, job_status, doctor, archive, dead letters), against the model."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import astuple, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from pgqueue import JobAttempt, QueueStat
from tests.model.data import Ending, Failure, Place, Queue
from tests.model.model import MAINTENANCE, NEVER_YET, Model
from tests.model.transactions import OUTSIDE, Transaction, visible
from tests.sql.support import State

CODES = {
    *["stuck_lane", "segment_held", "segment_waiting", "segment_running", "segment_locked", "ring_full"],
    *["no_claims", "not_maintained"],
}


def check_stats(model: Model, viewer: Transaction, actual: list[QueueStat]) -> None:
    """Each queue that the viewer sees, and exactly what it holds."""
    queues = sorted((q for q in model.queues if visible(viewer, q)), key=lambda q: q.name.encode())
    assert [stat.queue for stat in actual] == [queue.name for queue in queues]
    places: dict[int, list[Place]] = defaultdict(list)
    for id in model.jobs:
        if place := model.place(viewer, id):
            places[place.job.queue].append(place)
    for queue, stat in zip(queues, actual, strict=True):
        _check_stat(model, viewer, queue, places[queue.serial], stat)


def _check_stat(model: Model, viewer: Transaction, queue: Queue, places: list[Place], stat: QueueStat) -> None:
    ready = [place for place in places if place.state == "ready"]
    running = [place for place in places if place.state == "running"]
    # What a claim has looked at and left to wait for its group is parked.
    grouped = any(place.job.group for place in ready)
    parked = min(stat.parked, len(ready)) if grouped else 0
    oldest = model.now - min(place.job.enqueued_at for place in ready) if ready else None
    # A lease whose claim was committed only after it had expired is looked for every five minutes.
    seen = model.reaped_at or NEVER_YET
    overlooked = [p for p in running if p.lease and model.expires_at(viewer, p.lease) <= seen]
    expected = QueueStat(
        queue=queue.name,
        paused=queue.paused,
        ready=len(ready) - parked,
        running=min(max(stat.running, len(running) - len(overlooked)), len(running)),
        scheduled=sum(place.state == "scheduled" and place.attempt == 1 for place in places),
        retrying=sum(place.state == "scheduled" and place.attempt > 1 for place in places),
        dead=sum(place.state == "dead" for place in places),
        oldest_ready=stat.oldest_ready if parked else oldest,
        parked=parked,
        waiting=sum(place.state == "waiting" for place in places),
    )
    assert stat == expected, f"{stat}, and not {expected}"


def check_status(model: Model, viewer: Transaction, id: int, actual: State | None) -> None:
    """Every job is in exactly one place, and job_status says which."""
    place = model.place(viewer, id)
    queue = model.queue_of(viewer, place.job.queue) if place else None
    if place is None or place.state == "gone" or (queue is None and place.state not in ("done", "cancelled")):
        assert actual is None, f"nobody should know of job {id}: {actual}"
        return
    if actual is None:
        assert model.forgotten(viewer, place), f"job {id} is lost: {place}"
        return
    if actual.state == "parked" and place.job.group:
        actual = replace(actual, state="ready")
    ended = place.state in ("done", "cancelled")
    error = place.error
    if ended and actual.error is None:
        error = None  # in the archive each attempt has its own error, or none
    run_at, started_at = (None, None) if place.state == "dead" else (place.run_at, place.started_at)
    if place.state == "cancelled" and started_at is None and actual.started_at == place.finished_at:
        started_at = place.finished_at  # nobody had claimed it; the archive has a time for each attempt
    expected = State(
        id, place.job.queue_name, place.job.task, place.status, place.attempt, place.job.enqueued_at, run_at,
        started_at, place.finished_at, place.result, error,
    )  # fmt: skip
    assert actual == expected, f"{actual}, and not {expected}"


def check_requests(model: Model, viewer: Transaction, asked: set[int]) -> None:
    """Which jobs are still asked to stop."""
    expected = {request.job for request in model.requests if visible(viewer, request)}
    assert asked == expected, f"asked to stop are {asked}, and not {expected}"


def check_attempts(model: Model, viewer: Transaction, place: Place, rows: list[JobAttempt]) -> None:
    """The attempt that is running, and each that has ended, once: unless the archive has dropped it, and no history."""
    running = []
    if lease := place.lease:
        told = model.progress_of(viewer, place)
        running = [
            JobAttempt(
                place.attempt, "running", lease.id, lease.worker, place.started_at, None,
                model.expires_at(viewer, lease), None, None, told.value if told else None,
            )
        ]  # fmt: skip
    assert [row for row in rows if row.state == "running"] == running, f"{place}: {rows}, and not {running}"
    endings = [ending for ending in model.endings if ending.job is place.job and visible(viewer, ending)]
    history = [failure.at for failure in place.history if place.state not in ("done", "cancelled")]
    kept = [e for e in endings if e.finished_at in history or not model.may_be_dropped(place.job.queue, e.finished_at)]
    found = Counter(_shown(row.state, row) for row in rows if row.state not in ("running", "released", "snoozed"))
    everything, sure = (Counter(_shown(ending.kind, ending) for ending in list) for list in (endings, kept))
    assert sure <= found <= everything, f"{place}: {rows}, and not {endings}"


def _shown(state: str, ended: JobAttempt | Ending) -> tuple[Any, ...]:
    return ended.attempt, state, ended.finished_at, ended.error


def check_batch(model: Model, viewer: Transaction, place: Place, row: tuple[int, ...], waits_for: list[int]) -> None:
    """What a job waits for has ended, as far as is known, or has not."""
    id, done, failed, pending = row
    after = set(model.after(viewer, place.job))
    assert (id, pending) == (place.job.id, len(waits_for)), f"{place}: {row}, but waits for {waits_for}"
    assert done + failed + pending == len(after), f"{place}: {row} of {after}"
    assert after.issuperset(waits_for), f"{place} waits for {waits_for}, and not some of {after}"
    seen = [model.place(viewer, id) for id in after]
    assert done <= sum(p is not None and p.state == "done" for p in seen), f"{place}: {row}, and these are {seen}"


def check_queues(model: Model, viewer: Transaction, rows: list[tuple[Any, ...]]) -> None:
    """The settings of all queues."""
    queues = [queue for queue in model.queues if visible(viewer, queue)]
    expected = [
        (q.name, *astuple(q.settings), q.paused, q.unique_until, q.validated, *astuple(q.limits)) for q in queues
    ]
    assert sorted(rows, key=str) == sorted(expected, key=str), f"{rows}, and not {expected}"


def check_grants(model: Model, viewer: Transaction, granted: set[str]) -> None:
    """What the role of the tests may do: an admin may do everything."""
    expected = {grant.kind for grant in model.grants if visible(viewer, grant)}
    expected |= {"producer", "consumer"} if "admin" in expected else set()
    assert granted == expected, f"granted: {granted}, and not {expected}"


def check_schedules(model: Model, viewer: Transaction, rows: list[tuple[str, str, str, str, datetime]]) -> None:
    """What is scheduled, and when next."""
    seen = [schedule for schedule in model.schedules if visible(viewer, schedule)]
    expected = sorted((s.name, s.queue, s.cron, s.catch_up, s.next_at) for s in seen)
    assert sorted(rows) == expected, f"scheduled: {rows}, and not {expected}"


# The end --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Archived:
    """A row of pgq.archive."""

    id: int
    lease: int
    enqueued_at: datetime
    started_at: datetime
    finished_at: datetime
    drop_after: datetime
    kind: str
    attempt: int
    priority: int
    queue: str
    worker: str | None
    task: str | None
    payload: Any
    headers: Any
    result: Any
    error: str | None


def check_archive(model: Model, rows: list[Archived]) -> None:
    """Every attempt that has ended is in the archive once, unless its queue keeps none."""
    left = list(rows)
    for ending in model.endings:
        if not visible(OUTSIDE, ending):
            continue
        found = [row for row in left if _is(model, ending, row)]
        dropped = model.queue_of(OUTSIDE, ending.job.queue) is None
        missing = not found and not dropped and not model.may_be_dropped(ending.job.queue, ending.finished_at)
        assert not missing, f"not in the archive: {ending}; of that job there is {_of(rows, ending.job.id)}"
        if found:
            left.remove(found[0])
    assert not left, f"in the archive, and nobody knows why: {left}"


def _of(rows: list[Archived], id: int) -> list[Archived]:
    return [row for row in rows if row.id == id]


def _is(model: Model, ending: Ending, row: Archived) -> bool:
    job = ending.job
    if row.id != job.id or (ending.lease is not None and row.lease != ending.lease):
        return False
    others = len(model.after(OUTSIDE, job))
    own = replace(row, headers=job.own(row.headers, others, went_on=ending.lease is not None))
    if ending.lease is None and row.worker in (None, MAINTENANCE):
        own = replace(own, worker=None)
    return row.drop_after - ending.finished_at in model.retentions(job.queue) and own == Archived(
        job.id, row.lease, job.enqueued_at, ending.started_at, ending.finished_at, row.drop_after, ending.kind,
        ending.attempt, ending.priority, job.queue_name, ending.worker, job.task, job.payload, job.headers,
        ending.result, ending.error,
    )  # fmt: skip


@dataclass(frozen=True)
class DeadLetter:
    """A row of pgq.dead_letters."""

    id: int
    queue: str
    payload: Any
    priority: int
    attempt: int
    died_at: datetime
    error: str | None
    history: list[Failure] = field(default_factory=list)


def check_dead(model: Model, viewer: Transaction, letters: list[DeadLetter]) -> None:
    """Dead letters keep the error of every attempt."""
    expected = [
        DeadLetter(
            place.job.id,
            place.job.queue_name,
            place.job.payload,
            place.priority,
            place.attempt,
            place.finished_at or NEVER_YET,
            place.error,
            list(place.history),
        )
        for place in model.places(viewer, "dead")
    ]
    assert letters == expected, f"{letters}, and not {expected}"


def check_doctor(model: Model, viewer: Transaction, findings: list[tuple[str, str, str, str, str]]) -> None:
    """The doctor says which queues nobody works on, and nothing that it has no word for."""
    assert all(all(finding) for finding in findings), findings
    assert {code for _, code, _, _, _ in findings} <= CODES, findings
    idle = {subject for _, code, subject, _, _ in findings if code == "no_claims"}
    for queue in (queue for queue in model.queues if visible(viewer, queue)):
        ready = model.places(viewer, "ready", queue.serial)
        running = model.places(viewer, "running", queue.serial)
        seen = model.reaped_at or NEVER_YET
        if any(place.job.group for place in ready):
            continue
        if any(p.lease and model.expires_at(viewer, p.lease) <= seen for p in running):
            continue
        old = any(model.now - place.job.enqueued_at > timedelta(minutes=1) for place in ready)
        assert (f"queue {queue.name}" in idle) == (old and not running), f"{queue.name}: {findings}"
    stuck = any(code == "stuck_lane" for _, code, _, _, _ in findings)
    assert not stuck or any(tx.holds("lanes") for tx in model.others(viewer)), findings
