"""Commands about dead letters: dead list, dead redrive, dead discard."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pgqueue.cli.database import database, fail, given
from pgqueue.cli.output import json_option, show

if TYPE_CHECKING:
    from pgqueue import Client


@click.group()
def dead() -> None:
    """Look at dead letters, send them back to work, throw them away."""


def _conditions(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that choose dead letters."""
    for option in (
        click.option("--before", metavar="TIME", help="Only those that died before, as in '2026-01-31 12:00'."),
        click.option("--since", metavar="TIME", help="Only those that died then or later."),
        click.option("--error", metavar="TEXT", help="Only those with this text in their last error."),
        click.option("--task", help="Only those of this task."),
    ):
        command = option(command)
    return command


@dead.command("list")
@click.argument("queue")
@_conditions
@click.option("--after-id", type=int, help="The last id of the page before.")
@click.option("--limit", "n", type=int, help="How many at most; 100 if left out.")
@json_option
@database
def dead_list(client: Client, queue: str, as_json: bool, **conditions: Any) -> None:
    """List dead letters in the order of their ids."""
    columns = ("id", "task", "attempt", "died_at", "error")
    show(client.dead_letters(queue, **conditions), as_json, "dead letters", columns)


@dead.command("redrive")
@click.argument("queue")
@click.argument("ids", type=int, nargs=-1)
@_conditions
@click.option("--limit", "n", type=int, help="No more than so many, the lowest ids first.")
@click.option("--rate", "per_second", type=float, help="So many each second, instead of all at once.")
@database
def dead_redrive(client: Client, queue: str, ids: tuple[int, ...], **conditions: Any) -> None:
    """Send dead letters back to work: those with IDS, or all that the options choose."""
    _ids_or_options(ids, conditions)
    count = client.redrive(queue, ids) if ids else client.redrive_where(queue, **conditions)
    click.echo(f"{count} redriven")


@dead.command("discard")
@click.argument("queue")
@click.argument("ids", type=int, nargs=-1)
@_conditions
@click.option("--limit", "n", type=int, help="No more than so many, the lowest ids first.")
@click.option("--all", "everything", is_flag=True, help="All of them, if neither ids nor another option are given.")
@database
def dead_discard(client: Client, queue: str, ids: tuple[int, ...], everything: bool, **conditions: Any) -> None:
    """Throw dead letters away: those with IDS, or all that the options choose."""
    _ids_or_options(ids, conditions)
    if not (ids or everything or given(conditions)):
        fail("name ids, or choose with an option; --all throws all of them away")
    count = client.discard(queue, ids) if ids else client.discard_where(queue, **conditions)
    click.echo(f"{count} discarded")


def _ids_or_options(ids: tuple[int, ...], conditions: dict[str, Any]) -> None:
    if ids and given(conditions):
        fail("name ids or choose with options, not both")
