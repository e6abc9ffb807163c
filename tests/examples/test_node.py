"""Example node: jobs from node-postgres."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgqueue import Client
from pgqueue.testing import Clock
from tests.conftest import Connection
from tests.examples.support import EXAMPLES, alike, block, shell
from tests.python.support import eventually


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, with node-postgres."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("there is no node, or no npm")
    folder = tmp_path_factory.mktemp("node") / "node"
    shutil.copytree(EXAMPLES / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--fetch-retries=0"]
    try:
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("npm install takes more than a minute")
    if done.returncode != 0:
        pytest.skip(f"npm cannot install node-postgres: {done.stderr.strip()[-300:]}")
    return folder


@pytest.fixture
def environment(environment: dict[str, str], dsn: str) -> dict[str, str]:
    """As node-postgres, which does not read connection strings of libpq, wants it."""
    given = conninfo_to_dict(dsn)
    names = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGDATABASE": "dbname"}
    return environment | {variable: str(given[name]) for variable, name in names.items()} | {"BEAT": "200"}


class Node:
    """The worker of the example."""

    def __init__(self, folder: Path, environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                ["node", "index.mjs", "work"], cwd=folder, env=environment, stdout=output, stderr=output
            )

    @property
    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
def node(folder: Path, environment: dict[str, str], client: Client, tmp_path: Path) -> Iterator[Node]:
    """A worker that has gone to sleep, as there is no job."""
    client.create_queue("node", backoff=5)
    node = Node(folder, environment, tmp_path / "node.log")
    yield node
    if node.process.poll() is None:
        node.process.terminate()
    assert node.process.wait(20) == 0, node.log


def watched(db: Connection) -> bool:
    return db.execute("SELECT FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'").fetchone() is not None


def test_a_sleeping_worker_is_woken_and_keeps_the_result(node: Node, client: Client, db: Connection) -> None:
    eventually(lambda: watched(db), "it sleeps")
    state = client.wait(client.enqueue("node", {"to": "ann"}), 5)  # it looks by itself after ten seconds only
    assert state is not None
    assert state.result == {"sent_to": "ann"}
    (attempt,) = client.attempts(state.id)
    assert attempt.worker == f"node {node.process.pid}"


def test_what_throws_is_tried_again_with_its_stack_kept(node: Node, client: Client, clock: Clock) -> None:
    job = client.enqueue("node", {}, max_attempts=2)
    eventually(lambda: "attempt 1: retry" in node.log, "it is rejected")
    state = client.job_status(job)
    assert state is not None
    assert "Error: there is no address" in str(state.error)
    assert "index.mjs" in str(state.error)
    clock.advance(10)
    eventually(lambda: "attempt 2: dead" in node.log, "it is tried again, and given up")


def test_many_jobs_at_once(node: Node, client: Client) -> None:
    jobs = client.enqueue_many("node", [{"to": str(number)} for number in range(100)])
    results = [state.result for job in jobs if (state := client.wait(job, 15))]
    assert results == [{"sent_to": str(number)} for number in range(100)]


def test_a_job_that_takes_longer_than_its_lease_is_kept(node: Node, client: Client) -> None:
    client.alter_queue("node", lease=1)
    state = client.wait(client.enqueue("node", {"to": "ann", "ms": 2500}), 15)
    assert state is not None
    assert (state.state, state.attempt) == ("done", 1)


def test_a_worker_that_lost_its_job_says_so_and_goes_on(node: Node, client: Client, clock: Clock) -> None:
    job = client.enqueue("node", {"to": "ann", "ms": 1500})
    eventually(lambda: client.attempts(job), "it runs")
    clock.advance(3600)  # longer than its lease
    assert client.maintain() is not None
    eventually(lambda: f"job {job} is somebody else's by now" in node.log, "the first attempt has lost its lease")
    state = client.wait(job, 15)
    assert state is not None
    assert (state.state, state.attempt) == ("done", 2)


def test_the_readme(folder: Path, environment: dict[str, str]) -> None:
    script = block("node", "sh").replace("npm install", "#").replace("cd examples/node", f"cd '{folder}'")
    printed = alike(shell(script, environment)).splitlines()
    assert sorted(printed) == sorted(alike(block("node", "text")).splitlines())  # its jobs run at once
