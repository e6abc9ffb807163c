"""Example shell: psql in a POSIX shell script, and the same command under pgq-worker."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pgqueue import Client
from pgqueue.testing import Clock
from tests.examples.conftest import StartWorker
from tests.examples.support import EXAMPLES, alike, block, shell
from tests.python.support import eventually

FOLDER = EXAMPLES / "shell"
NASTY = """ü 'quoted' "twice" \\ $HOME `id` %s :'queue' ; -- | * \t end"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def client(client: Client) -> Client:
    """A client, with the queue."""
    client.create_queue("files", backoff=5)
    return client


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """Start `worker.sh files …` as a reader does."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: str | Path, **more: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [FOLDER / "worker.sh", "files", *command],
                env={**environment, **more},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=10)


def ended(client: Client, job: int) -> tuple[str, Any]:
    state = client.wait(job, 10)
    assert state is not None
    return state.state, state.result


def drained(start: Start, *command: str | Path) -> list[str]:
    """Run a worker until no job is ready; returns what it has said."""
    process = start(*command, DRAIN="1")
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 0, said
    return said.splitlines()


def test_whatever_is_in_a_line_arrives_in_the_command_and_comes_back(
    client: Client, environment: dict[str, str], start: Start
) -> None:
    done = subprocess.run(
        [FOLDER / "enqueue.sh", "files"], input=f"{NASTY}\n\nsecond\n", env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout == "job 1\njob 2\n"
    assert sorted(drained(start, "cat")) == ["job 1: done", "job 2: done"]
    text = NASTY.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
    assert ended(client, 1) == ("done", f'"{text}"')
    assert ended(client, 2) == ("done", '"second"')


def test_a_command_that_fails_is_tried_again_with_its_error_kept(client: Client, clock: Clock, start: Start) -> None:
    job = client.enqueue("files", "there is no such file", max_attempts=2)
    assert drained(start, FOLDER / "checksum.sh") == [f"job {job}: retry"]
    clock.advance(10)
    assert drained(start, FOLDER / "checksum.sh") == [f"job {job}: dead"]
    (letter,) = client.dead_letters("files")
    assert "there is no such file" in str(letter.error)


def test_a_stopped_worker_finishes_its_job(client: Client, start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = client.enqueue("files")
    worker = start("sh", "-c", f"while ! test -e '{gate}'; do sleep 0.05; done; echo through")
    eventually(lambda: client.attempts(job), "it runs")
    client.enqueue("files")
    worker.terminate()
    gate.touch()
    said, _ = worker.communicate(timeout=20)
    assert (worker.returncode, said) == (0, f"job {job}: done\n")
    assert client.stats()[0].ready == 1


def test_a_worker_that_lost_its_job_changes_nothing(client: Client, start: Start, clock: Clock, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = client.enqueue("files")
    worker = start("sh", "-c", f"while ! test -e '{gate}'; do sleep 0.05; done; echo too late", DRAIN="1")
    eventually(lambda: client.attempts(job), "it runs")
    clock.advance(3600)
    client.maintain()
    (again,) = client.claim("files")
    client.ack(again.id, again.lease, "in time")
    gate.touch()
    said, _ = worker.communicate(timeout=20)
    assert said.splitlines()[-1] == f"job {job}: lost"
    assert "PQ001" in said or "lease" in said
    assert ended(client, job) == ("done", "in time")


def test_a_job_that_takes_longer_than_its_lease_is_kept(client: Client, start: Start) -> None:
    client.alter_queue("files", lease=1)
    job = client.enqueue("files")
    worker = start("sleep", "2.5", DRAIN="1", BEAT="0.2")
    eventually(lambda: client.maintain()["reaped"] or worker.poll() is not None, "it has ended")
    assert ended(client, job) == ("done", "")
    assert [attempt.state for attempt in client.attempts(job)] == ["done"]


def test_an_idle_worker_finds_what_comes_and_leaves_nothing_behind(client: Client, start: Start) -> None:
    worker = start("wc", "-c")
    assert ended(client, client.enqueue("files", "four")) == ("done", "7")
    assert ended(client, client.enqueue("files", "fifteen")) == ("done", "10")
    worker.terminate()
    worker.communicate(timeout=10)  # also waits for whatever else has its output: the process that extends leases
    assert worker.returncode == 0


def test_the_same_command_works_under_pgq_worker(client: Client, start_worker: StartWorker, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello\n")
    good = client.enqueue("files", str(tmp_path / "file"))
    bad = client.enqueue("files", str(tmp_path / "missing"), max_attempts=1)
    start_worker("--queue", "files", "--exec", str(FOLDER / "checksum.sh"), "--drain").wait(20)
    assert ended(client, good) == ("done", f"3015617425 6 {tmp_path / 'file'}")
    assert ended(client, bad) == ("dead", None)
    assert "missing" in str(client.dead_letters("files")[0].error)


def test_the_readme(environment: dict[str, str]) -> None:
    assert alike(shell(block("shell", "sh"), environment)) == alike(block("shell", "text"))
