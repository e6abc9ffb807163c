"""The client: every function of pgq as a method, for threads and for asyncio."""

from __future__ import annotations

import asyncio
import inspect
import select
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import psycopg

from pgqueue import _calls
from pgqueue._calls import (
    BatchState,
    Call,
    ClaimedJob,
    DeadLetter,
    Enqueued,
    Failure,
    Finding,
    HasConnection,
    Holder,
    JobAttempt,
    JobState,
    LiveJob,
    QueueActivity,
    QueueSetting,
    QueueStat,
    WorkerStat,
)
from pgqueue._execute import PID, async_execute, execute, is_pooled
from pgqueue._vigil import AsyncVigil, Ears, Vigil
from pgqueue.adapters import async_connection, sync_connection
from pgqueue.errors import translated
from pgqueue.exclusive import AsyncExclusive, Exclusive

__all__ = [
    "AsyncClient",
    "BatchState",
    "ClaimedJob",
    "Client",
    "DeadLetter",
    "Enqueued",
    "Failure",
    "Finding",
    "Holder",
    "JobAttempt",
    "JobState",
    "LiveJob",
    "QueueActivity",
    "QueueSetting",
    "QueueStat",
    "WorkerStat",
]

if TYPE_CHECKING:
    from typing_extensions import Self

P = ParamSpec("P")
T = TypeVar("T")


def _signature(call: Callable[..., Any]) -> inspect.Signature:
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.signature(call)
    return signature.replace(parameters=[self, *signature.parameters.values()])


def _sync(call: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    @wraps(call)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(call(*args, **kwargs))

    method.__signature__ = _signature(call)  # type: ignore[attr-defined]
    return method


def _async(call: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    @wraps(call)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(call(*args, **kwargs))

    method.__signature__ = _signature(call)  # type: ignore[attr-defined]
    return method


class _Settings:
    """What both clients are made from."""

    def __init__(self, dsn: str | None, pool_size: int, prepare_threshold: int | None) -> None:
        self._pool_settings: dict[str, Any] = {
            "conninfo": dsn or "",
            "min_size": 0,
            "max_size": pool_size,
            "open": False,
            "kwargs": {"autocommit": True, "prepare_threshold": prepare_threshold},
        }
        self._connection: Any = None
        self._ears: Ears[Any] = Ears()

    def _dsn(self) -> str:
        if self._connection is not None:
            raise TypeError("exclusive needs a connection of its own: make the client from a connection string")
        return str(self._pool_settings["conninfo"])

    def _dsn_or_none(self) -> str | None:
        return None if self._connection is not None else self._dsn()


class Client(_Settings):
    """The queue, for code with threads or without.

    Args:
        dsn: connection string; None takes libpq's environment (PGHOST, PGDATABASE, …).
        connection: use the caller's connection, and with it the caller's transaction, instead of a pool: a connection
            or cursor of psycopg, a SQLAlchemy Session or Connection over psycopg 3, or a Django connection.
            Every method also takes ``connection=`` for one call.
        pool_size: the most connections of its own pool. They are opened when needed.
        prepare_threshold: psycopg's setting: prepare a statement after so many uses. Behind a pooler, which may not
            know prepared statements (PgBouncer before 1.21), its own connections prepare none.

    Safe to share between threads, unless it has a caller's connection.

    Example:
        >>> with Client("dbname=shop") as client:
        ...     client.enqueue("mail", {"to": "ann@example.com"})
        42
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        connection: psycopg.Connection[Any] | HasConnection | None = None,
        pool_size: int = 8,
        prepare_threshold: int | None = 5,
    ) -> None:
        super().__init__(dsn, pool_size, prepare_threshold)
        self._connection = connection
        self._pool: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the pool, and what ``wait`` has opened. A caller's connection stays open."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
        while ear := self._ears.take():
            self._ears.closed()
            ear.close()

    def _open_pool(self) -> Any:
        with self._lock:
            if self._pool is None:
                from psycopg_pool import ConnectionPool

                self._pool = ConnectionPool(**self._pool_settings, configure=_configure, check=_check)
                self._pool.open()
            return self._pool

    def _run(self, call: Call[T]) -> T:
        given = self._connection if call.connection is None else call.connection
        with translated():
            if given is None:
                with self._open_pool().connection() as own:
                    return execute(own, call)
            connection = sync_connection(given)
            if not isinstance(connection, psycopg.Connection):
                raise TypeError(f"Client needs a connection of psycopg 3 that is not async, not {given!r}")
            return execute(connection, call)

    def wait(self, id: int, timeout: float | timedelta | None = 60) -> JobState | None:
        """Wait until a job is done, dead or cancelled; retries are waited for.

        At first it looks again and again. If that takes longer than 50 ms, it opens a connection of its own, on which
        it is told when the job has ended, and looks itself ever more rarely. The client keeps this connection, and the
        next wait is told from the beginning. Where that is not possible (the client has a caller's connection, four
        waits have one already, there is a pooler in between, or no connection left), it goes on looking, four times a
        second at least.

        Args:
            id: the job. It must be committed.
            timeout: how long to wait (timedelta or seconds); None: for ever.

        Returns:
            Its state, None if there is no such job or its retention is over.

        Raises:
            TimeoutError: it has not ended by then.

        Example:
            >>> job = client.enqueue("square", {"n": 7})
            >>> client.wait(job).result
            49
        """
        with Vigil(id, timeout, self._dsn_or_none(), self._ears) as vigil:
            while not vigil.over(self.job_status(id)):
                vigil.sleep()
            return vigil.state

    def exclusive(self, name: str, timeout: float | timedelta | None = 0) -> Exclusive:
        """Be the only one under a name, on all machines, for the time of a ``with`` block.

        Args:
            name: any text that all who exclude each other agree on.
            timeout: how long to wait for the others (timedelta or seconds); 0: not at all; None: for ever.

        Returns:
            A context manager, which is true while one is the only one.

        Example:
            >>> with client.exclusive("nightly report") as alone:
            ...     if alone:
            ...         report()
        """
        return Exclusive(self._dsn(), name, timeout)

    enqueue = _sync(_calls.enqueue)
    enqueue_many = _sync(_calls.enqueue_many)
    enqueue_unique = _sync(_calls.enqueue_unique)
    enqueue_unique_many = _sync(_calls.enqueue_unique_many)
    batch = _sync(_calls.batch)
    add_to_batch = _sync(_calls.add_to_batch)
    claim = _sync(_calls.claim)
    ack = _sync(_calls.ack)
    ack_many = _sync(_calls.ack_many)
    reject = _sync(_calls.reject)
    reject_many = _sync(_calls.reject_many)
    extend = _sync(_calls.extend)
    extend_many = _sync(_calls.extend_many)
    release = _sync(_calls.release)
    snooze = _sync(_calls.snooze)
    snooze_many = _sync(_calls.snooze_many)
    cancel = _sync(_calls.cancel)
    cancel_many = _sync(_calls.cancel_many)
    cancel_requested = _sync(_calls.cancel_requested)
    cancel_claimed = _sync(_calls.cancel_claimed)
    reschedule = _sync(_calls.reschedule)
    set_priority = _sync(_calls.set_priority)
    job_status = _sync(_calls.job_status)
    batch_status = _sync(_calls.batch_status)
    waits_for = _sync(_calls.waits_for)
    attempts = _sync(_calls.attempts)
    progress = _sync(_calls.progress)
    job_progress = _sync(_calls.job_progress)
    schedule = _sync(_calls.schedule)
    unschedule = _sync(_calls.unschedule)
    next_runs = _sync(_calls.next_runs)
    try_exclusive = _sync(_calls.try_exclusive)
    exclusive_holder = _sync(_calls.exclusive_holder)
    create_queue = _sync(_calls.create_queue)
    alter_queue = _sync(_calls.alter_queue)
    set_unique = _sync(_calls.set_unique)
    set_limits = _sync(_calls.set_limits)
    set_validator = _sync(_calls.set_validator)
    drop_queue = _sync(_calls.drop_queue)
    pause = _sync(_calls.pause)
    resume = _sync(_calls.resume)
    purge = _sync(_calls.purge)
    purge_state = _sync(_calls.purge_state)
    redrive = _sync(_calls.redrive)
    redrive_where = _sync(_calls.redrive_where)
    dead_letters = _sync(_calls.dead_letters)
    discard = _sync(_calls.discard)
    discard_where = _sync(_calls.discard_where)
    maintain = _sync(_calls.maintain)
    promote = _sync(_calls.promote)
    reap = _sync(_calls.reap)
    rotate = _sync(_calls.rotate)
    stats = _sync(_calls.stats)
    queues = _sync(_calls.queues)
    jobs = _sync(_calls.jobs)
    workers = _sync(_calls.workers)
    activity = _sync(_calls.activity)
    failures = _sync(_calls.failures)
    doctor = _sync(_calls.doctor)
    version = _sync(_calls.version)
    grant_producer = _sync(_calls.grant_producer)
    grant_consumer = _sync(_calls.grant_consumer)
    grant_admin = _sync(_calls.grant_admin)


class AsyncClient(_Settings):
    """The queue, for asyncio: the same methods as :class:`Client`, to be awaited.

    Args:
        dsn: connection string; None takes libpq's environment (PGHOST, PGDATABASE, …).
        connection: use the caller's connection, and with it the caller's transaction, instead of a pool.
            Every method also takes ``connection=`` for one call.
        pool_size: the most connections of its own pool. They are opened when needed.
        prepare_threshold: see :class:`Client`.

    Belongs to the event loop in which it was first used.

    Example:
        >>> async with AsyncClient("dbname=shop") as client:
        ...     await client.enqueue("mail", {"to": "ann@example.com"})
        42
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        connection: psycopg.AsyncConnection[Any] | HasConnection | None = None,
        pool_size: int = 8,
        prepare_threshold: int | None = 5,
    ) -> None:
        super().__init__(dsn, pool_size, prepare_threshold)
        self._connection = connection
        self._pool: Any = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the pool, and what ``wait`` has opened. A caller's connection stays open."""
        async with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()
        while ear := self._ears.take():
            self._ears.closed()
            await ear.close()

    async def _open_pool(self) -> Any:
        async with self._lock:
            if self._pool is None:
                from psycopg_pool import AsyncConnectionPool

                self._pool = AsyncConnectionPool(**self._pool_settings, configure=_async_configure, check=_async_check)
                await self._pool.open()
            return self._pool

    async def _run(self, call: Call[T]) -> T:
        given = self._connection if call.connection is None else call.connection
        with translated():
            if given is None:
                async with (await self._open_pool()).connection() as own:
                    return await async_execute(own, call)
            connection = await async_connection(given)
            if not isinstance(connection, psycopg.AsyncConnection):
                raise TypeError(f"AsyncClient needs an async connection of psycopg 3, not {given!r}")
            return await async_execute(connection, call)

    async def wait(self, id: int, timeout: float | timedelta | None = 60) -> JobState | None:
        """Wait until a job is done, dead or cancelled; see :meth:`Client.wait`.

        Example:
            >>> job = await client.enqueue("square", {"n": 7})
            >>> (await client.wait(job)).result
            49
        """
        async with AsyncVigil(id, timeout, self._dsn_or_none(), self._ears) as vigil:
            while not vigil.over(await self.job_status(id)):
                await vigil.sleep()
            return vigil.state

    def exclusive(self, name: str, timeout: float | timedelta | None = 0) -> AsyncExclusive:
        """Be the only one under a name for the time of an ``async with`` block; see :meth:`Client.exclusive`.

        If the connection is lost, the block is cancelled and raises :class:`ExclusiveLost`.

        Example:
            >>> async with client.exclusive("nightly report") as alone:
            ...     if alone:
            ...         await report()
        """
        return AsyncExclusive(self._dsn(), name, timeout)

    enqueue = _async(_calls.enqueue)
    enqueue_many = _async(_calls.enqueue_many)
    enqueue_unique = _async(_calls.enqueue_unique)
    enqueue_unique_many = _async(_calls.enqueue_unique_many)
    batch = _async(_calls.batch)
    add_to_batch = _async(_calls.add_to_batch)
    claim = _async(_calls.claim)
    ack = _async(_calls.ack)
    ack_many = _async(_calls.ack_many)
    reject = _async(_calls.reject)
    reject_many = _async(_calls.reject_many)
    extend = _async(_calls.extend)
    extend_many = _async(_calls.extend_many)
    release = _async(_calls.release)
    snooze = _async(_calls.snooze)
    snooze_many = _async(_calls.snooze_many)
    cancel = _async(_calls.cancel)
    cancel_many = _async(_calls.cancel_many)
    cancel_requested = _async(_calls.cancel_requested)
    cancel_claimed = _async(_calls.cancel_claimed)
    reschedule = _async(_calls.reschedule)
    set_priority = _async(_calls.set_priority)
    job_status = _async(_calls.job_status)
    batch_status = _async(_calls.batch_status)
    waits_for = _async(_calls.waits_for)
    attempts = _async(_calls.attempts)
    progress = _async(_calls.progress)
    job_progress = _async(_calls.job_progress)
    schedule = _async(_calls.schedule)
    unschedule = _async(_calls.unschedule)
    next_runs = _async(_calls.next_runs)
    try_exclusive = _async(_calls.try_exclusive)
    exclusive_holder = _async(_calls.exclusive_holder)
    create_queue = _async(_calls.create_queue)
    alter_queue = _async(_calls.alter_queue)
    set_unique = _async(_calls.set_unique)
    set_limits = _async(_calls.set_limits)
    set_validator = _async(_calls.set_validator)
    drop_queue = _async(_calls.drop_queue)
    pause = _async(_calls.pause)
    resume = _async(_calls.resume)
    purge = _async(_calls.purge)
    purge_state = _async(_calls.purge_state)
    redrive = _async(_calls.redrive)
    redrive_where = _async(_calls.redrive_where)
    dead_letters = _async(_calls.dead_letters)
    discard = _async(_calls.discard)
    discard_where = _async(_calls.discard_where)
    maintain = _async(_calls.maintain)
    promote = _async(_calls.promote)
    reap = _async(_calls.reap)
    rotate = _async(_calls.rotate)
    stats = _async(_calls.stats)
    queues = _async(_calls.queues)
    jobs = _async(_calls.jobs)
    workers = _async(_calls.workers)
    activity = _async(_calls.activity)
    failures = _async(_calls.failures)
    doctor = _async(_calls.doctor)
    version = _async(_calls.version)
    grant_producer = _async(_calls.grant_producer)
    grant_consumer = _async(_calls.grant_consumer)
    grant_admin = _async(_calls.grant_admin)


def _configure(connection: psycopg.Connection[Any]) -> None:
    if is_pooled(connection, connection.execute(PID, prepare=False).fetchone()):
        connection.prepare_threshold = None


async def _async_configure(connection: psycopg.AsyncConnection[Any]) -> None:
    if is_pooled(connection, await (await connection.execute(PID, prepare=False)).fetchone()):
        connection.prepare_threshold = None


def _has_news(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Return whether the server sent something to a connection at rest: as a rule that it is closed."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _check(connection: psycopg.Connection[Any]) -> None:
    if _has_news(connection):
        connection.execute("")


async def _async_check(connection: psycopg.AsyncConnection[Any]) -> None:
    if _has_news(connection):
        await connection.execute("")
