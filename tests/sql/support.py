"""What the tests of the SQL functions share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg.rows import class_row

Connection = psycopg.Connection[tuple[Any, ...]]
Connect = Callable[..., Connection]


@dataclass(frozen=True)
class Job:
    """A row of pgq.claim."""

    id: int
    lease: int
    queue: str
    task: str | None
    payload: Any
    attempt: int
    max_attempts: int
    priority: int
    enqueued_at: datetime
    expires_at: datetime
    headers: Any


@dataclass(frozen=True)
class State:
    """A row of pgq.job_status."""

    id: int
    queue: str
    task: str | None
    state: str
    attempt: int
    enqueued_at: datetime
    run_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    result: Any
    error: str | None


def column(db: Connection, query: str, *values: Any) -> list[Any]:
    """The first column of what a query returns."""
    return [row[0] for row in db.execute(query, values)]


def one(db: Connection, query: str, *values: Any) -> Any:
    """The only value that a query returns."""
    (value,) = column(db, query, *values)
    return value


def call(db: Connection, function: str, *positional: Any, **named: Any) -> Any:
    """Call a function of pgq that returns one value. dict and None are sent as JSON and NULL."""
    arguments = ["%s"] * len(positional) + [f"{name} => %s" for name in named]
    return one(db, f"SELECT pgq.{function}({', '.join(arguments)})", *map(_adapt, [*positional, *named.values()]))


def rows(db: Connection, function: str, *positional: Any, **named: Any) -> list[Any]:
    """Call a function of pgq that returns a set of single values."""
    arguments = ["%s"] * len(positional) + [f"{name} => %s" for name in named]
    return column(db, f"SELECT pgq.{function}({', '.join(arguments)})", *map(_adapt, [*positional, *named.values()]))


def _adapt(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value


def create(db: Connection, queue: str = "q", **settings: Any) -> None:
    call(db, "create_queue", queue, **settings)


def enqueue(db: Connection, count: int = 1, queue: str = "q", **named: Any) -> list[int]:
    """Enqueue jobs whose payloads are 1, 2, 3 …"""
    return rows(db, "enqueue_many", queue, [str(n + 1) for n in range(count)], **named)


def claim(db: Connection, batch: int = 1, queue: str = "q", **named: Any) -> list[Job]:
    names = "".join(f", {name} => %s" for name in named)
    with db.cursor(row_factory=class_row(Job)) as cursor:
        return cursor.execute(f"SELECT * FROM pgq.claim(%s, %s{names})", [queue, batch, *named.values()]).fetchall()


def claim_one(db: Connection, queue: str = "q", **named: Any) -> Job:
    (job,) = claim(db, 1, queue, **named)
    return job


def ids(jobs: list[Job]) -> list[int]:
    return [job.id for job in jobs]


def leases(jobs: list[Job]) -> list[int]:
    return [job.lease for job in jobs]


def ack(db: Connection, jobs: list[Job]) -> list[int]:
    return rows(db, "ack_many", ids(jobs), leases(jobs))


def flush_counts(db: Connection) -> None:
    """Have the server count what this session has done. Before PostgreSQL 15 it does so twice a second, unasked."""
    if db.info.server_version >= 150000:
        db.execute("SELECT pg_stat_force_next_flush()")
        db.execute("SELECT 1")
    else:
        for _ in range(2):
            db.execute("SELECT pg_sleep(0.6)")
            db.execute("SELECT 1")
    db.execute("SELECT pg_stat_clear_snapshot()")


def status(db: Connection, id: int) -> State:
    with db.cursor(row_factory=class_row(State)) as cursor:
        (state,) = cursor.execute("SELECT * FROM pgq.job_status(%s)", [id]).fetchall()
        return state


def stats(db: Connection, queue: str = "q") -> dict[str, int]:
    """The numbers of a queue that are not zero."""
    cursor = db.execute("SELECT ready, running, scheduled, retrying, dead FROM pgq.stats() WHERE queue = %s", [queue])
    (row,) = cursor.fetchall()
    return {name: n for name, n in zip(["ready", "running", "scheduled", "retrying", "dead"], row, strict=True) if n}


def rotate(db: Connection, turns: int = 1) -> None:
    """Seal the open segment if it holds anything, and take the older ones some steps further."""
    for _ in range(turns):
        call(db, "rotate", seal=True)


def retire_all(db: Connection) -> None:
    """Turn the ring until every segment but the open one is empty again, and all that has ended is archived.

    A turn that truncates does nothing else, and one that finds somebody else at it does nothing at all: after neither
    has the open segment been sealed, so its outcomes tell.
    """
    left = """
        SELECT slot FROM pgq.segment WHERE state NOT IN ('free', 'open')
        UNION ALL (SELECT slot FROM pgq.outcome LIMIT 1)
    """
    for _ in range(100):
        if not call(db, "rotate", seal=True):
            time.sleep(0.02)  # somebody else
        elif not column(db, left):
            return
    raise AssertionError(db.execute("TABLE pgq.segment").fetchall())


@contextmanager
def refused(sqlstate: str) -> Iterator[pytest.ExceptionInfo[psycopg.Error]]:
    """Expect an error with this SQLSTATE, and with a hint if it is one of ours."""
    with pytest.raises(psycopg.Error) as caught:
        yield caught
    error = caught.value
    assert error.sqlstate == sqlstate, f"{error.sqlstate}: {error}"
    if sqlstate.startswith("PQ") or sqlstate in ("22023", "22004", "42710", "0A000"):
        assert error.diag.message_hint, f"no hint: {error}"


def in_background(function: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
    """Run a call in a thread of its own. Its result waits at most 20 seconds."""
    executor = ThreadPoolExecutor(1)
    future = executor.submit(function, *arguments, **named)
    executor.shutdown(wait=False)
    return future


def eventually(condition: Callable[[], object], what: str = "it", timeout: float = 20) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} seconds: {what}"
        time.sleep(0.002)


def until_blocked(db: Connection, other: Connection) -> None:
    """Wait until the other session waits for a lock. Behind a pooler, which hides it: until any one does."""
    query = """
        SELECT count(*) FROM pg_stat_activity a
        WHERE a.datname = current_database() AND a.wait_event_type = 'Lock'
            AND (a.pid = %s OR NOT EXISTS (SELECT FROM pg_stat_activity o WHERE o.pid = %s))
    """
    pid = other.info.backend_pid
    eventually(lambda: one(db, query, pid, pid), "the lock wait")


# What may happen to the segment of a claimed job before the job is settled --------------------------------------------

Passage = Callable[[Connection, Any], None]


def _at_once(db: Connection, clock: Any) -> None:
    """Nothing: the segment is still open."""


def _sealed(db: Connection, clock: Any) -> None:
    rotate(db, 3)
    assert one(db, "SELECT count(*) FROM pgq.segment WHERE state = 'claimed'") > 0


def _moved(db: Connection, clock: Any) -> None:
    """The jobs became stragglers; their segment is archived, but not empty yet."""
    _sealed(db, clock)
    clock.advance(31)
    rotate(db)
    assert one(db, "SELECT count(*) FROM pgq.straggler") > 0


def _retired(db: Connection, clock: Any) -> None:
    """The jobs are stragglers, and their segment is gone."""
    _moved(db, clock)
    retire_all(db)


PASSAGES: dict[str, Passage] = {"at once": _at_once, "sealed": _sealed, "moved": _moved, "retired": _retired}
across = pytest.mark.parametrize("passage", PASSAGES.values(), ids=PASSAGES)


def fingerprint(db: Connection) -> dict[str, str]:
    """All that pgq holds about jobs, to see that nothing has changed."""
    query = "SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM pgq.{} t"
    tables = ["job", "lease", "outcome", "scheduled", "dead", "straggler", "archive"]
    return {table: one(db, query.format(table)) for table in tables}


def endings(db: Connection, job: Job) -> list[str]:
    """How an attempt ended, according to all tables: more than one entry is a bug."""
    live = """
        SELECT kind FROM pgq.outcome WHERE job_id = %s AND lease_id = %s AND kind <> 'moved'
        UNION ALL SELECT kind FROM pgq.straggler WHERE id = %s AND lease = %s AND kind IS NOT NULL
    """
    archived = "SELECT kind FROM pgq.archive WHERE id = %s AND lease = %s"
    past = column(db, archived, job.id, job.lease)
    return max(column(db, live, *[job.id, job.lease] * 2), past, key=len)


# What sessions and the doctor are told --------------------------------------------------------------------------------

LAST_WORD = "that is all"


def listen(connect: Connect, *queues: str) -> Connection:
    """A session that listens, and waits for jobs of these queues."""
    listener = connect()
    listener.execute("LISTEN pgq")
    call(listener, "watch", list(queues))
    return listener


def heard(db: Connection, listener: Connection) -> list[str]:
    """What a listener was told by now. Notifications arrive in the order of commits, so a last word shows the end."""
    db.execute(f"NOTIFY pgq, '{LAST_WORD}'")
    words: list[str] = []
    for notification in listener.notifies(timeout=20):
        if notification.payload == LAST_WORD:
            return words
        words.append(notification.payload)
    raise AssertionError("the last word never came")


def findings(db: Connection) -> dict[str, tuple[str, str, str, str]]:
    """What the doctor found: severity, subject, detail and hint by code."""
    found = db.execute("SELECT code, severity, subject, detail, hint FROM pgq.doctor()").fetchall()
    assert all(all(finding) for finding in found), found
    return {code: (severity, subject, detail, hint) for code, severity, subject, detail, hint in found}
