"""What an idle, listening worker costs the producers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from statistics import median

from ..background import Listener, Worker, running
from ..compare import compare
from ..report import Row, Wanted, at_least
from ..server import Database
from ..systems import Queue
from . import Bench

CLIENTS = 32
Beside = Callable[[Queue], AbstractContextManager[None]]


def idle_worker(bench: Bench) -> Iterator[Row]:
    """Each against the same queue settings and the same worker without any NOTIFY code."""
    yield _compare(
        bench,
        "worker idle on another queue",
        ours=lambda q: running(Listener(q.database, "another")),
        theirs=lambda _: nullcontext(),
        wanted=at_least(0.85),
    )
    yield _compare(
        bench,
        "worker of this queue wakes, works, waits",
        ours=lambda q: running(Worker(q.database, q.name)),
        theirs=lambda q: running(Worker(q.database, q.name, listen=False)),
        wanted=at_least(0.85),
    )
    yield _compare(
        bench,
        "hung worker: waiting for this queue, never claims",
        ours=lambda q: running(Listener(q.database, q.name)),
        theirs=lambda _: nullcontext(),
    )
    yield _compare(
        bench,
        "for comparison: NOTIFY by every enqueue",
        ours=lambda q: running(Listener(q.database, q.name, channel="pgq_always", watch=False)),
        theirs=lambda _: nullcontext(),
        script="enqueue_1_notify_always.sql",
    )


def _compare(
    bench: Bench,
    note: str,
    ours: Beside,
    theirs: Beside,
    wanted: Wanted | None = None,
    script: str = "enqueue_1.sql",
) -> Row:
    with bench.server.database() as database:
        Queue(database, "pgq", "another").create()
        notifying = Queue(database, "pgq", "notifying").create(notify=script == "enqueue_1.sql")
        quiet = Queue(database, "pgq", "quiet").create(notify=False)
        result = compare(
            lambda: _turn(bench, notifying, ours, script),
            lambda: _turn(bench, quiet, theirs, "enqueue_1.sql"),
            bench.rounds,
        )
    return Row(
        name=f"enqueue 1, {CLIENTS} clients, {note}",
        unit="jobs/s",
        pgq=median(result.ours),
        against="no NOTIFY code",
        other=median(result.theirs),
        ratio=result.ratio,
        wanted=wanted,
        raw=result.raw(),
    )


def _turn(bench: Bench, queue: Queue, beside: Beside, script: str) -> float:
    _empty(queue.database)
    with queue.turn(), beside(queue):
        return queue.pgbench(script, clients=CLIENTS, seconds=bench.seconds).tps


def _empty(database: Database) -> None:
    """Jobs left from the turn before would keep the worker from being idle when this one begins."""
    for queue in ("notifying", "quiet"):
        database.rows("SELECT pgq.purge(%s)", queue)
