"""The command ``pgq-worker``."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import pgqueue
from pgqueue.cli.database import explained, fail

if TYPE_CHECKING:
    from pgqueue import App


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("app")
@click.option("--queue", "-q", "queues", multiple=True, help="May be repeated; else the queues of the app's tasks.")
@click.option("--concurrency", "-c", default=8, show_default=True, help="Jobs that run at the same time.")
@click.option("--lease", help="How long claimed jobs are held, as in '1 minute'; else the queue's setting.")
@click.option("--poll", default=1.0, show_default=True, help="Seconds after which an idle worker looks by itself.")
@click.option("--listen/--no-listen", default=True, help="Let the database wake the worker (not through a pooler).")
@click.option("--listen-dsn", help="Connection string that avoids a pooler; else PGQUEUE_LISTEN_DSN, else --dsn.")
@click.option("--maintain/--no-maintain", default=True, help="Call pgq.maintain() about every second.")
@click.option("--grace", default=25.0, show_default=True, help="Seconds for running jobs to finish after SIGTERM.")
@click.option("--drain", "mode", flag_value="drain", help="End when no job is ready.")
@click.option("--once", "mode", flag_value="once", help="Run one job, if there is one, and end.")
@click.option("--name", help="Shown to people; else host and process id.")
@click.option("--dsn", help="Connection string; else the app's own.")
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What is written to stderr.",
)
@click.version_option(pgqueue.__version__, prog_name="pgq-worker")
def worker(
    app: str, queues: tuple[str, ...], dsn: str | None, log_level: str, mode: str | None, **options: Any
) -> None:
    """Run the jobs of APP, given as module:attribute (without the attribute it is `app`).

    SIGTERM and SIGINT let running jobs finish, a second one ends at once.
    """
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    tasks = _load(app)
    if dsn is not None:
        tasks.dsn = dsn
    try:
        made = pgqueue.Worker(tasks, queues, mode=mode or "forever", **options)  # type: ignore[arg-type]
    except ValueError as error:
        fail(str(error))
    with explained():
        made.main()


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
