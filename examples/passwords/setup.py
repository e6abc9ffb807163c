"""Queues, a table, a schedule; as often as you like: `python -m examples.passwords.setup`."""

from __future__ import annotations

import psycopg

from examples.passwords.app import CLOCK, QUEUE, app, speed


def setup(cron: str = "*/2 * * * * *", seconds: float = 1) -> None:
    """Make what the workers need, and have the speed measured by a cron line whose first field is seconds."""
    client = app.client
    with psycopg.connect(app.dsn) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS speed (node text, began timestamptz,"
            " ended timestamptz DEFAULT clock_timestamp(), chunks_per_second float8)"
        )
        # A third of the lease is also the time after which a running chunk knows that it is cancelled.
        client.create_queue(QUEUE, lease=3, if_not_exists=True, connection=connection)
        client.create_queue(CLOCK, if_not_exists=True, connection=connection)
        client.schedule(
            "passwords.speed",
            cron,
            CLOCK,
            {"seconds": seconds},
            task=speed.name,
            catch_up="skip",
            connection=connection,
        )


if __name__ == "__main__":
    setup()
