"""The command ``pgqueue exclusive``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import click

import pgqueue
from pgqueue.cli.database import TRY_AGAIN, dsn_option, explained, fail


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--timeout", type=float, help="Seconds to wait for the others, 0 for not at all; else for ever.")
@dsn_option
def exclusive(dsn: str, name: str, command: tuple[str, ...], timeout: float | None) -> None:
    """Run COMMAND on one node at a time: `pgqueue exclusive NAME -- COMMAND ARGUMENTS…`

    The others stand by, and one of them takes over within a second when that node ends or dies. Exits as the command
    does, or with 128 plus the signal that ended it. If the connection to the database is lost, the command is killed
    with all its children, as another node may begin; then, and if --timeout is over, exits with 75: try again. Signals
    are passed on to the command and its children; what these leave running when it ends is killed.
    """
    from pgqueue.exclusive import ExclusiveLost

    tell = _guard()
    child: subprocess.Popen[bytes] | None = None
    starting = False
    arrived: list[int] = []

    def forward(number: int, frame: object) -> None:
        if child is not None:
            _kill(child.pid, number)
        elif starting:
            arrived.append(number)
        else:
            sys.exit(128 + number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    lock, code = pgqueue.Client(dsn).exclusive(name, timeout), 0
    with explained(), suppress(ExclusiveLost), lock as alone:
        if not alone:
            click.echo(f"another node is exclusive under {name!r}", err=True)
            sys.exit(TRY_AGAIN)

        # In a session, and so in a group, of its own. The guard learns of it before it can do anything.
        def fence() -> None:
            if child is not None:
                _kill(child.pid, signal.SIGKILL)

        alone.on_lost = fence
        starting = True
        try:
            child = subprocess.Popen(
                command, start_new_session=True, preexec_fn=lambda: os.write(tell, b"%d\n" % os.getpid()) and None
            )
        except OSError as error:
            os.write(tell, b"0\n")
            fail(f"{command[0]}: {error.strerror}")
        for early in arrived:
            _kill(child.pid, early)
        if alone.lost:
            fence()
        code = child.wait()
        _kill(child.pid, signal.SIGKILL)
        os.write(tell, b"0\n")
    if lock.lost:
        click.echo("the connection was lost and another node may begin, so the command was killed", err=True)
        sys.exit(TRY_AGAIN)
    sys.exit(code if code >= 0 else 128 - code)


_FORWARDED = [  # not all of them are everywhere
    signal.Signals[name]
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if name in signal.Signals.__members__
]


def _guard() -> int:
    """Start a process that kills a group of processes when this one has ended, however it did.

    Returns:
        Where to write the group, as a line; 0: none.
    """
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        for number in _FORWARDED:
            signal.signal(number, signal.SIG_IGN)
        os.close(writing)
        told = b""
        while chunk := os.read(reading, 100):
            told += chunk
        if group := int(told.split()[-1] if told else 0):
            _kill(group, signal.SIGKILL)
        os._exit(0)
    os.close(reading)
    return writing


def _kill(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
