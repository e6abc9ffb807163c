"""Claim and ack, each a durable transaction, against the conventional queue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..compare import compare
from ..report import Row, Wanted, at_least
from ..systems import Queue
from . import Bench

CLIENTS = (1, 8, 32)


def single(bench: Bench) -> Iterator[Row]:
    yield from _claims(bench, 1, {8: at_least(1.3)})
    yield from _claims(bench, 1, {}, clients=(32,), note=", 32 shards", shards=32)
    yield from _claims(bench, 1, {}, clients=(8,), note=", 3 more priorities, without jobs", used=(-3, -2, -1))


def hundred(bench: Bench) -> Iterator[Row]:
    yield from _claims(bench, 100, {8: at_least(3)})
    yield from _claims(bench, 100, {}, clients=(8,), note=", 16 shards", shards=16)


def no_archive(bench: Bench) -> Iterator[Row]:
    """For orientation: nothing of a finished job is kept on either side."""
    for batch in (1, 100):
        yield from _claims(bench, batch, {}, clients=(8,), note=", no archive", retention="0")


def bare_rows(bench: Bench) -> Iterator[Row]:
    """For orientation: what no claim and ack of one job can be better than, however they find their job."""
    with bench.server.database() as database:
        conventional = Queue(database, "conv").create()

        def ours() -> float:
            return conventional.pgbench("bare_claim_ack_1.sql", clients=8, seconds=bench.seconds).tps

        def theirs() -> float:
            with conventional.turn():
                return conventional.consume(1, clients=8, seconds=bench.seconds)

        result = compare(ours, theirs, bench.more_rounds)
    yield Row(
        name="two bare INSERTs: the lease and the outcome of 1 job, 8 clients",
        unit="jobs/s",
        pgq=result.our_median,
        against="conventional: claim + ack",
        other=result.their_median,
        ratio=result.ratio,
        raw=result.raw(),
    )


def _claims(
    bench: Bench,
    batch: int,
    wanted: Mapping[int, Wanted],
    *,
    clients: tuple[int, ...] = CLIENTS,
    note: str = "",
    shards: int = 8,
    used: tuple[int, ...] = (),
    **settings: Any,
) -> Iterator[Row]:
    for number in clients:
        with bench.server.database() as database:
            pgq = Queue(database, "pgq").create(shards=shards, **settings)
            for priority in used:  # the conventional queue finds its first job whatever there was
                database.rows("SELECT pgq.enqueue(%s, priority => %s)", pgq.name, priority)
                database.rows("SELECT pgq.ack(id, lease) FROM pgq.claim(%s)", pgq.name)
            conventional = Queue(database, "conv").create(**settings)

            def turn(queue: Queue, number: int = number) -> float:
                with queue.turn():
                    return queue.consume(batch, clients=number, seconds=bench.seconds)

            rounds = bench.more_rounds if number in wanted else bench.rounds
            result = compare(lambda: turn(pgq), lambda: turn(conventional), rounds)  # noqa: B023
            raw = result.raw() | {side.schema: side.raw() for side in (pgq, conventional)}
        yield Row(
            name=f"claim + ack {batch}, {number} client{'s'[: number > 1]}{note}",
            unit="jobs/s",
            pgq=result.our_median,
            against="conventional",
            other=result.their_median,
            ratio=result.ratio,
            wanted=wanted.get(number),
            raw=raw,
        )
