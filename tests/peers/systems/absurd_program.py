"""absurd's program."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from absurd_sdk import AsyncAbsurd
from psycopg import AsyncConnection

from tests.peers import kit

QUEUE = "peers"
WORKERS = 8  # each has one connection, and waits for it


class Producer:
    """It has no call for many; what it has is to use a connection whose transaction the caller ends."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection
        self._app = AsyncAbsurd(connection, queue_name=QUEUE)

    async def one(self, payload: kit.Payload) -> None:
        await self._app.spawn("noop", payload, queue=QUEUE)

    async def many(self, payloads: Sequence[kit.Payload], delay: float) -> None:
        async with self._connection.transaction():
            for payload in payloads:
                await self._app.spawn("noop", payload, queue=QUEUE)


@asynccontextmanager
async def opened() -> AsyncIterator[Producer]:
    async with await AsyncConnection.connect(kit.DSN, autocommit=True) as connection:
        yield Producer(connection)


async def prepare() -> None:
    for arguments in (["init"], ["create-queue", QUEUE]):
        ctl = Path(sys.executable).with_name("absurdctl")
        process = await asyncio.create_subprocess_exec(ctl, *arguments, "--database", kit.DSN)
        if code := await process.wait():
            raise SystemExit(code)


async def work(tally: kit.Tally) -> None:
    async def noop(payload: kit.Payload, context: Any) -> None:
        tally.note(payload)
        await tally.rest_async()

    async def run(number: int) -> None:
        app = AsyncAbsurd(kit.DSN, queue_name=QUEUE)
        app.register_task(name="noop")(noop)
        timeout = kit.SILENCE or 120
        await app.start_worker(f"peers-{number}", timeout, concurrency=20, batch_size=20, poll_interval=0.05)

    tally.start()
    await asyncio.gather(*map(run, range(WORKERS)))


if __name__ == "__main__":
    kit.main(prepare, opened, work)
