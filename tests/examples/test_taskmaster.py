"""Example taskmaster: workers inside of a program, which starts and stops them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from examples.taskmaster import shop
from examples.taskmaster.taskmaster import Taskmaster
from pgqueue import Client, QueueNotFound
from pgqueue.testing import create_queues, enqueued
from tests.examples.support import alike, block, shell
from tests.python.support import eventually


@pytest.fixture
def master(dsn: str) -> Iterator[Taskmaster]:
    """A taskmaster of the shop, with its queues."""
    with shop.app.connected_to(dsn), Taskmaster(shop.app) as master:
        create_queues(shop.app)
        shop.counts.attempts.clear()
        shop.counts.errors.clear()
        yield master


def ended(client: Client, job: int) -> tuple[str, int]:
    state = client.wait(job, 15)
    assert state is not None
    return state.state, state.attempt


def test_ack_is_done_and_reject_is_tried_again(master: Taskmaster, client: Client) -> None:
    master.start("packer", "orders")
    master.start("office", "supplies", "labels")
    assert ended(client, shop.ship.enqueue(1, "tea")) == ("done", 1)
    job = shop.ship.enqueue(2, "hats")
    assert ended(client, job) == ("done", 2)
    first, second = client.attempts(job)
    assert (first.state, first.error, second.state) == ("retry", "the handler has returned REJECT", "done")
    assert shop.counts.attempts["ship"] == 3
    assert shop.counts.errors.total() == 0


def test_the_clerk_travels_from_job_to_job(master: Taskmaster, client: Client) -> None:
    master.start("all", "orders", "supplies", "labels")
    token = shop.clerk.set("Zoe")
    try:
        ended(client, shop.ship.enqueue(7, "scarves"))
    finally:
        shop.clerk.reset(token)
    assert ended(client, shop.labels[7]) == ("done", 1)
    state = client.job_status(shop.labels[7])
    assert state is not None
    assert state.result == "order 7, sold by Zoe"
    assert {job.headers["clerk"] for job in enqueued(shop.app)} == {"Zoe"}


def test_the_middleware_sees_what_handlers_raise(master: Taskmaster, client: Client) -> None:
    master.start("office", "supplies")
    shop.supply.using(max_attempts=1).enqueue("unicorns")
    eventually(lambda: shop.counts.errors == {"supply": 1}, "it has raised")


def test_a_stopped_consumer_claims_nothing_and_another_one_takes_over(master: Taskmaster, client: Client) -> None:
    master.start("one", "labels")
    with pytest.raises(ValueError, match="already a consumer"):
        master.start("one", "labels")
    assert ended(client, shop.label.enqueue(1)) == ("done", 1)
    master.stop("one")
    assert master.names == []
    job = shop.label.enqueue(2)
    with pytest.raises(TimeoutError):
        client.wait(job, 0.5)
    master.start("two", "labels")
    assert ended(client, job) == ("done", 1)
    assert [attempt.worker for attempt in client.attempts(job)] == ["two"]


def test_all_are_stopped_even_if_one_could_not_work(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    with shop.app.connected_to(dsn), ExitStack() as stack:
        create_queues(shop.app)
        stack.enter_context(pytest.raises(QueueNotFound))
        master = stack.enter_context(Taskmaster(shop.app))
        master.start("lost", "nowhere")
        master.start("office", "labels")
        eventually(lambda: "the worker has ended" in caplog.text)
    assert [thread for thread in threading.enumerate() if thread.name == "pgq-worker"] == []


def test_a_consumer_that_could_not_work_says_so_when_it_is_stopped(
    master: Taskmaster, caplog: pytest.LogCaptureFixture
) -> None:
    master.start("lost", "no such queue")
    eventually(lambda: "the worker has ended" in caplog.text)
    with pytest.raises(QueueNotFound):
        master.stop("lost")


def test_the_readme(environment: dict[str, str]) -> None:
    assert alike(shell(block("taskmaster", "sh"), environment)) == alike(block("taskmaster", "text"))
