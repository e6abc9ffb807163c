"""Jobs in every state that there is, left behind by an old version, and worked off by the new one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pgqueue import App, Client, Worker
from pgqueue import Job as RunningJob
from tests.sql.support import (
    Connect,
    Connection,
    Job,
    ack,
    call,
    claim,
    column,
    create,
    heard,
    ids,
    leases,
    listen,
    one,
    refused,
    retire_all,
    rotate,
    rows,
)

RING = {"free", "open", "sealed", "closed", "claimed", "drained", "archived"}


class StoppedClock:
    """pgq._now() stands still, so that it does not matter how fast the machine is."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        db.execute("CREATE SCHEMA test_clock; CREATE TABLE test_clock.clock AS SELECT clock_timestamp() AS now")
        db.execute("GRANT USAGE ON SCHEMA test_clock TO PUBLIC; GRANT SELECT ON test_clock.clock TO PUBLIC")
        db.execute(
            "CREATE OR REPLACE FUNCTION pgq._now() RETURNS timestamptz LANGUAGE sql VOLATILE"
            " SET search_path = pg_catalog, pg_temp AS 'SELECT now FROM test_clock.clock'"
        )

    def advance(self, seconds: float) -> None:
        self._db.execute("UPDATE test_clock.clock SET now = now + make_interval(secs => %s)", [seconds])


@contextmanager
def stopped_clock(db: Connection) -> Iterator[StoppedClock]:
    """Stop the clock, and give the installation its own back."""
    original = one(db, "SELECT pg_get_functiondef('pgq._now()'::regprocedure)")
    try:
        yield StoppedClock(db)
    finally:
        db.execute(original.encode())
        db.execute("DROP SCHEMA test_clock CASCADE")


@dataclass
class Live:
    """What was left behind.

    Args:
        made: the ids of the jobs by what became of them.
        held: jobs under a lease that is still good.
        cancelled: the ids of jobs that were taken back.
        stopping: a running job that is asked to stop; none if the old version knows no such thing.
        due: how many jobs become ready in two hours.
        waiting: a session that waits for jobs of queue "waiting".
        states: what pgq.job_status says of each job.
    """

    waiting: Connection
    made: dict[str, list[int]] = field(default_factory=dict)
    held: list[Job] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    stopping: Job | None = None
    due: int = 5
    states: dict[int, str] = field(default_factory=dict)

    @property
    def ids(self) -> list[int]:
        return [id for made in self.made.values() for id in made if id not in self.cancelled]


def ring(db: Connection) -> set[str]:
    """The states in which segments are."""
    return {"free", *column(db, "SELECT state FROM pgq.segment")}


def job_states(db: Connection, known: list[int]) -> dict[int, str]:
    return dict(db.execute("SELECT s.id, s.state FROM unnest(%s::bigint[]) i, pgq.job_status(i) s", [known]).fetchall())


def put(db: Connection, queue: str, count: int, **options: object) -> list[int]:
    return rows(db, "enqueue_many", queue, [f'{{"n": {n}}}' for n in range(count)], task="note", **options)


def leave_behind(db: Connection, connect: Connect, clock: StoppedClock) -> Live:
    """Bring jobs into every state, and segments into each state of the ring."""
    live = Live(waiting=connect())
    made = live.made

    def begin(queue: str, count: int, claimed: int = 0, **settings: object) -> list[Job]:
        """Create a queue with so many jobs, and claim some of them."""
        create(db, queue, shards=1, **settings)
        made[queue] = put(db, queue, count)
        return claim(db, claimed, queue, lease_for="10 hours", worker=queue) if claimed else []

    # Two segments that came and went: what is left of them is in the archive, and among the stragglers.
    ack(db, begin("archived", 2, 2))
    retire_all(db)
    stragglers = begin("straggler", 3, 3)
    rotate(db)
    clock.advance(31)
    retire_all(db)
    assert len(column(db, "SELECT id FROM pgq.straggler")) == 3

    # One segment for each state, the oldest first.
    finished = begin("first", 2, 2)
    (reject,) = begin("dead", 1, 1)
    call(db, "reject", reject.id, reject.lease, "broken", retry=False)
    (retry,) = begin("retrying", 1, 1)
    call(db, "reject", retry.id, retry.lease, "later", retry_in="1 hour")
    create(db, "scheduled")
    made["scheduled"] = put(db, "scheduled", 2, delay="1 hour")
    rotate(db)
    finished += begin("second", 2, 2)
    rotate(db)
    live.held += begin("claimed", 2, 2)
    rotate(db)
    begin("fifo", 3)
    begin("closed", 2)
    begin("withdrawn", 2)
    rotate(db)
    ack(db, finished)
    begin("sealed", 2)
    producer = connect()
    with producer.transaction():
        made["fifo"] += put(producer, "fifo", 2)
        rotate(db)
    assert ring(db) == RING

    # And the open one.
    live.held += begin("running", 3, 3)
    expired = begin("expired", 2)
    assert not expired
    claim(db, 2, "expired", lease_for="1 minute")
    call(db, "ack", stragglers[0].id, stragglers[0].lease, {"by": "straggler"})
    call(db, "extend", stragglers[1].lease, "20 hours")
    live.held += stragglers[1:]
    made["fifo"] += put(db, "fifo", 2)
    front = claim(db, 1, "fifo")
    rows(db, "release", ids(front), leases(front))
    many = begin("many", 5, 4)
    rows(db, "ack_many", ids(many[:2]), leases(many[:2]), ['{"n": 1}', None])
    rows(db, "reject_many", ids(many[2:]), leases(many[2:]), ["bad", None])
    whole = begin("whole", 10, 10)
    assert len(ack(db, whole)) == 10
    split = begin("split", 10, 10)
    call(db, "ack", split[3].id, split[3].lease)
    live.held += [job for job in split if job != split[3]]
    begin("paused", 2)
    call(db, "pause", "paused")
    begin("unarchived", 2, retention="0")
    begin("silent", 2, notify=False)
    create(db, "prioritised")
    made["prioritised"] = [
        call(db, "enqueue", "prioritised", {"n": n}, task="note", priority=n, headers={"trace": n}) for n in (5, -5)
    ]
    if one(db, "SELECT to_regproc('pgq.cancel_many') IS NOT NULL"):
        (live.stopping,) = begin("stopping", 1, 1)
        leave_behind_since_0_2(db, live, begin)
    create(db, "waiting")
    made["waiting"] = []
    live.waiting = listen(connect, "waiting")
    live.states = job_states(db, live.ids)
    return live


REPEAT = "SELECT id, inserted FROM pgq.enqueue_unique('unique', %s, task => 'note', unique_key => 'one')"


def repeat(db: Connection) -> tuple[Any, ...]:
    """Enqueue the job with the unique key, again; returns its id, and whether there was none."""
    (row,) = db.execute(REPEAT, ['{"n": 0}']).fetchall()
    return row


def leave_behind_since_0_2(db: Connection, live: Live, begin: Callable[..., list[Job]]) -> None:
    """Bring jobs into the states that version 0.2.0 has added."""
    assert live.stopping
    assert call(db, "cancel", live.stopping.id) == "requested"
    begin("taken back", 2)
    live.cancelled = [live.made["withdrawn"][1], live.made["taken back"][0]]
    assert [call(db, "cancel", id) for id in live.cancelled] == ["cancelled"] * 2
    (snoozed,) = begin("snoozed", 1, 1)
    call(db, "snooze", snoozed.id, snoozed.lease, "1 hour")
    begin("put off", 1)
    assert call(db, "reschedule", *live.made["put off"], one(db, "SELECT pgq._now() + interval '1 hour'"))
    (telling,) = begin("telling", 1, 1)
    assert call(db, "progress", telling.id, telling.lease, {"done": 1}) is True
    live.held.append(telling)
    (needed,) = begin("needed", 1, 1)
    live.held.append(needed)
    create(db, "dependent")
    live.made["dependent"] = rows(db, "enqueue_many_after", [needed.id], "dependent", ['{"n": 0}'] * 2, task="note")
    create(db, "unique")
    live.made["unique"] = [repeat(db)[0]]
    create(db, "checked")
    db.execute(
        """
        CREATE FUNCTION public.good(jsonb) RETURNS boolean LANGUAGE sql AS $f$ SELECT $1 ? 'n' $f$;
        SELECT pgq.set_validator('checked', 'public.good(jsonb)');
        """
    )
    live.made["checked"] = put(db, "checked", 2)
    create(db, "recurring")
    live.made["recurring"] = []
    call(db, "schedule", "tick", "0 * * * *", "recurring", {"n": 0}, "note")
    live.due += 3  # snoozed, put off, recurring


def go_on_since_0_2(db: Connection, live: Live, stopping: Job) -> None:
    """What they are in the middle of goes on."""
    assert repeat(db) == (*live.made["unique"], False)
    with refused("PQ004"):
        call(db, "enqueue", "checked", {"m": 0})
    (telling,) = (job for job in live.held if job.queue == "telling")
    assert call(db, "job_progress", telling.id) == {"done": 1}
    assert call(db, "progress", telling.id, telling.lease, {"done": 2}) is True
    assert rows(db, "cancel_requested", [stopping.lease]) == [stopping.id]
    assert call(db, "reject", stopping.id, stopping.lease, "stopped") == "cancelled"
    live.cancelled.append(stopping.id)


def work_off(db: Connection, live: Live, clock: StoppedClock, worker_dsn: str) -> None:
    """Let sessions of before the upgrade and a worker of the previous release finish all of it."""
    assert job_states(db, live.ids) == live.states
    client = Client(connection=db)
    live.made["waiting"].append(client.enqueue("waiting", {"n": 0}, task="note"))
    assert heard(db, live.waiting) == ["waiting"]
    if live.stopping:
        go_on_since_0_2(db, live, live.stopping)
    for job in live.held:
        client.ack(job.id, job.lease, {"by": "the session that claimed it"})

    clock.advance(26 * 3600)  # into another partition of the archive, too
    client.resume("paused")
    assert client.redrive("dead") == 1
    assert client.reap() == 2
    assert client.promote() == live.due
    if live.stopping:
        live.made["recurring"].append(one(db, "SELECT last_job FROM pgq.schedule"))
    open_before = {id for id, state in job_states(db, live.ids).items() if state != "done"}
    ran = run_all(worker_dsn, list(live.made))
    assert sorted(ran) == sorted(open_before), "each of them once"
    assert [id for id in ran if id in live.made["fifo"]] == live.made["fifo"]
    assert set(job_states(db, live.ids).values()) == {"done"}
    if live.stopping:
        assert set(job_states(db, live.cancelled).values()) == {"cancelled"}
        with db.transaction(force_rollback=True):
            assert repeat(db)[1], "the key is free"


def run_all(dsn: str, queues: list[str]) -> list[int]:
    """Run a worker until nothing is ready; returns what it ran, in its order."""
    app = App(dsn)
    ran: list[int] = []

    @app.task("note")
    def note(job: RunningJob, n: int) -> int:
        ran.append(job.id)
        return n

    asyncio.run(Worker(app, queues, concurrency=1, listen=False, maintain=False, mode="drain").run())
    app.close()
    return ran
