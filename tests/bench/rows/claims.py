"""Claim and ack, each a durable transaction, against the conventional queue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..compare import compare
from ..report import Row, Wanted, at_least
from ..systems import Queue, both
from . import Bench

CLIENTS = (1, 8, 32)


def single(bench: Bench) -> Iterator[Row]:
    yield from _claims(bench, 1, {8: at_least(1.3)})


def hundred(bench: Bench) -> Iterator[Row]:
    yield from _claims(bench, 100, {8: at_least(3)})


def no_archive(bench: Bench) -> Iterator[Row]:
    """For orientation: nothing of a finished job is kept on either side."""
    for batch in (1, 100):
        yield from _claims(bench, batch, {}, clients=(8,), note=", no archive", retention="0")


def _claims(
    bench: Bench,
    batch: int,
    wanted: Mapping[int, Wanted],
    *,
    clients: tuple[int, ...] = CLIENTS,
    note: str = "",
    **settings: Any,
) -> Iterator[Row]:
    for number in clients:
        with bench.server.database() as database:
            pgq, conventional = both(database, **settings)

            def turn(queue: Queue, number: int = number) -> float:
                with queue.turn():
                    return queue.consume(batch, clients=number, seconds=bench.seconds)

            result = compare(lambda: turn(pgq), lambda: turn(conventional), bench.rounds)  # noqa: B023
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
