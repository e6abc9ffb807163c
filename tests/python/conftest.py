"""Fixtures of the tests of the Python package."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgqueue import App, AsyncClient, Client, Worker, cli
from tests.cluster import Cluster
from tests.conftest import fresh_database
from tests.programs import PGQ_WORKER
from tests.python.support import Face, Run, eventually

ROOT = Path(__file__).parent.parent.parent
Running = Callable[..., AbstractContextManager[Worker]]


@pytest.fixture(scope="module")
def module_dsn(cluster: Cluster, template: str) -> Iterator[str]:
    """A database for all tests of one module."""
    yield from fresh_database(cluster, template)


@pytest.fixture
def dsn(cluster: Cluster, module_dsn: str, through: Callable[[str], str]) -> Iterator[str]:
    """Instead of a fresh database, that of the module, with its queues dropped after each test."""
    yield through(module_dsn)
    with psycopg.connect(module_dsn, autocommit=True) as connection:
        connection.execute("SELECT pgq.drop_queue(name, force => true) FROM pgq.queue")


@pytest.fixture
def fresh_dsn(cluster: Cluster, template: str, through: Callable[[str], str]) -> Iterator[str]:
    """A database of its own for a test that damages it."""
    yield from map(through, fresh_database(cluster, template))


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    """A client on the test's database, with a queue named q."""
    with Client(dsn) as made:
        made.create_queue("q", backoff=0)
        yield made


@pytest.fixture
def run(dsn: str) -> Run:
    """Run `pgqueue …` on the test's database: `run("stats", "--json")`."""

    def run(*arguments: str, dsn: str = dsn, stdin: str | None = None) -> Result:
        if "--" in arguments:
            result = CliRunner(env={"PGQUEUE_DSN": dsn}).invoke(cli.main, arguments, input=stdin)
        else:
            result = CliRunner(env={"COLUMNS": None}).invoke(cli.main, [*arguments, "--dsn", dsn], input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest, dsn: str) -> Iterator[Face]:
    """Both clients, called the same way, on a database with a queue named q."""
    loop = asyncio.new_event_loop()
    made = Face(Client(dsn) if request.param == "sync" else AsyncClient(dsn), loop)
    made.create_queue("q", backoff=0)
    yield made
    made.close()
    loop.close()


@pytest.fixture
def app(dsn: str) -> Iterator[App]:
    """An app without tasks."""
    made = App(dsn)
    yield made
    made.close()


@pytest.fixture
def running(app: App) -> Running:
    """Run a worker of the app in a thread: `with running(concurrency=2) as worker:`."""

    @contextmanager
    def run(**options: Any) -> Iterator[Worker]:
        worker = Worker(app, options.pop("queues", ["q"]), **{"grace": 5.0, **options})
        errors: list[BaseException] = []

        def main() -> None:
            try:
                asyncio.run(worker.run())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=main)
        thread.start()
        try:
            yield worker
        finally:
            if not worker.stopping:
                worker.stop()
            thread.join(20)
            assert not thread.is_alive(), "the worker does not stop"
        if errors:
            raise errors[0]

    return run


class WorkerProcess:
    """A `pgq-worker` of tests/python/handlers.py."""

    def __init__(self, dsn: str, log: Path, *options: str) -> None:
        self._log = log
        import pgqueue

        package = Path(pgqueue.__file__).parent.parent
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*PGQ_WORKER, "tests.python.handlers:app", "--dsn", dsn, *options],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(package), "HANDLERS_DSN": dsn},
                stderr=stderr,
            )

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def wait(self, timeout: float = 20) -> int:
        """Wait for its end; returns the exit code."""
        return self.process.wait(timeout)


@pytest.fixture
def start_worker(dsn: str, gates: None, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Start worker processes: `start_worker("--concurrency", "2")`."""
    started: list[WorkerProcess] = []

    def start(*options: str) -> WorkerProcess:
        started.append(
            WorkerProcess(dsn, tmp_path / f"worker{len(started)}.log", "--queue", "q", "--poll", "0.1", *options)
        )
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()


@pytest.fixture
def gates(db: psycopg.Connection[Any]) -> None:
    """The table in which the handlers of handlers.py report that they run."""
    db.execute("DROP TABLE IF EXISTS started; CREATE TABLE started (job bigint, attempt int, pid int)")


@pytest.fixture
def state_of(db: psycopg.Connection[Any]) -> Callable[[int], str]:
    """Return the state of a job."""

    def state(job: int) -> str:
        row = db.execute("SELECT state FROM pgq.job_status(%s)", [job]).fetchone()
        assert row is not None
        return str(row[0])

    return state


@pytest.fixture
def until(state_of: Callable[[int], str]) -> Callable[[int, str], None]:
    """Wait until a job is in a state: `until(job, "done")`."""
    return lambda job, state: eventually(lambda: state_of(job) == state, f"job {job} is {state}")
