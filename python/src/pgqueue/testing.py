"""For the tests of programs that have jobs: a database, a worker that runs until there is nothing left, a clock.

With pytest, the fixtures of :mod:`pgqueue.pytest_plugin` use all of this.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from importlib.resources import files
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import class_row

from pgqueue._calls import HeldJob, Json, to_json
from pgqueue.app import App, Job, Task
from pgqueue.client import AsyncClient, Client
from pgqueue.middleware import Middleware
from pgqueue.outcomes import Outcome
from pgqueue.worker.run import calls
from pgqueue.worker.slots import Item
from pgqueue.worker.worker import Worker

T = TypeVar("T")
_numbers = itertools.count(1)


# Databases ------------------------------------------------------------------------------------------------------------


@contextmanager
def database(server: str, template: str | None = None) -> Iterator[str]:
    """Create a database with pgq, and drop it at the end.

    Args:
        server: connection string of a database of the server; its user must be allowed to create others.
        template: a database with pgq to copy, which is faster than to install it; nobody must be connected to it.

    Yields:
        The connection string of the database.
    """
    name = f"pgqueue_test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as admin:
        copy = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        admin.execute(copy.format(sql.Identifier(name), sql.Identifier(template or "template1")))
        dsn = make_conninfo(server, dbname=name)
        try:
            if template is None:
                with psycopg.connect(dsn, autocommit=True) as connection:
                    connection.execute((files("pgqueue") / "sql" / "pgqueue.sql").read_bytes())
            yield dsn
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def create_queues(app: App) -> None:
    """Create the queues of an app's tasks that do not exist yet."""
    for queue in sorted({task.queue for task in app.tasks.values()}):
        app.client.create_queue(queue, if_not_exists=True)


class Clock:
    """Sets the clock by which pgq goes in one database, so that no test waits for time to pass.

    Args:
        connection: of the owner of pgq, in autocommit mode.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        connection.execute(
            """
            CREATE SCHEMA test_clock;
            CREATE TABLE test_clock.ahead (by interval NOT NULL);
            INSERT INTO test_clock.ahead VALUES ('0');
            GRANT USAGE ON SCHEMA test_clock TO PUBLIC;
            GRANT SELECT ON test_clock.ahead TO PUBLIC;
            CREATE OR REPLACE FUNCTION pgq._now() RETURNS timestamptz LANGUAGE sql VOLATILE
                SET search_path = pg_catalog, pg_temp
                AS 'SELECT clock_timestamp() + by FROM test_clock.ahead';
            """
        )

    def advance(self, by: timedelta | float) -> None:
        """Let this much time pass: a timedelta, or seconds."""
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
        self._connection.execute("UPDATE test_clock.ahead SET by = by + %s", [step])

    def now(self) -> datetime:
        """Return what time it is."""
        row = self._connection.execute("SELECT pgq._now()").fetchone()
        assert row is not None
        now: datetime = row[0]
        return now


# Running --------------------------------------------------------------------------------------------------------------


class _Witness(Middleware):
    """Sees every run, and what went wrong."""

    def __init__(self) -> None:
        self.runs = 0
        self.errors: list[BaseException] = []

    @contextmanager
    def running(self, job: Job) -> Iterator[None]:
        self.runs += 1
        try:
            yield
        except Outcome:
            raise
        except BaseException as error:
            self.errors.append(error)
            raise


def drain(app: App, queues: Sequence[str] | None = None, *, concurrency: int = 1, raise_errors: bool = True) -> int:
    """Run the jobs of an app until none is ready, also those that they enqueue. Not from a coroutine.

    What is due later stays: see :class:`Clock`. So does what has failed and is tried again later.

    Args:
        app: whose tasks are run.
        queues: where; None: the queues of the app's tasks.
        concurrency: how many at the same time.
        raise_errors: raise the first exception of a handler at the end, other than an :class:`Outcome`.

    Returns:
        How many attempts there were.
    """
    return asyncio.run(drain_async(app, queues, concurrency=concurrency, raise_errors=raise_errors))


async def drain_async(
    app: App, queues: Sequence[str] | None = None, *, concurrency: int = 1, raise_errors: bool = True
) -> int:
    """Run the jobs of an app until none is ready, from a coroutine; as :func:`drain`."""
    witness = _Witness()
    app.middleware.append(witness)
    try:
        worker = Worker(app, queues, concurrency=concurrency, listen=False, maintain=False, mode="drain", grace=0)
        await worker.run()
    finally:
        app.middleware.remove(witness)
    if raise_errors and witness.errors:
        raise witness.errors[0]
    return witness.runs


# Looking --------------------------------------------------------------------------------------------------------------


class FoundJob(NamedTuple):
    """A job that was enqueued, whatever has become of it."""

    id: int
    queue: str
    task: str | None
    payload: Json
    headers: Json


_FOUND = """
    SELECT DISTINCT ON (j.id) j.id, q.name AS queue, j.task, j.payload, j.headers
    FROM (
        SELECT id, lane, task, payload, headers FROM pgq.job
        UNION ALL SELECT id, lane, task, payload, headers FROM pgq.scheduled
        UNION ALL SELECT id, lane, task, payload, headers FROM pgq.parked
        UNION ALL SELECT id, lane, task, payload, headers FROM pgq.dead
    ) j
    JOIN pgq.queue q ON q.id = j.lane >> 16
    WHERE (%(task)s::text IS NULL OR j.task = %(task)s) AND (%(queue)s::text IS NULL OR q.name = %(queue)s)
    ORDER BY j.id
"""


def enqueued(app: App, task: Task[..., Any] | str | None = None, *, queue: str | None = None) -> list[FoundJob]:
    """Return the jobs that were enqueued and committed, oldest first, as far as they were not archived yet.

    Args:
        app: whose database is looked at.
        task: those of this one only.
        queue: those of this one only.
    """
    name = task.name if isinstance(task, Task) else task
    with psycopg.connect(app.dsn) as connection, connection.cursor(row_factory=class_row(FoundJob)) as cursor:
        return cursor.execute(_FOUND, {"task": name, "queue": queue}).fetchall()


def assert_enqueued(
    task: Task[..., Any], args: Mapping[str, Any] | None = None, *, queue: str | None = None, times: int | None = None
) -> None:
    """Fail unless there is a job of a task that was called like this.

    Args:
        task: the task.
        args: keyword arguments that its call had, others may have been there as well; None: any.
        queue: where; None: anywhere.
        times: exactly so many; None: at least one.

    Raises:
        AssertionError: there is not; it says what there is.
    """
    wanted = json.loads(to_json(dict(args or {})))
    all_of_it = enqueued(task.app, task, queue=queue)
    found = [job for job in all_of_it if _was_called_with(job.payload, wanted)]
    if len(found) == times or (times is None and found):
        return
    count = "a job" if times is None else f"{times} jobs"
    lines = [f"  {job.id} in {job.queue}: {to_json(job.payload)}" for job in all_of_it] or ["  none"]
    raise AssertionError("\n".join([f"expected {count} of {task.name!r} with {to_json(wanted)}; there is", *lines]))


def _was_called_with(payload: Json, args: dict[str, Any]) -> bool:
    missing = object()
    return isinstance(payload, dict) and all(payload.get(name, missing) == value for name, value in args.items())


# Without a database ---------------------------------------------------------------------------------------------------


class EagerJob(NamedTuple):
    """A job that ran when it was enqueued."""

    id: int
    queue: str
    task: str
    payload: Json
    result: Any


@contextmanager
def eager(app: App) -> Iterator[list[EagerJob]]:
    """Have jobs run when they are enqueued, here and now, and without a database.

    Arguments go through JSON and the middleware all the same. What a handler raises comes out of ``enqueue``. There are
    no retries, delays, keys or transactions, and ``job.ack`` and its like need a worker: use :func:`drain` for those.

    Yields:
        A list of the jobs that ran, which grows.

    Example:
        >>> with eager(app) as jobs:
        ...     send.enqueue(to="ann@example.com")
        >>> jobs[0].result
    """
    client = _Eager(app)
    app.eager_clients = cast("tuple[Client, AsyncClient]", (client, _AsyncEager(client)))
    try:
        yield client.jobs
    finally:
        app.eager_clients = None


class _Eager:
    """Stands in for a client, and runs what is enqueued."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.jobs: list[EagerJob] = []
        self._ids = itertools.count(1)

    def enqueue(self, queue: str, payload: Json = None, *, task: str | None = None, **options: Any) -> int:
        item = self.item(queue, payload, task, options)
        if item.task.is_async:
            return self._done(item, _finished(self.call_async(item)))
        return self._done(item, self.call(item))

    def enqueue_many(self, queue: str, payloads: Sequence[Json], **options: Any) -> list[int]:
        return [self.enqueue(queue, payload, **options) for payload in payloads]

    async def enqueue_async(self, queue: str, payload: Json, task: str | None, options: Mapping[str, Any]) -> int:
        item = self.item(queue, payload, task, options)
        return self._done(item, await self.call_async(item) if item.task.is_async else self.call(item))

    def item(self, queue: str, payload: Json, task: str | None, options: Mapping[str, Any]) -> Item:
        found = self.app.tasks.get(task or "", self.app.fallback_task)
        if found is None:
            raise LookupError(f"the app has no task {task!r}")
        now = datetime.now(timezone.utc)
        headers = json.loads(to_json(options.get("headers")))
        arguments = json.loads(to_json(payload))
        held = HeldJob(
            next(self._ids), 0, queue, task, arguments, 1, 1, options.get("priority") or 0, now, headers, 60.0
        )  # fmt: skip
        return Item(held, found)

    def call(self, item: Item) -> Any:
        return calls(self.app.middleware)[0](item, None)

    async def call_async(self, item: Item) -> Any:
        return await calls(self.app.middleware)[1](item, None)

    def _done(self, item: Item, result: Any) -> int:
        job, payload = item.job, item.job.payload
        if isinstance(payload, dict):
            payload.pop(item.task.job_parameter, None)
        self.jobs.append(EagerJob(job.id, job.queue, item.task.name, payload, result))
        return job.id

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"there is no database in eager mode, and so no client.{name}")


class _AsyncEager:
    def __init__(self, client: _Eager) -> None:
        self._client = client

    async def enqueue(self, queue: str, payload: Json = None, *, task: str | None = None, **options: Any) -> int:
        return await self._client.enqueue_async(queue, payload, task, options)

    async def enqueue_many(self, queue: str, payloads: Sequence[Json], **options: Any) -> list[int]:
        return [await self.enqueue(queue, payload, **options) for payload in payloads]

    def __getattr__(self, name: str) -> NoReturn:
        getattr(self._client, name)
        raise AssertionError


def _finished(coroutine: Any) -> Any:
    """Run a coroutine to its end, in an event loop of its own if this thread has one already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(coroutine))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
