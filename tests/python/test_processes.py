"""Worker processes: signals and sudden death."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgqueue import Client
from tests.python.conftest import WorkerProcess
from tests.python.support import eventually

Start = Callable[..., WorkerProcess]
Database = psycopg.Connection[Any]


@pytest.fixture
def closed(db: Database) -> Callable[[], None]:
    """Close gate 1; the function opens it."""
    db.execute("SELECT pg_advisory_lock(1)")

    def open_gate() -> None:
        db.execute("SELECT pg_advisory_unlock(1)")

    return open_gate


def started(db: Database) -> int:
    row = db.execute("SELECT count(*) FROM started").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.direct("gates are locks of a session")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("task", ["wait", "wait_async"])
def test_a_signal_lets_running_jobs_finish(
    client: Client, db: Database, start_worker: Start, closed: Callable[[], None], task: str, number: int
) -> None:
    jobs = client.enqueue_many("q", [{"gate": 1}] * 5, task=task)
    worker = start_worker("--concurrency", "2")
    eventually(lambda: started(db) == 2)
    worker.process.send_signal(number)
    eventually(lambda: client.stats()[0].ready == 3, "the others are given back")
    closed()
    assert worker.wait() == 0
    states = [state.state for job in jobs if (state := client.job_status(job))]
    assert sorted(states) == ["done"] * 2 + ["ready"] * 3
    assert started(db) == 2


@pytest.mark.direct("gates are locks of a session")
@pytest.mark.parametrize("task", ["wait", "block"])
def test_a_second_signal_ends_at_once(
    client: Client, db: Database, start_worker: Start, closed: Callable[[], None], task: str
) -> None:
    client.enqueue("q", {"gate": 1}, task=task)
    worker = start_worker()
    eventually(lambda: started(db) == 1)
    worker.terminate()
    eventually(lambda: "SIGTERM: stopping" in worker.log)
    worker.terminate()
    worker.wait(10)
    closed()


@pytest.mark.direct("gates are locks of a session")
def test_it_ends_whatever_handlers_have_left_in_threads(
    client: Client, db: Database, start_worker: Start, closed: Callable[[], None], until: Callable[[int, str], None]
) -> None:
    job = client.enqueue("q", {"gate": 1}, task="elsewhere")
    worker = start_worker("--grace", "0.2")
    eventually(lambda: started(db) == 1)
    worker.terminate()
    assert worker.wait(10) == 1
    until(job, "ready")
    closed()


@pytest.mark.direct("gates are locks of a session")
def test_a_killed_worker_loses_nothing(
    client: Client, db: Database, start_worker: Start, closed: Callable[[], None]
) -> None:
    jobs = client.enqueue_many("q", [{"gate": 1}] * 20, task="wait")
    worker = start_worker("--lease", "1 second")
    eventually(lambda: started(db) == 8)
    worker.kill()
    closed()
    start_worker("--lease", "1 second")
    eventually(lambda: all(s.state == "done" for job in jobs if (s := client.job_status(job))))
    attempts = [state.attempt for job in jobs if (state := client.job_status(job))]
    assert sorted(attempts) == [1] * 12 + [2] * 8


def test_a_job_that_kills_its_worker_is_dead_after_exactly_max_attempts(
    client: Client, db: Database, start_worker: Start, until: Callable[[int, str], None]
) -> None:
    job = client.enqueue("q", task="die", max_attempts=3)
    for attempt in (1, 2, 3):
        worker = start_worker("--lease", "200 ms")
        worker.wait()
        assert started(db) == attempt
    worker = start_worker("--lease", "200 ms")
    until(job, "dead")
    assert started(db) == 3
    assert client.redrive("q") == 1
    worker.wait()
    assert started(db) == 4


def test_a_signal_while_a_process_is_being_started_reaches_it_and_is_no_failure() -> None:
    code = """
import os, signal, subprocess, sys
from pgqueue.worker.processes import Processes

start = subprocess.Popen.__init__

def start_and_be_told(self, *args, **options):
    start(self, *args, **options)
    os.kill(os.getpid(), signal.SIGTERM)

subprocess.Popen.__init__ = start_and_be_told
sys.exit(Processes(["sleep", "60"], 2).main())
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=40).returncode == 0


def test_termination_under_load_loses_nothing_and_repeats_nothing(
    client: Client, db: Database, start_worker: Start
) -> None:
    client.enqueue_many("q", [{}] * 3000, task="count")
    worker = start_worker("--concurrency", "4")
    eventually(lambda: started(db) > 100)
    worker.terminate()
    assert worker.wait() == 0
    start_worker("--drain").wait(60)
    assert started(db) == 3000
    assert db.execute("SELECT count(DISTINCT job), max(attempt) FROM started").fetchone() == (3000, 1)
    (stat,) = client.stats()
    assert (stat.ready, stat.running, stat.retrying, stat.dead) == (0, 0, 0, 0)
