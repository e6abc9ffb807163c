"""The command ``pgq-worker``."""

from __future__ import annotations

import importlib
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import pgqueue
from pgqueue.cli.database import explained, fail

if TYPE_CHECKING:
    from pgqueue import App, Worker


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
            seconds on standard output or a minute; anything else rejects it with standard error. After --timeout
            it gets SIGTERM, with all that it has started, and SIGKILL ten seconds later; at the end of --grace
            it has half a second.
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
    tasks = _app(app, command, url, dsn, timeout, options["concurrency"])
    try:
        made = pgqueue.Worker(tasks, _weighed(queues, weights), mode=mode or "forever", **options)  # type: ignore[arg-type]
    except ValueError as error:
        fail(str(error))
    with explained():
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
        fail("--reload needs the package watchfiles: pip install 'pgqueue[reload]'")
    arguments = [argument for argument in sys.argv[1:] if argument != "--reload"]
    command = shlex.join([*_this_command()[:3], *arguments])
    run_process(".", target=command, target_type="command", watch_filter=PythonFilter())


def _app(
    path: str | None, command: str | None, url: str | None, dsn: str | None, timeout: float | None, concurrency: int
) -> App:
    if sum(map(bool, (path, command, url))) != 1:
        raise click.UsageError("Give either APP, or --exec, or --http.")
    if path:
        if timeout is not None:
            raise click.UsageError("--timeout is for --exec and --http; a task has one of its own.")
        app = _load(path)
        if dsn is not None:
            app.dsn = dsn
        return app
    from pgqueue.worker import external

    try:
        if command:
            return external.command_app(dsn, command, timeout)
        return external.http_app(dsn, str(url), timeout, concurrency=concurrency)
    except ImportError:
        fail("--http needs the package httpx: pip install 'pgqueue[http]'")
    except ValueError as error:
        fail(str(error))


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
        fail("there are queues that do not exist; pgqueue create-queue makes them")


def _load(path: str) -> App:
    """Import the app, also from the current directory."""
    module, _, attribute = path.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        fail(f"there is no module {module!r} here or on the Python path")
    app = getattr(found, attribute or "app", None)
    if not isinstance(app, pgqueue.App):
        fail(f"{module!r} has no pgqueue.App named {attribute or 'app'!r}; name it as module:attribute")
    return app
