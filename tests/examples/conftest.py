"""Fixtures of the tests of the examples."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pgqueue
from pgqueue import Client
from tests.cluster import Cluster
from tests.conftest import ROOT

StartWorker = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    """A client on the test's database, in which there are no queues."""
    with Client(dsn) as made:
        yield made


@pytest.fixture
def environment(dsn: str, cluster: Cluster) -> dict[str, str]:
    """What the shell of a reader has: the database, the programs of the package, psql."""
    programs = [Path(sys.executable).parent, cluster.program("psql").parent]
    return {
        **os.environ,
        "PATH": os.pathsep.join([*map(str, programs), os.environ["PATH"]]),
        "PYTHONPATH": str(Path(pgqueue.__file__).parents[1]),
        "PGQUEUE_DSN": dsn,
    }


@pytest.fixture
def start_worker(environment: dict[str, str], tmp_path: Path) -> Iterator[StartWorker]:
    """Start worker processes: `start_worker("examples.mail.app:app", "--once")`."""
    started: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(*arguments: str, **more: str) -> subprocess.Popen[bytes]:
        log = tmp_path / f"worker{len(started)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["pgq-worker", *arguments], cwd=ROOT, env={**environment, **more}, stdout=output, stderr=output
            )
        started.append((process, log))
        return process

    yield start
    for process, _ in started:
        process.terminate()
    # Those that the test did not kill must end well.
    codes = [process.wait(20) for process, _ in started]
    for code, (_, log) in zip(codes, started, strict=True):
        assert code in (0, -signal.SIGKILL), log.read_text()
