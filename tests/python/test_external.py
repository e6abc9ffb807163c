"""Jobs that go to a command or to a URL."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pgqueue import App, Client, Job, Worker
from pgqueue.worker.external import command_app, http_app
from tests.python.support import Until, alive, eventually, status


@contextmanager
def working(app: App) -> Iterator[Worker]:
    with Worker(app, ["q"], poll=0.05, grace=1) as worker:
        yield worker
    app.close()


# Commands -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "result"),
    [
        ("cat", {"n": 1}),
        ("echo hello; echo world", "hello\nworld"),
        ('read -r line && echo "$line"', {"n": 1}),
        ("true", None),
        ("echo '[1, 2.5]'", [1, 2.5]),
        ("echo NaN", "NaN"),
        (r"printf 'a\0b'", "a\\0b"),
        (r"printf '\377'", "\\xff"),
        ("exit 0; echo never", None),
        ("sleep 0.01; exec cat >/dev/null", None),
    ],
)
def test_a_command_that_succeeds(client: Client, dsn: str, until: Until, command: str, result: Any) -> None:
    job = client.enqueue("q", {"n": 1})
    with working(command_app(dsn, command)):
        until(job, "done")
    assert status(client, job).result == result


def test_a_command_knows_its_job(client: Client, dsn: str, until: Until) -> None:
    headers = {"trace": "a b", "x-Y.z": {"k": 1}, "ü": 1}
    job = client.enqueue("q", [1], task="t", headers=headers, max_attempts=7)
    python = (
        "import json, os, sys; json.dump({k: v for k, v in os.environ.items() if k.startswith('PGQ_')}, sys.stdout)"
    )
    with working(command_app(dsn, f'python3 -c "{python}"')):
        until(job, "done")
    found = status(client, job).result
    assert json.loads(found.pop("PGQ_HEADERS")) == headers
    assert found == {
        "PGQ_ID": str(job), "PGQ_QUEUE": "q", "PGQ_TASK": "t", "PGQ_ATTEMPT": "1", "PGQ_MAX_ATTEMPTS": "7",
        "PGQ_HEADER_TRACE": "a b", "PGQ_HEADER_X_Y_Z": '{"k":1}', "PGQ_HEADER__": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("echo out; echo why >&2; exit 3", "exit code 3\nwhy"),
        ("exit 1", "exit code 1"),
        ("kill -KILL $$", "killed by SIGKILL"),
        ("no-such-command 2>/dev/null", "exit code 127"),
    ],
)
def test_a_command_that_fails(client: Client, dsn: str, until: Until, command: str, error: str) -> None:
    job = client.enqueue("q", max_attempts=1)
    with working(command_app(dsn, command)):
        until(job, "dead")
    assert status(client, job).error == error


def test_of_a_long_error_the_beginning_is_not_lost(client: Client, dsn: str, until: Until) -> None:
    job = client.enqueue("q", max_attempts=1)
    with working(command_app(dsn, "seq 100000 >&2; echo last >&2; exit 3")):
        until(job, "dead")
    error = status(client, job).error
    assert (error[:11], error[-5:]) == ("exit code 3", "\nlast")


@pytest.mark.parametrize(("out", "seconds"), [("", 60), ("3600", 3600), ("nonsense", 60), ("-5", 0)])
def test_a_command_puts_its_job_off(client: Client, dsn: str, until: Until, out: str, seconds: int) -> None:
    job = client.enqueue("q", max_attempts=1)
    with working(command_app(dsn, f"[ $(($(date +%s) - {int(time.time())})) -gt 50 ] || echo {out}; exit 75")):
        eventually(lambda: len(client.attempts(job)) >= 1 and client.attempts(job)[0].state == "snoozed")
        state = status(client, job)
    if seconds:
        assert state.state == "scheduled"
        late = state.run_at - datetime.now(timezone.utc) - timedelta(seconds=seconds)
        assert abs(late) < timedelta(seconds=20)


def test_a_command_is_ended_after_its_timeout_with_all_that_it_started(
    client: Client, dsn: str, until: Until, tmp_path: Path
) -> None:
    child = tmp_path / "child"
    job = client.enqueue("q", max_attempts=1)
    with working(command_app(dsn, f"sleep 3600 & echo $! > {child}; wait", timeout=0.5)):
        until(job, "dead")
        eventually(lambda: not alive(int(child.read_text())))
    assert "TimedOut: after 0.5 seconds" in status(client, job).error


def test_a_command_has_time_to_clean_up(client: Client, dsn: str, until: Until, tmp_path: Path) -> None:
    """It keeps its job meanwhile, and what it says at the end is told."""
    client.alter_queue("q", lease=1)
    done = tmp_path / "done"
    job = client.enqueue("q", max_attempts=1)
    command = f"trap 'echo ending >&2; sleep 2; echo yes > {done}; exit 0' TERM; sleep 3600 & wait"
    with working(command_app(dsn, command, timeout=0.3)):
        until(job, "dead")
        assert done.read_text() == "yes\n"
    assert [attempt.attempt for attempt in client.attempts(job)] == [1]
    assert status(client, job).error == "TimedOut: after 0.3 seconds\nending"


def test_what_ignores_the_signal_is_killed(
    client: Client, dsn: str, until: Until, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command itself, and what it has left behind with neither standard output nor error."""
    monkeypatch.setattr("pgqueue.worker.external.PATIENCE", 0.3)
    children = [tmp_path / "one", tmp_path / "two"]
    loop = "trap '' TERM; echo $$ > {}; while :; do sleep 0.1; done"
    commands = [
        loop.format(children[0]),
        f'sh -c "{loop.format(children[1]).replace("$", chr(92) + "$")}" >/dev/null 2>&1 & wait',
    ]
    for child, command in zip(children, commands, strict=True):
        job = client.enqueue("q", max_attempts=1)
        with working(command_app(dsn, command, timeout=0.5)):
            until(job, "dead")
            eventually(lambda child=child: not alive(int(child.read_text())))  # type: ignore[misc]


def test_a_command_is_ended_when_its_job_is_cancelled(client: Client, dsn: str, until: Until, tmp_path: Path) -> None:
    client.alter_queue("q", lease=1)
    child = tmp_path / "child"
    job = client.enqueue("q")
    with working(command_app(dsn, f"echo $$ > {child}; exec sleep 3600")):
        eventually(lambda: child.exists() and child.read_text())
        assert client.cancel(job) == "requested"
        until(job, "cancelled")
        assert not alive(int(child.read_text()))


def test_a_command_is_ended_when_the_worker_stops(client: Client, dsn: str, tmp_path: Path) -> None:
    child = tmp_path / "child"
    job = client.enqueue("q")
    with working(command_app(dsn, f"trap '' TERM; echo $$ > {child}; while :; do sleep 0.1; done")):
        eventually(lambda: child.exists() and child.read_text())
    assert not alive(int(child.read_text()))
    assert status(client, job).state == "ready"


# URLs -----------------------------------------------------------------------------------------------------------------

Answer = tuple[int, dict[str, str], bytes]


class Site:
    """A web server whose answers a test says."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answer: Answer = (200, {}, b"")
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                site.requests.append((dict(self.headers), body))
                status, headers, answer = site.answer
                if status == 0:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jobs"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.parametrize(
    ("answer", "result"),
    [((200, {}, b'{"ok": true}'), {"ok": True}), ((204, {}, b""), None), ((202, {}, b"accepted"), "accepted")],
)
def test_an_answer_of_2xx_acknowledges(
    client: Client, dsn: str, until: Until, site: Site, answer: Answer, result: Any
) -> None:
    site.answer = answer
    headers = {"traceparent": "00-1-2-01", "secret": "süß"}
    job = client.enqueue("q", {"to": "jürgen"}, task="sp\u00e4t", headers=headers)
    with working(http_app(dsn, site.url)):
        until(job, "done")
    assert status(client, job).result == result
    ((sent, body),) = site.requests
    assert json.loads(body) == {"to": "jürgen"}
    assert json.loads(sent.pop("Pgq-Headers")) == headers
    assert {name: sent[name] for name in sent if name.startswith("Pgq-") or name == "Idempotency-Key"} == {
        "Idempotency-Key": str(job), "Pgq-Id": str(job), "Pgq-Queue": "q", "Pgq-Task": "sp%C3%A4t", "Pgq-Attempt": "1",
        "Pgq-Max-Attempts": "20",
    }  # fmt: skip
    assert sent["traceparent"] == "00-1-2-01"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((500, {}, b"oops"), "500 Internal Server Error\noops"),
        ((404, {}, b""), "404 Not Found"),
        ((503, {}, b""), "503 Service Unavailable"),
        ((301, {"Location": "/"}, b""), "301 Moved Permanently"),
        ((500, {}, b"x" * 50_000), "500 Internal Server Error\nxxx"),
        ((0, {}, b""), "RemoteProtocolError"),
    ],
)
def test_any_other_answer_rejects(
    client: Client, dsn: str, until: Until, site: Site, answer: Answer, error: str
) -> None:
    site.answer = answer
    job = client.enqueue("q", max_attempts=1)
    with working(http_app(dsn, site.url)):
        until(job, "dead")
    assert status(client, job).error.startswith(error)


def test_no_answer_rejects(client: Client, dsn: str, until: Until) -> None:
    job = client.enqueue("q", max_attempts=1)
    with working(http_app(dsn, "http://127.0.0.1:1/")):
        until(job, "dead")
    assert status(client, job).error.startswith("ConnectError")


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_puts_a_job_off(client: Client, dsn: str, until: Until, site: Site, code: int, form: str) -> None:
    in_an_hour = datetime.now(timezone.utc) + timedelta(hours=1)
    site.answer = (
        code,
        {"Retry-After": "3600" if form == "seconds" else format_datetime(in_an_hour, usegmt=True)},
        b"",
    )
    job = client.enqueue("q", max_attempts=1)
    with working(http_app(dsn, site.url)):
        until(job, "scheduled")
    assert abs(status(client, job).run_at - in_an_hour) < timedelta(seconds=20)


# The fallback of an app -----------------------------------------------------------------------------------------------


def test_a_fallback_gets_what_no_task_wants(client: Client, dsn: str, until: Until) -> None:
    app = App(dsn)

    @app.task("known", queue="q")
    def known(n: int) -> str:
        return f"known {n}"

    @app.fallback()
    def others(job: Job) -> Any:
        return [job.task, job.payload]

    jobs = [
        client.enqueue("q", payload, task=task)
        for payload, task in [({"n": 1}, "known"), ([1], "x"), (None, "y"), ("text", None)]
    ]
    with working(app):
        for job in jobs:
            until(job, "done")
    assert [status(client, job).result for job in jobs] == ["known 1", ["x", [1]], ["y", None], [None, "text"]]


def test_a_fallback_takes_a_job_and_there_is_one(dsn: str) -> None:
    app = App(dsn)
    with pytest.raises(TypeError, match="one parameter"):
        app.fallback()(lambda job: None)
    app.fallback()(_takes_a_job)
    with pytest.raises(ValueError, match="already"):
        app.fallback()(_takes_a_job)


def _takes_a_job(job: Job) -> None: ...
