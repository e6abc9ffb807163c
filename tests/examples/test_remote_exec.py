"""Example remote_exec: clients name a type of task, workers have its class."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from examples.remote_exec.measure import measure
from examples.remote_exec.submit import Failed, run
from pgqueue import Client
from tests.examples.conftest import StartWorker
from tests.examples.support import alike, block, shell

WORKER = "examples.remote_exec.worker:app"

REVERSE = """
from examples.remote_exec.task import RemoteTask

class Reverse(RemoteTask):
    type = "reverse"

    def run(self, text):
        return text[::-1]
"""


@pytest.fixture
def client(client: Client) -> Client:
    """A client, with the queue."""
    client.create_queue("remote", max_attempts=3, backoff=0)
    return client


def test_each_type_of_task_runs_in_the_worker(client: Client, start_worker: StartWorker) -> None:
    start_worker(WORKER)
    assert run(client, "factors", number=2 * 3 * 3 * 7 * 97) == [2, 3, 3, 7, 97]
    assert run(client, "where")["node"] == platform.node()
    assert run(client, "shell", command="echo $((6 * 7))") == "42\n"


def test_a_task_that_raises_fails_at_once_and_says_why(client: Client, start_worker: StartWorker) -> None:
    start_worker(WORKER)
    with pytest.raises(Failed, match=r"Command .* returned non-zero exit status 3"):
        run(client, "shell", command="exit 3")
    with pytest.raises(Failed, match="unexpected keyword argument 'wrong'"):
        run(client, "echo", wrong=1)
    assert {letter.attempt for letter in client.dead_letters("remote")} == {1}


def test_a_new_type_is_a_new_file_in_the_folder(client: Client, start_worker: StartWorker, tmp_path: Path) -> None:
    (tmp_path / "texts.py").write_text(REVERSE)
    start_worker(WORKER, REMOTE_TASKS=str(tmp_path))
    assert run(client, "reverse", text="stressed") == "desserts"
    with pytest.raises(Failed, match="this worker has no task 'echo'"):
        run(client, "echo", value=1)


def test_every_round_trip_is_measured(client: Client, start_worker: StartWorker) -> None:
    start_worker(WORKER)
    times = measure(client, 50)
    assert len(times) == 50
    assert min(times) > 0


def test_the_readme(environment: dict[str, str]) -> None:
    printed = shell(block("remote_exec", "sh"), environment)
    assert alike(printed) == alike(block("remote_exec", "text"))
    assert "[3, 3, 37, 333667]" in printed
    p50, p99 = map(float, re.findall(r"p\d\d ([\d.]+) ms", printed))
    assert 0 < p50 <= p99
