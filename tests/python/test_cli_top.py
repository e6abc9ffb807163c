"""The commands top and workers."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, ConsoleDimensions

import pgqueue
from pgqueue import Client
from pgqueue.cli.frames import Frame, History, screen, sparkline
from pgqueue.client import Failure, QueueActivity, WorkerStat
from tests.python.support import Run, eventually

NOW = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)
QUEUE = QueueActivity("q", False, 0, 0, 0, 0, 0, 0, 0, True, None, 0.0, 0.0, 0.0)


def drawn(frame: Frame, history: History | None = None, width: int = 200, height: int | None = None) -> str:
    console = Console(width=width, height=height or 50, force_terminal=False)
    with console.capture() as capture:
        console.print(screen(frame, history or History(), ConsoleDimensions(width, height) if height else None))
    return capture.get()


# Against the database -------------------------------------------------------------------------------------------------


def test_one_look_as_json(run: Run, client: Client) -> None:
    client.enqueue_many("q", [{}] * 20, task="t")
    client.enqueue("q", delay=3600)
    done, failed, *_ = client.claim("q", 5, worker="host:1")
    client.ack(done.id, done.lease)
    client.reject(failed.id, failed.lease, "broken", retry=False)
    for arguments in (["--json"], ["--once", "--json"], ["--json", "--interval", "60"]):
        facts = json.loads(run("top", *arguments).output)
        assert list(facts) == ["at", "queues", "workers", "failures"]
        (queue,) = facts["queues"]
        numbers = [queue[name] for name in ("ready", "running", "scheduled", "dead", "exact")]
        assert numbers == [15, 3, 1, 1, True]
        assert queue["enqueue_rate"] > queue["done_rate"] > 0
        assert 0 < queue["oldest_ready"] < 60
        (worker,) = facts["workers"]
        assert (worker["worker"], worker["jobs"], worker["queues"]) == ("host:1", 3, ["q"])
        (failure,) = facts["failures"]
        assert (failure["id"], failure["kind"], failure["error"]) == (failed.id, "dead", "broken")
    datetime.fromisoformat(facts["at"])


def test_one_look_as_text(run: Run, client: Client) -> None:
    client.enqueue_many("q", [{}] * 20)
    (job,) = client.claim("q", worker="host:1")
    client.reject(job.id, job.lease, "broken\nand more")
    client.claim("q", 2, worker="host:2")
    for arguments in ([], ["--once"]):
        shown = run("top", *arguments).output
        for text in ("ready", "running", "lag", "done/s", "host:2", "broken", f"{job.id} try 1"):
            assert text in shown
        assert "and more" not in shown


def test_one_look_at_nothing(run: Run, dsn: str) -> None:
    assert json.loads(run("top", "--json").output)["queues"] == []
    assert "0 queues" in run("top").output
    assert run("workers").output == "no workers\n"
    assert run("workers", "--json").output == "[]\n"


def test_workers_are_listed(run: Run, client: Client) -> None:
    client.enqueue_many("q", [{}] * 3)
    client.claim("q", 2, worker="host:1 [bold]")
    client.claim("q")
    first, nameless = json.loads(run("workers", "--json").output)
    assert (first["worker"], first["jobs"], nameless["worker"], nameless["jobs"]) == ("host:1 [bold]", 2, None, 1)
    assert "host:1 [bold]" in run("workers").output


def test_a_bad_interval_is_refused(run: Run, client: Client) -> None:
    assert run("top", "--interval", "0").exit_code == 2


# On a terminal --------------------------------------------------------------------------------------------------------


class Terminal:
    """A `pgqueue top` on a terminal of its own."""

    def __init__(self, dsn: str, *options: str) -> None:
        self.master, slave = pty.openpty()
        code = "from pgqueue.cli import main; main(prog_name='pgqueue')"
        package = str(Path(pgqueue.__file__).parent.parent)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "top", "--dsn", dsn, "--interval", "0.2", *options],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": package, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"},
        )
        os.close(slave)
        self.shown = ""

    def shows(self, text: str) -> bool:
        """Whether it has drawn a text by now."""
        while select.select([self.master], [], [], 0)[0]:
            try:
                self.shown += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # it has ended
                break
        return text in self.shown

    def press(self, key: str) -> None:
        os.write(self.master, key.encode())

    def ends(self) -> int:
        """Wait for its end, reading on, for a terminal that nobody reads stands still; returns the exit code."""
        deadline = time.monotonic() + 20
        while self.process.poll() is None:
            self.shows("")
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self.process.returncode


@pytest.fixture
def terminal(dsn: str) -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*options: str) -> Terminal:
        started.append(Terminal(dsn, *options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        os.close(one.master)


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_the_screen_follows_until_a_key_ends_it(client: Client, terminal: Callable[..., Terminal], key: str) -> None:
    top = terminal()
    eventually(lambda: top.shows("done/s"), "the first look")
    client.create_queue("a-new-queue")
    eventually(lambda: top.shows("a-new-queue"), "the new queue")
    top.press("x")
    if key == "q":
        top.press(key)
    else:
        top.process.send_signal(2)
    assert top.ends() == 0
    assert "Traceback" not in top.shown
    assert "\x1b[?1049l" in top.shown, "it has left the screen as it was"


# Drawing --------------------------------------------------------------------------------------------------------------


def test_bars_grow_with_the_rates() -> None:
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([0, 50, 100]) == "▁▅█"
    assert sparkline([1e-9, 1e12]) == "▁█"


def test_the_history_is_drawn_if_there_is_room() -> None:
    history = History()
    for rate in range(100):
        frame = Frame(NOW, [QUEUE._replace(enqueue_rate=rate, done_rate=100 - rate)], [], [])
        history.add(frame)
    assert history.plot("q", "in") == sparkline(range(80, 100))
    assert history.plot("other", "in") == ""
    assert history.plot("q", "in") in drawn(frame, history, 160, 40)
    assert "█" not in drawn(frame, history, 100, 40)


def test_numbers_that_are_a_lower_bound_have_a_plus() -> None:
    row = QUEUE._replace(ready=1_234_567_890, running=10_000, scheduled=9_999, dead=10_000)
    shown = drawn(Frame(NOW, [row._replace(exact=False)], [], []))
    for text in ("1,234,567,890+", "10,000 ", "9,999 ", "10,000+"):
        assert text in shown
    assert "0+ " not in drawn(Frame(NOW, [row], [], []))


def test_states_are_shown_if_there_is_anything_in_them() -> None:
    assert "parked" not in drawn(Frame(NOW, [QUEUE], [], []))
    shown = drawn(Frame(NOW, [QUEUE._replace(parked=3, paused=True, oldest_ready=timedelta(seconds=90))], [], []))
    for text in ("parked", "(paused)", "1m 30s"):
        assert text in shown


def test_only_what_has_room_is_drawn_the_busiest_first() -> None:
    queues = [QUEUE._replace(queue=f"queue-{n:03}", ready=n) for n in range(500)]
    workers = [WorkerStat(f"host:{n}", ["q"], 1, 1, NOW, NOW) for n in range(100)]
    failures = [Failure(n, "q", None, 1, "retry", NOW, None, "x" * 500) for n in range(10)]
    shown = drawn(Frame(NOW, queues, workers, failures), width=80, height=24)
    assert len(shown.splitlines()) <= 24
    for text in ("of 500 queues", "queue-499", "6 of 100 workers"):
        assert text in shown
    assert "queue-001" not in shown


def test_what_moves_the_cursor_is_not_sent_to_the_terminal() -> None:
    evil = "\x1b[2J\x07[bold]"
    failure = Failure(1, evil, evil, 1, "dead", NOW, evil, evil)
    worker = WorkerStat(evil, [evil], 1, 1, NOW - timedelta(minutes=5), NOW - timedelta(seconds=1))
    shown = drawn(Frame(NOW, [QUEUE._replace(queue=evil)], [worker], [failure]))
    assert "\x1b" not in shown
    for text in ("\\x1b[2J\\x07[bold]", "expired", "5m"):
        assert text in shown


def test_anything_can_be_drawn_at_any_size() -> None:
    frame: Any = Frame(NOW, [QUEUE._replace(queue="ü☃🎉" * 30)], [], [])
    for size in ((1, 1), (20, 5), (1000, 1000)):
        assert drawn(frame, History(), *size)
