"""A running job learns that it is asked to stop; one that has not started never does."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from pgqueue import App, Client, Job
from pgqueue.app import Handle
from pgqueue.worker.run import arguments
from pgqueue.worker.slots import Item, Slots
from tests.python.conftest import Running
from tests.python.support import Face, eventually
from tests.python.test_parts import held


class Stopped(Exception):
    """A handler has seen that it is asked to stop."""


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("stop", [True, False])
def test_a_handler_sees_that_its_job_is_cancelled(
    app: App, client: Client, running: Running, kind: str, stop: bool
) -> None:
    started = threading.Event()

    def check(job: Job) -> str:
        if stop:
            raise Stopped
        return "late"

    def sync(job: Job) -> str:
        assert not job.cancelled
        started.set()
        eventually(lambda: job.cancelled)
        return check(job)

    async def coroutine(job: Job) -> str:
        started.set()
        while not job.cancelled:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return check(job)

    task: Any = app.task("wait", queue="q")(sync if kind == "sync" else coroutine)
    with running(lease=0.6):
        id = task.enqueue()
        assert started.wait(10)
        assert client.cancel(id) == "requested"
        eventually(lambda: (state := client.job_status(id)) and state.state != "running")
    state = client.job_status(id)
    assert state is not None
    assert state.state == ("cancelled" if stop else "done")
    assert ("Stopped" in (state.error or "")) == stop


def test_what_was_claimed_and_has_not_started_is_taken_back(app: App) -> None:
    task = app.task("note", queue="q")(lambda: None)
    slots = Slots(1, start_async=lambda count: None, start_sync=lambda count: None, low=lambda: None)
    first, second, third = (Item(held(id), task) for id in (1, 2, 3))
    slots.put([first, second, third])
    assert slots.take(False, None) == first
    assert slots.cancel([1, 3]) == [third]
    given = arguments(first._replace(task=app.task("see", queue="q")(see)), Handle(app, slots.cancelled))["job"]
    assert given.cancelled
    assert slots.take(False, first) == second
    assert slots.cancel([]) == []
    assert slots.cancelled == set()
    assert not given.cancelled
    assert slots.take(False, second) is None


def see(job: Job) -> None:
    """A task that wants to know its job."""


def test_both_clients_cancel_and_put_off(face: Face) -> None:
    first, second, third = face.enqueue_many("q", [{}, {}, {}])
    assert face.set_priority(third, -5) is True
    assert face.reschedule(second, datetime.now(timezone.utc) + timedelta(hours=1)) is True
    assert face.job_status(second).state == "scheduled"
    (job,) = face.claim("q")
    assert (job.id, job.priority) == (third, -5)
    assert face.cancel(first) == "cancelled"
    assert face.cancel(third) == "requested"
    assert face.cancel_requested([job.lease]) == [third]
    assert face.snooze_many([third], [job.lease], 1) == [third]
    assert face.job_status(third).state == "cancelled"
    assert face.cancel_many("q", "none") == 0
    assert face.cancel_many("q", running=True) == 1
    assert face.cancel(10**9) == "not found"
