"""Sessions on a real database and the model beside them: every step is done in both, and both must agree."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pgqueue import JobAttempt, LiveJob, QueueActivity, QueueStat
from tests.model.data import Asked, Call, Expect, Failure, Limits, Look, Newest, Place, Request
from tests.model.database import PATIENCE, ROLE, Connection, Database
from tests.model.lists import check_activity, check_failures, check_jobs, check_workers
from tests.model.model import UNCLAIMED, Model, Pair, with_result
from tests.model.transactions import NEVER, OUTSIDE, Transaction, visible
from tests.model.views import (
    Archived,
    DeadLetter,
    check_archive,
    check_attempts,
    check_batch,
    check_dead,
    check_doctor,
    check_grants,
    check_queues,
    check_requests,
    check_schedules,
    check_stats,
    check_status,
)
from tests.sql.support import Job as Claimed
from tests.sql.support import State, column, heard, one

SYNC = [True, False, True]
"""The sessions of a world, and whether they wait for their commits to reach the disk; a worker's claims need not."""

REFUSED_AFTER = "40ms"
"""How long a call waits that another session's open transaction may hold up: nobody is going to end it meanwhile."""

TICK = timedelta(milliseconds=1)
SETTINGS = """
    SELECT queue, lease, max_attempts, backoff, backoff_max, retention, shards, notify, paused, unique_until,
        validator IS NOT NULL, group_limit, running_limit, rate, rate_period, group_rate, group_period, fair, keep_place
    FROM pgq.queues()
"""
VERSION = re.search(r"default_version = '(.+)'", Path("pgqueue.control").read_text())
LEFT = "SELECT id FROM pgq.parked UNION ALL SELECT job_id FROM pgq.permit WHERE state <> 'ended'"
SCHEDULES = "SELECT name, queue, cron, catch_up, next_at FROM pgq.schedule"
WAITED = "55P03"


@dataclass
class Session:
    """A connection, and the transaction that is open on it."""

    connection: Connection
    sync: bool
    tx: Transaction | None = None


@dataclass(frozen=True)
class Refused:
    """A call that failed and changed nothing."""

    sqlstate: str
    message: str


Operation = Callable[[Transaction], Call]


class World:
    """What a test drives. Each method is a step: it does the same to the database and to the model, and compares."""

    def __init__(self, database: Database, note: Callable[[str], None] = lambda line: None) -> None:
        self.database = database
        self.note = note
        database.empty()
        self.model = Model()
        self.handed: list[tuple[int, int]] = []  # every job and lease that any session was ever told
        self.lost: list[Model] = []  # what a crash may leave: the newest commits have not reached the disk
        self.called: dict[str, int] = {}  # how often each function came back without an error
        self.names: set[str] = set()
        self.payloads = 0
        self._connect()
        self._pass(TICK)

    def _connect(self) -> None:
        """Sessions outlive a world: it takes them a while to have all functions in memory."""
        self.sessions = [Session(self.database.session(n, sync=sync), sync) for n, sync in enumerate(SYNC)]
        self.watcher = self.database.session(len(SYNC), sync=True)
        self.watcher.execute("LISTEN pgq; LISTEN pgq_job")
        heard(self.database.observer, self.watcher)  # what was meant for the world before

    # Calls ------------------------------------------------------------------------------------------------------------

    def run(
        self,
        who: int,
        operation: Operation,
        function: str,
        *values: Any,
        read: Callable[[list[Any]], Any] = lambda rows: rows[0][0],
        query: str | None = None,
        **named: Any,
    ) -> Any:
        """Call a function in a session and in the model. Returns what came back, or Refused."""
        session = self.sessions[who]
        self._pass(TICK)
        self.model.event()
        tx = session.tx or self.model.begin(sync=session.sync)
        if not session.tx:
            self.model.number(tx)
        call = operation(tx)
        expect = next(call)
        assert isinstance(expect, Expect)
        given = _given(named)
        arguments = [repr(value) for value in values] + [f"{name} => {value!r}" for name, value in given.items()]
        step = f"{'session' if session.tx else 'autocommit'} {who}: {function}({', '.join(arguments)})"
        slots = ["%s"] * len(values) + [f"{name} => %s" for name in given]
        query = query or f"SELECT * FROM pgq.{function}({', '.join(slots)})"
        value = self._execute(session, expect, query, [*values, *given.values()])
        self.note(f"{step} -> {value.sqlstate if isinstance(value, Refused) else value}")
        if isinstance(value, Refused):
            self._check_refusal(expect, value)
            call.close()
            if not session.tx:
                self.model.rollback(tx)
            return value
        assert not expect.error, f"{function} succeeded, and not with {expect.error}: {value}"
        assert not expect.must_wait, f"{function} did not wait for another session: {value}"
        self.called[function] = self.called.get(function, 0) + 1
        result = read(value)
        self._feed(session, call, result)
        if session.tx is None:
            self._commit(tx)
        elif tx.began == NEVER and one(session.connection, "SELECT pg_current_xact_id_if_assigned() IS NOT NULL"):
            self.model.number(tx)
        return result

    def _feed(self, session: Session, call: Call, value: Any) -> None:
        """Send the model what came back, and look up what it wants to know."""
        while True:
            try:
                wish = call.send(value)
            except StopIteration:
                return
            if isinstance(wish, Asked):
                value = self._asked(session.connection)
            elif isinstance(wish, Newest):
                value = one(session.connection, "SELECT last_value FROM pgq.job_id")
            else:
                assert isinstance(wish, Look)
                value = self._statuses(session.connection, wish.ids)

    @staticmethod
    def _check_refusal(expect: Expect, refused: Refused) -> None:
        waited = refused.sqlstate == WAITED and (expect.must_wait or expect.may_wait)
        expected = refused.sqlstate == expect.error or refused.sqlstate in expect.may_fail
        assert waited or expected, f"{refused}, and not {expect}"

    def _execute(self, session: Session, expect: Expect, query: str, values: Sequence[Any]) -> list[Any] | Refused:
        """What a call returns. One that may fail inside of a transaction does so under a savepoint: the rest stays."""
        guarded = expect.error or expect.may_fail or expect.may_wait or expect.must_wait
        connection = session.connection
        if guarded:
            connection.execute("SAVEPOINT guard" if session.tx else "BEGIN")
            if expect.may_wait or expect.must_wait:
                connection.execute(f"SET LOCAL lock_timeout = '{REFUSED_AFTER}'")
        try:
            rows = connection.execute(query, values).fetchall()
        except psycopg.Error as error:
            if not guarded or not error.sqlstate:
                raise
            connection.execute("ROLLBACK TO guard; RELEASE guard" if session.tx else "ROLLBACK")
            return Refused(error.sqlstate, str(error))
        if guarded:
            connection.execute(f"RELEASE guard; SET LOCAL lock_timeout = '{PATIENCE}'" if session.tx else "COMMIT")
        return rows

    def _commit(self, tx: Transaction) -> None:
        """The model's part of a commit."""
        wakes = tx.wakes
        if tx.wrote:
            if tx.sync:
                self.lost.clear()
            else:
                self.lost.append(self.model.crashed())
        self.model.commit(tx)
        if wakes:
            words = set(heard(self.database.observer, self.watcher))
            known = self.names | {str(id) for id in self.model.jobs}
            assert wakes <= words <= known, f"told of {words}, and not of {wakes}"

    # Producing --------------------------------------------------------------------------------------------------------

    def enqueue(self, who: int, queue: str, *, bad: bool = False, **named: Any) -> int | None:
        """One job, by pgq.enqueue. Returns its id. `bad`: a validator would refuse it."""
        named = _given(named)
        (payload,) = self._next_payloads(1)
        payload |= {"bad": 1} if bad else {}
        value = self.run(
            who,
            lambda tx: self.model.enqueue_many(tx, queue, [payload], **named),
            "enqueue",
            queue,
            Jsonb(payload),
            read=lambda rows: [row[0] for row in rows],
            **_adapted(named),
        )
        return None if isinstance(value, Refused) else int(value[0])

    def enqueue_many(self, who: int, queue: str, count: int, **named: Any) -> list[int]:
        named = _given(named)
        payloads = self._next_payloads(count)
        value = self.run(
            who,
            lambda tx: self.model.enqueue_many(tx, queue, payloads, **named),
            "enqueue_many",
            queue,
            [Jsonb(payload) for payload in payloads],
            read=lambda rows: [row[0] for row in rows],
            **_adapted(named),
        )
        return [] if isinstance(value, Refused) else list(value)

    def change_rows(self, who: int, count: int) -> Any:
        """Rows are inserted into a table whose trigger enqueues them: one by enqueue_row, several by enqueue_rows."""
        rows = self._next_payloads(count)
        numbers = [row["n"] for row in rows]
        table = "one" if count == 1 else "many"
        change = {"op": "INSERT", "schema": "test_clock", "table": table, "old": None}
        payloads = [{**change, "new": row} for row in rows]
        function = "enqueue_row" if count == 1 else "enqueue_rows"
        return self.run(
            who,
            lambda tx: self.model.enqueue_many(tx, "line", payloads, task="changed"),
            function,
            numbers[0] if count == 1 else numbers,
            read=_column,
            query=f"SELECT test_clock.{function}(%s)",
        )

    def enqueue_after(self, who: int, after: Sequence[int], queue: str, count: int, **named: Any) -> Any:
        """Several with pgq.enqueue_many_after; one with pgq.enqueue_after, or with pgq.batch if it runs anyway."""
        named = _given(named)
        payloads = self._next_payloads(count)
        json = [Jsonb(payload) for payload in payloads]
        function = "enqueue_many_after" if count != 1 else "enqueue_after"
        sent = dict(named)
        if count == 1 and set(named) == {"on_dead"} and named["on_dead"] == "run":
            function, sent = "batch", {}
        return self.run(
            who,
            lambda tx: self.model.enqueue_many_after(tx, after, queue, payloads, **named),
            function,
            list(after),
            queue,
            json if count != 1 else json[0],
            read=lambda rows: [row[0] for row in rows],
            **_adapted(sent),
        )

    def add_to_batch(self, who: int, id: int, ids: Sequence[int]) -> Any:
        return self.run(who, lambda tx: self.model.add_to_batch(tx, id, ids), "add_to_batch", id, list(ids))

    def enqueue_unique(self, who: int, queue: str, keys: Sequence[str | None], **named: Any) -> Any:
        """Several with pgq.enqueue_unique_many; one, if it has a key, with pgq.enqueue_unique."""
        named = _given(named)
        payloads = self._next_payloads(len(keys))
        json = [Jsonb(payload) for payload in payloads]
        single = len(keys) == 1 and keys[0] is not None
        return self.run(
            who,
            lambda tx: self.model.enqueue_unique_many(tx, queue, payloads, keys, **named),
            "enqueue_unique" if single else "enqueue_unique_many",
            queue,
            json[0] if single else json,
            read=lambda rows: rows,
            **({"unique_key": keys[0]} if single else {"unique_keys": list(keys)}),
            **_adapted(named),
        )

    def _next_payloads(self, count: int) -> list[dict[str, int]]:
        self.payloads += count
        return [{"n": self.payloads - n} for n in reversed(range(count))]

    # Claiming and settling --------------------------------------------------------------------------------------------

    def claim(self, who: int, queue: str, batch: int = 1, **named: Any) -> list[Claimed]:
        def read(rows: list[Any]) -> list[Claimed]:
            jobs = [Claimed(*row) for row in rows]
            before = {lease for _, lease in self.handed}
            again = {job.lease for job in jobs} & before
            assert not again, f"leases {again} were given out before, if only to be lost in a crash"
            self.handed += [(job.id, job.lease) for job in jobs]
            return jobs

        value = self.run(
            who, lambda tx: self.model.claim(tx, queue, batch, **named), "claim", queue, batch, read=read, **named
        )
        return [] if isinstance(value, Refused) else value

    def ack(self, who: int, pair: Pair, result: Any = None) -> Any:
        id, lease = pair
        return self.run(
            who,
            lambda tx: self.model.ack(tx, id, lease, result),
            "ack",
            id,
            lease,
            result=None if result is None else Jsonb(result),
        )

    def ack_many(self, who: int, pairs: Sequence[Pair], results: Sequence[Any] | None = None) -> Any:
        return self.run(
            who,
            lambda tx: self.model.ack_many(tx, pairs, results),
            "ack_many",
            *_columns(pairs),
            read=_column,
            results=None if results is None else [None if r is None else Jsonb(r) for r in results],
        )

    def reject(self, who: int, pair: Pair, **named: Any) -> Any:
        id, lease = pair
        return self.run(who, lambda tx: self.model.reject(tx, id, lease, **named), "reject", id, lease, **named)

    def reject_many(self, who: int, pairs: Sequence[Pair], errors: Sequence[str | None] | None = None) -> Any:
        return self.run(
            who,
            lambda tx: self.model.reject_many(tx, pairs, errors),
            "reject_many",
            *_columns(pairs),
            read=_column,
            errors=None if errors is None else list(errors),
        )

    def release(self, who: int, pairs: Sequence[Pair]) -> Any:
        return self.run(who, lambda tx: self.model.release(tx, pairs), "release", *_columns(pairs), read=_column)

    def snooze(self, who: int, pair: Pair, delay: timedelta) -> Any:
        return self.run(who, lambda tx: self.model.snooze(tx, *pair, delay), "snooze", *pair, delay)

    def snooze_many(self, who: int, pairs: Sequence[Pair], delay: timedelta) -> Any:
        return self.run(
            who,
            lambda tx: self.model.snooze_many(tx, pairs, delay),
            "snooze_many",
            *_columns(pairs),
            delay,
            read=_column,
        )

    def extend(self, who: int, lease: int | None, lease_for: timedelta | None = None) -> Any:
        return self.run(who, lambda tx: self.model.extend(tx, lease, lease_for), "extend", lease, lease_for=lease_for)

    def extend_many(self, who: int, leases: Sequence[int | None], lease_for: timedelta | None = None) -> Any:
        return self.run(
            who,
            lambda tx: self.model.extend_many(tx, leases, lease_for),
            "extend_many",
            list(leases),
            read=lambda rows: rows,
            lease_for=lease_for,
        )

    def held(self, who: int) -> list[tuple[int, int]]:
        """The attempts that this session sees running."""
        running = self.model.places(self.sessions[who].tx or OUTSIDE, "running")
        return [(place.job.id, place.lease.id) for place in running if place.lease]

    # Maintenance ------------------------------------------------------------------------------------------------------

    def promote(self, who: int) -> Any:
        return self.run(who, self.model.promote, "promote")

    def reap(self, who: int) -> Any:
        return self.run(who, self.model.reap, "reap")

    def rotate(self, who: int, *, seal: bool = True) -> Any:
        return self.run(who, self.model.rotate, "rotate", seal)

    def maintain(self, who: int) -> Any:
        return self.run(who, self.model.maintain, "maintain")

    def progress(self, who: int, pair: Pair, value: Any) -> Any:
        return self.run(who, lambda tx: self.model.progress(tx, *pair, value), "progress", *pair, Jsonb(value))

    # Taking back ------------------------------------------------------------------------------------------------------

    def cancel(self, who: int, id: int) -> Any:
        return self.run(who, lambda tx: self.model.cancel(tx, id), "cancel", id)

    def cancel_many(self, who: int, name: str, **named: Any) -> Any:
        return self.run(who, lambda tx: self.model.cancel_many(tx, name, **named), "cancel_many", name, **named)

    def cancel_requested(self, who: int, leases: Sequence[int | None]) -> Any:
        return self.run(
            who,
            lambda tx: self.model.cancel_requested(tx, leases),
            "cancel_requested",
            list(leases),
            read=_column,
        )

    def cancel_claimed(self, who: int, pair: Pair, reason: str | None = None) -> Any:
        return self.run(
            who, lambda tx: self.model.cancel_claimed(tx, *pair, reason), "cancel_claimed", *pair, reason=reason
        )

    def reschedule(self, who: int, id: int, run_at: datetime) -> Any:
        return self.run(who, lambda tx: self.model.reschedule(tx, id, run_at), "reschedule", id, run_at)

    def set_priority(self, who: int, id: int, priority: int) -> Any:
        return self.run(who, lambda tx: self.model.set_priority(tx, id, priority), "set_priority", id, priority)

    # Schedules --------------------------------------------------------------------------------------------------------

    def schedule(self, who: int, name: str, cron: str, queue: str, catch_up: str) -> Any:
        payload = {"tick of": name}
        return self.run(
            who,
            lambda tx: self.model.schedule(tx, name, cron, queue, payload, catch_up),
            "schedule",
            name,
            cron,
            queue,
            Jsonb(payload),
            catch_up=catch_up,
        )

    def next_runs(self, who: int, cron: str, n: int) -> Any:
        return self.run(who, lambda tx: self.model.next_runs(cron, n), "next_runs", cron, n=n, read=_column)

    def unschedule(self, who: int, name: str) -> Any:
        return self.run(who, lambda tx: self.model.unschedule(tx, name), "unschedule", name)

    # Queues -----------------------------------------------------------------------------------------------------------

    def create_queue(self, who: int, name: str, settings: Any, *, if_not_exists: bool = False) -> Any:
        self.names.add(name)
        return self.run(
            who,
            lambda tx: self.model.create_queue(tx, name, settings, if_not_exists=if_not_exists),
            "create_queue",
            name,
            if_not_exists=if_not_exists,
            **vars(settings),
        )

    def alter_queue(self, who: int, name: str, **settings: Any) -> Any:
        return self.run(who, lambda tx: self.model.alter_queue(tx, name, **settings), "alter_queue", name, **settings)

    def pause(self, who: int, name: str) -> Any:
        return self.run(who, lambda tx: self.model.pause(tx, name), "pause", name)

    def resume(self, who: int, name: str) -> Any:
        return self.run(who, lambda tx: self.model.resume(tx, name), "resume", name)

    def set_unique(self, who: int, name: str, unique_until: str) -> Any:
        return self.run(who, lambda tx: self.model.set_unique(tx, name, unique_until), "set_unique", name, unique_until)

    def set_validator(self, who: int, name: str, validated: bool) -> Any:
        validator = "test_clock.valid(jsonb)" if validated else None
        return self.run(who, lambda tx: self.model.set_validator(tx, name, validated), "set_validator", name, validator)

    def set_limits(self, who: int, name: str, limits: Limits) -> Any:
        return self.run(who, lambda tx: self.model.set_limits(tx, name, limits), "set_limits", name, *astuple(limits))

    def grant(self, who: int, kind: str) -> Any:
        return self.run(who, lambda tx: self.model.grant(tx, kind), f"grant_{kind}", ROLE)

    def try_exclusive(self, who: int, name: str) -> Any:
        return self.run(who, lambda tx: self.model.try_exclusive(tx, name), "try_exclusive", name)

    def purge(self, who: int, name: str, state: str | None = None) -> Any:
        function, values = ("purge_state", [name, state]) if state else ("purge", [name])
        return self.run(who, lambda tx: self.model.purge(tx, name, state), function, *values)

    def drop_queue(self, who: int, name: str, *, force: bool = False) -> Any:
        return self.run(who, lambda tx: self.model.drop_queue(tx, name, force=force), "drop_queue", name, force)

    def redrive(self, who: int, name: str, ids: Sequence[int] | None = None) -> Any:
        return self.run(
            who,
            lambda tx: self.model.redrive(tx, name, ids),
            "redrive",
            name,
            ids=None if ids is None else list(ids),
        )

    def redrive_where(self, who: int, name: str, n: int | None, per_second: float | None) -> Any:
        return self.run(
            who,
            lambda tx: self.model.redrive_where(tx, name, n, per_second),
            "redrive_where",
            name,
            n=n,
            per_second=per_second,
        )

    def discard(self, who: int, name: str, ids: Sequence[int] | None) -> Any:
        function, values = ("discard_where", [name]) if ids is None else ("discard", [name, list(ids)])
        return self.run(who, lambda tx: self.model.discard(tx, name, ids), function, *values)

    # Transactions -----------------------------------------------------------------------------------------------------

    def begin(self, who: int, *, repeatable_read: bool = False) -> None:
        session = self.sessions[who]
        assert not session.tx
        level = "REPEATABLE READ" if repeatable_read else "READ COMMITTED"
        self.note(f"session {who}: BEGIN {level}")
        session.connection.execute(f"BEGIN ISOLATION LEVEL {level}; SELECT 1".encode())  # takes the snapshot
        session.tx = self.model.begin(sync=session.sync, repeatable_read=repeatable_read)

    def commit(self, who: int) -> None:
        session = self.sessions[who]
        assert session.tx
        self.note(f"session {who}: COMMIT")
        session.connection.execute("COMMIT")
        tx, session.tx = session.tx, None
        self._commit(tx)

    def rollback(self, who: int) -> None:
        session = self.sessions[who]
        assert session.tx
        self.note(f"session {who}: ROLLBACK")
        session.connection.execute("ROLLBACK")
        self.model.rollback(session.tx)
        session.tx = None

    def prepare(self, who: int, name: str) -> None:
        """What has sent a NOTIFY, or holds the ring, had better not be left lying about."""
        session = self.sessions[who]
        assert session.tx
        self.note(f"session {who}: PREPARE TRANSACTION '{name}'")
        session.connection.execute(f"PREPARE TRANSACTION '{name}'".encode())
        self.lost.clear()  # what is prepared is on disk, and all that came before it
        self.model.prepare(session.tx, name)
        session.tx = None

    def finish_prepared(self, name: str, *, commit: bool) -> None:
        query = f"{'COMMIT' if commit else 'ROLLBACK'} PREPARED '{name}'"
        self.note(query)
        self.sessions[0].connection.execute(query.encode())
        self.lost.clear()
        self.model.finish_prepared(name, commit=commit)

    def savepoint(self, who: int, name: str) -> None:
        session = self.sessions[who]
        assert session.tx
        self.note(f"session {who}: SAVEPOINT {name}")
        session.connection.execute(f"SAVEPOINT {name}".encode())
        self.model.savepoint(session.tx, name)

    def rollback_to(self, who: int, name: str) -> None:
        session = self.sessions[who]
        assert session.tx
        self.note(f"session {who}: ROLLBACK TO {name}")
        session.connection.execute(f"ROLLBACK TO {name}".encode())
        self.model.rollback_to(session.tx, name)

    def release_savepoint(self, who: int, name: str) -> None:
        session = self.sessions[who]
        assert session.tx
        self.note(f"session {who}: RELEASE {name}")
        session.connection.execute(f"RELEASE {name}".encode())
        self.model.release_savepoint(session.tx, name)

    # Time, and accidents ----------------------------------------------------------------------------------------------

    def advance(self, by: timedelta) -> None:
        self.note(f"{by} pass")
        self._pass(by)

    def advance_to_next(self, viewer: Transaction) -> None:
        """Until just after the next lease of a job has ended, or the next job or tick is due."""
        model = self.model
        ends = [model.expires_at(viewer, p.lease) for p in model.places(viewer, "running") if p.lease]
        due = [p.run_at for p in model.places(viewer, "scheduled") if p.run_at]
        ticks = [schedule.next_at for schedule in model.schedules if visible(viewer, schedule)]
        coming = [at for at in ends + due + ticks if at > model.now]
        if coming:
            self.advance(min(coming) - model.now)

    def _pass(self, by: timedelta) -> None:
        self.model.now += by
        self.database.set_clock(self.model.now)

    def disconnect(self, who: int, *, terminate: bool) -> None:
        """A session ends in the middle of whatever it does."""
        self.note(f"session {who} {'is terminated' if terminate else 'ends'}")
        session = self.sessions[who]
        pid = session.connection.info.backend_pid
        if terminate:
            one(self.database.observer, "SELECT pg_terminate_backend(%s)", pid)
        session.connection.close()
        self.database.until_gone(pid)
        session.connection = self.database.session(who, sync=session.sync)
        if session.tx:
            self.model.rollback(session.tx)
            session.tx = None

    def restart(self, mode: str) -> None:
        """fast: what was committed is on disk. immediate: a crash, and what was committed last may be gone."""
        self.note(f"restart, {mode}")
        self.database.restart(mode)
        self._connect()
        self.database.set_clock(self.model.now)
        candidates = [*(self.lost if mode == "immediate" else []), self.model.crashed()]
        self.lost.clear()
        self._adopt(candidates)

    def _adopt(self, candidates: list[Model]) -> None:
        """Find out which commits have survived; the newest state that fits."""
        now = self.model.now
        while True:
            self.model = candidates.pop()
            self.model.now = now
            self.model.nobody_watches()
            try:
                self.check(full=True)
            except AssertionError:
                if not candidates:
                    raise
            else:
                self.model.forget_lost_jobs()
                return

    # Waiting workers --------------------------------------------------------------------------------------------------

    def watch(self, name: str) -> None:
        self._from_watcher(self.model.watch(name), "watch", [name])

    def unwatch(self, name: str) -> None:
        self._from_watcher(self.model.unwatch(name), "unwatch", [name])

    def watch_job(self, id: int) -> None:
        self._from_watcher(self.model.watch_job(id), "watch_job", id)

    def unwatch_job(self, id: int) -> None:
        self._from_watcher(self.model.unwatch_job(id), "unwatch_job", id)

    def _from_watcher(self, call: Call, function: str, argument: list[str] | int) -> None:
        self._pass(TICK)
        expect = next(call)
        assert isinstance(expect, Expect)
        value = self._execute(Session(self.watcher, True), expect, f"SELECT pgq.{function}(%s)", [argument])
        self.note(f"watcher: {function}({argument!r}) -> {value}")
        if isinstance(value, Refused):
            self._check_refusal(expect, value)
            call.close()
            return
        assert not expect.error, f"{function} succeeded, and not with {expect.error}"
        self.called[function] = self.called.get(function, 0) + 1
        with_result(call, value[0][0])

    # Procedures -------------------------------------------------------------------------------------------------------

    def work(self, who: int, name: str, batch: int) -> None:
        """A session works on all that a queue has ready. There must be nothing that maintenance would do."""
        session = self.sessions[who]
        assert not session.tx
        self.run(
            who,
            lambda tx: self.model.work(tx, name),
            "work",
            name,
            read=lambda rows: self._worked(session.connection, name),
            query=f"CALL pgq.work(%s, 'test_clock.handle', batch => {batch})",
        )

    def _worked(self, connection: Connection, name: str) -> dict[int, tuple[int, str, str | None]]:
        """What became of the jobs that were worked on at this moment."""
        ids = [job.id for job in self.model.jobs.values() if job.queue_name == name]
        query = """
            SELECT i, a.lease, a.worker, a.error FROM unnest(%s::bigint[]) i, pgq.attempts(i) a
            WHERE a.finished_at = pgq._now() AND a.worker ~ '^pgq.work '
        """
        return {row[0]: row[1:] for row in connection.execute(query, [ids])}

    def wait(self, who: int, id: int) -> None:
        """Without patience. That job_status knows the right answer is seen elsewhere."""
        session = self.sessions[who]
        if session.tx:
            self.refuses(who, "CALL pgq.wait(%s)", [id], "2D000")
            return
        self._note("wait")
        (row,) = session.connection.execute("CALL pgq.wait(%s, '0')", [id]).fetchall()
        state = self._statuses(self.database.observer, [id]).get(id)
        check_status(self.model, OUTSIDE, id, state)
        assert row == ((state.state, state.result, state.error) if state else ("not found", None, None)), (row, state)

    # Looking ----------------------------------------------------------------------------------------------------------

    def check(self, *, full: bool = False) -> None:
        """What an outsider sees, and with `full` what every session sees of each job."""
        self._check_views(OUTSIDE, self.database.observer, full=full)

    def check_session(self, who: int, *, full: bool = False) -> None:
        """What a session sees inside of its own transaction."""
        session = self.sessions[who]
        if session.tx is not None and session.tx.snapshot is None:
            self._check_views(session.tx, session.connection, full=full)

    def _check_views(self, viewer: Transaction, connection: Connection, *, full: bool) -> None:
        """Unless it would have to wait for a transaction that has truncated a segment, or dropped old archives."""
        if self.model.held_up(viewer, "truncated"):
            return
        check_stats(self.model, viewer, self._stats(connection))
        if full and not self.model.turning(viewer):
            self._check_statuses(viewer, connection)
            check_requests(self.model, viewer, self._asked(connection))
            check_schedules(self.model, viewer, connection.execute(SCHEDULES).fetchall())
            self._note("queues")
            check_queues(self.model, viewer, connection.execute(SETTINGS).fetchall())
            check_grants(self.model, viewer, self.database.granted(connection))
            check_dead(self.model, viewer, self._dead_letters(viewer, connection))
            for place in self.model.places(viewer, "running"):
                self._check_running(viewer, connection, place)
            for place in self.model.places(viewer, "waiting"):
                self._check_waiting(viewer, connection, place)

    def _stats(self, connection: Connection) -> list[QueueStat]:
        self.called["stats"] = self.called.get("stats", 0) + 1
        with connection.cursor(row_factory=class_row(QueueStat)) as cursor:
            return cursor.execute("SELECT * FROM pgq.stats()").fetchall()

    def _statuses(self, connection: Connection, ids: Sequence[int]) -> dict[int, State]:
        self.called["job_status"] = self.called.get("job_status", 0) + 1
        with connection.cursor(row_factory=class_row(State)) as cursor:
            query = "SELECT s.* FROM unnest(%s::bigint[]) i, pgq.job_status(i) s"
            states = cursor.execute(query, [list(ids)]).fetchall()
        assert len({state.id for state in states}) == len(states), f"a job in two places: {states}"
        return {state.id: state for state in states}

    @staticmethod
    def _asked(connection: Connection) -> set[int]:
        return set(column(connection, "SELECT id FROM pgq.cancel_request"))

    def _check_statuses(self, viewer: Transaction, connection: Connection) -> None:
        ids = [*self.model.jobs, max(self.model.jobs, default=0) + 1]
        found = self._statuses(connection, ids)
        for id in ids:
            check_status(self.model, viewer, id, found.get(id))

    def _check_running(self, viewer: Transaction, connection: Connection, place: Place) -> None:
        self._check_attempts(viewer, connection, place)
        self._note("job_progress")
        told = self.model.progress_of(viewer, place)
        assert one(connection, "SELECT pgq.job_progress(%s)", place.job.id) == (told.value if told else None)

    def _check_attempts(self, viewer: Transaction, connection: Connection, place: Place) -> None:
        self._note("attempts")
        with connection.cursor(row_factory=class_row(JobAttempt)) as cursor:
            rows = cursor.execute("SELECT * FROM pgq.attempts(%s)", [place.job.id]).fetchall()
        check_attempts(self.model, viewer, place, rows)

    def _check_waiting(self, viewer: Transaction, connection: Connection, place: Place) -> None:
        self._note("batch_status", "waits_for")
        (row,) = connection.execute("SELECT * FROM pgq.batch_status(%s)", [place.job.id]).fetchall()
        check_batch(self.model, viewer, place, row, column(connection, "SELECT pgq.waits_for(%s)", place.job.id))

    def _note(self, *functions: str) -> None:
        """These have been called, and came back."""
        for function in functions:
            self.called[function] = self.called.get(function, 0) + 1

    def attempts(self, who: int) -> None:
        """Of all jobs."""
        session = self.sessions[who]
        viewer = session.tx or OUTSIDE
        if self.model.held_up(viewer, "truncated") or self.model.turning(viewer) or viewer.snapshot is not None:
            return
        for id in self.model.jobs:
            place = self.model.place(viewer, id)
            if place and place.state != "gone" and self.model.queue_of(viewer, place.job.queue):
                self._check_attempts(viewer, session.connection, place)

    def look(self, who: int) -> None:
        """The lists and the doctor: all that a person looks at."""
        session = self.sessions[who]
        viewer, connection = session.tx or OUTSIDE, session.connection
        if self.model.held_up(viewer, "truncated") or self.model.turning(viewer) or viewer.snapshot is not None:
            return
        self._note("doctor", "jobs", "workers", "activity", "failures", "version")
        check_doctor(self.model, viewer, connection.execute("SELECT * FROM pgq.doctor()").fetchall())
        for name in sorted(self.names):
            if queue := self.model.queue(viewer, name):
                with connection.cursor(row_factory=class_row(LiveJob)) as cursor:
                    jobs = cursor.execute("SELECT * FROM pgq.jobs(%s, n => 1000)", [name]).fetchall()
                check_jobs(self.model, viewer, queue, jobs)
        check_workers(self.model, viewer, connection.execute("SELECT * FROM pgq.workers()").fetchall())
        with connection.cursor(row_factory=class_row(QueueActivity)) as cursor:
            check_activity(self.model, viewer, cursor.execute("SELECT * FROM pgq.activity()").fetchall())
        check_failures(self.model, viewer, connection.execute("SELECT * FROM pgq.failures(1000)").fetchall())
        assert VERSION
        assert one(connection, "SELECT pgq.version()") == VERSION[1]

    def exclusive_holder(self, who: int, name: str) -> None:
        """A session, or a prepared transaction, which has none."""
        self._note("exclusive_holder")
        pids = {id(session.tx): session.connection.info.backend_pid for session in self.sessions if session.tx}
        expected = [pids.get(id(tx)) for tx in self.model.open if tx.holds(f"exclusive {name}")]
        holders = column(self.sessions[who].connection, "SELECT pid FROM pgq.exclusive_holder(%s)", name)
        assert holders == expected, f"exclusive as {name} is {holders}, and not {expected}"

    def refuses(self, who: int, query: str, values: Sequence[Any], sqlstate: str) -> None:
        """A call that is wrong in itself changes nothing."""
        value = self._execute(self.sessions[who], Expect(error=sqlstate), query, values)
        self.note(f"session {who}: {query} -> {value}")
        assert isinstance(value, Refused), f"{query} returned {value}"
        assert value.sqlstate == sqlstate, value

    # The end ----------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """End all transactions, work everything off, retire every segment, and compare what is left: the archive."""
        self.note("the end")
        for who, session in enumerate(self.sessions):
            if session.tx and who % 2:
                self.rollback(who)
            elif session.tx:
                self.commit(who)
        for name in list(self.model.prepared):
            self.finish_prepared(name, commit=True)
        self.check(full=True)
        self.look(0)
        self.attempts(0)
        self._drain()
        self._retire()
        self.check(full=True)
        assert column(self.database.observer, LEFT) == [], "jobs of groups have ended, and something of them is left"
        self.attempts(0)
        with self.database.observer.cursor(row_factory=class_row(Archived)) as cursor:
            check_archive(self.model, cursor.execute("SELECT * FROM pgq.archive ORDER BY id, finished_at").fetchall())

    def _names(self) -> list[str]:
        return sorted(name for name in self.names if self.model.queue(OUTSIDE, name))

    def _drain(self) -> None:
        """Until nothing waits and nothing runs, nor is asked to stop; each job comes once."""
        for name in self._names():
            self.resume(0, name)
        for name in [schedule.name for schedule in self.model.schedules if visible(OUTSIDE, schedule)]:
            self.unschedule(0, name)
        for _ in range(10 + len(self._unfinished())):  # a rate lets one start at a time
            self.advance(timedelta(hours=3))
            self.maintain(0)
            for name in self._names():
                while jobs := self.claim(0, name, 1000):
                    self.ack_many(0, [(job.id, job.lease) for job in jobs])
            if not self._unfinished():
                return
        raise AssertionError(f"still there: {self._unfinished()}")

    def _unfinished(self) -> list[Place | Request]:
        left = [p for state in (*UNCLAIMED, "running") for p in self.model.places(OUTSIDE, state)]
        return [*left, *(request for request in self.model.requests if visible(OUTSIDE, request))]

    def _retire(self) -> None:
        for _ in range(60):
            self.rotate(0)
            if not self.database.unfinished_segments():
                return
        raise AssertionError(f"segments {self.database.unfinished_segments()} are never retired")

    def _dead_letters(self, viewer: Transaction, connection: Connection) -> list[DeadLetter]:
        self._note("dead_letters")
        names = [name for name in sorted(self.names) if self.model.queue(viewer, name)]
        rows = connection.execute(
            """
            SELECT d.id, d.queue, d.payload, d.priority, d.attempt, d.died_at, d.error,
                h.attempt, h.at, h.error, h.worker
            FROM unnest(%s::text[]) q, pgq.dead_letters(q) d LEFT JOIN LATERAL jsonb_to_recordset(d.history)
                AS h (attempt int, at timestamptz, error text, worker text) ON true
            ORDER BY d.id, h.at
            """,
            [names],
        ).fetchall()
        letters = {row[0]: DeadLetter(*row[:7]) for row in rows}
        for row in rows:
            if row[7] is not None:
                letters[row[0]].history.append(Failure(*row[7:]))
        return list(letters.values())


def _given(named: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if value is not None}


def _adapted(named: dict[str, Any]) -> dict[str, Any]:
    return {name: Jsonb(value) if name == "headers" else value for name, value in named.items()}


def _columns(pairs: Sequence[Pair]) -> tuple[list[int | None], list[int | None]]:
    return [id for id, _ in pairs], [lease for _, lease in pairs]


def _column(rows: list[Any]) -> list[Any]:
    return [row[0] for row in rows]
