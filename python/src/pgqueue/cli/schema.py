"""Commands about the installation: install, upgrade, version, maintain."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING

import click

import pgqueue
from pgqueue.cli.database import connection, database, fail

if TYPE_CHECKING:
    from importlib.abc import Traversable

    from pgqueue import Client


@click.command()
@database
def install(client: Client) -> None:
    """Install pgq into the database, as one transaction."""
    script = _packed() / "pgqueue.sql"
    if not script.is_file():
        fail("this package was built without pgqueue.sql; run `make build` in the sources")
    connection(client).execute(script.read_bytes())
    click.echo(f"pgq {client.version()} installed")


@click.command()
@database
def upgrade(client: Client) -> None:
    """Bring an installed pgq to the version of this package, as one transaction.

    Run it as the owner of schema pgq or as a superuser, before the programs that use the new package start. Running
    workers of the same major version may go on.
    """
    from pgqueue.upgrade import upgrade

    folder = _packed() / "upgrade"
    installed, steps = upgrade(connection(client), folder.iterdir() if folder.is_dir() else (), pgqueue.__version__)
    for step in steps:
        click.echo(f"applied {step}")
    click.echo(f"pgq {installed} is now {pgqueue.__version__}" if steps else f"pgq {installed} is up to date")


@click.command()
@database
def version(client: Client) -> None:
    """Print the versions of the installed pgq and of this package."""
    click.echo(f"pgq {client.version()} in the database, package {pgqueue.__version__}")


@click.command()
@database
def maintain(client: Client) -> None:
    """Do what is due: promote, reap, rotate, archive. Workers do this by themselves."""
    click.echo(json.dumps(client.maintain()))


def _packed() -> Traversable:
    """Return the directory of the packed SQL."""
    return files("pgqueue") / "sql"
