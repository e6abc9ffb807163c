"""Tasks: Python functions that run as jobs."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, get_type_hints, overload

from pgqueue._calls import AnyConnection, ClaimedJob, Interval, Json

if TYPE_CHECKING:
    from pgqueue.client import AsyncClient, Client

P = ParamSpec("P")
R = TypeVar("R")


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
    _cancelled: Container[int] = field(default=(), repr=False, compare=False)

    @property
    def cancelled(self) -> bool:
        """Whether the job is asked to stop, as the worker knows since it last extended the lease.

        A handler that stops and raises ends the job as cancelled; one that returns ends it as done.
        """
        return self.id in self._cancelled

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


class Task(Generic[P, R]):
    """A function that can be enqueued. Calling it runs the function here and now, as if it were no task.

    Made by :meth:`App.task`.

    Attributes:
        name: what jobs call it; the link between an enqueued job and the code, so keep it stable.
        queue: where its jobs go.
        is_async: whether the function is a coroutine function.
    """

    def __init__(self, app: App, function: Callable[..., R], name: str, options: Options) -> None:
        self.app = app
        self.function = function
        self.name = name
        self.options = options
        self.is_async = inspect.iscoroutinefunction(function)
        self.job_parameter, self._signature = _inspect(function)
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
        given = {
            "queue": queue,
            "priority": priority,
            "run_at": run_at,
            "delay": delay,
            "max_attempts": max_attempts,
            "unique_key": unique_key,
            "group_key": group_key,
            "headers": headers,
            "after": None if after is None else tuple(after),
            "on_dead": on_dead,
            "connection": connection,
        }
        changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        return Task(self.app, self.function, self.name, replace(self.options, **changes))

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
        payload, options = self._prepare(args, kwargs)
        return self.app.client.enqueue(payload=payload, task=self.name, **options)

    @overload
    async def enqueue_async(self, *args: P.args, **kwargs: P.kwargs) -> int: ...
    @overload
    async def enqueue_async(self, *args: Any, connection: AnyConnection, **kwargs: Any) -> int: ...
    async def enqueue_async(self, *args: Any, **kwargs: Any) -> int:
        """Enqueue a job from asyncio code; as :meth:`enqueue`."""
        payload, options = self._prepare(args, kwargs)
        client = self.app.async_client
        return await client.enqueue(payload=payload, task=self.name, **options)

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
        payloads, options = self._prepare_many(arguments)
        return self.app.client.enqueue_many(payloads=payloads, task=self.name, **options)

    async def enqueue_many_async(self, arguments: Iterable[Mapping[str, Any]]) -> list[int]:
        """Enqueue many jobs in one statement from asyncio code; as :meth:`enqueue_many`."""
        payloads, options = self._prepare_many(arguments)
        client = self.app.async_client
        return await client.enqueue_many(payloads=payloads, task=self.name, **options)

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        options = dict(vars(self.options))
        if "connection" in kwargs and "connection" not in self._signature.parameters:
            options["connection"] = kwargs.pop("connection")
        return self._bind(args, kwargs), options

    def _prepare_many(self, arguments: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        options = dict(vars(self.options))
        if options.pop("unique_key") is not None or options.pop("group_key") is not None:
            raise TypeError("enqueue_many has no unique_key and no group_key: they belong to one job")
        return [self._bind((), one) for one in arguments], options

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        bound = self._signature.bind(*args, **kwargs)
        payload = bound.arguments
        for name in tuple(payload):
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                payload.update(payload.pop(name))
        return payload


class App:
    """A set of tasks and the database their jobs are in.

    Args:
        dsn: connection string; None takes the environment variable PGQUEUE_DSN, and without it libpq's own
            (PGHOST, PGDATABASE, …).
        prepare_threshold: see :class:`pgqueue.Client`.

    Example:
        >>> app = App("dbname=shop")
        >>> @app.task("send", queue="mail")
        ... def send(to: str) -> None: ...
        >>> send.enqueue(to="ann@example.com")
        42
    """

    def __init__(self, dsn: str | None = None, *, prepare_threshold: int | None = 5) -> None:
        self._dsn = dsn
        self.prepare_threshold = prepare_threshold
        self.tasks: dict[str, Task[..., Any]] = {}
        self._client: Client | None = None
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
        self._dsn = dsn

    @property
    def client(self) -> Client:
        """The client that ``enqueue`` uses, opened when first asked for."""
        from pgqueue.client import Client

        with self._lock:
            if self._client is None:
                self._client = Client(self.dsn, prepare_threshold=self.prepare_threshold)
            return self._client

    @property
    def async_client(self) -> AsyncClient:
        """The client that ``enqueue_async`` uses in the running event loop."""
        from pgqueue.client import AsyncClient

        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._async_clients:
                self._async_clients[loop] = AsyncClient(self.dsn, prepare_threshold=self.prepare_threshold)
            return self._async_clients[loop]

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

        Raises:
            ValueError: there is already a task of this name.
            TypeError: the function has parameters that a payload cannot fill (``*args``, positional-only).

        Example:
            >>> @app.task("send", queue="mail")
            ... async def send(job: Job, to: str) -> None: ...
        """
        return _Decorator(self, name, Options(queue, priority=priority, max_attempts=max_attempts))


@dataclass(frozen=True)
class _Decorator:
    """What ``@app.task(…)`` returns; a class so that both kinds of function can be told apart."""

    app: App
    name: str | None
    options: Options

    @overload
    def __call__(self, function: Callable[Concatenate[Job, P], R]) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Task[P, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Task[..., Any]:
        name = self.name or f"{function.__module__}.{function.__qualname__}"
        if name in self.app.tasks:
            raise ValueError(f"there is already a task named {name!r}")
        task: Task[..., Any] = Task(self.app, function, name, self.options)
        self.app.tasks[name] = task
        return task


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
