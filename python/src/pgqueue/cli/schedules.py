"""Commands about recurring jobs: schedule list, schedule add, schedule remove, next-runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pgqueue.cli.database import connection, database, parsed, select
from pgqueue.cli.output import json_option, show

if TYPE_CHECKING:
    from datetime import datetime

    from pgqueue import Client


@click.group()
def schedule() -> None:
    """List, add and remove recurring jobs."""


@schedule.command("list")
@json_option
@database
def schedule_list(client: Client, as_json: bool) -> None:
    """List the schedules, by name."""
    found = select(client, f"SELECT {', '.join(_Schedule._fields)} FROM pgq.schedule ORDER BY name")
    show([_Schedule._make(row) for row in found], as_json, "schedules")


@schedule.command("add")
@click.argument("name")
@click.argument("cron")
@click.argument("queue")
@click.argument("payload", default="{}")
@click.option("--task", help="Name of the handler.")
@click.option("--timezone", help="By whose clock, as in 'Europe/Berlin'; UTC if left out.")
@click.option(
    "--catch-up",
    type=click.Choice(["skip", "one", "all"]),
    help="What becomes of runs that nobody was there for: nothing, one job, or a job for each; 'one' if left out.",
)
@database
def schedule_add(client: Client, name: str, cron: str, queue: str, payload: str, **options: Any) -> None:
    """Enqueue a job whenever the line CRON says so, as in '30 2 * * mon-fri'; changes what has this NAME."""
    client.schedule(name, cron, queue, parsed(payload), **options)
    click.echo(f"schedule {name} is there")


@schedule.command("remove")
@click.argument("name")
@database
def schedule_remove(client: Client, name: str) -> None:
    """Remove a schedule; jobs that it has enqueued stay."""
    client.unschedule(name)
    click.echo(f"schedule {name} removed")


@click.command()
@click.argument("cron")
@click.option("--timezone", help="By whose clock, as in 'Europe/Berlin'; UTC if left out.")
@click.option("-n", "n", type=int, help="How many runs; 5 if left out.")
@json_option
@database
def next_runs(client: Client, cron: str, timezone: str | None, n: int | None, as_json: bool) -> None:
    """Show when a schedule with the line CRON would run, as in '30 2 * * mon-fri'."""
    session = connection(client)
    with session.transaction():
        # Times come in the session's time zone, and are to be read by the clock that was asked for.
        session.execute("SELECT set_config('TimeZone', %s, true)", [timezone or "UTC"])
        runs = [run.isoformat(" ") for run in client.next_runs(cron, timezone, n)]
    click.echo(json.dumps(runs, indent=2) if as_json else "\n".join(runs))


class _Schedule(NamedTuple):
    """What the table pgq.schedule says about a recurring job."""

    name: str
    cron: str
    timezone: str
    queue: str
    next_at: datetime | None
    last_at: datetime | None
    error: str | None
