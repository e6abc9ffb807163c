"""Commands about jobs: jobs, show, wait, cancel."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import click

import pgqueue
from pgqueue.cli.database import TRY_AGAIN, database, dsn_option, explained, fail, given
from pgqueue.cli.output import json_option, print_json, printable, show, show_facts

if TYPE_CHECKING:
    from datetime import datetime

    from pgqueue import Client
    from pgqueue.client import LiveJob

_STATES = ["running", "ready", "parked", "retrying", "scheduled", "waiting"]


@click.command()
@click.argument("queue")
@click.option("--state", type=click.Choice(_STATES), help="Only those in this state.")
@click.option("--task", help="Only those of this task.")
@click.option("--newest", is_flag=True, default=None, help="Those first that come last otherwise.")
@click.option("--limit", "n", type=int, help="How many at most; 100 if left out.")
@json_option
@database
def jobs(client: Client, queue: str, as_json: bool, **choice: Any) -> None:
    """List jobs that have not ended: running ones, then ready ones in their order, then those for later.

    It costs the same with ten million jobs, and leaves out what is far back; `dead list` has the dead letters.
    """
    found = client.jobs(queue, **choice)
    show(found if as_json else [_JobLine.of(job) for job in found], as_json, title="jobs")


@click.command("show")
@click.argument("id", type=int)
@json_option
@database
def show_job(client: Client, id: int, as_json: bool) -> None:
    """Show what is known about a job, and all its attempts."""
    state, attempts = client.job_status(id), client.attempts(id)
    if state is None and not attempts:
        fail(f"there is no job {id}, or its retention is over")
    facts = state._asdict() if state else {"id": id, "state": None}
    if as_json:
        print_json({**facts, "attempts": [attempt._asdict() for attempt in attempts]})
        return
    show_facts(facts)
    columns = ("attempt", "state", "worker", "started_at", "finished_at", "progress", "error")
    show(attempts, as_json, "attempts", columns)


@click.command()
@click.argument("id", type=int)
@click.option("--timeout", type=click.FloatRange(0), help="Seconds to wait; for ever if left out.")
@json_option
@dsn_option
def wait(dsn: str, id: int, timeout: float | None, as_json: bool) -> None:
    """Wait until a job has ended, and print its result.

    The exit code tells how it ended: 0 if it is done, 1 if it is dead or was cancelled, or there is no such job, 75 if
    --timeout was over before.
    """
    import psycopg

    with explained():
        psycopg.connect(dsn).close()  # a server that is away is told at once; a pool would go on trying
        with pgqueue.Client(dsn) as client:
            try:
                state = client.wait(id, timeout)
            except TimeoutError:
                click.echo(f"job {id} has not ended within {timeout:g} seconds", err=True)
                sys.exit(TRY_AGAIN)
    if state is None:
        fail(f"there is no job {id}, or its retention is over")
    if as_json:
        print_json(state._asdict())
    elif state.state == "done":
        click.echo(json.dumps(state.result, indent=2))
    else:
        click.echo(f"job {id} is {state.state}: {printable(state.error or 'without an error', lines=True)}", err=True)
    if state.state != "done":
        sys.exit(1)


@click.command()
@click.argument("ids", type=int, nargs=-1)
@click.option("--queue", help="Instead of IDS: all jobs of this queue that wait, are scheduled or retrying.")
@click.option("--task", help="Only those of this task.")
@click.option("--running", is_flag=True, default=None, help="Also ask those to stop that run.")
@json_option
@database
def cancel(client: Client, ids: tuple[int, ...], queue: str | None, as_json: bool, **choice: Any) -> None:
    """Cancel the jobs IDS, or those of a queue.

    What waits is cancelled, what runs is asked to stop and not tried again. Exits with 1 if a job has ended already or
    is unknown.
    """
    if queue is not None:
        if ids:
            fail("name ids or a queue, not both")
        count = client.cancel_many(queue, **choice)
        click.echo(json.dumps({"cancelled": count}) if as_json else f"{count} cancelled")
        return
    if not ids:
        fail("name ids, or a queue with --queue")
    if given(choice):
        fail("--task and --running go with --queue")
    answers = {id: client.cancel(id) for id in ids}
    if as_json:
        print_json(answers)
    else:
        for id, answer in answers.items():
            click.echo(f"{id}: {answer}")
    if {"finished", "not found"} & set(answers.values()):
        sys.exit(1)


class _JobLine(NamedTuple):
    """What a table has room for."""

    id: int
    state: str
    task: str | None
    priority: int
    attempt: int
    due_or_started: datetime | None
    worker: str | None
    expires: datetime | None

    @classmethod
    def of(cls, job: LiveJob) -> _JobLine:
        at = job.started_at or job.run_at
        return cls(job.id, job.state, job.task, job.priority, job.attempt, at, job.worker, job.expires_at)
