"""Finds the words of SHA-256 hashes: `python -m examples.passwords.crack 5 HASH…` for words of five letters."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass

import psycopg

from examples.passwords.app import ALPHABET, QUEUE, app, end, try_chunk
from pgqueue import Client


@dataclass(frozen=True)
class Found:
    """What became of a search: the word or None, and of how many chunks."""

    word: str | None
    tried: int
    cancelled: int


def crack(client: Client, digest: str, length: int, timeout: float = 3600) -> Found:
    """Enqueue the chunks of the key space, wait until all have ended, and collect the result."""
    prefixes = map("".join, itertools.product(ALPHABET, repeat=length // 2))
    with client.exclusive("passwords.crack", timeout) as alone:  # as whoever finds a word cancels all of the queue
        alone.check()
        with psycopg.connect(app.dsn) as connection:
            chunks = try_chunk.using(connection=connection).enqueue_many(
                {"digest": digest, "prefix": prefix, "length": length} for prefix in prefixes
            )
            batch = client.batch(chunks, QUEUE, task=end.name, connection=connection)
        ended = client.wait(batch, timeout)
    assert ended is not None
    words = (state.result for chunk in chunks if (state := client.job_status(chunk)) and state.state == "done")
    return Found(next(filter(None, words), None), ended.result["done"], ended.result["failed"])


if __name__ == "__main__":
    with Client(app.dsn) as client:
        for digest in sys.argv[2:]:
            found = crack(client, digest, int(sys.argv[1]))
            print(f"{digest[:12]}…: {found.word}; {found.tried} chunks were tried and {found.cancelled} cancelled")
