"""What pgqueue offers to the tests of others."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgqueue
from pgqueue import ACK, App, Client, Job, Middleware, Reject, Retry
from pgqueue.embedded import binaries
from pgqueue.middleware import Request
from pgqueue.testing import assert_enqueued, create_queues, drain, drain_async, eager, enqueued

TESTS = """
import datetime

import pytest

import pgqueue
from pgqueue.testing import assert_enqueued, drain

app = pgqueue.App("host=nowhere")


@app.task("send", queue="mail")
def send(to: str) -> str:
    return to


@app.task("later", queue="slow")
async def later() -> None: ...


def test_an_order_sends_a_mail(pgqueue_use):
    with pgqueue_use(app):
        send.enqueue(to="ann")
        assert_enqueued(send, {"to": "ann"}, times=1)
        assert drain(app) == 1
    assert app.dsn == "host=nowhere"


def test_every_test_has_a_database_of_its_own(pgqueue_use):
    with pgqueue_use(app), pytest.raises(AssertionError, match="none"):
        assert_enqueued(send)


def test_time_passes_when_told(pgqueue_use, pgqueue_clock):
    with pgqueue_use(app):
        later.using(delay=3600).enqueue()
        assert drain(app) == 0
        pgqueue_clock.advance(datetime.timedelta(hours=1))
        assert drain(app) == 1
"""


@pytest.fixture
def q(app: App, client: Client) -> App:
    """An app with tasks in queue q, which exists."""

    @app.task("double", queue="q")
    def double(n: int) -> int:
        if n > 2:
            double.enqueue(n=n - 1)
        return 2 * n

    @app.task("fail", queue="q")
    async def fail(kind: str) -> None:
        raise ValueError("broken") if kind == "error" else Retry("later", in_=60)

    return app


@pytest.mark.direct("creates databases")
@pytest.mark.parametrize("given", ["embedded", "option", "environment"])
def test_the_plugin(dsn: str, tmp_path: Path, given: str) -> None:
    try:
        binaries()
    except Exception:
        pytest.skip("there is no embedded PostgreSQL")
    (tmp_path / "test_shop.py").write_text(TESTS)
    package = str(Path(pgqueue.__file__).parent.parent)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "test_shop.py"]
    if not any(e.value == "pgqueue.pytest_plugin" for e in _entry_points()):
        command += ["-p", "pgqueue.pytest_plugin"]
    command += ["--pgqueue-dsn", dsn] if given == "option" else []
    environment = {**os.environ, "PYTHONPATH": package}
    if given == "environment":
        environment["PGQUEUE_TEST_DSN"] = dsn
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert "3 passed" in done.stdout, done.stdout + done.stderr
    with psycopg.connect(dsn) as connection:
        left = connection.execute("SELECT datname FROM pg_database WHERE datname ~ '^pgqueue_test_'").fetchall()
    assert left == []


def _entry_points() -> Any:
    from importlib.metadata import entry_points

    return entry_points(group="pytest11")


def test_drain_runs_what_jobs_enqueue(q: App, client: Client) -> None:
    job = q.tasks["double"].enqueue(n=4)
    assert drain(q) == 3
    state = client.job_status(job)
    assert state is not None
    assert state.result == 8
    assert drain(q, ["q"]) == 0
    assert q.middleware == []


def test_drain_raises_what_handlers_raise_but_no_outcomes(q: App, client: Client) -> None:
    q.tasks["fail"].enqueue(kind="error")
    with pytest.raises(ValueError, match="broken"):
        drain(q)
    drain(q, raise_errors=False)
    client.purge("q")
    later = q.tasks["fail"].enqueue(kind="retry")
    drain(q)
    state = client.job_status(later)
    assert state is not None
    assert state.state == "retrying"


def test_drain_in_a_coroutine(q: App) -> None:
    async def main() -> int:
        await q.tasks["double"].enqueue_async(n=2)
        try:
            return await drain_async(q)
        finally:
            await q.aclose()

    assert asyncio.run(main()) == 1


def test_what_was_enqueued(q: App, client: Client) -> None:
    double = q.tasks["double"]
    client.create_queue("other")
    first, second = double.enqueue(n=1), double.using(queue="other", delay=60, headers={"x": 1}).enqueue(n=2)
    third = client.enqueue("q", [1])
    client.claim("q")
    assert [tuple(job) for job in enqueued(q)] == [
        (first, "q", "double", {"n": 1}, None),
        (second, "other", "double", {"n": 2}, {"x": 1}),
        (third, "q", None, [1], None),
    ]
    assert [job.id for job in enqueued(q, "double", queue="q")] == [first]
    assert_enqueued(double)
    assert_enqueued(double, {"n": 2}, queue="other", times=1)
    assert_enqueued(double, {"n": 9}, times=0)
    for wrong in ({"n": 3}, {"m": 1}):
        with pytest.raises(AssertionError, match=rf"expected a job of 'double'(.|\n)* {first} in q: {{\"n\":1}}"):
            assert_enqueued(double, wrong)
    with pytest.raises(AssertionError, match="expected 1 jobs"):
        assert_enqueued(double, times=1)


def test_queues_are_created(app: App, client: Client) -> None:
    for queue in ("a", "b", "a"):
        app.task(f"t{len(app.tasks)}", queue=queue)(lambda: None)
    for _ in range(2):
        create_queues(app)
    assert [stat.queue for stat in client.stats()] == ["a", "b", "q"]


# Without a database ---------------------------------------------------------------------------------------------------


class Header(Middleware):
    @contextmanager
    def enqueuing(self, request: Request) -> Iterator[None]:
        request.headers["by"] = "middleware"
        yield


@pytest.fixture
def lonely() -> App:
    """An app without a database."""
    app = App("host=nowhere", middleware=[Header()])

    @app.task("look")
    def look(job: Job, values: list[int]) -> Any:
        return [job.id, job.headers, values]

    @app.task("look_async", queue="a")
    async def look_async(n: int) -> int:
        if n:
            await look_async.enqueue_async(n=n - 1)
        return n

    @app.task("fail")
    def fail() -> None:
        raise Reject("no")

    @app.task("verdict")
    def verdict() -> Any:
        return ACK

    return app


def test_eager_jobs_run_at_once(lonely: App) -> None:
    tasks = lonely.tasks
    with eager(lonely) as jobs:
        assert tasks["look"].using(queue="z").enqueue(values=(1, 2)) == 1
        assert tasks["look_async"].enqueue(n=0) == 2
        assert tasks["look"].enqueue_many([{"values": []}, {"values": [3]}]) == [3, 4]
        tasks["verdict"].enqueue()
    assert [tuple(job) for job in jobs] == [
        (1, "z", "look", {"values": [1, 2]}, [1, {"by": "middleware"}, [1, 2]]),
        (2, "a", "look_async", {"n": 0}, 0),
        (3, "default", "look", {"values": []}, [3, {"by": "middleware"}, []]),
        (4, "default", "look", {"values": [3]}, [4, {"by": "middleware"}, [3]]),
        (5, "default", "verdict", {}, ACK),
    ]


def test_eager_jobs_in_coroutines(lonely: App) -> None:
    tasks = lonely.tasks

    async def main() -> None:
        await tasks["look_async"].enqueue_async(n=2)
        tasks["look_async"].enqueue(n=0)
        assert await tasks["look"].enqueue_many_async([{"values": []}]) == [5]

    with eager(lonely) as jobs:
        asyncio.run(main())
    assert [(job.id, job.result) for job in jobs][:4] == [(3, 0), (2, 1), (1, 2), (4, 0)]


def test_errors_of_eager_jobs_come_out(lonely: App) -> None:
    with eager(lonely) as jobs:
        with pytest.raises(Reject, match="no"):
            lonely.tasks["fail"].enqueue()
        with pytest.raises(pgqueue.InvalidArgument):
            lonely.tasks["look"].enqueue(values=object())
        with pytest.raises(LookupError, match="no task 'x'"):
            lonely.client.enqueue("q", task="x")
        with pytest.raises(AttributeError, match=r"client\.stats"):
            lonely.client.stats()
    assert jobs == []
    assert type(lonely.client) is Client
    lonely.close()
