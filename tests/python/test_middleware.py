"""Code around enqueueing and running, hooks, and a worker inside of another program."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import pytest
import sentry_sdk
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pgqueue import REJECT, App, Client, Job, Middleware, QueueNotFound, Reject
from pgqueue.logs import JsonFormatter
from pgqueue.middleware import Logging, Request, Sentry, Timing, Tracing
from tests.python.conftest import Running
from tests.python.support import Until, eventually

pytestmark = pytest.mark.usefixtures("client")
both = pytest.mark.parametrize("kind", ["sync", "async"])
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


def task_of(app: App, kind: str, function: Callable[[Job], Any]) -> Any:
    """Make a handler of either kind that does what the function does."""

    def plain(job: Job) -> Any:
        return function(job)

    async def coroutine(job: Job) -> Any:
        return function(job)

    return app.task("t", queue="q")(plain if kind == "sync" else coroutine)


class Tenant(Middleware):
    """Carries a context variable along."""

    @contextmanager
    def enqueuing(self, request: Request) -> Iterator[None]:
        request.headers["tenant"] = tenant.get()
        yield

    @contextmanager
    def running(self, job: Job) -> Iterator[None]:
        token = tenant.set(job.headers["tenant"])
        try:
            yield
        finally:
            tenant.reset(token)


class Noted(Middleware):
    """Notes when it is entered and left."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes

    @contextmanager
    def enqueuing(self, request: Request) -> Iterator[None]:
        self.notes.append(f"{self.name} enqueues {len(request.payloads)}")
        try:
            yield
        finally:
            self.notes.append(f"{self.name} has enqueued {len(request.ids)}")

    @contextmanager
    def running(self, job: Job) -> Iterator[None]:
        self.notes.append(f"{self.name} runs")
        try:
            yield
        except Exception as error:
            self.notes.append(f"{self.name} saw {type(error).__name__}")
            raise
        self.notes.append(f"{self.name} has run")


@both
def test_a_context_travels_with_the_job(app: App, client: Client, running: Running, until: Until, kind: str) -> None:
    app.middleware.append(Tenant())
    task = task_of(app, kind, lambda job: [tenant.get(), job.headers])
    token = tenant.set("ann")
    jobs = [task.enqueue(), *task.using(headers={"x": 1}).enqueue_many([{}, {}])]
    tenant.reset(token)
    with running(concurrency=1):
        for job in jobs:
            until(job, "done")
    results = [state.result for job in jobs if (state := client.job_status(job))]
    assert results == [["ann", {"tenant": "ann"}], *[["ann", {"x": 1, "tenant": "ann"}]] * 2]
    assert task.options.headers is None


@both
@pytest.mark.parametrize("timeout", [None, 10])
def test_what_a_handler_sets_is_not_seen_by_the_next_one(
    app: App, client: Client, running: Running, kind: str, timeout: float | None
) -> None:
    """Also when jobs are claimed ahead, and one coroutine or thread runs them one after the other."""
    seen: list[str] = []

    def look(job: Job) -> None:
        seen.append(tenant.get())
        tenant.set(f"job {job.id}")

    async def look_async(job: Job) -> None:
        look(job)
        await asyncio.sleep(0)
        assert tenant.get() == f"job {job.id}"
        assert asyncio.current_task() is not None

    app.task("t", queue="q", timeout=timeout)(look if kind == "sync" else look_async).enqueue_many([{}] * 500)
    with running(concurrency=2):
        eventually(lambda: len(seen) == 500)
    assert set(seen) == {"nobody"}
    assert client.stats()[0].retrying == 0


@both
def test_the_first_is_the_outermost(app: App, running: Running, until: Until, kind: str) -> None:
    notes: list[str] = []
    app.middleware += [Noted("a", notes), Noted("b", notes)]

    def handler(job: Job) -> None:
        notes.append("handler")
        if job.attempt == 1:
            raise ValueError

    job = task_of(app, kind, handler).enqueue()
    with running(poll=0.05):
        until(job, "done")
    assert notes == [
        *["a enqueues 1", "b enqueues 1", "b has enqueued 1", "a has enqueued 1"],
        *["a runs", "b runs", "handler", "b saw ValueError", "a saw ValueError"],
        *["a runs", "b runs", "handler", "b has run", "a has run"],
    ]


def test_an_enqueue_that_fails_is_seen(app: App, client: Client) -> None:
    notes: list[str] = []
    app.middleware.append(Noted("a", notes))
    with pytest.raises(QueueNotFound):
        app.task("t", queue="nowhere")(lambda: None).enqueue()
    assert notes == ["a enqueues 1", "a has enqueued 0"]


class Forgiving(Middleware):
    """Lets some exceptions vanish."""

    def running(self, job: Job) -> Any:
        return suppress(ZeroDivisionError)


@both
def test_an_exception_that_vanishes_makes_the_job_done(
    app: App, client: Client, running: Running, until: Until, kind: str
) -> None:
    app.middleware += [Forgiving(), Middleware()]

    def handler(job: Job) -> Any:
        raise ZeroDivisionError

    job = task_of(app, kind, handler).enqueue()
    with running():
        until(job, "done")


class Awaiting(Middleware):
    """Has its own way with coroutines."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def running_async(self, job: Job) -> AbstractAsyncContextManager[object]:
        @asynccontextmanager
        async def around() -> AsyncIterator[None]:
            yield
            self.ran.append(job.id)

        return around()


def test_coroutines_may_have_a_context_of_their_own(app: App, running: Running, until: Until) -> None:
    awaiting = Awaiting()
    app.middleware.append(awaiting)

    @app.task("a", queue="q")
    async def a() -> None: ...

    @app.task("b", queue="q")
    def b() -> None: ...

    jobs = [a.enqueue(), b.enqueue()]
    with running():
        for job in jobs:
            until(job, "done")
    assert awaiting.ran == jobs[:1]


@both
def test_it_is_around_the_timeout_too(app: App, running: Running, until: Until, kind: str) -> None:
    seen: list[tuple[float, BaseException | None]] = []
    app.middleware.append(Timing(lambda job, seconds, error: seen.append((seconds, error))))
    task = task_of(app, kind, lambda job: None)
    app.tasks["t"].limits.__dict__.update(timeout=30)
    job = task.enqueue()
    with running():
        until(job, "done")
    ((seconds, error),) = seen
    assert 0 < seconds < 30
    assert error is None


# Ready to use ---------------------------------------------------------------------------------------------------------


def test_runs_are_logged_as_json(app: App, running: Running, until: Until, caplog: pytest.LogCaptureFixture) -> None:
    app.middleware.append(Logging())

    def handler(job: Job) -> Any:
        if job.attempt == 1:
            raise Reject("no")
        return REJECT if job.attempt == 2 else None

    job = task_of(app, "sync", handler).enqueue()
    with caplog.at_level(logging.INFO, "pgqueue.jobs"), running(poll=0.05):
        until(job, "done")
    lines = [json.loads(JsonFormatter().format(r)) for r in caplog.records if r.name == "pgqueue.jobs"]
    assert [(line["job"], line["attempt"], line["outcome"], line["level"]) for line in lines] == [
        (job, 1, "Reject", "info"),
        (job, 2, "Reject", "info"),
        (job, 3, "done", "info"),
    ]
    assert lines[0]["message"].startswith(f"job {job} (t) of queue q: Reject after 0.")


def test_a_record_with_a_traceback_is_one_line_of_json() -> None:
    try:
        raise ValueError("süß\n")
    except ValueError:
        record = logging.getLogger("x").makeRecord(
            "x", logging.ERROR, "f", 1, "bad %s", ("luck",), __import__("sys").exc_info(), extra={"n": object}
        )
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line.keys() == {"time", "level", "logger", "message", "error", "n"}
    assert (line["message"], line["level"]) == ("bad luck", "error")
    assert "ValueError: süß" in line["error"]


@pytest.fixture(scope="module")
def spans() -> InMemorySpanExporter:
    """The spans that were recorded; a tracer provider can be set only once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@both
def test_a_trace_leads_from_the_enqueue_to_the_run(
    app: App, running: Running, until: Until, spans: InMemorySpanExporter, kind: str
) -> None:
    spans.clear()
    app.middleware.append(Tracing())

    def handler(job: Job) -> None:
        trace.get_current_span().add_event("in the handler")
        if job.attempt == 1:
            raise ValueError("broken")

    with trace.get_tracer("test").start_as_current_span("request"):
        job = task_of(app, kind, handler).enqueue()
    with running(poll=0.05):
        until(job, "done")
    found = {span.name: span for span in spans.get_finished_spans()}
    request, send, process = found["request"], found["send t"], found["process t"]
    assert send.parent is not None
    assert send.parent.span_id == request.context.span_id
    assert process.parent is not None
    assert process.parent.span_id == send.context.span_id
    assert {span.context.trace_id for span in found.values()} == {request.context.trace_id}
    runs = [span for span in spans.get_finished_spans() if span.name == "process t"]
    assert [[event.name for event in run.events] for run in runs] == [
        ["in the handler", "exception"],
        ["in the handler"],
    ]
    assert [run.status.is_ok for run in runs] == [False, True]
    assert process.attributes is not None
    assert process.attributes["messaging.message.id"] == str(job)
    assert send.attributes is not None
    assert send.attributes["messaging.destination.name"] == "q"


@both
def test_sentry_hears_of_errors_but_not_of_outcomes(app: App, running: Running, until: Until, kind: str) -> None:
    events: list[Any] = []

    def keep(event: Any, hint: Any) -> None:
        events.append(event)

    sentry_sdk.init(dsn="http://key@localhost/1", before_send=keep, default_integrations=False)
    app.middleware.append(Sentry())

    def handler(job: Job) -> None:
        if job.attempt == 1:
            raise ValueError("broken")
        if job.attempt == 2:
            raise Reject("no")

    job = task_of(app, kind, handler).enqueue()
    with running(poll=0.05):
        until(job, "done")
    sentry_sdk.init()
    (event,) = events
    assert event["exception"]["values"][-1]["value"] == "broken"
    assert event["contexts"]["pgqueue"] == {"job": job, "task": "t", "attempt": 1}


# Hooks, and a worker in another program -------------------------------------------------------------------------------


def test_hooks_are_called_around_the_work(app: App, client: Client, running: Running, until: Until) -> None:
    notes: list[str] = []

    @app.on_startup
    async def connect() -> None:
        app.state.greeting = "hello"
        notes.append("connect")

    @app.on_startup
    def prepare() -> None:
        notes.append(f"prepare {app.state.greeting}")

    @app.on_shutdown
    def first() -> None:
        notes.append("shut down last")

    @app.on_shutdown
    async def last() -> None:
        notes.append("shut down first")

    job = task_of(app, "sync", lambda job: app.state.greeting).enqueue()
    with running():
        until(job, "done")
    assert notes == ["connect", "prepare hello", "shut down first", "shut down last"]


def test_a_worker_whose_startup_fails_does_not_start(app: App, client: Client) -> None:
    notes: list[str] = []

    @app.on_startup
    def fail() -> None:
        raise ValueError("no")

    app.on_shutdown(lambda: notes.append("shutdown"))
    task = task_of(app, "sync", lambda job: None)
    job = task.enqueue()
    with pytest.raises(ValueError, match="no"), app.worker(["q"]):
        pass
    assert notes == []
    state = client.job_status(job)
    assert state is not None
    assert state.state == "ready"


def test_a_worker_in_another_program(app: App, client: Client, until: Until) -> None:
    threads: list[str] = []
    task = task_of(app, "async", lambda job: threads.append(threading.current_thread().name))
    with app.worker(["q"], concurrency=2) as worker:
        until(task.enqueue(), "done")
        assert worker.alive
        assert not worker.stopping
    assert threads == ["pgq-worker"]
    job = task.enqueue()
    with app.worker(["q"]):
        until(job, "done")


def test_an_error_of_the_program_is_not_covered_by_that_of_the_worker(app: App, client: Client) -> None:
    with pytest.raises(KeyError), app.worker(["nowhere"]):
        raise KeyError
    with pytest.raises(QueueNotFound), app.worker(["nowhere"]) as worker:
        eventually(lambda: not worker.alive)
