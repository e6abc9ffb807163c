"""The commands ``pgqueue top`` and ``pgqueue workers``: who does what at this moment."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from pgqueue.cli.database import database
from pgqueue.cli.output import console, json_option, print_json, show

if TYPE_CHECKING:
    from pgqueue import Client


@click.command()
@json_option
@database
def workers(client: Client, as_json: bool) -> None:
    """List the workers that hold leases."""
    show(client.workers(), as_json, "workers", ("worker", "queues", "jobs", "oldest", "expires_at"))


@click.command()
@click.option("--interval", type=click.FloatRange(0.2), default=2.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Print one look and end, as without a terminal.")
@json_option
@database
def top(client: Client, interval: float, once: bool, as_json: bool) -> None:
    """Watch queues, rates, workers and failures; q ends it.

    Each look costs the same however many jobs there are: big numbers are counted up to where it is cheap, and have a +.
    Rates are those of the last five seconds, or of the interval if that is longer; lag is the age of the oldest ready
    job. If a look takes long, the pause after it is four times as long. --json prints one look.
    """
    from pgqueue.cli.frames import History, look, screen

    period = min(max(interval, 5.0), 3600.0)
    shown = console()
    if as_json:
        print_json(look(client, period).facts())
    elif once or not shown.is_terminal:
        shown.print(screen(look(client, period), History()))
    else:
        _watch(client, interval, period)


def _watch(client: Client, interval: float, period: float) -> None:
    """Draw one look after the other until q is pressed."""
    from rich.live import Live

    from pgqueue.cli.frames import History, look, screen
    from pgqueue.cli.keys import pressed, single_keys

    history = History()
    drawn = Live(console=console(), screen=True, auto_refresh=False)
    with suppress(KeyboardInterrupt), single_keys(sys.stdin), drawn as live:
        while True:
            since = time.monotonic()
            frame = look(client, period)
            took = time.monotonic() - since
            history.add(frame)
            live.update(screen(frame, history, live.console.size), refresh=True)
            if pressed(sys.stdin, "qQ", max(interval - took, 4 * took)):
                break
