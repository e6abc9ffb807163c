"""awa's program."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import awa

from tests.peers import kit

QUEUE = "peers"
WORKERS = 200


@dataclass
class Noop:
    n: int
    text: str
    sent: float | None = None


class Producer:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def one(self, payload: kit.Payload) -> None:
        await self._client.insert(Noop(**payload), queue=QUEUE)

    async def many(self, payloads: Sequence[kit.Payload], delay: float) -> None:
        later = {"run_at": datetime.now(timezone.utc) + timedelta(seconds=delay)} if delay else {}
        await self._client.enqueue_many_copy([Noop(**payload) for payload in payloads], queue=QUEUE, **later)


@asynccontextmanager
async def opened() -> AsyncIterator[Producer]:
    async with awa.AsyncClient(kit.DSN) as client:
        yield Producer(client)


async def prepare() -> None:
    async with awa.AsyncClient(kit.DSN) as client:
        await client.migrate()
        await client.install_queue_storage()


async def work(tally: kit.Tally) -> None:
    client = awa.AsyncClient(kit.DSN, max_connections=20)

    async def noop(job: Any) -> None:
        tally.note(job.args.__dict__)
        await tally.rest_async()

    client.task(Noop, queue=QUEUE)(noop)
    options: dict[str, Any] = {}
    if kit.SILENCE:
        options = {"heartbeat_interval_ms": 2000, "heartbeat_rescue_interval_ms": 2000}
        options["heartbeat_staleness_ms"] = kit.SILENCE * 1000
    tally.start()
    # No deadline is for short jobs; a second claimer is what its documentation tells to try for a hot queue.
    queue = {"name": QUEUE, "max_workers": WORKERS, "claimers": 2, "claim_batch_size": 500, "deadline_duration_ms": 0}
    await client.start([queue], poll_interval_ms=50, **options)
    await asyncio.Event().wait()


if __name__ == "__main__":
    kit.main(prepare, opened, work)
