"""Forwards the changes of a table to its copy: `pgq-worker examples.outbox.app:app`."""

from __future__ import annotations

from typing import Any, Literal

import psycopg

from pgqueue import App, Job

# The change with the highest version wins: retries and several workers may bring them in any order. A deleted row
# stays, marked, lest an older change bring it back.
COPY = """
    INSERT INTO customer_copy (id, name, email, deleted, version)
    VALUES (%(id)s, %(name)s, %(email)s, %(deleted)s, %(version)s)
    ON CONFLICT (id) DO UPDATE
        SET name = excluded.name, email = excluded.email, deleted = excluded.deleted, version = excluded.version
        WHERE customer_copy.version < excluded.version
"""

app = App()


@app.task("customer-changed", queue="customers")
def forward(
    job: Job,
    op: Literal["INSERT", "UPDATE", "DELETE"],
    schema: str,
    table: str,
    old: dict[str, Any] | None,
    new: dict[str, Any] | None,
) -> None:
    """Copy one change, and be done with its job, in one transaction: exactly once."""
    row = {**(new or old or {}), "deleted": op == "DELETE", "version": job.id}
    with psycopg.connect(app.dsn) as connection:
        connection.execute(COPY, row)
        connection.execute("INSERT INTO forwarded VALUES (%s, %s)", [job.id, op])
        job.ack(connection=connection)
