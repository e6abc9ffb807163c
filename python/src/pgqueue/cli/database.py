"""What commands share that talk to the database: its option, a client, and errors as one message."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn

import click

import pgqueue

if TYPE_CHECKING:
    from pgqueue import Client

TRY_AGAIN = 75
"""The exit code for what may go well another time, EX_TEMPFAIL of sysexits.h."""


def fail(message: str) -> NoReturn:
    """End the command with a message on stderr and exit code 1."""
    raise click.ClickException(message)


@contextmanager
def explained() -> Iterator[None]:
    """Show an error of the database as one message instead of a traceback."""
    import psycopg

    from pgqueue.errors import translated

    try:
        with translated():
            yield
    except pgqueue.PgqError as error:
        fail(str(error))
    except psycopg.Error as error:
        fail(str(error).strip() or repr(error))


dsn_option = click.option(
    "--dsn",
    envvar="PGQUEUE_DSN",
    default="",
    help="Connection string; else PGQUEUE_DSN, else PGHOST, PGDATABASE and so on.",
)


def database(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option --dsn, and a client as its first argument."""

    @dsn_option
    @wraps(command)
    def with_client(dsn: str, **options: Any) -> None:
        import psycopg

        with explained(), psycopg.connect(dsn, autocommit=True) as connection:
            command(pgqueue.Client(connection=connection), **options)

    return with_client


def connection(client: Client) -> Any:
    """Return the connection of a command's client."""
    return client._connection


def select(client: Client, query: str) -> list[Any]:
    """Return the rows of a query for which there is no function, if pgq is there and of a version that fits."""
    from pgqueue._calls import Call

    return client._run(Call(query.encode(), {}, list, None))


def parsed(text: str) -> Any:
    """Read JSON that was given on the command line."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        fail(f"{text!r} is no JSON: {error}")


def given(options: Mapping[str, Any]) -> bool:
    """Whether any of these options is there."""
    return any(value is not None for value in options.values())
