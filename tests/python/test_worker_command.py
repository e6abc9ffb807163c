"""What `pgq-worker` can do besides running an app in one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

import pgqueue
from pgqueue import App, Client, Worker, cli
from pgqueue.worker.health import Health
from pgqueue.worker.worker import _turns
from tests.programs import PGQ_WORKER
from tests.python.conftest import Running, WorkerProcess
from tests.python.handlers import count
from tests.python.support import Until, alive, eventually

Start = Callable[..., WorkerProcess]


def pids(db: psycopg.Connection[Any]) -> set[int]:
    return {pid for (pid,) in db.execute("SELECT DISTINCT pid FROM started")}


# Several processes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def three(start_worker: Start, client: Client, db: psycopg.Connection[Any]) -> tuple[WorkerProcess, set[int]]:
    """A parent with three children that have all worked."""
    parent = start_worker("--processes", "3", "--concurrency", "1")

    def all_have_worked() -> bool:
        client.enqueue_many("q", [{}] * 10, task="count")
        time.sleep(0.1)
        return len(pids(db)) == 3

    eventually(all_have_worked)
    return parent, pids(db)


def test_processes_stop_together(three: tuple[WorkerProcess, set[int]]) -> None:
    parent, children = three
    parent.terminate()
    assert parent.wait() == 0
    assert not any(alive(pid) for pid in children)
    assert parent.log.count("stopped") == 3


def test_a_process_that_dies_is_replaced(
    three: tuple[WorkerProcess, set[int]], client: Client, db: psycopg.Connection[Any]
) -> None:
    parent, children = three
    victim = min(children)
    os.kill(victim, signal.SIGKILL)

    def another_has_worked() -> bool:
        client.enqueue_many("q", [{}] * 10, task="count")
        time.sleep(0.1)
        return len(pids(db)) == 4

    eventually(another_has_worked)
    assert f"worker process {victim} has ended with -9" in parent.log
    parent.terminate()
    assert parent.wait() == 0


def test_processes_do_not_outlive_their_parent(three: tuple[WorkerProcess, set[int]]) -> None:
    parent, children = three
    parent.kill()
    eventually(lambda: not any(alive(pid) for pid in children))


def test_processes_that_drain_end_by_themselves(start_worker: Start, client: Client, until: Until) -> None:
    jobs = client.enqueue_many("q", [{}] * 100, task="count")
    parent = start_worker("--processes", "2", "--drain")
    assert parent.wait() == 0
    for job in jobs:
        until(job, "done")


def test_processes_pass_on_how_they_failed(start_worker: Start, client: Client) -> None:
    client.drop_queue("q", force=True)
    parent = start_worker("--processes", "2")
    eventually(lambda: parent.log.count("another one starts") >= 2)
    parent.terminate()
    parent.wait()


# Health ---------------------------------------------------------------------------------------------------------------


def ask(port: int, path: str, method: str = "GET") -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_worker_tells_how_it_is(app: App, client: Client, running: Running) -> None:
    with running(health="127.0.0.1:0", poll=0.05) as worker:
        eventually(lambda: worker.health and worker.health._server)
        assert worker.health is not None
        port = worker.health.port
        eventually(lambda: ask(port, "/ready") == 200)
        assert ask(port, "/live") == 200
        assert ask(port, "/") == 404
        assert ask(port, "/live", "POST") == 404
    with pytest.raises(urllib.error.URLError):
        ask(port, "/live")


def test_a_worker_without_a_database_is_alive_and_not_ready(app: App) -> None:
    app.dsn = "host=127.0.0.1 port=1"
    with Worker(app, ["q"], health="127.0.0.1:0") as worker:
        assert worker.health is not None
        eventually(lambda: worker.health and worker.health._server)
        assert ask(worker.health.port, "/live") == 200
        assert ask(worker.health.port, "/ready") == 503


@pytest.mark.parametrize("wrong", ["", "8080", "host", "host:port", "host:"])
def test_a_bad_address_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        Health(wrong, lambda: True)


# Weights --------------------------------------------------------------------------------------------------------------


def test_a_queue_has_as_many_turns_as_it_weighs() -> None:
    assert _turns({"a": 1, "b": 1}) == ["a", "b"]
    turns = _turns({"a": 3, "b": 1, "c": 2})
    assert sorted(turns) == ["a", "a", "a", "b", "c", "c"]
    assert all(first != second for first, second in pairwise(turns))


def test_weights_say_how_often_a_queue_comes_first(app: App, client: Client) -> None:
    client.create_queue("often")
    client.create_queue("seldom")
    order: list[str] = []
    app.task("t", queue="often")(lambda queue: order.append(queue))
    for queue in ("seldom", "often"):
        client.enqueue_many(queue, [{"queue": queue}] * 200, task="t")
    with Worker(app, {"often": 9, "seldom": 1}, concurrency=1, mode="drain") as worker:
        eventually(lambda: len(order) == 400)
        assert worker.queues == ["often", "seldom"]
    assert order[:100].count("often") > 60


@pytest.mark.parametrize("weight", [0, -1, 101])
def test_a_weight_has_limits(app: App, weight: int) -> None:
    with pytest.raises(ValueError, match="weight"):
        Worker(app, {"q": weight})


# The command line -----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> Any:
    return CliRunner().invoke(cli.worker, arguments)


def test_a_dry_run_says_what_it_would_do(client: Client, dsn: str) -> None:
    client.enqueue("q", task="count")
    result = command("tests.python.handlers:app", "--dsn", dsn, "-q", "q", "--dry-run", "--processes", "3")
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "queue q")
    assert f"task {count.name} of queue q" in result.output
    assert client.stats()[0].ready == 1
    result = command("tests.python.handlers:app", "--dsn", dsn, "-q", "q", "-q", "nowhere", "--dry-run")
    assert result.exit_code == 1
    assert "queue nowhere does not exist" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give either APP"),
        (["tests.python.handlers", "--exec", "true"], "Give either APP"),
        (["--exec", "true", "--http", "http://x"], "Give either APP"),
        (["tests.python.handlers", "--timeout", "1"], "--timeout is for"),
        (["--exec", "true"], "no queue is given"),
        (["--exec", "true", "-q", "q", "--weight", "r=2"], "give QUEUE=N"),
        (["--exec", "true", "-q", "q", "--weight", "q=x"], "give QUEUE=N"),
        (["--exec", "true", "-q", "q", "--weight", "q=0"], "from 1 to 100"),
        (["--exec", "true", "-q", "q", "--health", "x"], "no address"),
        (["--exec", "true", "-q", "q", "--timeout", "0"], "positive"),
        (["--exec", "true", "-q", "q", "--poll", "0"], "more than 0"),
        (["--exec", "", "-q", "q"], "Give either APP"),
        (["--exec", "true", "-q", "q", "--processes", "0"], "x>=1"),
    ],
)
def test_what_makes_no_sense_is_explained(arguments: list[str], message: str) -> None:
    result = command(*arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output


def test_an_error_of_the_app_s_module_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_app.py").write_text("int('x')")
    monkeypatch.chdir(tmp_path)
    result = command("broken_app:app")
    assert isinstance(result.exception, ValueError)
    assert "invalid literal" in str(result.exception)


def test_a_command_without_python(client: Client, dsn: str, until: Until) -> None:
    client.create_queue("a=b")
    job, other = client.enqueue("q", {"n": 1}), client.enqueue("a=b", 2)
    result = command("--exec", "cat", "-q", "q", "-q", "a=b", "--weight", "a=b=2", "--burst", "--dsn", dsn)
    assert result.exit_code == 0, result.output
    assert [(state := client.job_status(id)) and state.result for id in (job, other)] == [{"n": 1}, 2]


def test_the_log_is_json(start_worker: Start, client: Client) -> None:
    client.enqueue("q", task="count")
    worker = start_worker("--once", "--log-json")
    assert worker.wait() == 0
    lines = [json.loads(line) for line in worker.log.splitlines()]
    assert {line["logger"] for line in lines} == {"pgqueue.worker"}
    assert lines[-1]["message"].endswith("stopped")


def test_a_change_of_a_file_starts_it_anew(dsn: str, client: Client, tmp_path: Path, until: Until) -> None:
    source = "import pgqueue\napp = pgqueue.App()\n@app.task('t', queue='q')\ndef t() -> int:\n    return {}\n"
    (tmp_path / "fresh.py").write_text(source.format(1))
    package = str(Path(pgqueue.__file__).parent.parent)
    with (tmp_path / "log").open("w") as log_file:
        process = subprocess.Popen(
            [*PGQ_WORKER, "fresh", "--dsn", dsn, "--reload", "--poll", "0.1"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1"},
            stderr=log_file,
        )
    try:

        def result() -> Any:
            job = client.enqueue("q", task="t")
            until(job, "done")
            state = client.job_status(job)
            return state and state.result

        assert result() == 1
        time.sleep(0.5)
        (tmp_path / "fresh.py").write_text(source.format(2))
        eventually(lambda: result() == 2)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
    log = (tmp_path / "log").read_text()
    assert log.count("works on") == 2
    assert "Traceback" not in log
