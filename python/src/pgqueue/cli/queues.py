"""Commands about queues: queues, create-queue, alter-queue, drop-queue, pause, resume, stats, doctor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pgqueue.cli.database import database, fail
from pgqueue.cli.output import duration, json_option, show

if TYPE_CHECKING:
    from pgqueue import Client
    from pgqueue.client import QueueSetting


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that are settings of a queue."""
    for option in (
        click.option("--notify/--no-notify", default=None, help="Wake idle workers with NOTIFY."),
        click.option("--shards", type=int, help="Parts claimed independently; 1 is strictly first in, first out."),
        click.option("--retention", help="How long finished jobs are kept; 0 keeps none."),
        click.option("--backoff-max", help="The longest pause between two attempts."),
        click.option("--backoff", help="Pause before the second attempt; doubles with each further one."),
        click.option("--max-attempts", type=int, help="Attempts before a job is a dead letter."),
        click.option("--lease", help="How long a claim holds a job, as in '1 minute'."),
    ):
        command = option(command)
    return command


@click.command()
@json_option
@database
def queues(client: Client, as_json: bool) -> None:
    """List the queues with their settings and limits."""
    found = client.queues()
    show(found if as_json else [_QueueLine.of(queue) for queue in found], as_json, title="queues")


@click.command()
@click.argument("queue")
@_settings
@click.option("--if-not-exists", is_flag=True, default=None, help="Do nothing if it exists.")
@database
def create_queue(client: Client, queue: str, **settings: Any) -> None:
    """Create a queue."""
    client.create_queue(queue, **settings)
    click.echo(f"queue {queue} is there")


@click.command()
@click.argument("queue")
@_settings
@database
def alter_queue(client: Client, queue: str, **settings: Any) -> None:
    """Change settings of a queue; what is left out stays."""
    if all(value is None for value in settings.values()):
        fail("name a setting that is to change")
    client.alter_queue(queue, **settings)
    click.echo(f"queue {queue} changed")


@click.command()
@click.argument("queue")
@click.option("--force", is_flag=True, default=None, help="Even if it has jobs, which are lost.")
@database
def drop_queue(client: Client, queue: str, force: bool | None) -> None:
    """Drop a queue."""
    client.drop_queue(queue, force=force)
    click.echo(f"queue {queue} dropped")


@click.command()
@click.argument("queue")
@database
def pause(client: Client, queue: str) -> None:
    """Stop handing out jobs of a queue; running ones go on."""
    client.pause(queue)
    click.echo(f"queue {queue} paused")


@click.command()
@click.argument("queue")
@database
def resume(client: Client, queue: str) -> None:
    """Hand out jobs of a paused queue again."""
    client.resume(queue)
    click.echo(f"queue {queue} resumed")


@click.command()
@json_option
@database
def stats(client: Client, as_json: bool) -> None:
    """Count the jobs of each queue, all of them; `top` is cheaper."""
    show(client.stats(), as_json, title="queues")


@click.command()
@json_option
@database
def doctor(client: Client, as_json: bool) -> None:
    """Look for trouble; exits with 1 if there is an error."""
    findings = client.doctor()
    if findings or as_json:
        show(findings, as_json, title="findings")
    else:
        click.echo("all is well")
    if any(finding.severity == "error" for finding in findings):
        sys.exit(1)


class _QueueLine(NamedTuple):
    """What a table has room for."""

    queue: str
    paused: bool
    lease: str | None
    max_attempts: int
    backoff: str
    retention: str | None
    shards: int
    unique: str
    limits: str | None

    @classmethod
    def of(cls, queue: QueueSetting) -> _QueueLine:
        backoff = f"{duration(queue.backoff)} to {duration(queue.backoff_max)}"
        unique = f"for {duration(queue.unique_for)}" if queue.unique_for else f"until {queue.unique_until}"
        return cls(
            queue.queue,
            queue.paused,
            duration(queue.lease),
            queue.max_attempts,
            backoff,
            duration(queue.retention),
            queue.shards,
            f"{unique}, {queue.on_repeat}",
            _limits(queue),
        )


def _limits(queue: QueueSetting) -> str | None:
    limits = [
        queue.running_limit and f"{queue.running_limit} running",
        _rate(queue.rate, queue.rate_period),
        queue.group_limit and f"{queue.group_limit} running a group",
        queue.group_rate and f"{_rate(queue.group_rate, queue.group_period)} a group",
        "fair" if queue.fair else None,
        None if queue.keep_place else "places are not kept",
    ]
    return ", ".join(filter(None, map(str, filter(None, limits)))) or None


def _rate(count: int | None, period: timedelta | None) -> str | None:
    return f"{count} per {duration(period)}" if count else None
