"""The commands ``pgqueue`` and ``pgq-worker``."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

import pgqueue

if TYPE_CHECKING:
    from datetime import datetime
    from importlib.abc import Traversable

    from pgqueue import App, Client, Worker
    from pgqueue.client import DeadLetter, JobAttempt, JobState


def _fail(message: str) -> NoReturn:
    raise click.ClickException(message)


@contextmanager
def _explained() -> Iterator[None]:
    """Show an error of the database as one message instead of a traceback."""
    import psycopg

    try:
        yield
    except pgqueue.PgqError as error:
        _fail(str(error))
    except psycopg.Error as error:
        _fail(str(error).strip() or repr(error))


_dsn_option = click.option(
    "--dsn",
    envvar="PGQUEUE_DSN",
    default="",
    help="Connection string; else PGQUEUE_DSN, else PGHOST, PGDATABASE and so on.",
)


def _database(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option --dsn, and a client as its first argument."""

    @_dsn_option
    @wraps(command)
    def with_client(dsn: str, **options: Any) -> None:
        import psycopg

        with _explained(), psycopg.connect(dsn, autocommit=True) as connection:
            command(pgqueue.Client(connection=connection), **options)

    return with_client


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pgqueue.__version__, prog_name="pgqueue")
def main() -> None:
    """A job queue inside PostgreSQL."""


@main.command()
@_database
def install(client: Client) -> None:
    """Install pgq into the database, as one transaction."""
    script = _packed() / "pgqueue.sql"
    if not script.is_file():
        _fail("this package was built without pgqueue.sql; run `make build` in the sources")
    _connection(client).execute(script.read_bytes())
    click.echo(f"pgq {client.version()} installed")


@main.command()
@_database
def upgrade(client: Client) -> None:
    """Bring an installed pgq to the version of this package, as one transaction.

    Run it as the owner of schema pgq or as a superuser, before the programs that use the new package start. Running
    workers of the same major version may go on.
    """
    from pgqueue.upgrade import upgrade

    folder = _packed() / "upgrade"
    installed, steps = upgrade(_connection(client), folder.iterdir() if folder.is_dir() else (), pgqueue.__version__)
    for step in steps:
        click.echo(f"applied {step}")
    click.echo(f"pgq {installed} is now {pgqueue.__version__}" if steps else f"pgq {installed} is up to date")


@main.command()
@_database
def version(client: Client) -> None:
    """Print the versions of the installed pgq and of this package."""
    click.echo(f"pgq {client.version()} in the database, package {pgqueue.__version__}")


@main.command()
@click.argument("queue")
@click.option("--lease", help="How long a claim holds a job, as in '1 minute'.")
@click.option("--max-attempts", type=int, help="Attempts before a job is a dead letter.")
@click.option("--backoff", help="Pause before the second attempt; doubles with each further one.")
@click.option("--backoff-max", help="The longest pause between two attempts.")
@click.option("--retention", help="How long finished jobs are kept; 0 keeps none.")
@click.option("--shards", type=int, help="Parts claimed independently; 1 is strictly first in, first out.")
@click.option("--notify/--no-notify", default=None, help="Wake idle workers with NOTIFY.")
@click.option("--if-not-exists", is_flag=True, default=None, help="Do nothing if it exists.")
@_database
def create_queue(client: Client, queue: str, **settings: Any) -> None:
    """Create a queue."""
    client.create_queue(queue, **settings)
    click.echo(f"queue {queue} is there")


@main.command()
@click.argument("queue")
@click.option("--force", is_flag=True, default=None, help="Even if it has jobs, which are lost.")
@_database
def drop_queue(client: Client, queue: str, force: bool | None) -> None:
    """Drop a queue."""
    client.drop_queue(queue, force=force)
    click.echo(f"queue {queue} dropped")


@main.command()
@click.argument("queue")
@click.argument("payload", default="{}")
@click.option("--task", help="Name of the handler.")
@click.option("--priority", type=int, help="-100 to 100, lower runs first.")
@click.option("--delay", help="Not before this much time has passed, as in '5 minutes'.")
@click.option("--max-attempts", type=int, help="Attempts before it is a dead letter.")
@click.option("--headers", help="A JSON object that travels with the job.")
@_database
def enqueue(client: Client, queue: str, payload: str, headers: str | None, **options: Any) -> None:
    """Add a job with a JSON payload ('-' reads it from stdin), and print its id."""
    text = sys.stdin.read() if payload == "-" else payload
    click.echo(client.enqueue(queue, _parsed(text), headers=_parsed(headers or "null"), **options))


@main.command()
@_json_option
@_database
def stats(client: Client, as_json: bool) -> None:
    """Show the numbers of each queue."""
    _show(client.stats(), as_json, title="queues")


@main.command()
@_database
def maintain(client: Client) -> None:
    """Do what is due: promote, reap, rotate, archive. Workers do this by themselves."""
    click.echo(json.dumps(client.maintain()))


@main.command()
@_json_option
@_database
def doctor(client: Client, as_json: bool) -> None:
    """Look for trouble; exits with 1 if there is an error."""
    findings = client.doctor()
    if findings or as_json:
        _show(findings, as_json, title="findings")
    else:
        click.echo("all is well")
    if any(finding.severity == "error" for finding in findings):
        sys.exit(1)


@main.command()
@click.argument("id", type=int)
@_json_option
@_database
def show(client: Client, id: int, as_json: bool) -> None:
    """Show what is known about a job."""
    state = client.job_status(id)
    if state is None:
        _fail(f"there is no job {id}, or its retention is over")
    if as_json:
        click.echo(json.dumps(state._asdict(), default=str))
        return
    _print(state)


@main.command()
@click.argument("id", type=int)
@_json_option
@_database
def job(client: Client, id: int, as_json: bool) -> None:
    """Show the state of a job and all its attempts."""
    state, attempts = client.job_status(id), client.attempts(id)
    if state is None and not attempts:
        _fail(f"there is no job {id}, or its retention is over")
    if as_json:
        facts = {"state": state and state._asdict(), "attempts": [attempt._asdict() for attempt in attempts]}
        click.echo(json.dumps(facts, default=str, indent=2))
        return
    if state is not None:
        _print(state)
    _show([_AttemptLine.of(attempt) for attempt in attempts], as_json, title="attempts")


@main.group()
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
@_json_option
@_database
def dead_list(client: Client, queue: str, as_json: bool, **conditions: Any) -> None:
    """List dead letters in the order of their ids."""
    letters = client.dead_letters(queue, **conditions)
    _show(letters if as_json else [_DeadLine.of(letter) for letter in letters], as_json, title="dead letters")


@dead.command("redrive")
@click.argument("queue")
@click.argument("ids", type=int, nargs=-1)
@_conditions
@click.option("--limit", "n", type=int, help="No more than so many, the lowest ids first.")
@click.option("--rate", "per_second", type=float, help="So many each second, instead of all at once.")
@_database
def dead_redrive(client: Client, queue: str, ids: tuple[int, ...], **conditions: Any) -> None:
    """Send dead letters back to work: those with IDS, or all that the options choose."""
    if ids:
        _alone(conditions)
    count = client.redrive(queue, ids) if ids else client.redrive_where(queue, **conditions)
    click.echo(f"{count} redriven")


@dead.command("discard")
@click.argument("queue")
@click.argument("ids", type=int, nargs=-1)
@_conditions
@click.option("--limit", "n", type=int, help="No more than so many, the lowest ids first.")
@click.option("--all", "everything", is_flag=True, help="All of them, if neither ids nor another option are given.")
@_database
def dead_discard(client: Client, queue: str, ids: tuple[int, ...], everything: bool, **conditions: Any) -> None:
    """Throw dead letters away: those with IDS, or all that the options choose."""
    if ids:
        _alone(conditions)
    elif not everything and not any(value is not None for value in conditions.values()):
        _fail("name ids, or choose with an option; --all throws all of them away")
    count = client.discard(queue, ids) if ids else client.discard_where(queue, **conditions)
    click.echo(f"{count} discarded")


def _alone(conditions: dict[str, Any]) -> None:
    if any(value is not None for value in conditions.values()):
        _fail("name ids or choose with options, not both")


class _AttemptLine(NamedTuple):
    """What a table has room for."""

    attempt: int
    state: str
    worker: str | None
    started_at: str | None
    finished_at: str | None
    progress: Any
    error: str | None

    @classmethod
    def of(cls, attempt: JobAttempt) -> _AttemptLine:
        times = (_seconds(attempt.started_at), _seconds(attempt.finished_at))
        return cls(attempt.attempt, attempt.state, attempt.worker, *times, attempt.progress, _line(attempt.error))


class _DeadLine(NamedTuple):
    """What a table has room for."""

    id: int
    task: str | None
    attempt: int
    died_at: str | None
    error: str | None

    @classmethod
    def of(cls, letter: DeadLetter) -> _DeadLine:
        return cls(letter.id, letter.task, letter.attempt, _seconds(letter.died_at), _line(letter.error))


def _seconds(time: datetime | None) -> str | None:
    return time.isoformat(" ", "seconds") if time else None


def _line(text: str | None) -> str | None:
    return text.partition("\n")[0][:200] if text else None


@main.group()
def schedule() -> None:
    """Look at recurring jobs."""


@schedule.command("list")
@_json_option
@_database
def schedule_list(client: Client, as_json: bool) -> None:
    """List the schedules, by name."""
    found = _connection(client).execute(f"SELECT {', '.join(_Schedule._fields)} FROM pgq.schedule ORDER BY name")
    rows = [_Schedule._make(row) for row in found]
    if not as_json:
        rows = [
            row._replace(next_at=_seconds(row.next_at), last_at=_seconds(row.last_at), error=_line(row.error))
            for row in rows
        ]
    _show(rows, as_json, title="schedules")


class _Schedule(NamedTuple):
    """What the table pgq.schedule says about a recurring job."""

    name: str
    cron: str
    timezone: str
    queue: str
    next_at: Any
    last_at: Any
    error: str | None


@main.command()
@click.argument("cron")
@click.option("--timezone", help="By whose clock, as in 'Europe/Berlin'; UTC if left out.")
@click.option("-n", "n", type=int, help="How many runs; 5 if left out.")
@_json_option
@_database
def next_runs(client: Client, cron: str, timezone: str | None, n: int | None, as_json: bool) -> None:
    """Show when a schedule with the line CRON would run, as in '30 2 * * mon-fri'."""
    connection = _connection(client)
    with connection.transaction():
        # Times come in the session's time zone, and are to be read by the clock that was asked for.
        connection.execute("SELECT set_config('TimeZone', %s, true)", [timezone or "UTC"])
        runs = [run.isoformat(" ") for run in client.next_runs(cron, timezone, n)]
    click.echo(json.dumps(runs, indent=2) if as_json else "\n".join(runs))


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--timeout", type=float, help="Seconds to wait for the others, 0 for not at all; else for ever.")
@_dsn_option
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

    def forward(number: int, frame: object) -> None:
        if child is None:
            sys.exit(128 + number)
        _kill(child.pid, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    lock = pgqueue.Client(dsn).exclusive(name, timeout)
    with _explained(), suppress(ExclusiveLost), lock as alone:
        if not alone:
            click.echo(f"another node is exclusive under {name!r}", err=True)
            sys.exit(75)

        # In a session, and so in a group, of its own. The guard learns of it before it can do anything.
        def fence() -> None:
            if child is not None:
                _kill(child.pid, signal.SIGKILL)

        alone.on_lost = fence
        try:
            child = subprocess.Popen(
                command, start_new_session=True, preexec_fn=lambda: os.write(tell, b"%d\n" % os.getpid()) and None
            )
        except OSError as error:
            os.write(tell, b"0\n")
            _fail(f"{command[0]}: {error.strerror}")
        if alone.lost:
            fence()
        code = child.wait()
        _kill(child.pid, signal.SIGKILL)
        os.write(tell, b"0\n")
    if lock.lost:
        click.echo("the connection was lost and another node may begin, so the command was killed", err=True)
        sys.exit(75)
    sys.exit(code if code >= 0 else 128 - code)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("app", required=False)
@click.option("--queue", "-q", "queues", multiple=True, help="May be repeated; else the queues of the app's tasks.")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="QUEUE=N",
    help="A queue's share of the turns to be asked first, 1 if not given; may be repeated.",
)
@click.option("--exec", "command", metavar="COMMAND", help="Instead of an app: run this shell command for each job.")
@click.option("--http", "url", metavar="URL", help="Instead of an app: post each job to this URL.")
@click.option("--timeout", type=float, help="Seconds that a command or an exchange may take; apps say so per task.")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Worker processes to start.")
@click.option("--concurrency", "-c", default=8, show_default=True, help="Jobs that run at the same time.")
@click.option("--lease", help="How long claimed jobs are held, as in '1 minute'; else the queue's setting.")
@click.option("--poll", default=1.0, show_default=True, help="Seconds after which an idle worker looks by itself.")
@click.option("--listen/--no-listen", default=True, help="Let the database wake the worker (not through a pooler).")
@click.option("--listen-dsn", help="Connection string that avoids a pooler; else PGQUEUE_LISTEN_DSN, else --dsn.")
@click.option("--maintain/--no-maintain", default=True, help="Call pgq.maintain() about every second.")
@click.option("--grace", default=25.0, show_default=True, help="Seconds for running jobs to finish after SIGTERM.")
@click.option("--drain", "--burst", "mode", flag_value="drain", help="End when no job is ready.")
@click.option("--once", "mode", flag_value="once", help="Run one job, if there is one, and end.")
@click.option("--dry-run", is_flag=True, help="Say what it would work on, and whether it could; claim nothing.")
@click.option("--health", metavar="HOST:PORT", help="Answer GET /live and GET /ready there.")
@click.option(
    "--reload", is_flag=True, help="For development: start anew when a Python file below this folder changes."
)
@click.option("--name", help="Shown to people; else host and process id.")
@click.option("--dsn", help="Connection string; else the app's own.")
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What is written to stderr.",
)
@click.option("--log-json", is_flag=True, help="Write each log record as one line of JSON.")
@click.version_option(pgqueue.__version__, prog_name="pgq-worker")
def worker(
    app: str | None,
    queues: tuple[str, ...],
    weights: tuple[str, ...],
    command: str | None,
    url: str | None,
    timeout: float | None,
    processes: int,
    dsn: str | None,
    log_level: str,
    log_json: bool,
    mode: str | None,
    dry_run: bool,
    reload: bool,
    **options: Any,
) -> None:
    """Run the jobs of APP, given as module:attribute (without the attribute it is `app`).

    SIGTERM and SIGINT let running jobs finish, a second one ends at once.

    With --exec and --http no APP and no Python is needed: all jobs of the queues go to a command or a URL.

    \b
    --exec: the payload is JSON on standard input; PGQ_ID, PGQ_TASK, PGQ_HEADERS and others are in the environment.
            exit 0 acknowledges, with standard output as the result; 75 puts the job off, for the number of
            seconds on standard output or a minute; anything else rejects it with standard error.
    --http: the payload is the body of a POST. 2xx acknowledges, with the body as the result; 429 and 503 with
            Retry-After put the job off; anything else rejects it.
    """
    _log_to_stderr(log_level, log_json)
    if reload:
        _reload()
        return
    if processes > 1 and not dry_run:
        from pgqueue.worker.processes import Processes

        sys.exit(Processes([*_this_command(), "--processes", "1"], processes).main())
    try:
        tasks = _app(app, command, url, dsn, timeout, options["concurrency"])
        made = pgqueue.Worker(tasks, _weighed(queues, weights), mode=mode or "forever", **options)  # type: ignore[arg-type]
    except ValueError as error:
        _fail(str(error))
    with _explained():
        if dry_run:
            _try(made)
            return
        from pgqueue.worker.processes import stop_with_the_parent

        stop_with_the_parent(made.stop)
        made.main()


def _log_to_stderr(level: str, as_json: bool) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    if as_json:
        from pgqueue.logs import JsonFormatter

        logging.getLogger().handlers[0].setFormatter(JsonFormatter())


def _this_command() -> list[str]:
    """Return what this process was started with; an option that is given again counts."""
    return [sys.executable, "-c", "from pgqueue.cli import worker; worker(prog_name='pgq-worker')", *sys.argv[1:]]


def _reload() -> None:
    """Run this command anew whenever a file changes."""
    try:
        from watchfiles import PythonFilter, run_process
    except ImportError:
        _fail("--reload needs the package watchfiles: pip install 'pgqueue[reload]'")
    arguments = [argument for argument in sys.argv[1:] if argument != "--reload"]
    command = shlex.join([*_this_command()[:3], *arguments])
    run_process(".", target=command, target_type="command", watch_filter=PythonFilter())


def _app(
    path: str | None, command: str | None, url: str | None, dsn: str | None, timeout: float | None, concurrency: int
) -> App:
    if sum(given is not None for given in (path, command, url)) != 1:
        raise click.UsageError("Give either APP, or --exec, or --http.")
    if path is not None:
        if timeout is not None:
            raise click.UsageError("--timeout is for --exec and --http; a task has one of its own.")
        app = _load(path)
        if dsn is not None:
            app.dsn = dsn
        return app
    from pgqueue.worker import external

    if command is not None:
        return external.command_app(dsn, command, timeout)
    assert url is not None
    try:
        return external.http_app(dsn, url, timeout, concurrency=concurrency)
    except ImportError:
        _fail("--http needs the package httpx: pip install 'pgqueue[http]'")


def _weighed(queues: tuple[str, ...], weights: tuple[str, ...]) -> dict[str, int]:
    weighed = dict.fromkeys(queues, 1)
    for text in weights:
        queue, _, number = text.rpartition("=")
        if queue not in weighed or not number.isdigit():
            raise click.UsageError(f"--weight {text}: give QUEUE=N for a queue that --queue names.")
        weighed[queue] = int(number)
    return weighed


def _try(worker: Worker) -> None:
    """Say what a worker would do."""
    import asyncio

    missing = asyncio.run(worker.check())
    for task in worker.app.tasks.values():
        click.echo(f"task {task.name} of queue {task.queue}")
    for queue in worker.queues:
        click.echo(f"queue {queue}" + (" does not exist" if queue in missing else ""))
    if missing:
        _fail("there are queues that do not exist; pgqueue create-queue makes them")


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


def _load(path: str) -> App:
    """Import the app, also from the current directory."""
    module, _, attribute = path.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        _fail(f"there is no module {module!r} here or on the Python path")
    app = getattr(found, attribute or "app", None)
    if not isinstance(app, pgqueue.App):
        _fail(f"{module!r} has no pgqueue.App named {attribute or 'app'!r}; name it as module:attribute")
    return app


def _packed() -> Traversable:
    """Return the directory of the packed SQL."""
    return files("pgqueue") / "sql"


def _connection(client: Client) -> Any:
    return client._connection


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        _fail(f"{text!r} is no JSON: {error}")


def _print(state: JobState) -> None:
    for name, value in state._asdict().items():
        if name in ("result", "error") and value is not None:
            click.echo(f"{name}:\n{value if name == 'error' else json.dumps(value, indent=2)}")
        else:
            click.echo(f"{name + ':':<13} {'-' if value is None else value}")


def _show(rows: list[Any], as_json: bool, title: str) -> None:
    """Print rows as a table, or as JSON."""
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows], default=str, indent=2))
        return
    if not rows:
        click.echo(f"no {title}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for name in rows[0]._fields:
        table.add_column(name.replace("_", " "), justify="right" if isinstance(getattr(rows[0], name), int) else "left")
    for row in rows:
        table.add_row(*(Text("-" if value is None else str(value)) for value in row))
    Console().print(table)
