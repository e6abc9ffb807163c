"""What a person looks at (jobs, workers, activity, failures), against the model."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from pgqueue import LiveJob, QueueActivity, QueueStat
from tests.model.data import Place, Queue
from tests.model.model import NEVER_YET, Model
from tests.model.transactions import Transaction, visible
from tests.model.views import check_stats

FAILED = ("retry", "dead", "expired")


def check_jobs(model: Model, viewer: Transaction, queue: Queue, rows: list[LiveJob]) -> None:
    """Every live job of a queue, once. What was committed late and is overdue is not looked for."""
    states = ("running", "ready", "scheduled", "waiting")
    places = {p.job.id: p for state in states for p in model.places(viewer, state, queue.serial)}
    found = {row.id: row for row in rows}
    assert len(found) == len(rows), f"a job is listed twice: {rows}"
    missing = [place for id, place in places.items() if id not in found and not _overlooked(model, place)]
    assert not missing, f"not listed: {missing}"
    for row in rows:
        assert row.id in places, f"{row} is listed, and is {model.place(viewer, row.id)}"
        place = places[row.id]
        lease = place.lease
        parked = row.state == "parked" and place.state == "ready" and place.job.group
        expected = LiveJob._make((
            place.job.id, queue.name, place.job.task, "parked" if parked else place.status, place.priority,
            place.attempt, place.job.enqueued_at, place.run_at, place.started_at,
            model.expires_at(viewer, lease) if lease else None, lease.worker if lease else None,
            lease.id if lease else None, place.job.group, place.job.payload,
        ))  # fmt: skip
        assert row == expected, f"{row}, and not {expected}"


def _overlooked(model: Model, place: Place) -> bool:
    return place.state == "scheduled" and place.run_at is not None and place.run_at < (model.promoted_at or NEVER_YET)


def check_workers(model: Model, viewer: Transaction, rows: list[tuple[Any, ...]]) -> None:
    """Who holds how much."""
    held: dict[str | None, list[Place]] = defaultdict(list)
    for place in model.places(viewer, "running"):
        assert place.lease
        held[place.lease.worker].append(place)
    expected = []
    for worker, places in held.items():
        leases = {place.lease for place in places if place.lease}
        ends = [model.expires_at(viewer, lease) for lease in leases]
        starts = [place.started_at for place in places if place.started_at]
        queues = sorted({place.job.queue_name for place in places})
        expected.append((worker, queues, len(leases), len(places), min(starts), min(ends)))
    shown = [(row[0], sorted(row[1]), *row[2:]) for row in rows]
    assert sorted(shown, key=str) == sorted(expected, key=str), f"{shown}, and not {expected}"


def check_activity(model: Model, viewer: Transaction, rows: list[QueueActivity]) -> None:
    """The same as pgq.stats, while there are few jobs. What is overdue is not looked for, and not every age is."""
    stats = []
    for row in rows:
        assert row.exact, row
        assert min(row.enqueue_rate, row.done_rate, row.failure_rate) >= 0, row
        queue = model.queue(viewer, row.queue)
        assert queue
        ready = model.places(viewer, "ready", queue.serial)
        ages = [model.now - place.job.enqueued_at for place in ready]
        assert row.oldest_ready in ages if row.ready else row.oldest_ready is None, row
        late = [p for p in model.places(viewer, "scheduled", queue.serial) if _overlooked(model, p)]
        first = [place for place in late if place.attempt == 1]
        scheduled = len([p for p in model.places(viewer, "scheduled", queue.serial) if p.attempt == 1])
        retrying = len([p for p in model.places(viewer, "scheduled", queue.serial) if p.attempt > 1])
        assert scheduled - len(first) <= row.scheduled <= scheduled, row
        assert retrying - (len(late) - len(first)) <= row.retrying <= retrying, row
        oldest = max(ages) if row.ready else None
        stats.append(
            QueueStat(
                row.queue, row.paused, row.ready, row.running, scheduled, retrying, row.dead, oldest, row.parked,
                row.waiting,
            )
        )  # fmt: skip
    check_stats(model, viewer, stats)


def check_failures(model: Model, viewer: Transaction, rows: list[tuple[Any, ...]]) -> None:
    """Nothing but failures, each once, the newest first; and every dead letter, whose failure may be long ago."""
    dead = {
        (
            p.job.id, p.job.queue_name, p.job.task, p.attempt, "dead", p.finished_at,
            p.history[-1].worker if p.history else None, p.error,
        )
        for p in model.places(viewer, "dead")
    }  # fmt: skip
    known = dead | {
        (
            e.job.id, e.job.queue_name, e.job.task, e.attempt, e.kind, e.finished_at, e.worker, e.error,
        )
        for e in model.endings if visible(viewer, e) and e.kind in FAILED
    }  # fmt: skip
    found = set(rows)
    assert len(found) == len(rows), f"a failure is listed twice: {rows}"
    assert found <= known, f"listed: {found - known}, and not one of {known}"
    assert dead <= found, f"not listed: {dead - found}"
    times = [row[5] for row in rows]
    assert times == sorted(times, reverse=True), times
