"""A connection to the queue whose every call is on record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg.pq import TransactionStatus

from tests.chaos.history import Recorder

Boundary = Literal["invoked", "answered", "open", "committed", "handler"]
BOUNDARIES: tuple[Boundary, ...] = ("invoked", "answered", "open", "committed", "handler")
"""Where a client may die: before a call is sent; after its answer came, before that is on record; in a transaction,
before the commit; after it; while it works on a job."""

# Before the call and after it: the function is evaluated in full before the first row comes out of it.
_TIMES = "chaos.us(b.c), chaos.us(clock_timestamp()), chaos.us(b.n), chaos.us(pgq._now())"
_BEFORE = "(SELECT clock_timestamp() AS c, pgq._now() AS n OFFSET 0) b"
_CLAIMED = (
    "f.id, f.lease, f.queue, f.task, f.payload, f.attempt, f.max_attempts, f.priority, chaos.us(f.expires_at), "
    "f.headers"
)
_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s AND pid <> pg_backend_pid()
"""


class ConnectionLost(Exception):
    """The connection broke; whether the call has taken effect is unknown."""


@dataclass(frozen=True)
class Job:
    """A claimed job."""

    id: int
    lease: int
    queue: str
    task: str | None
    payload: Any
    attempt: int
    max_attempts: int
    priority: int
    expires_at: int
    headers: Any


def is_lost(connection: psycopg.Connection[Any], error: psycopg.Error) -> bool:
    """Whether an error leaves open what became of the statement: the server did not answer, or was going away."""
    return connection.closed or error.sqlstate is None or error.sqlstate[:2] == "08" or error.sqlstate[:4] == "57P0"


class Session:
    """An autocommit connection that writes down what it calls, and what came of it.

    Args:
        recorder: where to.
        dsn: connection string.
        name: application_name, by which faults find it.
        boundary: called at each :data:`Boundary`.
        alone: wait until no other session of this name is left, and say so.
        prepare_threshold: psycopg's setting.
    """

    def __init__(
        self,
        recorder: Recorder,
        dsn: str,
        name: str,
        *,
        boundary: Callable[[Boundary], None] = lambda _: None,
        alone: bool = False,
        prepare_threshold: int | None = 5,
        **options: Any,
    ) -> None:
        self._recorder = recorder
        self._boundary = boundary
        self._in_transaction = False
        self.connection = psycopg.connect(
            dsn, autocommit=True, application_name=name, prepare_threshold=prepare_threshold, **options
        )
        try:
            self._begin(name, alone)
        except BaseException:
            self.connection.close()
            raise

    def _begin(self, name: str, alone: bool) -> None:
        if alone:
            with self._lost_or_raised(None):
                while self.connection.execute(_OTHERS, [name]).fetchall():
                    self.connection.execute("SELECT pg_sleep(0.01)")
        self.call("session", {"alone": alone}, "(SELECT) f", [], "1")

    # Calls ------------------------------------------------------------------------------------------------------------

    def call(self, name: str, args: Mapping[str, Any], function: str, params: Sequence[Any], columns: str) -> list[Any]:
        """Call what can stand in FROM as f, and return its rows."""
        number = self._recorder.invoke(name, args)
        query = f"SELECT {_TIMES}, f.there, {columns} FROM {_BEFORE} LEFT JOIN LATERAL "
        query += f"(SELECT true AS there, * FROM {function}) f ON true"
        self._boundary("invoked")
        with self._lost_or_raised(number):
            rows = self.connection.execute(query.encode(), params).fetchall()
        self._boundary("answered")
        result = [row[5:] for row in rows if row[4]]
        self._recorder.ok(number, [row[0] if len(row) == 1 else row for row in result], rows[0][:4])
        self._boundary("open" if self._in_transaction else "committed")
        return result

    def _function(
        self,
        name: str,
        args: Mapping[str, Any],
        columns: str = "f.v",
        only: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        called: str | None = None,
    ) -> list[Any]:
        """Call pgq.<name> with those arguments that are not None. `only` is sent instead, `extra` only recorded."""
        recorded = {key: value for key, value in args.items() if value is not None}
        sent = recorded | dict(only or {})
        named = ", ".join(f"{key} => %s" for key in sent)
        alias = "AS v(v)" if columns == "f.v" else ""
        return self.call(
            name, recorded | dict(extra or {}), f"pgq.{called or name}({named}) {alias}", list(sent.values()), columns
        )

    @contextmanager
    def _lost_or_raised(self, number: int | None) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            if is_lost(self.connection, error):
                self.connection.close()
                raise ConnectionLost from error
            if number is not None:
                self._recorder.failed(number, error.sqlstate or "?")
            raise

    # Transactions -----------------------------------------------------------------------------------------------------

    def begin(self, isolation: str = "READ COMMITTED") -> None:
        self._command("begin", {}, f"BEGIN ISOLATION LEVEL {isolation}")
        self._in_transaction = True

    def commit(self) -> None:
        self._in_transaction = False
        self._command("commit", {}, "COMMIT")
        self._boundary("committed")

    def rollback(self) -> None:
        self._in_transaction = False
        self._command("rollback", {}, "ROLLBACK")

    def assign_xid(self) -> None:
        """Give the transaction its id, which is else done when it writes for the first time."""
        with self._lost_or_raised(None):
            self.connection.execute("SELECT pg_current_xact_id()")

    def savepoint(self, name: str) -> None:
        self._command("savepoint", {"name": name}, f"SAVEPOINT {name}")

    def rollback_to(self, name: str) -> None:
        self._command("rollback_to", {"name": name}, f"ROLLBACK TO {name}")

    def prepare(self, gid: str) -> None:
        self._in_transaction = False
        self._command("prepare", {"gid": gid}, f"PREPARE TRANSACTION '{gid}'")

    def commit_prepared(self, gid: str) -> None:
        self._command("commit_prepared", {"gid": gid}, f"COMMIT PREPARED '{gid}'")

    def rollback_prepared(self, gid: str) -> None:
        self._command("rollback_prepared", {"gid": gid}, f"ROLLBACK PREPARED '{gid}'")

    def _command(self, name: str, args: Mapping[str, Any], sql: str) -> None:
        number = self._recorder.invoke(name, args)
        self._boundary("invoked")
        with self._lost_or_raised(number):
            tag = self.connection.execute(sql.encode()).statusmessage
        self._boundary("answered")
        if name in ("commit", "prepare") and tag == "ROLLBACK":  # the server's answer to COMMIT after an error
            self._recorder.failed(number, "25P02")
        else:
            self._recorder.ok(number)

    def abandon(self) -> None:
        """Roll back after an error, if a transaction is open."""
        if self.connection.info.transaction_status != TransactionStatus.IDLE:
            self.rollback()
        self._in_transaction = False

    def set(self, setting: str, value: str, local: bool = False) -> None:
        """Change a setting of the session, or of its transaction."""
        with self._lost_or_raised(None):
            self.connection.execute("SELECT set_config(%s, %s, %s)", [setting, value, local])

    def close(self) -> None:
        self.connection.close()

    # The queue --------------------------------------------------------------------------------------------------------

    def create_queue(self, queue: str, **settings: Any) -> None:
        self._function("create_queue", {"queue": queue, **settings})

    def drop_queue(self, queue: str, force: bool | None = None) -> None:
        self._function("drop_queue", {"queue": queue, "force": force})

    def alter_queue(self, queue: str, **settings: Any) -> None:
        self._function("alter_queue", {"queue": queue, **settings})

    def enqueue(self, queue: str, payload: Mapping[str, Any], **options: Any) -> int:
        """The payload must have a unique "k", by which the job is known."""
        args = {"queue": queue, "payload": payload, **options}
        only = _as_json(args, "payload", "headers")
        ((id,),) = self._function("enqueue", args, only=only, called="enqueue_after" if "after" in args else "enqueue")
        return int(id)

    def enqueue_many(self, queue: str, payloads: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        args = {"queue": queue, "payloads": payloads, **options}
        only: dict[str, Any] = {"payloads": [json.dumps(payload) for payload in payloads], **_as_json(args, "headers")}
        return [id for (id,) in self._function("enqueue_many", args, only=only)]

    def enqueue_unique(self, queue: str, payload: Mapping[str, Any], unique_key: str, **options: Any) -> bool:
        """Returns whether a job was added."""
        args = {"queue": queue, "payload": payload, "unique_key": unique_key, **options}
        only = _as_json(args, "payload", "headers")
        ((_, inserted),) = self._function("enqueue_unique", args, "f.id, f.inserted", only)
        return bool(inserted)

    def claim(self, queue: str, batch: int = 1, *, durable: bool | None = None, **options: Any) -> list[Job]:
        """durable: say that synchronous_commit is on; else a crash may undo the claim."""
        args = {"queue": queue, "batch": batch, **options}
        rows = self._function("claim", args, _CLAIMED, extra={} if durable is None else {"durable": durable})
        return [Job(*row) for row in rows]

    def ack(self, id: int, lease: int, result: Any = None) -> None:
        args = {"id": id, "lease": lease, "result": result}
        self._function("ack", args, only=_as_json(args, "result"))

    def ack_many(self, ids: Sequence[int], leases: Sequence[int], results: Sequence[Any] | None = None) -> list[int]:
        args = {"ids": ids, "leases": leases, "results": results}
        only: dict[str, Any] = {} if results is None else {"results": [json.dumps(result) for result in results]}
        return [id for (id,) in self._function("ack_many", args, only=only)]

    def reject(self, id: int, lease: int, **options: Any) -> str:
        ((kind,),) = self._function("reject", {"id": id, "lease": lease, **options})
        return str(kind)

    def reject_many(self, ids: Sequence[int], leases: Sequence[int], errors: Sequence[str] | None = None) -> list[int]:
        args = {"ids": ids, "leases": leases, "errors": errors}
        return [id for (id,) in self._function("reject_many", args)]

    def release(self, ids: Sequence[int], leases: Sequence[int]) -> list[int]:
        return [id for (id,) in self._function("release", {"ids": ids, "leases": leases})]

    def snooze(self, id: int, lease: int, delay: str) -> None:
        self._function("snooze", {"id": id, "lease": lease, "delay": delay})

    def cancel(self, id: int) -> str:
        ((answer,),) = self._function("cancel", {"id": id})
        return str(answer)

    def extend(self, lease: int, lease_for: str | None = None) -> int:
        ((expires_at,),) = self._function("extend", {"lease": lease, "lease_for": lease_for}, "chaos.us(f.extend)")
        return int(expires_at)

    def extend_many(self, leases: Sequence[int], lease_for: str | None = None) -> dict[int, int]:
        args = {"leases": leases, "lease_for": lease_for}
        return dict(self._function("extend_many", args, "f.lease, chaos.us(f.expires_at)"))

    def effect(self, id: int, lease: int) -> None:
        """Write something of the handler's own, which must be there if and only if the job is done."""
        insert = "INSERT INTO chaos.effect VALUES (%s, %s)"
        number = self._recorder.invoke("effect", {"id": id, "lease": lease})
        with self._lost_or_raised(number):
            self.connection.execute(insert, [id, lease])
        self._recorder.ok(number)

    def pause(self, queue: str) -> None:
        self._function("pause", {"queue": queue})

    def resume(self, queue: str) -> None:
        self._function("resume", {"queue": queue})

    def purge(self, queue: str) -> int:
        ((count,),) = self._function("purge", {"queue": queue})
        return int(count)

    def redrive(self, queue: str, ids: Sequence[int] | None = None) -> int:
        ((count,),) = self._function("redrive", {"queue": queue, "ids": ids})
        return int(count)

    def maintain(self) -> dict[str, Any]:
        ((done,),) = self._function("maintain", {})
        return dict(done)

    def promote(self) -> int:
        ((count,),) = self._function("promote", {})
        return int(count)

    def reap(self) -> int:
        ((count,),) = self._function("reap", {})
        return int(count)

    def rotate(self, seal: bool = True) -> dict[str, Any]:
        ((done,),) = self._function("rotate", {"seal": seal})
        return dict(done)

    def look(self) -> None:
        """Read the time, and what the queues hold."""
        self.call("look", {}, "(SELECT count(*) FROM pgq.stats()) f", [], "f.count")

    def tick(self) -> None:
        """Read the time."""
        self.call("tick", {}, "(SELECT) f", [], "1")

    def quiet(self) -> None:
        """Say that no other session is left. Make sure of it first."""
        self.call("quiet", {}, "(SELECT) f", [], "1")

    def set_clock(self, ahead: float) -> None:
        """Let pgq._now() be so many seconds ahead of the server's clock, from the commit on."""
        number = self._recorder.invoke("clock", {"ahead": round(ahead * 1_000_000)})
        times = f"SELECT {_TIMES} FROM {_BEFORE}"
        with self._lost_or_raised(number):
            before = self.connection.execute(times.encode()).fetchone()
            self.connection.execute("UPDATE chaos.clock SET ahead = %s * interval '1 second'", [ahead])
        assert before is not None
        self._recorder.ok(number, None, before)


def _as_json(args: Mapping[str, Any], *keys: str) -> dict[str, str]:
    return {key: json.dumps(args[key]) for key in keys if args.get(key) is not None}
