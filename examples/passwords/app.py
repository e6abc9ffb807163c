"""Finding the password of a hash: `pgq-worker examples.passwords.app:app --concurrency 1 --processes 4`."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import socket
import string

import psycopg

from pgqueue import App, Cancel, Job

ALPHABET = string.ascii_lowercase
QUEUE = "passwords"
CLOCK = "passwords.clock"

app = App()
app.on_shutdown(app.aclose)


@app.task("passwords.try", queue=QUEUE)
def try_chunk(job: Job, digest: str, prefix: str, length: int) -> None:
    """Try all words of a length that begin with a prefix; the result is the one whose SHA-256 is the digest."""
    for number, rest in enumerate(itertools.product(ALPHABET, repeat=length - len(prefix))):
        if number % 5000 == 0 and job.cancelled:
            raise Cancel("another chunk had it")
        word = prefix + "".join(rest)
        if hashlib.sha256(word.encode()).hexdigest() == digest:
            # Both or neither: a worker that dies in between leaves a chunk that will be tried again.
            with psycopg.connect(app.dsn) as connection:
                job.ack(word, connection=connection)
                app.client.cancel_many(QUEUE, job.task, running=True, connection=connection)
            return


@app.task("passwords.end", queue=QUEUE)
def end(job: Job) -> dict[str, int]:
    """Runs when all chunks have ended, tried or not; the result is how many were and were not."""
    return dict(job.headers["after"])


@app.task("passwords.speed", queue=CLOCK)
async def speed(seconds: float) -> None:
    """Note how fast chunks are done: on one node at a time, however long it takes and however often it is due."""
    async with app.async_client.exclusive("passwords.speed") as alone:
        if not alone:
            raise Cancel("the one before is still at it")
        before = await _left()
        await asyncio.sleep(seconds)
        per_second = (before - await _left()) / seconds
        async with await psycopg.AsyncConnection.connect(app.dsn) as connection:
            await connection.execute(
                "INSERT INTO speed (node, began, chunks_per_second)"
                " VALUES (%s, clock_timestamp() - make_interval(secs => %s), %s)",
                [socket.gethostname(), seconds, per_second],
            )


async def _left() -> int:
    return next(stat.ready + stat.running for stat in await app.async_client.stats() if stat.queue == QUEUE)
