"""pgqueue's program: an app with one task for `pgq-worker`, and the calls of its client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pgqueue import App, Client
from pgqueue.cli import main
from tests.peers import kit

QUEUE = "peers"

app = App(kit.DSN)
tally = kit.tally()


@app.on_startup
def start() -> None:
    tally.start()


@app.task("noop", queue=QUEUE)
def noop(**payload: Any) -> None:
    tally.note(payload)
    tally.rest()


class Producer:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def one(self, payload: kit.Payload) -> None:
        self._client.enqueue(QUEUE, payload, task="noop")

    async def many(self, payloads: Sequence[kit.Payload], delay: float) -> None:
        self._client.enqueue_many(QUEUE, payloads, task="noop", delay=delay or None)


@asynccontextmanager
async def opened() -> AsyncIterator[Producer]:
    with Client(kit.DSN) as client:
        yield Producer(client)


async def prepare() -> None:
    main(["install", "--dsn", kit.DSN], standalone_mode=False)
    with Client(kit.DSN) as client:
        client.create_queue(QUEUE, lease=kit.SILENCE)


if __name__ == "__main__":
    kit.main(prepare, opened)
