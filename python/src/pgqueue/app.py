"""Tasks: Python functions that run as jobs."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    TypeAlias,
    TypeVar,
    get_type_hints,
    overload,
)

from pgqueue._calls import AnyConnection, ClaimedJob, HasConnection, Interval, Json
from pgqueue.codecs import Codec, by_annotations
from pgqueue.middleware import Middleware, Request
from pgqueue.outcomes import RetryPolicy, checked

if TYPE_CHECKING:
    import psycopg

    from pgqueue.client import AsyncClient, Client
    from pgqueue.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")
Hook: TypeAlias = Callable[[], object]
"""A function or coroutine function without arguments."""
H = TypeVar("H", bound=Hook)


@dataclass(frozen=True)
class Handle:
    """How a job reaches the worker that runs it.

    Attributes:
        app: whose clients are used.
        cancelled: the jobs that are asked to stop, now and later.
        settled: id and lease of the jobs that their handlers have settled themselves.
    """

    app: App
    cancelled: Container[int] = ()
    settled: set[tuple[int, int]] = field(default_factory=set)


@dataclass(frozen=True)
class Job:
    """The job that a handler runs, for handlers that have a parameter of this type.

    Attributes:
        id: the job; the same in every attempt.
        lease: the lease of this attempt, the proof that the job is yours.
        queue: where it was claimed.
        task: the name of the handler.
        payload: the arguments.
        attempt: 1 in the first attempt.
        max_attempts: after so many the job is a dead letter.
        headers: what travels with the job, or None.
        enqueued_at: when it was enqueued.
        deadline: when its handler is ended, if the task has a ``timeout``.
    """

    id: int
    lease: int
    queue: str
    task: str | None
    payload: Json
    attempt: int
    max_attempts: int
    headers: Json
    enqueued_at: datetime
    deadline: datetime | None = None
    _handle: Handle | None = field(default=None, repr=False, compare=False)

    @property
    def cancelled(self) -> bool:
        """Whether the job is asked to stop, as the worker knows since it last extended the lease.

        A handler that stops and raises ends the job as cancelled; one that returns ends it as done.
        """
        return self._handle is not None and self.id in self._handle.cancelled

    def extend(self, lease_for: Interval | None = None) -> datetime:
        """Extend the lease, beyond what the worker does by itself; see :meth:`pgqueue.Client.extend`.

        It is shared with jobs that were claimed together with this one.
        """
        return self._app.client.extend(self.lease, lease_for=lease_for)

    async def extend_async(self, lease_for: Interval | None = None) -> datetime:
        """Extend the lease, in a coroutine; as :meth:`extend`."""
        return await self._app.async_client.extend(self.lease, lease_for=lease_for)

    def progress(self, value: Json) -> bool:
        """Tell how far the job is; see :meth:`pgqueue.Client.progress`.

        Example:
            >>> job.progress({"done": 3, "of": 4})
            True
        """
        return self._app.client.progress(self.id, self.lease, value)

    async def progress_async(self, value: Json) -> bool:
        """Tell how far the job is, in a coroutine; as :meth:`progress`."""
        return await self._app.async_client.progress(self.id, self.lease, value)

    def ack(self, result: Json = None, *, connection: psycopg.Connection[Any] | HasConnection) -> None:
        """Acknowledge the job in the handler's own transaction: what it writes there takes effect exactly once.

        The worker leaves the job alone then. Whatever rolls the transaction back takes the acknowledgement along: if
        the handler raises, the job is tried again after its backoff; if it just returns, when the lease has expired.

        Args:
            result: kept with the job, instead of what the handler returns.
            connection: of the transaction. Commit it before the handler returns.

        Raises:
            LeaseLost: the job is no longer yours. Do not commit.

        Example:
            >>> with psycopg.connect(dsn) as connection:
            ...     connection.execute("UPDATE account SET balance = balance - 10 WHERE id = 7")
            ...     job.ack(connection=connection)
        """
        self._app.client.ack(self.id, self.lease, result, connection=connection)
        self._settled()

    async def ack_async(self, result: Json = None, *, connection: psycopg.AsyncConnection[Any] | HasConnection) -> None:
        """Acknowledge the job in the transaction of a coroutine; as :meth:`ack`."""
        await self._app.async_client.ack(self.id, self.lease, result, connection=connection)
        self._settled()

    @property
    def _app(self) -> App:
        if self._handle is None:
            raise RuntimeError("no worker runs this job: call the method of the client")
        return self._handle.app

    def _settled(self) -> None:
        if self._handle is not None:
            self._handle.settled.add((self.id, self.lease))

    @classmethod
    def of(cls, claimed: ClaimedJob) -> Job:
        """Return the job of a claimed row."""
        return cls(
            claimed.id,
            claimed.lease,
            claimed.queue,
            claimed.task,
            claimed.payload,
            claimed.attempt,
            claimed.max_attempts,
            claimed.headers,
            claimed.enqueued_at,
        )


@dataclass(frozen=True)
class Options:
    """How a job is enqueued; see the arguments of :meth:`pgqueue.Client.enqueue`."""

    queue: str
    priority: int | None = None
    run_at: datetime | None = None
    delay: Interval | None = None
    max_attempts: int | None = None
    unique_key: str | None = None
    group_key: str | None = None
    headers: Json = None
    after: tuple[int, ...] | None = None
    on_dead: Literal["fail", "skip", "run"] | None = None
    connection: AnyConnection | None = None


@dataclass(frozen=True)
class Limits:
    """How the jobs of a task are run; see the arguments of :meth:`App.task`."""

    retry: RetryPolicy | None = None
    timeout: float | None = None
    """In seconds"""


class Task(Generic[P, R]):
    """A function that can be enqueued. Calling it runs the function here and now, as if it were no task.

    Made by :meth:`App.task`.

    Attributes:
        name: what jobs call it; the link between an enqueued job and the code, so keep it stable.
        queue: where its jobs go.
        is_async: whether the function is a coroutine function.
        limits: how it is run.
        takes_payload: whether the payload's keys are the function's arguments; not so in a fallback.
    """

    takes_payload = True

    def __init__(self, app: App, function: Callable[..., R], name: str, options: Options, limits: Limits) -> None:
        self.app = app
        self.function = function
        self.name = name
        self.options = options
        self.limits = limits
        self.is_async = inspect.iscoroutinefunction(function)
        self.job_parameter, self._signature = _inspect(function)
        self.codec = app.codec(function)
        functools.update_wrapper(self, function)

    @property
    def queue(self) -> str:
        """The queue of its jobs."""
        return self.options.queue

    def __repr__(self) -> str:
        return f"<Task {self.name!r} queue={self.queue!r}>"

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Run the function here and now."""
        return self.function(*args, **kwargs)

    def using(
        self,
        *,
        queue: str | None = None,
        priority: int | None = None,
        run_at: datetime | None = None,
        delay: Interval | None = None,
        max_attempts: int | None = None,
        unique_key: str | None = None,
        group_key: str | None = None,
        headers: Json = None,
        after: Iterable[int] | None = None,
        on_dead: Literal["fail", "skip", "run"] | None = None,
        connection: AnyConnection | None = None,
    ) -> Task[P, R]:
        """Return the same task with other options; what is left out stays.

        Args:
            queue, priority, run_at, delay, max_attempts, unique_key, group_key, headers, after, on_dead, connection:
                see :meth:`pgqueue.Client.enqueue`.

        Example:
            >>> send.using(delay=60, connection=connection).enqueue(to="ann@example.com")
            42
        """
        changes: dict[str, Any] = {k: value for k, value in locals().items() if k != "self" and value is not None}
        if after is not None:
            changes["after"] = tuple(after)
        other = copy.copy(self)
        other.options = replace(self.options, **changes)
        return other

    @overload
    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> int: ...
    @overload
    def enqueue(self, *args: Any, connection: AnyConnection, **kwargs: Any) -> int: ...
    def enqueue(self, *args: Any, **kwargs: Any) -> int:
        """Enqueue a job that will call the function with these arguments.

        Args:
            args, kwargs: the function's arguments, as JSON can carry them.
            connection: join the transaction of this connection (a type checker looks at the other arguments
                only with ``using(connection=…)``).

        Returns:
            The id of the job.

        Raises:
            TypeError: the function does not take these arguments.
            QueueNotFound: the task's queue does not exist.
            InvalidArgument: an argument is no JSON.

        Example:
            >>> send.enqueue(to="ann@example.com")
            42
        """
        request = self._prepare(args, kwargs)
        with self.app.enqueuing(request):
            id = self.app.client.enqueue(payload=request.payloads[0], task=self.name, **request.options)
            request.ids.append(id)
        return id

    @overload
    async def enqueue_async(self, *args: P.args, **kwargs: P.kwargs) -> int: ...
    @overload
    async def enqueue_async(self, *args: Any, connection: AnyConnection, **kwargs: Any) -> int: ...
    async def enqueue_async(self, *args: Any, **kwargs: Any) -> int:
        """Enqueue a job from asyncio code; as :meth:`enqueue`."""
        request = self._prepare(args, kwargs)
        client = self.app.async_client
        with self.app.enqueuing(request):
            id = await client.enqueue(payload=request.payloads[0], task=self.name, **request.options)
            request.ids.append(id)
        return id

    def enqueue_many(self, arguments: Iterable[Mapping[str, Any]]) -> list[int]:
        """Enqueue many jobs in one statement.

        Args:
            arguments: for each job the keyword arguments of the function.

        Returns:
            The ids, in the same order. Raises what :meth:`enqueue` raises; then no job is added.

        Example:
            >>> send.enqueue_many({"to": address} for address in addresses)
            [43, 44]
        """
        request = self._prepare_many(arguments)
        with self.app.enqueuing(request):
            request.ids += self.app.client.enqueue_many(payloads=request.payloads, task=self.name, **request.options)
        return request.ids

    async def enqueue_many_async(self, arguments: Iterable[Mapping[str, Any]]) -> list[int]:
        """Enqueue many jobs in one statement from asyncio code; as :meth:`enqueue_many`."""
        request = self._prepare_many(arguments)
        client = self.app.async_client
        with self.app.enqueuing(request):
            request.ids += await client.enqueue_many(payloads=request.payloads, task=self.name, **request.options)
        return request.ids

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Request:
        options = dict(vars(self.options))
        if "connection" in kwargs and "connection" not in self._signature.parameters:
            options["connection"] = kwargs.pop("connection")
        return Request(self, [self._bind(args, kwargs)], options)

    def _prepare_many(self, arguments: Iterable[Mapping[str, Any]]) -> Request:
        options = dict(vars(self.options))
        if options.pop("unique_key") is not None or options.pop("group_key") is not None:
            raise TypeError("enqueue_many has no unique_key and no group_key: they belong to one job")
        return Request(self, [self._bind((), one) for one in arguments], options)

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        bound = self._signature.bind(*args, **kwargs)
        payload = bound.arguments
        for name in tuple(payload):
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                payload.update(payload.pop(name))
        return payload if self.codec is None else self.codec.dump(payload)


class App:
    """A set of tasks and the database their jobs are in.

    Args:
        dsn: connection string; None takes the environment variable PGQUEUE_DSN, and without it libpq's own
            (PGHOST, PGDATABASE, …).
        prepare_threshold: see :class:`pgqueue.Client`.
        middleware: code around enqueueing and running; the first is the outermost.
        codec: given a function, returns how its arguments and results become JSON, or None if they are JSON already;
            by default what their annotations say, see :func:`pgqueue.codecs.by_annotations`.

    Attributes:
        tasks: by name.
        middleware: the same list; complete before a worker starts.
        state: a place for what handlers share, such as a pool, filled by what ``on_startup`` names.

    Example:
        >>> app = App("dbname=shop")
        >>> @app.task("send", queue="mail")
        ... def send(to: str) -> None: ...
        >>> send.enqueue(to="ann@example.com")
        42
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        prepare_threshold: int | None = 5,
        middleware: Iterable[Middleware] = (),
        codec: Callable[[Callable[..., Any]], Codec | None] = by_annotations,
    ) -> None:
        self._dsn = dsn
        self.codec = codec
        self.prepare_threshold = prepare_threshold
        self.tasks: dict[str, Task[..., Any]] = {}
        self.middleware = list(middleware)
        self.fallback_task: Task[..., Any] | None = None
        self.state = SimpleNamespace()
        self.startup: list[Hook] = []
        self.shutdown: list[Hook] = []
        self._client: Client | None = None
        self.eager_clients: tuple[Client, AsyncClient] | None = None
        """Instead of its own; see :func:`pgqueue.testing.eager`."""
        self._lock = threading.Lock()
        self._async_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncClient] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def dsn(self) -> str:
        """The connection string; empty if only libpq's environment says where the database is."""
        return os.environ.get("PGQUEUE_DSN", "") if self._dsn is None else self._dsn

    @dsn.setter
    def dsn(self, dsn: str | None) -> None:
        self.close()
        with self._lock:
            clients = list(self._async_clients.items())
            self._async_clients.clear()
        for loop, client in clients:  # each can be closed in its own event loop only
            if not loop.is_closed():
                asyncio.run_coroutine_threadsafe(client.close(), loop)
        self._dsn = dsn

    @property
    def client(self) -> Client:
        """The client that ``enqueue`` uses, opened when first asked for."""
        from pgqueue.client import Client

        if self.eager_clients is not None:
            return self.eager_clients[0]
        with self._lock:
            if self._client is None:
                self._client = Client(self.dsn, prepare_threshold=self.prepare_threshold)
            return self._client

    @property
    def async_client(self) -> AsyncClient:
        """The client that ``enqueue_async`` uses in the running event loop."""
        from pgqueue.client import AsyncClient

        if self.eager_clients is not None:
            return self.eager_clients[1]
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._async_clients:
                self._async_clients[loop] = AsyncClient(self.dsn, prepare_threshold=self.prepare_threshold)
            return self._async_clients[loop]

    def fallback(
        self, *, retry: RetryPolicy | None = None, timeout: float | timedelta | None = None
    ) -> Callable[[Callable[[Job], Any]], Task[..., Any]]:
        """Make a function the handler of all jobs that name none of the tasks, whatever their payload is.

        Args:
            retry, timeout: see :meth:`task`.

        Raises:
            ValueError: there is one already.
            TypeError: the function does not take a :class:`Job`, and nothing else.

        Example:
            >>> @app.fallback()
            ... def forward(job: Job) -> None:
            ...     requests.post(url, json=job.payload)
        """

        def decorate(function: Callable[[Job], Any]) -> Task[..., Any]:
            if self.fallback_task is not None:
                raise ValueError(f"there is already a fallback: {self.fallback_task}")
            task: Task[..., Any] = Task(self, function, "fallback", Options("default"), checked_limits(retry, timeout))
            if task.job_parameter is None or len(inspect.signature(function).parameters) != 1:
                raise TypeError(f"{function!r}: a fallback has one parameter, annotated pgqueue.Job")
            task.takes_payload = False
            self.fallback_task = task
            return task

        return decorate

    def on_startup(self, hook: H) -> H:
        """Have a function or coroutine function called by each worker before it claims anything.

        If it raises, the worker does not start.

        Example:
            >>> @app.on_startup
            ... async def connect() -> None:
            ...     app.state.http = httpx.AsyncClient()
        """
        self.startup.append(hook)
        return hook

    def on_shutdown(self, hook: H) -> H:
        """Have a function or coroutine function called when a worker has ended its work, the last one first."""
        self.shutdown.append(hook)
        return hook

    def worker(self, queues: Sequence[str] | Mapping[str, int] | None = None, **options: Any) -> Worker:
        """Return a worker of this app, to embed it in another program; arguments as of :class:`pgqueue.Worker`.

        Example:
            >>> with app.worker(["mail"], concurrency=4):
            ...     serve()
        """
        from pgqueue.worker import Worker

        return Worker(self, queues, **options)

    def enqueuing(self, request: Request) -> AbstractContextManager[object]:
        """Enter what the middleware wants to be around an enqueue."""
        stack = ExitStack()
        for one in self.middleware:
            stack.enter_context(one.enqueuing(request))
        return stack

    @contextmanager
    def connected_to(self, dsn: str) -> Iterator[App]:
        """Use another database for the time of a ``with`` block."""
        before = self._dsn
        self.dsn = dsn
        try:
            yield self
        finally:
            self.dsn = before

    def close(self) -> None:
        """Close the client's connections; they are opened again when needed."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """Close the connections of both clients, the async one of the running event loop."""
        with self._lock:
            client = self._async_clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()
        self.close()

    def task(
        self,
        name: str | None = None,
        *,
        queue: str = "default",
        priority: int | None = None,
        max_attempts: int | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | timedelta | None = None,
    ) -> _Decorator:
        """Make a function a task.

        The jobs' payloads are objects whose keys are the function's parameters. A parameter annotated
        :class:`Job` is not part of the payload: it gets the running job; put it first, then type checkers
        know. Whatever the function returns is kept as the job's result; an exception rejects the job.

        Args:
            name: what jobs call it; ``module.qualname`` if left out, but then it changes when code moves.
            queue: where its jobs go. The queue must exist.
            priority: -100 to 100, lower runs first.
            max_attempts: how often a job is tried before it is a dead letter; the queue's setting if left out.
            retry: when a failed job is tried again, as far as its attempts allow. A delay (timedelta, seconds, or
                text); delays for the first failure, the second, and so on, of which the last is repeated; a function of
                the number of the attempt and the exception that returns a delay, None (the queue's backoff) or False;
                False: not at all. The queue's backoff if left out.
            timeout: how long an attempt may run (timedelta or seconds). After that :class:`pgqueue.TimedOut` is raised
                in a function, and a coroutine is cancelled. If it does not end within a second all the same, the job is
                taken from it and tried again as after any failure, by another worker perhaps.

        Raises:
            ValueError: there is already a task of this name, or the timeout is not positive.
            TypeError: the function has parameters that a payload cannot fill (``*args``, positional-only).

        Example:
            >>> @app.task("send", queue="mail")
            ... async def send(job: Job, to: str) -> None: ...
        """
        options = Options(queue, priority=priority, max_attempts=max_attempts)
        return _Decorator(self, name, options, checked_limits(retry, timeout))


@dataclass(frozen=True)
class _Decorator:
    """What ``@app.task(…)`` returns; a class so that both kinds of function can be told apart."""

    app: App
    name: str | None
    options: Options
    limits: Limits

    @overload
    def __call__(self, function: Callable[Concatenate[Job, P], R]) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Task[P, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Task[..., Any]:
        name = self.name or f"{function.__module__}.{function.__qualname__}"
        if name in self.app.tasks:
            raise ValueError(f"there is already a task named {name!r}")
        task: Task[..., Any] = Task(self.app, function, name, self.options, self.limits)
        self.app.tasks[name] = task
        return task


def checked_limits(retry: RetryPolicy | None, timeout: float | timedelta | None) -> Limits:
    """Return the limits of a task, if they are some.

    Raises:
        ValueError: the timeout is not positive.
        TypeError: the retry policy is none.
    """
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if seconds is not None and not seconds > 0:
        raise ValueError(f"a timeout is positive, and not {timeout}")
    return Limits(checked(retry), seconds)


def _inspect(function: Callable[..., Any]) -> tuple[str | None, inspect.Signature]:
    """Return the parameter that takes the job, and the signature without it."""
    signature = inspect.signature(function)
    try:
        hints = get_type_hints(function)
    except Exception:  # a hint that exists for type checkers only
        hints = {}
    job_parameter = None
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise TypeError(f"{function!r}: a payload cannot fill the parameter {parameter}")
        if hints.get(parameter.name, parameter.annotation) in (Job, "Job", "pgqueue.Job"):
            job_parameter = parameter.name
    rest = [p for p in signature.parameters.values() if p.name != job_parameter]
    return job_parameter, signature.replace(parameters=rest)
