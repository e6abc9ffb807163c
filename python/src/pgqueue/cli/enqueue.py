"""The command ``pgqueue enqueue``: one job, or all lines of a file in one transaction."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import click

import pgqueue
from pgqueue.cli.database import connection, database, fail, parsed
from pgqueue.cli.output import console, json_option, printable

if TYPE_CHECKING:
    from pgqueue import Client

_BATCH = 1000
_OWN = ("payload", "group_key", "unique_key")
"""What each job of a batch may have for itself; the other options are those of the batch."""
_SHARED = ("task", "priority", "run_at", "delay", "max_attempts", "headers")


class Line(NamedTuple):
    """A job of a file."""

    number: int
    payload: Any
    group_key: str | None
    unique_key: str | None
    options: dict[str, Any]


@click.command()
@click.argument("queue")
@click.argument("payload", required=False)
@click.option("--file", "file", type=click.File("rb"), help="Instead of PAYLOAD: a file of one JSON payload a line.")
@click.option("--envelope", is_flag=True, help="Each line of the file is an object: payload, task, priority and so on.")
@click.option("--task", help="Name of the handler.")
@click.option("--priority", type=int, help="-100 to 100, lower runs first.")
@click.option("--delay", help="Not before this much time has passed, as in '5 minutes'.")
@click.option("--run-at", metavar="TIME", help="Not before this time, as in '2030-01-31 12:00+00'.")
@click.option("--max-attempts", type=int, help="Attempts before it is a dead letter.")
@click.option("--group-key", help="It runs in the order of this group, one at a time.")
@click.option("--unique-key", help="Not if a job holds this key; then the id of that one is printed.")
@click.option("--headers", help="A JSON object that travels with the job.")
@json_option
@database
def enqueue(
    client: Client,
    queue: str,
    payload: str | None,
    file: IO[bytes] | None,
    envelope: bool,
    headers: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Add a job with a JSON PAYLOAD ({} if left out, '-' reads it from stdin), and print its id.

    With --file ('-' is stdin) each line is a job, all in one transaction: if one is bad, it is named and none is added.
    Other options are for all of them. With --envelope a line is an object such as {"payload": {"to": "ann"}, "task":
    "send", "group_key": "ann"}; it may have the names payload, task, priority, run_at, delay, max_attempts, headers,
    group_key and unique_key, and goes before the options.
    """
    options["headers"] = None if headers is None else parsed(headers)
    if file is None:
        if envelope:
            fail("--envelope goes with --file")
        text = sys.stdin.read() if payload == "-" else payload
        id = client.enqueue(queue, {} if text is None else parsed(text), **options)
        click.echo(json.dumps({"id": id}) if as_json else id)
        return
    if payload is not None:
        fail("give a payload or a file, not both")
    if options["unique_key"] is not None:
        fail("--unique-key is for one job; the lines of a file have theirs with --envelope")
    since = time.monotonic()
    with _at_rest(file) as jobs, connection(client).transaction():
        count = _enqueue_all(client, queue, jobs, envelope, options)
    took = time.monotonic() - since
    facts = {"enqueued": count, "seconds": round(took, 3)}
    told = f"{count:,} enqueued in {took:.1f} s, {count / max(took, 0.001):,.0f} jobs/s"
    click.echo(json.dumps(facts) if as_json else told)


@contextmanager
def _at_rest(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Read what is no plain file to its end, so that no transaction waits for who writes it."""
    if file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.seek(0)
        yield copy


def _enqueue_all(client: Client, queue: str, file: IO[bytes], envelope: bool, options: dict[str, Any]) -> int:
    """Enqueue each line, in batches of those that follow each other and have the same options; returns how many."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    shown = console(stderr=True)
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[told]}"))
    start = file.tell()
    size = max(file.seek(0, 2) - start, 1)
    file.seek(start)
    since = time.monotonic()
    count = 0
    with Progress(*columns, console=shown, disable=not shown.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=size, told="")
        for shared, lines in groupby(_lines(file, envelope, options), lambda job: job.options):
            while batch := list(islice(lines, _BATCH)):
                _send(client, queue, batch, shared)
                count += len(batch)
                rate = count / max(time.monotonic() - since, 0.001)
                progress.update(bar, completed=file.tell() - start, told=f"{count:,} jobs, {rate:,.0f} jobs/s")
    return count


def _send(client: Client, queue: str, batch: list[Line], options: dict[str, Any]) -> None:
    import psycopg

    payloads = [job.payload for job in batch]
    groups: Any = [job.group_key for job in batch]
    keys: Any = [job.unique_key for job in batch]
    if any(key is not None for key in groups):
        options = {**options, "group_keys": groups}
    try:
        if any(key is not None for key in keys):
            client.enqueue_unique_many(queue, payloads, keys, **options)
        else:
            client.enqueue_many(queue, payloads, **options)
    except (pgqueue.PgqError, psycopg.Error) as error:
        from pgqueue._calls import to_json

        for job in batch:
            try:
                to_json(job.payload)
            except pgqueue.InvalidArgument as bad:
                fail(f"line {job.number}: {bad}")
        fail(f"lines {batch[0].number} to {batch[-1].number}: {str(error).strip()}")


def _lines(file: IO[bytes], envelope: bool, options: dict[str, Any]) -> Iterator[Line]:
    """Read the jobs of a file; empty lines are none."""
    group_key = options["group_key"]
    shared = {name: options[name] for name in _SHARED}
    for number, raw in enumerate(file, 1):
        if not raw.strip():
            continue
        try:
            value = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            fail(f"line {number} is no JSON: {error}")
        if not envelope:
            yield Line(number, value, group_key, None, shared)
            continue
        if not isinstance(value, dict):
            fail(f'line {number} is no envelope, an object such as {{"payload": …}}')
        if unknown := value.keys() - {*_OWN, *_SHARED}:
            fail(f"line {number} has an unknown name: {printable(min(unknown))}; known are {', '.join(_OWN + _SHARED)}")
        own = {name: value[name] for name in _SHARED if value.get(name) is not None}
        yield Line(
            number,
            value.get("payload", {}),
            value.get("group_key", group_key),
            value.get("unique_key"),
            {**shared, **own} if own else shared,
        )
