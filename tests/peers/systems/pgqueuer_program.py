"""pgqueuer's program."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import uvloop
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver

from tests.peers import kit

uvloop.install()
BATCH = 500


class Producer:
    def __init__(self, queries: Any) -> None:
        self._queries = queries

    async def one(self, payload: kit.Payload) -> None:
        await self._queries.enqueue("noop", json.dumps(payload).encode())

    async def many(self, payloads: Sequence[kit.Payload], delay: float) -> None:
        count = len(payloads)
        later = [timedelta(seconds=delay)] * count if delay else None
        bodies = [json.dumps(payload).encode() for payload in payloads]
        await self._queries.enqueue(["noop"] * count, bodies, [0] * count, later)


@asynccontextmanager
async def opened() -> AsyncIterator[Producer]:
    connection = await asyncpg.connect(kit.DSN)
    try:
        yield Producer(Queries(AsyncpgDriver(connection)))
    finally:
        await connection.close()


async def prepare() -> None:
    connection = await asyncpg.connect(kit.DSN)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    await queries.optimize_autovacuum()
    await connection.close()


async def work(tally: kit.Tally) -> None:
    connection = await asyncpg.connect(kit.DSN)
    worker = PgQueuer(AsyncpgDriver(connection))

    async def noop(job: Any) -> None:
        tally.note(json.loads(job.payload))
        await tally.rest_async()

    worker.entrypoint("noop")(noop)
    tally.start()
    options = {"heartbeat_timeout": timedelta(seconds=kit.SILENCE)} if kit.SILENCE else {}
    await worker.run(batch_size=BATCH, dequeue_timeout=timedelta(seconds=1), **options)


if __name__ == "__main__":
    kit.main(prepare, opened, work)
