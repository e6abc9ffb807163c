"""What a handler says about its job, and how long it may take."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from pgqueue import ACK, REJECT, App, Cancel, Client, Job, JobAttempt, LeaseLost, Reject, Retry, Snooze, TimedOut
from pgqueue.outcomes import retry_in
from pgqueue.worker.run import Runner
from pgqueue.worker.slots import Item
from tests.python.conftest import Running
from tests.python.support import Until, eventually, status


def add(app: App, kind: str, function: Callable[[Job], Any], **options: Any) -> int:
    """Enqueue a job for a handler of either kind that does what the function does."""

    async def coroutine(job: Job) -> Any:
        return function(job)

    return app.task("t", queue="q", **options)(function if kind == "sync" else coroutine).enqueue()


def last(client: Client, job: int) -> JobAttempt:
    return client.attempts(job)[-1]


def raising(*errors: BaseException | Any) -> Callable[[Job], Any]:
    """A handler that raises one after the other, and then returns; what is no exception it returns."""
    left = list(errors)

    def handler(job: Job) -> Any:
        error = left.pop(0) if left else "done"
        if isinstance(error, BaseException):
            raise error
        return error

    return handler


both = pytest.mark.parametrize("kind", ["sync", "async"])


@both
def test_retry_says_when(app: App, client: Client, running: Running, until: Until, kind: str) -> None:
    job = add(app, kind, raising(Retry("full", in_=3600)), retry=7)
    with running():
        until(job, "retrying")
    state = status(client, job)
    assert (state.attempt, state.error) == (2, "full")
    in_an_hour = datetime.now(timezone.utc) + timedelta(hours=1)
    assert timedelta(0) < in_an_hour - state.run_at < timedelta(minutes=1)


@both
def test_retry_without_a_time_is_any_failure(
    app: App, client: Client, running: Running, until: Until, kind: str
) -> None:
    job = add(app, kind, raising(Retry(), Retry(in_=0)), max_attempts=3)
    with running(poll=0.05):
        until(job, "done")
    tried = client.attempts(job)
    assert [(a.attempt, a.state) for a in tried] == [(1, "retry"), (2, "retry"), (3, "done")]
    assert tried[0].error is not None
    assert "pgqueue.outcomes.Retry" in tried[0].error, "without a message, where it was raised"


@both
def test_retry_counts(app: App, client: Client, running: Running, until: Until, kind: str) -> None:
    job = add(app, kind, raising(Retry(in_=0), Retry(in_=0)), max_attempts=2)
    with running(poll=0.05):
        until(job, "dead")


@both
def test_snooze_does_not_count(app: App, client: Client, running: Running, until: Until, kind: str) -> None:
    job = add(app, kind, raising(Snooze(0), Snooze(0)), max_attempts=1)
    with running(poll=0.05):
        until(job, "done")
    assert [(a.attempt, a.state) for a in client.attempts(job)] == [(1, "snoozed"), (1, "snoozed"), (1, "done")]


@both
def test_reject(app: App, client: Client, running: Running, until: Until, kind: str) -> None:
    job = add(app, kind, raising(Reject("not yet"), Reject("no such address", final=True)))
    with running(poll=0.05):
        until(job, "dead")
    assert [a.error for a in client.attempts(job)] == ["not yet", "no such address"]


@both
def test_cancel(app: App, client: Client, running: Running, until: Until, kind: str) -> None:
    job = add(app, kind, raising(Cancel("withdrawn")), retry=0)
    with running():
        until(job, "cancelled")
    assert last(client, job).error == "withdrawn"
    assert client.dead_letters("q") == []


@both
def test_verdicts(app: App, client: Client, running: Running, until: Until, kind: str) -> None:
    job = add(app, kind, raising(REJECT, ACK))
    with running(poll=0.05):
        until(job, "done")
    assert [(a.state, a.result) for a in client.attempts(job)] == [("retry", None), ("done", None)]
    assert client.attempts(job)[0].error == "the handler has returned REJECT"


@both
def test_the_cause_of_an_outcome_is_kept(app: App, client: Client, running: Running, until: Until, kind: str) -> None:
    def handler(job: Job) -> None:
        try:
            raise KeyError("the cause")
        except KeyError as error:
            raise Reject("no", final=True) from error

    job = add(app, kind, handler)
    with running():
        until(job, "dead")
    error = last(client, job).error
    assert error is not None
    assert "KeyError: 'the cause'" in error
    assert "Reject: no" in error


@pytest.mark.parametrize("wrong", [Snooze("nonsense"), Snooze(float("nan")), Snooze(-1), Retry(in_="nonsense")])
@both
def test_a_delay_that_is_none_fails_the_attempt(
    app: App, client: Client, running: Running, until: Until, kind: str, wrong: Exception
) -> None:
    job = add(app, kind, raising(wrong), max_attempts=1)
    after = add_plain(app)
    with running():
        until(job, "dead")
        until(after, "done")
    assert last(client, job).error


def add_plain(app: App) -> int:
    return app.task("plain", queue="q")(lambda: None).enqueue()


# Retry policies -------------------------------------------------------------------------------------------------------


def test_retry_policies() -> None:
    error = ValueError()
    assert [retry_in([1, "5 s"], n, error) for n in (1, 2, 3)] == [1, "5 s", "5 s"]
    assert retry_in("1 minute", 9, error) == "1 minute"
    assert retry_in(timedelta(1), 9, error) == timedelta(1)
    assert retry_in(False, 1, error) is False
    assert retry_in(None, 1, error) is None
    assert retry_in(lambda n, e: n * 10 if e is error else None, 3, error) == 30


@pytest.mark.parametrize("wrong", [True, [], [None], [True], [1, None], {1: 2}, object()])
def test_what_is_no_policy_is_refused(app: App, wrong: Any) -> None:
    with pytest.raises(TypeError, match="retry is"):
        app.task("t", retry=wrong)


@both
def test_a_task_says_when_it_is_tried_again(
    app: App, client: Client, running: Running, until: Until, kind: str
) -> None:
    client.alter_queue("q", backoff=3600)
    job = add(app, kind, raising(ValueError(), ValueError()), retry=[0, 0.001])
    with running(poll=0.05):
        until(job, "done")
    assert status(client, job).attempt == 3


@pytest.mark.parametrize("policy", [False, lambda attempt, error: False])
@both
def test_a_task_that_is_not_tried_again(
    app: App, client: Client, running: Running, until: Until, kind: str, policy: Any
) -> None:
    job = add(app, kind, raising(ValueError()), retry=policy)
    with running():
        until(job, "dead")
    assert status(client, job).attempt == 1


def test_a_policy_that_fails_leaves_it_to_the_queue(app: App, client: Client, running: Running, until: Until) -> None:
    def policy(attempt: int, error: BaseException) -> Any:
        raise ZeroDivisionError

    job = add(app, "sync", raising(ValueError("first")), retry=policy)
    with running(poll=0.05):
        until(job, "done")
    error = client.attempts(job)[0].error
    assert error is not None
    assert "first" in error


# Timeouts -------------------------------------------------------------------------------------------------------------


def test_a_function_is_ended_after_its_timeout(app: App, client: Client, running: Running, until: Until) -> None:
    ended = threading.Event()

    def handler(job: Job) -> None:
        assert job.deadline is not None
        assert timedelta(0) < job.deadline - datetime.now(timezone.utc) <= timedelta(seconds=0.2)
        try:
            while True:
                time.sleep(0.01)
        finally:
            ended.set()

    job = add(app, "sync", handler, timeout=0.2, retry=False)
    after = add_plain(app)
    with running(concurrency=1):
        until(job, "dead")
        assert ended.is_set()
        until(after, "done")
    error = last(client, job).error
    assert error is not None
    assert "TimedOut: after 0.2 seconds" in error


def test_a_coroutine_is_cancelled_after_its_timeout(app: App, client: Client, running: Running, until: Until) -> None:
    cancelled = threading.Event()

    @app.task("slow", queue="q", timeout=timedelta(seconds=0.2), retry=False)
    async def slow() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    job, after = slow.enqueue(), add_plain(app)
    with running(concurrency=1):
        until(job, "dead")
        assert cancelled.is_set()
        until(after, "done")
    error = last(client, job).error
    assert error is not None
    assert "TimedOut: after 0.2 seconds" in error


@both
def test_who_ends_in_time_notices_nothing(app: App, client: Client, running: Running, until: Until, kind: str) -> None:
    def handler(job: Job) -> None:
        time.sleep(0.005)

    jobs = [add(app, kind, handler, timeout=0.5)]
    jobs += [app.tasks["t"].enqueue() for _ in range(50)]
    with running(concurrency=4):
        for job in jobs:
            until(job, "done")
    assert {status(client, job).attempt for job in jobs} == {1}


def test_a_thread_is_never_told_to_end_after_the_end(app: App, client: Client, running: Running, until: Until) -> None:
    """Handlers that end just when their time is over: done or timed out, and the thread goes on."""
    task = app.task("close", queue="q", timeout=0.02, retry=0, max_attempts=1000)(lambda: time.sleep(0.0198))
    jobs = task.enqueue_many([{}] * 40)
    with running(concurrency=4, poll=0.05):
        time.sleep(2)
        app.tasks["close"].limits.__dict__["timeout"] = 60
        for job in jobs:
            until(job, "done")
    for job in jobs:
        assert {a.state for a in client.attempts(job)} <= {"done", "retry"}


@both
def test_a_handler_that_does_not_end_loses_its_job(
    app: App, client: Client, running: Running, until: Until, kind: str
) -> None:
    """Even if it blocks the event loop; and what it comes back with later counts for nothing."""
    release = threading.Event()

    def stubborn(job: Job) -> str:
        if job.attempt > 1:
            return "second"
        while not release.is_set():
            try:
                time.sleep(0.05)
            except TimedOut:
                continue
        return "first"

    job = add(app, kind, stubborn, timeout=0.2, retry=0)
    with running(concurrency=1, poll=0.05):
        eventually(lambda: status(client, job).attempt == 2)
        release.set()
        until(job, "done")
    assert status(client, job).result == "second"
    first = client.attempts(job)[0]
    assert first.error is not None
    assert "does not end" in first.error


def test_a_handler_that_ends_while_its_job_is_taken_away_harms_no_other_job(
    app: App, client: Client, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease that both share is extended all the same."""
    client.create_queue("one", shards=1, lease=1)
    release = threading.Event()
    give_up = Runner._give_up

    def give_up_later(self: Runner, item: Item) -> None:
        release.set()
        time.sleep(0.3)
        give_up(self, item)

    monkeypatch.setattr(Runner, "_give_up", give_up_later)

    @app.task("stubborn", queue="one", timeout=0.1, retry=False)
    def stubborn() -> None:
        while not release.is_set():
            with suppress(TimedOut):
                time.sleep(0.01)

    @app.task("long", queue="one")
    def long() -> None:
        time.sleep(4)

    jobs = [stubborn.enqueue(), long.enqueue()]
    with running(queues=["one"], concurrency=2):
        eventually(lambda: all(status(client, job).state in ("done", "dead") for job in jobs))
    assert len({client.attempts(job)[0].lease for job in jobs}) == 1
    assert len(client.attempts(jobs[1])) == 1


@pytest.mark.parametrize("wrong", [0, -1, timedelta(0), float("nan")])
def test_a_timeout_is_positive(app: App, wrong: Any) -> None:
    with pytest.raises(ValueError, match="positive"):
        app.task("t", timeout=wrong)


# What a job can do ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["return", "raise", "raise inside"])
@both
def test_a_handler_acknowledges_in_its_own_transaction(
    app: App, client: Client, running: Running, until: Until, db: psycopg.Connection[Any], kind: str, end: str
) -> None:
    db.execute("DROP TABLE IF EXISTS effect; CREATE TABLE effect (n int)")

    def handler(job: Job) -> str:
        with psycopg.connect(app.dsn) as connection:
            connection.execute("INSERT INTO effect VALUES (1)")
            job.ack({"by": "handler"}, connection=connection)
            if end == "raise inside" and job.attempt == 1:
                raise ValueError
        if end == "raise":
            raise ValueError
        return "ignored"

    async def coroutine(job: Job) -> str:
        async with await psycopg.AsyncConnection.connect(app.dsn) as connection:
            await connection.execute("INSERT INTO effect VALUES (1)")
            await job.ack_async({"by": "handler"}, connection=connection)
            if end == "raise inside" and job.attempt == 1:
                raise ValueError
        if end == "raise":
            raise ValueError
        return "ignored"

    job = app.task("t", queue="q")(handler if kind == "sync" else coroutine).enqueue()
    with running(poll=0.05):
        until(job, "done")
    assert status(client, job).result == {"by": "handler"}
    assert db.execute("SELECT count(*) FROM effect").fetchone() == (1,)
    assert len(client.attempts(job)) == (2 if end == "raise inside" else 1)


def test_a_handler_whose_lease_is_lost_cannot_acknowledge(
    app: App, client: Client, running: Running, until: Until
) -> None:
    refused = threading.Event()

    def handler(job: Job) -> None:
        client.reject(job.id, job.lease, retry_in=0)
        with psycopg.connect(app.dsn) as connection:
            try:
                job.ack(connection=connection)
            except LeaseLost:
                refused.set()
                raise

    job = add(app, "sync", handler, max_attempts=2)
    with running(poll=0.05):
        until(job, "dead")
    assert refused.is_set()


@both
def test_a_handler_tells_its_progress_and_extends(
    app: App, client: Client, running: Running, until: Until, kind: str
) -> None:
    go = threading.Event()
    until_when: list[datetime] = []

    def handler(job: Job) -> None:
        assert job.progress({"done": 1})
        until_when.append(job.extend(3600))
        go.wait(10)

    async def coroutine(job: Job) -> None:
        assert await job.progress_async({"done": 1})
        until_when.append(await job.extend_async(3600))
        await asyncio.to_thread(go.wait, 10)

    job = app.task("t", queue="q")(handler if kind == "sync" else coroutine).enqueue()
    with running():
        eventually(lambda: client.job_progress(job) == {"done": 1})
        eventually(lambda: until_when)
        go.set()
        until(job, "done")
    assert until_when[0] > datetime.now(timezone.utc) + timedelta(minutes=50)


def test_a_job_without_a_worker_says_so(client: Client) -> None:
    client.enqueue("q")
    (claimed,) = client.claim("q")
    job = Job.of(claimed)
    assert not job.cancelled
    with pytest.raises(RuntimeError, match="no worker"):
        job.progress(1)
