"""Writes a letter to each address: `python -m examples.mail.write ann@example.org bob@example.org`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import psycopg

from examples.mail.app import app, send


def write(addresses: Sequence[str]) -> list[int]:
    """Note the letters and enqueue their jobs, in one transaction: all of it or nothing."""
    with psycopg.connect(app.dsn) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS letter (job bigint PRIMARY KEY, address text NOT NULL)")
        app.client.create_queue("mail", max_attempts=5, if_not_exists=True, connection=connection)
        jobs = send.using(connection=connection).enqueue_many(
            {"to": address, "subject": "Welcome", "text": "How nice that you are here.\n"} for address in addresses
        )
        connection.cursor().executemany("INSERT INTO letter VALUES (%s, %s)", list(zip(jobs, addresses, strict=True)))
    return jobs


if __name__ == "__main__":
    print(f"{len(write(sys.argv[1:]))} letters are in the queue")
