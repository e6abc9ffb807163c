"""Enqueue against a bare INSERT of the same row into a table with the same indexes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..bare import Bare
from ..compare import compare
from ..report import Row, Wanted, at_least
from ..systems import Queue
from . import Bench

CLIENTS = 8


def single(bench: Bench) -> Iterator[Row]:
    yield from _enqueue(bench, 1, at_least(0.75), bench.more_rounds)


def hundred(bench: Bench) -> Iterator[Row]:
    yield from _enqueue(bench, 100, None, bench.rounds)


def _enqueue(bench: Bench, batch: int, wanted: Wanted | None, rounds: int) -> Iterator[Row]:
    with bench.server.database() as database, tempfile.TemporaryDirectory() as folder:
        queue = Queue(database, "pgq").create()
        bare = Bare(queue, Path(folder))

        def ours() -> float:
            with queue.turn():
                return queue.enqueue(batch, clients=CLIENTS, seconds=bench.seconds)

        def theirs() -> float:
            return bare.enqueue(batch, clients=CLIENTS, seconds=bench.seconds)

        result = compare(ours, theirs, rounds)
    yield Row(
        name=f"enqueue {batch}, {CLIENTS} clients",
        unit="jobs/s",
        pgq=result.our_median,
        against="bare INSERT … RETURNING",
        other=result.their_median,
        ratio=result.ratio,
        wanted=wanted,
        raw=result.raw() | {"pgq": queue.raw(), "bare": {"cpu_us": bare.cpu_us}},
    )
