"""The benchmark itself: that it runs, and that it cannot be fooled by claims that find nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.bench.__main__ import main
from tests.bench.pgbench import BenchmarkError
from tests.bench.report import print_table, write_json
from tests.bench.rows import Bench, measurements
from tests.bench.server import Database, Server
from tests.bench.systems import Queue, both
from tests.cluster import find_binaries


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, run_dir: Path) -> Iterator[Server]:
    patch = pytest.MonkeyPatch()
    patch.setattr(tempfile, "tempdir", str(run_dir))
    with Server.start(find_binaries(request.config.getoption("--pg"))) as server:
        patch.undo()
        yield server


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    with server.database() as database:
        yield database


def test_a_quick_run_fills_table_and_json(server: Server, tmp_path: Path) -> None:
    bench = Bench(server, seconds=1, rounds=1)
    rows = list(measurements()["enqueue-1"](bench))
    facts = server.facts() | {"method": "smoke"}

    console = Console(width=150, record=True)
    print_table(rows, facts, console)
    assert "bare INSERT" in console.export_text()

    write_json(tmp_path / "bench.json", rows, facts)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["settings"]["fsync"] == "on"
    assert written["rows"][0]["ratio"] > 0
    assert written["rows"][0]["wanted"] == "≥ 0.75"


@pytest.mark.parametrize("batch", [1, 100])
def test_both_queues_do_the_work_that_is_counted(database: Database, batch: int) -> None:
    for queue in both(database):
        queue.load(5_000)
        assert queue.count("ready") == 5_000
        run, missing = queue.measured(f"claim_ack_{batch}.sql", clients=1, transactions=10)
        assert (run.transactions, missing) == (10, 0)
        assert queue.count("ready") == 5_000 - 10 * batch
        assert queue.count("running") == 0


@pytest.mark.parametrize(("batch", "jobs", "transactions", "missing"), [(1, 5, 10, 5), (100, 300, 5, 200)])
def test_a_claim_that_finds_too_little_is_noted(
    database: Database, batch: int, jobs: int, transactions: int, missing: int
) -> None:
    for queue in both(database):
        queue.load(jobs)
        run, short = queue.measured(f"claim_ack_{batch}.sql", clients=1, transactions=transactions)
        assert (run.transactions, short) == (transactions, missing)


def test_a_failing_client_fails_the_benchmark(database: Database) -> None:
    with pytest.raises(BenchmarkError, match="aborted"):
        Queue(database, "pgq", "nobody made this queue").pgbench("enqueue_1.sql", clients=1, transactions=1)


def test_the_command_line_knows_every_measurement() -> None:
    shown = CliRunner().invoke(main, ["--help"], terminal_width=200)
    assert shown.exit_code == 0
    assert all(name in shown.output for name in measurements())
