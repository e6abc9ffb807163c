"""Every function of pgq as a Python function that describes the call, without making it.

The sync and the async client share these: signature, documentation, SQL, arguments and the decoding of the result are
written here once. There is no logic of the queue in here, only translation. ``connection``, which all of them take,
is the caller's connection or cursor to use instead of the client's own.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache, lru_cache
from typing import Any, Final, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import psycopg

from pgqueue.errors import InvalidArgument

T = TypeVar("T")
N = TypeVar("N", bound=NamedTuple)
Json: TypeAlias = Any
"""Whatever ``json.dumps`` takes: dict, list, str, int, float, bool, None."""
Interval: TypeAlias = timedelta | float | str
"""A timedelta, a number of seconds, or PostgreSQL's own notation such as ``'5 minutes'``."""


class HasConnection(Protocol):
    """What a SQLAlchemy session or connection and a Django connection have in common, and a cursor of psycopg, too."""

    @property
    def connection(self) -> Any:
        """What is beneath it, or a method that returns it."""


AnyConnection: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any] | HasConnection
"""A connection or cursor of the caller; a Client needs a sync one, an AsyncClient an async one.

A SQLAlchemy session or connection, or a Django connection, will do if it uses psycopg 3.
"""
Row: TypeAlias = tuple[Any, ...]

EMPTY: Final[Mapping[str, Any]] = {}


class ClaimedJob(NamedTuple):
    """One attempt of a job, held under a lease until ``expires_at``."""

    id: int
    lease: int
    queue: str
    task: str | None
    payload: Json
    attempt: int
    max_attempts: int
    priority: int
    enqueued_at: datetime
    expires_at: datetime
    headers: Json


class HeldJob(NamedTuple):
    """A claimed job as the worker sees it: ``expires_in`` is in seconds, by the clock of the database."""

    id: int
    lease: int
    queue: str
    task: str | None
    payload: Json
    attempt: int
    max_attempts: int
    priority: int
    enqueued_at: datetime
    headers: Json
    expires_in: float


class Enqueued(NamedTuple):
    """What became of a job with a unique key: ``id`` is its own, or that of the job that holds the key."""

    id: int
    inserted: bool


class BatchState(NamedTuple):
    """How far a batch is: how many of its jobs are done, have ended otherwise, have not ended as far as is known."""

    id: int
    done: int
    failed: int
    pending: int


class JobState(NamedTuple):
    """What is known about a job; ``result`` and ``error`` are those of its last finished attempt."""

    id: int
    queue: str
    task: str | None
    state: Literal["scheduled", "waiting", "ready", "running", "retrying", "parked", "done", "dead", "cancelled"]
    attempt: int
    enqueued_at: datetime
    run_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    result: Json
    error: str | None


class JobAttempt(NamedTuple):
    """One attempt of a job; of one that only the job's history knows of, ``lease`` and ``started_at`` are None."""

    attempt: int
    state: Literal["running", "done", "retry", "dead", "expired", "released", "snoozed", "cancelled"]
    lease: int | None
    worker: str | None
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    result: Json
    error: str | None
    progress: Json


class DeadLetter(NamedTuple):
    """A job that failed for good; ``history`` has the errors of all its attempts."""

    id: int
    queue: str
    task: str | None
    payload: Json
    priority: int
    attempt: int
    max_attempts: int | None
    enqueued_at: datetime
    died_at: datetime
    error: str | None
    headers: Json
    history: Json


class QueueStat(NamedTuple):
    """The numbers of one queue; ``oldest_ready`` is the age of its oldest ready job."""

    queue: str
    paused: bool
    ready: int
    running: int
    scheduled: int
    retrying: int
    dead: int
    oldest_ready: timedelta | None
    parked: int
    waiting: int


class QueueSetting(NamedTuple):
    """The settings of one queue and its limits, as ``create_queue``, ``set_unique`` and ``set_limits`` take them."""

    queue: str
    paused: bool
    lease: timedelta
    max_attempts: int
    backoff: timedelta
    backoff_max: timedelta
    retention: timedelta
    shards: int
    notify: bool
    unique_until: Literal["finished", "claimed"] | None
    unique_for: timedelta | None
    on_repeat: Literal["keep", "replace", "debounce"]
    running_limit: int | None
    rate: int | None
    rate_period: timedelta | None
    group_limit: int | None
    group_rate: int | None
    group_period: timedelta | None
    fair: bool
    keep_place: bool
    validator: str | None
    created_at: datetime


class LiveJob(NamedTuple):
    """A job that has not ended; ``run_at`` is for those that wait for their time, what follows for running ones."""

    id: int
    queue: str
    task: str | None
    state: Literal["running", "ready", "parked", "retrying", "scheduled", "waiting"]
    priority: int
    attempt: int
    enqueued_at: datetime
    run_at: datetime | None
    started_at: datetime | None
    expires_at: datetime | None
    worker: str | None
    lease: int | None
    group_key: str | None
    payload: Json


class WorkerStat(NamedTuple):
    """A worker that holds leases: how many jobs, which one for the longest time, and when its first lease ends."""

    worker: str | None
    queues: list[str]
    leases: int
    jobs: int
    oldest: datetime
    expires_at: datetime


class QueueActivity(NamedTuple):
    """What a queue holds, at least if it is not ``exact``, and how fast it goes, per second."""

    queue: str
    paused: bool
    ready: int
    running: int
    scheduled: int
    retrying: int
    parked: int
    waiting: int
    dead: int
    exact: bool
    oldest_ready: timedelta | None
    enqueue_rate: float
    done_rate: float
    failure_rate: float


class Failure(NamedTuple):
    """An attempt that failed, died or whose lease expired."""

    id: int
    queue: str
    task: str | None
    attempt: int
    kind: Literal["retry", "dead", "expired"]
    at: datetime
    worker: str | None
    error: str | None


class Holder(NamedTuple):
    """Who is exclusive under a name: a session, and when its transaction began."""

    pid: int | None
    username: str | None
    application_name: str | None
    client_addr: Any
    since: datetime | None


class Finding(NamedTuple):
    """Something that ``doctor`` found, and what to do about it."""

    severity: str
    code: str
    subject: str
    detail: str
    hint: str


@dataclass(frozen=True)
class Call(Generic[T]):
    """One statement to run, and how to read what comes back."""

    sql: bytes
    params: dict[str, Any]
    decode: Callable[[list[Row]], T]
    connection: AnyConnection | None
    any_version: bool = False


# The decoders


def _nothing(rows: list[Row]) -> None:
    return None


def _value(rows: list[Row]) -> Any:
    return rows[0][0]


def _values(rows: list[Row]) -> list[Any]:
    return [row[0] for row in rows]


def _all(of: type[N]) -> tuple[Callable[[list[Row]], list[N]], str]:
    """Read every row as one of these; returns the decoder, and the columns to ask for."""
    return lambda rows: list(map(of._make, rows)), ", ".join(of._fields)


def _one(of: type[N]) -> tuple[Callable[[list[Row]], N | None], str]:
    """Read the only row, if there is one."""
    return lambda rows: of._make(rows[0]) if rows else None, ", ".join(of._fields)


# The encoders

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode


def to_json(value: Json) -> str:
    """Return a value as JSON text that PostgreSQL's jsonb takes.

    Raises:
        InvalidArgument: it has no such form: an unknown type, NaN, a NUL character, half a surrogate pair.
    """
    try:
        text = _dumps(value)
        if not text.isascii():
            text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(
            f"cannot be sent as JSON: {error}",
            hint="Pass what json.dumps takes: dict, list, str, finite numbers, bool and None.",
        ) from error
    if "\\u0000" in text and _NUL.search(text):
        raise InvalidArgument(
            "the value contains a NUL character, which PostgreSQL's jsonb cannot store",
            hint="Remove it, or encode the text, for instance as base64.",
        )
    return text


class JsonText(str):
    """A value that is JSON text already."""

    __slots__ = ()


def _json(value: Json) -> str | None:
    return value if value is None or type(value) is JsonText else to_json(value)


def _interval(value: Interval | None) -> timedelta | str | None:
    if value is None or isinstance(value, (str, timedelta)):
        return value
    try:
        return timedelta(seconds=value)
    except (OverflowError, ValueError) as error:
        raise InvalidArgument(f"{value} is no duration in seconds", hint="Pass a finite number.") from error


def _bigints(values: Iterable[int] | None) -> str | None:
    """Return integers as the text of an array, ten times faster than psycopg's own dumper."""
    return None if values is None else "{" + ",".join(map(str, values)) + "}"


def _jsons(encode: Callable[[Json], str | None], values: Iterable[Json]) -> str:
    """Return values as the text of an array of JSON, in a fraction of the time of psycopg's own dumper."""
    quoted = (
        "NULL" if text is None else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for text in map(encode, values)
    )
    return "{" + ",".join(quoted) + "}"


def _list(values: Iterable[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _same(value: Any) -> Any:
    return value


# The machinery

_DURATION = ("interval", _interval)
_JSONB = ("jsonb", _json)
_BIGINTS = ("bigint[]", _bigints)
_INT = ("int", _same)
_TEXT = ("text", _same)
_TEXTS = ("text[]", _list)
_BOOLEAN = ("boolean", _same)

# For each argument its type and encoder. A number sent without a cast would be smallint, int or bigint by its size.
_ARGUMENTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "after": _BIGINTS,
    "after_id": ("bigint", _same),
    "backoff": _DURATION,
    "backoff_max": _DURATION,
    "batch": _INT,
    "before": ("timestamptz", _same),
    "catch_up": _TEXT,
    "cron": _TEXT,
    "delay": _DURATION,
    "error": _TEXT,
    "errors": _TEXTS,
    "fair": _BOOLEAN,
    "force": _BOOLEAN,
    "group_key": _TEXT,
    "group_keys": _TEXTS,
    "group_limit": _INT,
    "group_period": _DURATION,
    "group_rate": _INT,
    "headers": _JSONB,
    "id": ("bigint", _same),
    "ids": _BIGINTS,
    "if_not_exists": _BOOLEAN,
    "keep_place": _BOOLEAN,
    "lease": ("bigint", _same),
    "lease_for": _DURATION,
    "leases": _BIGINTS,
    "max_attempts": _INT,
    "n": _INT,
    "name": _TEXT,
    "newest": _BOOLEAN,
    "notify": _BOOLEAN,
    "on_dead": _TEXT,
    "on_repeat": _TEXT,
    "payload": ("jsonb", to_json),
    "payloads": ("jsonb[]", lambda values: _jsons(to_json, values)),
    "per_second": ("float8", _same),
    "period": _DURATION,
    "priority": _INT,
    "queue": _TEXT,
    "queues": _TEXTS,
    "rate": _INT,
    "reason": _TEXT,
    "rate_period": _DURATION,
    "result": _JSONB,
    "results": ("jsonb[]", lambda values: None if values is None else _jsons(_json, values)),
    "retention": _DURATION,
    "retry": _BOOLEAN,
    "retry_in": _DURATION,
    "role": ("regrole", _identifier),
    "run_at": ("timestamptz", _same),
    "running": _BOOLEAN,
    "running_limit": _INT,
    "seal": _BOOLEAN,
    "shards": _INT,
    "since": ("timestamptz", _same),
    "state": _TEXT,
    "task": _TEXT,
    "timezone": _TEXT,
    "unique_for": _DURATION,
    "unique_key": _TEXT,
    "unique_keys": _TEXTS,
    "unique_until": _TEXT,
    "validator": ("regprocedure", _same),
    "value": ("jsonb", to_json),
    "worker": _TEXT,
}
# Some have the name of something else.
_SETTINGS = _ARGUMENTS | {"lease": _DURATION}
_OTHERS = {
    "create_queue": _SETTINGS,
    "alter_queue": _SETTINGS,
    "next_runs": _ARGUMENTS | {"after": ("timestamptz", _same)},
}


# To wait for other jobs is a function of its own.
_AFTER = {"enqueue": "enqueue_after", "enqueue_many": "enqueue_many_after"}


def _arguments_of(function: str) -> dict[str, tuple[str, Callable[[Any], Any]]]:
    return _OTHERS.get(function, _ARGUMENTS)


@cache
def _optional(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(p.name for p in inspect.signature(function).parameters.values() if p.default is None)


@lru_cache(maxsize=512)
def _sql(function: str, columns: str, names: tuple[str, ...]) -> bytes:
    known = _arguments_of(function)
    arguments = ", ".join(f"{n} => %({n})s::{known[n][0]}" for n in names)
    return f"SELECT {columns} FROM pgq.{function}({arguments})".encode()


def _call(
    function: Callable[..., Any], arguments: dict[str, Any], decode: Callable[[list[Row]], T], columns: str = "*"
) -> Call[T]:
    """Describe a call of the SQL function of the same name. An optional argument that is None keeps its default."""
    connection = arguments.pop("connection", None)
    name = function.__name__
    if arguments.get("after") is not None:
        name = _AFTER.get(name, name)
    elif arguments.get("on_dead") is not None:
        raise InvalidArgument("on_dead is given without after", hint="Say what it waits for, or leave on_dead out.")
    optional, known = _optional(function), _arguments_of(name)
    given = {key: known[key][1](value) for key, value in arguments.items() if value is not None or key not in optional}
    return Call(_sql(name, columns, tuple(given)), given, decode, connection)


# Producing


def enqueue(
    queue: str,
    payload: Json = EMPTY,
    *,
    task: str | None = None,
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
) -> Call[int]:
    """Add one job to a queue.

    Args:
        queue: an existing queue.
        payload: any JSON value, ``{}`` if left out.
        task: name of the handler that shall run it.
        priority: -100 to 100, lower runs first; 0 if left out.
        run_at: not before this time.
        delay: not before this much time has passed (timedelta, seconds, or text like ``'5 minutes'``).
        max_attempts: how often it is tried before it is a dead letter; the queue's setting if left out.
        unique_key: not if a job of the queue holds this key; then its id is returned. See :meth:`enqueue_unique`.
        group_key: it runs in the order of its group, and one at a time or as :meth:`set_limits` says.
        headers: a JSON object that travels with the job.
        after: ids of jobs; it runs when all of them are done.
        on_dead: what it does if one of these becomes a dead letter or is cancelled: become a dead letter too, be
            cancelled, or run when all have ended; fail if left out. Only together with ``after``.
        connection: enqueue in the transaction of this connection: the job exists if and only if it commits.

    Returns:
        The id of the job.

    Raises:
        QueueNotFound: there is no such queue.
        InvalidArgument: an argument is out of range, or the payload is no JSON.
        PayloadRejected: the queue's validator does not like the payload.

    Example:
        >>> client.enqueue("mail", {"to": "ann@example.com"}, task="send", delay=60)
        42
    """
    return _call(enqueue, locals(), _value)


def enqueue_many(
    queue: str,
    payloads: Iterable[Json],
    *,
    task: str | None = None,
    priority: int | None = None,
    run_at: datetime | None = None,
    delay: Interval | None = None,
    max_attempts: int | None = None,
    group_keys: Sequence[str | None] | None = None,
    headers: Json = None,
    after: Iterable[int] | None = None,
    on_dead: Literal["fail", "skip", "run"] | None = None,
    connection: AnyConnection | None = None,
) -> Call[list[int]]:
    """Add many jobs to a queue in one statement. Arguments as in :meth:`enqueue`.

    Returns:
        The ids, in the order of the payloads.

    Raises:
        QueueNotFound: there is no such queue.
        InvalidArgument: an argument is out of range, or a payload is no JSON. No job is added.

    Example:
        >>> client.enqueue_many("mail", [{"to": "ann"}, {"to": "bob"}], task="send")
        [43, 44]
    """
    return _call(enqueue_many, locals(), _values)


def enqueue_unique(
    queue: str,
    payload: Json = EMPTY,
    *,
    task: str | None = None,
    priority: int | None = None,
    run_at: datetime | None = None,
    delay: Interval | None = None,
    max_attempts: int | None = None,
    unique_key: str,
    group_key: str | None = None,
    headers: Json = None,
    unique_until: Literal["finished", "claimed"] | None = None,
    unique_for: Interval | None = None,
    on_repeat: Literal["keep", "replace", "debounce"] | None = None,
    after: Iterable[int] | None = None,
    on_dead: Literal["fail", "skip", "run"] | None = None,
    connection: AnyConnection | None = None,
) -> Call[Enqueued]:
    """Add a job unless another one in the queue holds its unique key. Other arguments as in :meth:`enqueue`.

    Args:
        unique_key: text of 1 to 1000 bytes.
        unique_until: the job holds its key until it has ended, or until it is claimed; as the queue says if left out.
        unique_for: or for so long after it was enqueued, whatever becomes of it.
        on_repeat: what happens to a job that holds the key and has not been claimed: nothing, or it gets the new
            payload, task and headers, or these and the new time to run; as the queue says if left out.

    Returns:
        The id of the job, or of the one that holds the key, and whether it was added.

    Raises:
        QueueNotFound: there is no such queue.
        NotReadCommitted: the transaction is REPEATABLE READ or SERIALIZABLE.
        InvalidArgument: an argument is out of range, or the payload is no JSON.
        PayloadRejected: the queue's validator does not like the payload.

    Example:
        >>> client.enqueue_unique("reports", {"day": "2026-01-01"}, unique_key="daily")
        Enqueued(id=44, inserted=True)
    """
    return _call(enqueue_unique, locals(), lambda rows: Enqueued._make(rows[0]))


def enqueue_unique_many(
    queue: str,
    payloads: Iterable[Json],
    unique_keys: Sequence[str | None],
    *,
    task: str | None = None,
    priority: int | None = None,
    run_at: datetime | None = None,
    delay: Interval | None = None,
    max_attempts: int | None = None,
    group_keys: Sequence[str | None] | None = None,
    headers: Json = None,
    unique_until: Literal["finished", "claimed"] | None = None,
    unique_for: Interval | None = None,
    on_repeat: Literal["keep", "replace", "debounce"] | None = None,
    after: Iterable[int] | None = None,
    on_dead: Literal["fail", "skip", "run"] | None = None,
    connection: AnyConnection | None = None,
) -> Call[list[Enqueued]]:
    """Add many jobs, each unless its unique key is held. Arguments as in :meth:`enqueue_unique`; keys may be None.

    Returns:
        For each payload, in their order, the id and whether it was added. Of several with one key the first is.

    Raises:
        QueueNotFound: there is no such queue.
        NotReadCommitted: the transaction is REPEATABLE READ or SERIALIZABLE.
        InvalidArgument: an argument is out of range, or a payload is no JSON. No job is added.
        PayloadRejected: the queue's validator does not like a payload. No job is added.

    Example:
        >>> client.enqueue_unique_many("reports", [{"day": 1}, {"day": 2}], ["1", "2"])
        [Enqueued(id=45, inserted=True), Enqueued(id=46, inserted=True)]
    """
    return _call(enqueue_unique_many, locals(), *_all(Enqueued))


def batch(
    ids: Iterable[int],
    queue: str,
    payload: Json = EMPTY,
    *,
    task: str | None = None,
    priority: int | None = None,
    max_attempts: int | None = None,
    headers: Json = None,
    connection: AnyConnection | None = None,
) -> Call[int]:
    """Make a batch of jobs, and add the job that runs when all of them have ended, done or not.

    Its header ``after`` says how they ended, for instance ``{"done": 98, "failed": 2}``. Other arguments as in
    :meth:`enqueue`.

    Args:
        ids: the jobs. None at all: it runs at once, unless its transaction adds some with :meth:`add_to_batch`.

    Returns:
        The id of that job, which is also the batch's.

    Raises:
        QueueNotFound: there is no such queue.
        InvalidArgument: an argument is out of range, or there was never such a job.

    Example:
        >>> jobs = client.enqueue_many("resize", [{"image": n} for n in range(100)])
        >>> client.batch(jobs, "mail", {"to": "ann@example.com"}, task="all_resized")
        147
    """
    return _call(batch, locals(), _value)


def add_to_batch(id: int, ids: Iterable[int], *, connection: AnyConnection | None = None) -> Call[None]:
    """Add jobs to a batch: in the transaction that makes it, or from a job of it that runs.

    Args:
        id: the batch, or any job that waits for others.
        ids: the jobs.

    Raises:
        NotWaiting: its jobs have ended, or it was cancelled.
        InvalidArgument: there was never such a job, or the batch would wait for itself.

    Example:
        >>> client.add_to_batch(147, client.enqueue_many("resize", [{"image": 100}]))
    """
    return _call(add_to_batch, locals(), _nothing)


# Consuming


def claim(
    queue: str,
    batch: int = 1,
    *,
    lease_for: Interval | None = None,
    worker: str | None = None,
    connection: AnyConnection | None = None,
) -> Call[list[ClaimedJob]]:
    """Take up to ``batch`` jobs under a lease. Call it in a short transaction of its own.

    Args:
        queue: an existing queue.
        batch: how many jobs at most.
        lease_for: how long they are yours (timedelta, seconds, or text); the queue's setting if left out.
        worker: a name to show to people.

    Returns:
        The jobs, first the lowest priority number, then the oldest; empty if there is nothing to do.

    Raises:
        QueueNotFound: there is no such queue.
        NotReadCommitted: the transaction has another isolation level.

    Example:
        >>> for job in client.claim("mail", 10, lease_for=60):
        ...     send(**job.payload)
        ...     client.ack(job.id, job.lease)
    """
    return _call(claim, locals(), *_all(ClaimedJob))


def ack(id: int, lease: int, result: Json = None, *, connection: AnyConnection | None = None) -> Call[None]:
    """Finish a job. In the transaction of the handler's own writes its effects happen exactly once.

    Args:
        id: the job.
        lease: the lease it was claimed under.
        result: any JSON value to keep; None keeps nothing.
        connection: acknowledge in the transaction of this connection.

    Raises:
        LeaseLost: the job is no longer yours, and nothing was changed.

    Example:
        >>> with psycopg.connect(dsn) as connection:
        ...     connection.execute("UPDATE account SET …")
        ...     client.ack(job.id, job.lease, connection=connection)
    """
    return _call(ack, locals(), _nothing)


def ack_many(
    ids: Iterable[int],
    leases: Iterable[int],
    results: Iterable[Json] | None = None,
    *,
    connection: AnyConnection | None = None,
) -> Call[list[int]]:
    """Finish many jobs in one statement.

    Args:
        ids: the jobs.
        leases: the lease of each.
        results: the result of each; left out, none has one.

    Returns:
        The ids that took effect; the leases of the others were lost.

    Example:
        >>> jobs = client.claim("mail", 100)
        >>> done = client.ack_many([j.id for j in jobs], [j.lease for j in jobs])
    """
    return _call(ack_many, locals(), _values)


def reject(
    id: int,
    lease: int,
    error: str | None = None,
    *,
    retry_in: Interval | None = None,
    retry: bool | None = None,
    connection: AnyConnection | None = None,
) -> Call[str]:
    """Give up an attempt: the job is tried again after its backoff, or becomes a dead letter.

    Args:
        id: the job.
        lease: the lease it was claimed under.
        error: what went wrong, for people.
        retry_in: when to try again (timedelta, seconds, or text), instead of the queue's backoff.
        retry: False makes it a dead letter at once.

    Returns:
        ``'retry'``, ``'dead'``, or ``'cancelled'`` if it had been asked to stop.

    Raises:
        LeaseLost: the job is no longer yours, and nothing was changed.

    Example:
        >>> client.reject(job.id, job.lease, "mailbox full", retry_in=3600)
        'retry'
    """
    return _call(reject, locals(), _value)


def reject_many(
    ids: Iterable[int],
    leases: Iterable[int],
    errors: Iterable[str | None] | None = None,
    *,
    connection: AnyConnection | None = None,
) -> Call[list[int]]:
    """Give up the attempts of many jobs in one statement; arguments as in :meth:`reject`.

    Returns:
        The ids that took effect; the leases of the others were lost.

    Example:
        >>> client.reject_many([1, 2], [7, 7], ["timeout", "timeout"])
        [1, 2]
    """
    return _call(reject_many, locals(), _values)


def extend(lease: int, *, lease_for: Interval | None = None, connection: AnyConnection | None = None) -> Call[datetime]:
    """Keep a lease for longer, counted from now.

    Args:
        lease: the lease, with every job that is still held under it.
        lease_for: for how long (timedelta, seconds, or text); the queue's setting if left out.

    Returns:
        When it expires now.

    Raises:
        LeaseLost: nothing is held under it any more.

    Example:
        >>> client.extend(job.lease, lease_for=300)
        datetime.datetime(2030, 1, 1, 12, 5, tzinfo=datetime.timezone.utc)
    """
    return _call(extend, locals(), _value)


def extend_many(
    leases: Iterable[int], *, lease_for: Interval | None = None, connection: AnyConnection | None = None
) -> Call[dict[int, datetime]]:
    """Keep many leases for longer; arguments as in :meth:`extend`.

    Returns:
        The leases that are still held, and when each expires now.

    Example:
        >>> client.extend_many([7, 8])
        {7: datetime.datetime(2030, 1, 1, 12, 5, tzinfo=datetime.timezone.utc)}
    """
    return _call(extend_many, locals(), dict, "lease, expires_at")


def release(ids: Iterable[int], leases: Iterable[int], *, connection: AnyConnection | None = None) -> Call[list[int]]:
    """Put jobs back to the front of their queue; the attempt is not counted.

    Args:
        ids: the jobs.
        leases: the lease of each.

    Returns:
        The ids that took effect; the leases of the others were lost.

    Example:
        >>> client.release([job.id], [job.lease])
        [42]
    """
    return _call(release, locals(), _values)


def snooze(id: int, lease: int, delay: Interval, *, connection: AnyConnection | None = None) -> Call[None]:
    """Put a job off; the attempt is not counted.

    Args:
        id: the job.
        lease: the lease it was claimed under.
        delay: for how long (timedelta, seconds, or text).

    Raises:
        LeaseLost: the job is no longer yours, and nothing was changed.

    Example:
        >>> client.snooze(job.id, job.lease, 60)
    """
    return _call(snooze, locals(), _nothing)


def snooze_many(
    ids: Iterable[int], leases: Iterable[int], delay: Interval, *, connection: AnyConnection | None = None
) -> Call[list[int]]:
    """Put jobs off; the attempts are not counted.

    Args:
        ids: the jobs.
        leases: the lease of each.
        delay: for how long (timedelta, seconds, or text).

    Returns:
        The ids that took effect; the leases of the others were lost.

    Example:
        >>> client.snooze_many([job.id], [job.lease], 60)
        [42]
    """
    return _call(snooze_many, locals(), _values)


def cancel(id: int, *, connection: AnyConnection | None = None) -> Call[str]:
    """Cancel a job, whatever its state.

    Args:
        id: the job.

    Returns:
        ``'cancelled'``, ``'requested'`` (it is running; see :attr:`pgqueue.Job.cancelled`), ``'finished'`` or
        ``'not found'``.

    Example:
        >>> client.cancel(42)
        'cancelled'
    """
    return _call(cancel, locals(), _value)


def cancel_many(
    queue: str, task: str | None = None, *, running: bool | None = None, connection: AnyConnection | None = None
) -> Call[int]:
    """Cancel the waiting jobs of a queue.

    Args:
        queue: its name.
        task: only those of this task.
        running: also ask those that run to stop.

    Returns:
        How many there were.

    Raises:
        QueueNotFound: there is no such queue.

    Example:
        >>> client.cancel_many("mail", "newsletter")
        1200
    """
    return _call(cancel_many, locals(), _value)


def cancel_requested(leases: Iterable[int], *, connection: AnyConnection | None = None) -> Call[list[int]]:
    """Ask which running jobs are to stop.

    Args:
        leases: the leases that they run under.

    Returns:
        The ids of those jobs.

    Example:
        >>> client.cancel_requested([job.lease])
        []
    """
    return _call(cancel_requested, locals(), _values)


def cancel_claimed(
    id: int, lease: int, reason: str | None = None, *, connection: AnyConnection | None = None
) -> Call[None]:
    """End an attempt, and the job with it, as cancelled: nobody wants it any more.

    Args:
        id: the job.
        lease: the lease it was claimed under.
        reason: for people.

    Raises:
        LeaseLost: the job is no longer yours, and nothing was changed.

    Example:
        >>> client.cancel_claimed(job.id, job.lease, "the order was withdrawn")
    """
    return _call(cancel_claimed, locals(), _nothing)


def reschedule(id: int, run_at: datetime, *, connection: AnyConnection | None = None) -> Call[bool]:
    """Let a job that nobody has claimed wait until another time.

    Args:
        id: the job.
        run_at: when it is due, with a time zone.

    Returns:
        False if it runs, has ended or is unknown.

    Example:
        >>> client.reschedule(42, datetime(2030, 1, 1, tzinfo=timezone.utc))
        True
    """
    return _call(reschedule, locals(), _value)


def set_priority(id: int, priority: int, *, connection: AnyConnection | None = None) -> Call[bool]:
    """Give a job that nobody has claimed another priority.

    Args:
        id: the job.
        priority: from -100 (runs first) to 100.

    Returns:
        False if it runs, has ended or is unknown.

    Example:
        >>> client.set_priority(42, -10)
        True
    """
    return _call(set_priority, locals(), _value)


def job_status(id: int, *, connection: AnyConnection | None = None) -> Call[JobState | None]:
    """Look at a job.

    Args:
        id: the job.

    Returns:
        Its state, None if there is no such job or its retention is over.

    Example:
        >>> client.job_status(42).state
        'done'
    """
    return _call(job_status, locals(), *_one(JobState))


def batch_status(id: int, *, connection: AnyConnection | None = None) -> Call[BatchState | None]:
    """How far a batch is, or another job that waits for others.

    Args:
        id: the batch.

    Returns:
        The numbers; None if it waits no longer, then :meth:`job_status` tells how its last job stands.

    Example:
        >>> client.batch_status(147)
        BatchState(id=147, done=98, failed=0, pending=2)
    """
    return _call(batch_status, locals(), *_one(BatchState))


def waits_for(id: int, n: int | None = None, *, connection: AnyConnection | None = None) -> Call[list[int]]:
    """The jobs that a job waits for.

    Args:
        id: the job.
        n: how many at most, 1 to 100000; 100 if left out.

    Returns:
        The ids of those that have not ended as far as is known, the lowest first.

    Example:
        >>> client.waits_for(147)
        [52, 53]
    """
    return _call(waits_for, locals(), _values)


def attempts(id: int, *, connection: AnyConnection | None = None) -> Call[list[JobAttempt]]:
    """Look at all attempts of a job.

    Args:
        id: the job.

    Returns:
        Its attempts in the order of time; empty if it was never claimed, or its retention is over.

    Example:
        >>> [(a.attempt, a.state, a.error) for a in client.attempts(42)]
        [(1, 'retry', 'timeout'), (2, 'done', None)]
    """
    return _call(attempts, locals(), *_all(JobAttempt))


def progress(id: int, lease: int, value: Json, *, connection: AnyConnection | None = None) -> Call[bool]:
    """Tell how far a claimed job is. Others see it when the transaction is committed, until the attempt ends.

    Args:
        id: the job.
        lease: the lease it was claimed under.
        value: JSON of at most 1000 bytes: a number, an object, whatever those who read it understand.

    Returns:
        False if it was left out, because the last report is less than a second old, or less than a hundredth of the
        time that the attempt has run.

    Raises:
        LeaseLost: the attempt has ended: the job is done, or another worker has it.
        InvalidArgument: the value is no JSON, or too long.

    Example:
        >>> client.progress(job.id, job.lease, {"done": 3, "of": 4})
        True
    """
    return _call(progress, locals(), _value)


def job_progress(id: int, *, connection: AnyConnection | None = None) -> Call[Json]:
    """Look how far a running job is.

    Args:
        id: the job.

    Returns:
        What it told last; None if it told nothing, or is not running.

    Example:
        >>> client.job_progress(42)
        {'done': 3, 'of': 4}
    """
    return _call(job_progress, locals(), _value)


# Recurring jobs


def schedule(
    name: str,
    cron: str,
    queue: str,
    payload: Json = EMPTY,
    *,
    task: str | None = None,
    timezone: str | None = None,
    catch_up: Literal["skip", "one", "all"] | None = None,
    connection: AnyConnection | None = None,
) -> Call[None]:
    """Enqueue a job whenever a cron line says so, or change what was scheduled under this name.

    A program may call it whenever it starts: the same line in the same time zone keeps its next run.

    Args:
        name: of the schedule, 1 to 128 characters.
        cron: minute, hour, day of month, month, day of week, or a second before them, or ``@daily`` and the like.
        queue: an existing queue.
        payload: any JSON value, ``{}`` if left out.
        task: name of the handler that shall run it.
        timezone: by whose clock, a full name such as ``'Europe/Berlin'``; UTC if left out.
        catch_up: after a time in which nobody maintained the queues: leave out what was missed, enqueue one job for
            all of it, or a job for each run; ``'one'`` if left out.

    Raises:
        QueueNotFound: there is no such queue.
        InvalidArgument: an argument is out of range; the detail says where the line is wrong.

    Example:
        >>> client.schedule("nightly", "30 2 * * *", "reports", {"kind": "daily"}, timezone="Europe/Berlin")
    """
    return _call(schedule, locals(), _nothing)


def unschedule(name: str, *, connection: AnyConnection | None = None) -> Call[None]:
    """End what :meth:`schedule` began. Jobs that are in the queue already stay.

    Args:
        name: of the schedule.

    Raises:
        psycopg.errors.UndefinedObject: there is no such schedule.

    Example:
        >>> client.unschedule("nightly")
    """
    return _call(unschedule, locals(), _nothing)


def next_runs(
    cron: str,
    timezone: str | None = None,
    n: int | None = None,
    after: datetime | None = None,
    *,
    connection: AnyConnection | None = None,
) -> Call[list[datetime]]:
    """Try a cron line: when a schedule with it would run.

    Args:
        cron: the line, as in :meth:`schedule`.
        timezone: by whose clock; UTC if left out.
        n: how many runs, 1 to 1000; 5 if left out.
        after: the runs after this time; now if left out.

    Returns:
        The times of the next runs.

    Raises:
        InvalidArgument: an argument is out of range; the detail says where the line is wrong.

    Example:
        >>> client.next_runs("@yearly", n=1)
        [datetime.datetime(2030, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)]
    """
    return _call(next_runs, locals(), _values)


# One node at a time


def try_exclusive(name: str, *, connection: AnyConnection | None = None) -> Call[bool]:
    """Be the only transaction under a name, until it ends. Never waits.

    Args:
        name: any text that all who exclude each other agree on.
        connection: the one whose transaction it is. Without it the transaction ends with the call, and so does this.

    Returns:
        Whether it is the only one; also if it was so already.

    Example:
        >>> with psycopg.connect(dsn) as connection:
        ...     if client.try_exclusive("nightly report", connection=connection):
        ...         connection.execute("INSERT INTO report …")
    """
    return _call(try_exclusive, locals(), _value)


def exclusive_holder(name: str, *, connection: AnyConnection | None = None) -> Call[Holder | None]:
    """Look who is exclusive under a name.

    Args:
        name: what was given to :meth:`exclusive` or :meth:`try_exclusive`.

    Returns:
        The holder, None if there is none. By the time you read it, it may be another one.

    Example:
        >>> client.exclusive_holder("nightly report").application_name
        'node 2'
    """
    return _call(exclusive_holder, locals(), *_one(Holder))


# Queues


def create_queue(
    queue: str,
    *,
    lease: Interval | None = None,
    max_attempts: int | None = None,
    backoff: Interval | None = None,
    backoff_max: Interval | None = None,
    retention: Interval | None = None,
    shards: int | None = None,
    notify: bool | None = None,
    if_not_exists: bool | None = None,
    connection: AnyConnection | None = None,
) -> Call[None]:
    """Create a queue. Durations are timedelta, seconds, or text.

    Args:
        queue: its name.
        lease: how long a claim holds a job; one minute if left out.
        max_attempts: how often a job is tried before it is a dead letter; 20 if left out.
        backoff: pause before the second attempt, doubled for each further one; one second if left out.
        backoff_max: the longest such pause; one hour if left out.
        retention: how long finished jobs are kept, 0 for not at all; seven days if left out.
        shards: parts that are claimed independently; 1 is strictly first in, first out; 8 if left out.
        notify: wake idle workers with NOTIFY; True if left out.
        if_not_exists: do nothing if there is one of this name, whatever its settings.

    Raises:
        QueueExists: there is one of this name.
        InvalidArgument: a setting is out of range.

    Example:
        >>> client.create_queue("mail", lease="5 minutes", max_attempts=5)
    """
    return _call(create_queue, locals(), _nothing)


def alter_queue(
    queue: str,
    *,
    lease: Interval | None = None,
    max_attempts: int | None = None,
    backoff: Interval | None = None,
    backoff_max: Interval | None = None,
    retention: Interval | None = None,
    shards: int | None = None,
    notify: bool | None = None,
    connection: AnyConnection | None = None,
) -> Call[None]:
    """Change settings of a queue; what is left out stays. Arguments as in :meth:`create_queue`.

    Raises:
        QueueNotFound: there is no such queue.
        InvalidArgument: a setting is out of range.

    Example:
        >>> client.alter_queue("mail", max_attempts=10)
    """
    return _call(alter_queue, locals(), _nothing)


def set_unique(
    queue: str,
    *,
    unique_until: Literal["finished", "claimed"] | None = None,
    unique_for: Interval | None = None,
    on_repeat: Literal["keep", "replace", "debounce"] | None = None,
    connection: AnyConnection | None = None,
) -> Call[None]:
    """Say how unique keys work in a queue for jobs enqueued from now on. Arguments as in :meth:`enqueue_unique`.

    Raises:
        QueueNotFound: there is no such queue.
        InvalidArgument: an argument is out of range.

    Example:
        >>> client.set_unique("reports", unique_until="claimed", on_repeat="replace")
    """
    return _call(set_unique, locals(), _nothing)


def set_limits(
    queue: str,
    *,
    group_limit: int | None = 1,
    running_limit: int | None = None,
    rate: int | None = None,
    rate_period: Interval | None = None,
    group_rate: int | None = None,
    group_period: Interval | None = None,
    fair: bool | None = None,
    keep_place: bool | None = None,
    connection: AnyConnection | None = None,
) -> Call[None]:
    """Set all limits of a queue, for jobs claimed from now on; what is left out is not limited.

    Args:
        queue: an existing queue.
        group_limit: how many jobs with the same group_key run at once; None: any number.
        running_limit: how many jobs of the whole queue run at once.
        rate: how many jobs start in ``rate_period``.
        rate_period: 1 ms to 1 year; given if ``rate`` is.
        group_rate: how many jobs with the same group_key start in ``group_period``.
        group_period: 1 ms to 1 year; given if ``group_rate`` is.
        fair: groups take turns, one job each, whatever they have waiting.
        keep_place: a group waits for its job that failed and is to be tried again; True if left out.

    Raises:
        QueueNotFound: there is no such queue.
        InvalidArgument: an argument is out of range.

    Example:
        >>> client.set_limits("mail", group_limit=None, group_rate=100, group_period="1 minute", fair=True)
    """
    return _call(set_limits, locals(), _nothing)


def set_validator(queue: str, validator: str | None, *, connection: AnyConnection | None = None) -> Call[None]:
    """Let a function of the database check every payload that is enqueued. Only for the owner of schema ``pgq``.

    Args:
        queue: an existing queue.
        validator: name and argument types, as in ``'app.is_mail(jsonb)'``, or ``'app.is_mail(text, jsonb)'`` for task
            and payload; None: no check.

    Raises:
        QueueNotFound: there is no such queue.
        InvalidArgument: it cannot be a validator.

    Example:
        >>> client.set_validator("mail", "app.is_mail(jsonb)")
    """
    return _call(set_validator, locals(), _nothing)


def drop_queue(queue: str, *, force: bool | None = None, connection: AnyConnection | None = None) -> Call[None]:
    """Drop a queue.

    Args:
        queue: its name.
        force: drop it with all its jobs.

    Raises:
        QueueNotFound: there is no such queue.
        QueueNotEmpty: it has jobs, and ``force`` is not set.

    Example:
        >>> client.drop_queue("mail", force=True)
    """
    return _call(drop_queue, locals(), _nothing)


def pause(queue: str, *, connection: AnyConnection | None = None) -> Call[None]:
    """Stop handing out jobs of a queue; what is running goes on, and jobs may still be enqueued.

    Args:
        queue: its name.

    Raises:
        QueueNotFound: there is no such queue.

    Example:
        >>> client.pause("mail")
    """
    return _call(pause, locals(), _nothing)


def resume(queue: str, *, connection: AnyConnection | None = None) -> Call[None]:
    """Hand out jobs of a paused queue again.

    Args:
        queue: its name.

    Raises:
        QueueNotFound: there is no such queue.

    Example:
        >>> client.resume("mail")
    """
    return _call(resume, locals(), _nothing)


def purge(queue: str, *, connection: AnyConnection | None = None) -> Call[int]:
    """Throw away the waiting jobs of a queue.

    Args:
        queue: its name.

    Returns:
        How many there were.

    Raises:
        QueueNotFound: there is no such queue.

    Example:
        >>> client.purge("mail")
        1200
    """
    return _call(purge, locals(), _value)


def purge_state(queue: str, state: str, *, connection: AnyConnection | None = None) -> Call[int]:
    """Throw away what a queue holds in one state.

    Args:
        queue: its name.
        state: ``'ready'``, ``'parked'``, ``'scheduled'``, ``'waiting'``, ``'retrying'``, ``'dead'`` or ``'archived'``.

    Returns:
        How many there were.

    Raises:
        QueueNotFound: there is no such queue.
        InvalidArgument: there is no such state.

    Example:
        >>> client.purge_state("mail", "scheduled")
        7
    """
    return _call(purge_state, locals(), _value)


def redrive(queue: str, ids: Iterable[int] | None = None, *, connection: AnyConnection | None = None) -> Call[int]:
    """Send dead letters back to work.

    Args:
        queue: its name.
        ids: which ones; left out, all.

    Returns:
        How many there were.

    Raises:
        QueueNotFound: there is no such queue.

    Example:
        >>> client.redrive("mail")
        3
    """
    return _call(redrive, locals(), _value)


def redrive_where(
    queue: str,
    *,
    task: str | None = None,
    error: str | None = None,
    since: datetime | None = None,
    before: datetime | None = None,
    n: int | None = None,
    per_second: float | None = None,
    connection: AnyConnection | None = None,
) -> Call[int]:
    """Send dead letters that meet conditions back to work, all that :meth:`dead_letters` would list.

    Args:
        queue: its name.
        task: only those of this task.
        error: only those with this text in their last error.
        since: only those that died at this time or later.
        before: only those that died before this time.
        n: no more than so many, the lowest ids first.
        per_second: not all at once, but so many each second from now on (0.001 to 1000000).

    Returns:
        How many there were.

    Raises:
        QueueNotFound: there is no such queue.
        InvalidArgument: n or per_second is out of range.

    Example:
        >>> client.redrive_where("mail", error="connection refused", per_second=20)
        1200
    """
    return _call(redrive_where, locals(), _value)


def dead_letters(
    queue: str,
    *,
    task: str | None = None,
    error: str | None = None,
    since: datetime | None = None,
    before: datetime | None = None,
    after_id: int | None = None,
    n: int | None = None,
    connection: AnyConnection | None = None,
) -> Call[list[DeadLetter]]:
    """List dead letters in the order of their ids.

    Args:
        queue: its name.
        task: only those of this task.
        error: only those with this text in their last error.
        since: only those that died at this time or later.
        before: only those that died before this time.
        after_id: the last id of the page before.
        n: how many at most, 100 if left out.

    Returns:
        The dead letters of this page; none after the last one.

    Raises:
        QueueNotFound: there is no such queue.
        InvalidArgument: n is out of range.

    Example:
        >>> [(letter.id, letter.error) for letter in client.dead_letters("mail", task="send")]
        [(42, 'connection refused')]
    """
    return _call(dead_letters, locals(), *_all(DeadLetter))


def discard(queue: str, ids: Iterable[int], *, connection: AnyConnection | None = None) -> Call[int]:
    """Throw dead letters away.

    Args:
        queue: its name.
        ids: which ones.

    Returns:
        How many there were.

    Raises:
        QueueNotFound: there is no such queue.

    Example:
        >>> client.discard("mail", [42])
        1
    """
    return _call(discard, locals(), _value)


def discard_where(
    queue: str,
    *,
    task: str | None = None,
    error: str | None = None,
    since: datetime | None = None,
    before: datetime | None = None,
    n: int | None = None,
    connection: AnyConnection | None = None,
) -> Call[int]:
    """Throw dead letters away that meet conditions, all that :meth:`dead_letters` would list.

    Args:
        queue: its name.
        task: only those of this task.
        error: only those with this text in their last error.
        since: only those that died at this time or later.
        before: only those that died before this time.
        n: no more than so many, the lowest ids first.

    Returns:
        How many there were.

    Raises:
        QueueNotFound: there is no such queue.
        InvalidArgument: n is out of range.

    Example:
        >>> client.discard_where("mail", error="no such user")
        3
    """
    return _call(discard_where, locals(), _value)


# Looking after it


def maintain(*, connection: AnyConnection | None = None) -> Call[dict[str, Any]]:
    """Do whatever is due: promote, reap, rotate, archive. Workers call it; so may anybody, at any time.

    Returns:
        What was done, as counts.

    Example:
        >>> client.maintain()
        {'promoted': 2, 'reaped': 0}
    """
    return _call(maintain, locals(), _value)


def promote(*, connection: AnyConnection | None = None) -> Call[int]:
    """Make scheduled jobs and retries ready whose time has come.

    Returns:
        How many there were.

    Example:
        >>> client.promote()
        2
    """
    return _call(promote, locals(), _value)


def reap(*, connection: AnyConnection | None = None) -> Call[int]:
    """Take back the jobs whose lease expired.

    Returns:
        How many there were.

    Example:
        >>> client.reap()
        1
    """
    return _call(reap, locals(), _value)


def rotate(seal: bool | None = None, *, connection: AnyConnection | None = None) -> Call[dict[str, Any]]:
    """Open, seal, archive and empty segments as they need it.

    Args:
        seal: seal the open segment even if it is neither full nor old.

    Returns:
        What was done, as counts.

    Example:
        >>> client.rotate()
    """
    return _call(rotate, locals(), _value)


def stats(*, connection: AnyConnection | None = None) -> Call[list[QueueStat]]:
    """Count the jobs of every queue.

    Returns:
        One row for each queue.

    Example:
        >>> [(s.queue, s.ready) for s in client.stats()]
        [('mail', 1200)]
    """
    return _call(stats, locals(), *_all(QueueStat))


def queues(*, connection: AnyConnection | None = None) -> Call[list[QueueSetting]]:
    """List the queues with their settings and limits.

    Returns:
        One row for each queue, by name.

    Example:
        >>> [(q.queue, q.max_attempts) for q in client.queues()]
        [('mail', 5)]
    """
    return _call(queues, locals(), *_all(QueueSetting))


def jobs(
    queue: str,
    *,
    state: Literal["running", "ready", "parked", "retrying", "scheduled", "waiting"] | None = None,
    task: str | None = None,
    n: int | None = None,
    newest: bool | None = None,
    connection: AnyConnection | None = None,
) -> Call[list[LiveJob]]:
    """List jobs that have not ended. It costs the same however many there are, and leaves out what is far back.

    Args:
        queue: its name.
        state: only those in this state.
        task: only those of this task.
        n: how many at most, 1 to 100000; 100 if left out.
        newest: those first that come last otherwise.

    Returns:
        The running ones from the one that was claimed first, then those that are ready, parked, retrying, scheduled,
        and those that wait for other jobs.

    Raises:
        QueueNotFound: there is no such queue.
        InvalidArgument: there is no such state, or n is out of range.

    Example:
        >>> [(job.id, job.worker) for job in client.jobs("mail", state="running")]
        [(42, 'host:4711')]
    """
    return _call(jobs, locals(), *_all(LiveJob))


def workers(*, connection: AnyConnection | None = None) -> Call[list[WorkerStat]]:
    """List the workers that hold leases.

    Returns:
        One row for each name; idle workers are not known.

    Example:
        >>> [(w.worker, w.jobs) for w in client.workers()]
        [('host:4711', 8)]
    """
    return _call(workers, locals(), *_all(WorkerStat))


def activity(period: Interval | None = None, *, connection: AnyConnection | None = None) -> Call[list[QueueActivity]]:
    """Look at every queue, cheaply enough to do so each second: big numbers are counted no further than is cheap.

    Args:
        period: rates are those of this time until now, 1 second to 1 hour; 5 seconds if left out.

    Returns:
        One row for each queue, by name.

    Raises:
        InvalidArgument: the period is out of range.

    Example:
        >>> [(q.queue, q.ready, q.done_rate) for q in client.activity()]
        [('mail', 1200, 56.2)]
    """
    return _call(activity, locals(), *_all(QueueActivity))


def failures(n: int | None = None, *, connection: AnyConnection | None = None) -> Call[list[Failure]]:
    """List the last attempts of all queues that failed or expired.

    Args:
        n: how many at most, 1 to 1000; 10 if left out.

    Returns:
        The newest first.

    Raises:
        InvalidArgument: n is out of range.

    Example:
        >>> [(f.id, f.kind, f.error) for f in client.failures(1)]
        [(42, 'retry', 'timeout')]
    """
    return _call(failures, locals(), *_all(Failure))


def doctor(*, connection: AnyConnection | None = None) -> Call[list[Finding]]:
    """Look for trouble: stuck lanes, segments that cannot be retired, queues that nobody works on.

    Returns:
        What was found, each with a hint; empty if all is well.

    Example:
        >>> client.doctor()
        []
    """
    return _call(doctor, locals(), *_all(Finding))


def version(*, connection: AnyConnection | None = None) -> Call[str]:
    """Return the version of the installed schema pgq, whether this package works with it or not.

    Example:
        >>> client.version()
        '0.2.0'
    """
    return replace(_call(version, locals(), _value), any_version=True)


def grant_producer(role: str, *, connection: AnyConnection | None = None) -> Call[None]:
    """Let a role enqueue.

    Args:
        role: its name.

    Example:
        >>> client.grant_producer("web")
    """
    return _call(grant_producer, locals(), _nothing)


def grant_consumer(role: str, *, connection: AnyConnection | None = None) -> Call[None]:
    """Let a role claim and settle.

    Args:
        role: its name.

    Example:
        >>> client.grant_consumer("worker")
    """
    return _call(grant_consumer, locals(), _nothing)


def grant_admin(role: str, *, connection: AnyConnection | None = None) -> Call[None]:
    """Let a role create, change and look after queues.

    Args:
        role: its name.

    Example:
        >>> client.grant_admin("ops")
    """
    return _call(grant_admin, locals(), _nothing)


# For the worker, with times as seconds from now, so that its own clock does not matter

_IN_SECONDS = "extract(epoch FROM {} - (SELECT pgq._now()))::float8"
_HELD = ", ".join(HeldJob._fields[:-1]) + ", " + _IN_SECONDS.format("expires_at")


def claim_held(queue: str, batch: int, lease_for: Interval | None, worker: str) -> Call[list[HeldJob]]:
    """Claim without waiting for the disk; the expiry comes as seconds from now.

    A claim that is lost in a crash is a job still there. The setting ends with the statement's own transaction, so that
    behind a pooler no other client inherits it. The connection must be in autocommit mode.
    """
    call = _call(claim, locals(), _all(HeldJob)[0], _HELD)
    return replace(call, sql=call.sql + b", set_config('synchronous_commit', 'off', true)")


def extend_held(leases: Iterable[int], lease_for: Interval | None) -> Call[dict[int, float]]:
    """Extend; the expiry comes as seconds from now."""
    return _call(extend_many, locals(), dict, "lease, " + _IN_SECONDS.format("expires_at"))


def watch(queues: Sequence[str]) -> Call[float | None]:
    """Ask this session to be notified; returns in how many seconds the next scheduled job is due."""
    return _call(watch, locals(), _value, _IN_SECONDS.format("watch"))


def check_queue(queue: str) -> Call[None]:
    """Fail if there is no such queue: by a watch, as a consumer may, that ends with the statement."""
    return _call(watch, {"queues": [queue]}, _nothing, "pgq.unwatch(%(queues)s::text[])")


def watch_job(id: int) -> Call[bool]:
    """Ask this session to be notified of the end of a job; returns False if nobody will."""
    return _call(watch_job, locals(), _value)


def unwatch(queues: Sequence[str]) -> Call[None]:
    """Ask that this session be notified no more."""
    return _call(unwatch, locals(), _nothing)
