"""Commands about queues.

queues, create-queue, alter-queue, set-limits, set-unique, purge, drop-queue, pause, resume, stats, doctor.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pgqueue.cli.database import database, fail, given
from pgqueue.cli.output import duration, json_option, show

if TYPE_CHECKING:
    from pgqueue import Client
    from pgqueue.client import QueueSetting

_PURGED = ["ready", "parked", "scheduled", "waiting", "retrying", "dead", "archived"]


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
    if not given(settings):
        fail("name a setting that is to change")
    client.alter_queue(queue, **settings)
    click.echo(f"queue {queue} changed")


@click.command()
@click.argument("queue")
@click.option("--group-limit", type=int, help="Jobs with the same group key that run at once; 1 if left out.")
@click.option("--no-group-limit", is_flag=True, default=None, help="Any number of them.")
@click.option("--running-limit", type=int, help="Jobs of the whole queue that run at once.")
@click.option("--rate", type=int, help="Jobs that start in a --rate-period.")
@click.option("--rate-period", help="As in '1 minute'.")
@click.option("--group-rate", type=int, help="Jobs with the same group key that start in a --group-period.")
@click.option("--group-period", help="As in '1 minute'.")
@click.option("--fair", is_flag=True, default=None, help="Groups take turns, one job each.")
@click.option(
    "--keep-place/--no-keep-place",
    default=None,
    help="Whether a group waits for its job that failed and is tried again; it does if left out.",
)
@database
def set_limits(client: Client, queue: str, group_limit: int | None, no_group_limit: bool | None, **limits: Any) -> None:
    """Set all limits of a queue, for jobs claimed from now on; what is left out is not limited.

    With --group-limit 1 and nothing else they are again those of a new queue.
    """
    if group_limit is not None and no_group_limit:
        fail("give --group-limit or --no-group-limit, not both")
    if group_limit is not None or no_group_limit:
        limits["group_limit"] = group_limit
    elif not given(limits):
        fail("name a limit; --group-limit 1 alone takes away all others")
    client.set_limits(queue, **limits)
    click.echo(f"queue {queue} changed")


@click.command()
@click.argument("queue")
@click.option(
    "--unique-until",
    type=click.Choice(["finished", "claimed"]),
    help="A job holds its key until it has ended, or until it is claimed; 'finished' if left out.",
)
@click.option("--unique-for", help="Instead: for so long after it was enqueued, as in '1 hour'.")
@click.option(
    "--on-repeat",
    type=click.Choice(["keep", "replace", "debounce"]),
    help="What happens to an unclaimed job that holds the key: nothing, or it gets the new payload, task and headers,"
    " or these and the new time to run; 'keep' if left out.",
)
@database
def set_unique(client: Client, queue: str, **settings: Any) -> None:
    """Say how unique keys work in a queue, for jobs enqueued from now on; what is left out is as in a new queue."""
    if not given(settings):
        fail("name a setting; --unique-until finished alone makes all as in a new queue")
    if settings["unique_until"] and settings["unique_for"]:
        fail("give --unique-until or --unique-for, not both")
    client.set_unique(queue, **settings)
    click.echo(f"queue {queue} changed")


@click.command()
@click.argument("queue")
@click.option("--state", type=click.Choice(_PURGED), help="What is in this state.")
@click.option("--all", "everything", is_flag=True, help="All that waits: not running jobs, dead letters, the archive.")
@json_option
@database
def purge(client: Client, queue: str, state: str | None, everything: bool, as_json: bool) -> None:
    """Throw away what a queue holds in a state, or all that waits.

    What waits is cancelled; dead letters and the ended jobs of the archive are deleted.
    """
    if everything == (state is not None):
        fail("name either a state with --state, or --all that waits")
    count = client.purge(queue) if state is None else client.purge_state(queue, state)
    click.echo(json.dumps({"purged": count}) if as_json else f"{count} purged")


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
    lease: timedelta
    max_attempts: int
    backoff: str
    retention: timedelta
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
            queue.lease,
            queue.max_attempts,
            backoff,
            queue.retention,
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
