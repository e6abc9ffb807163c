"""The command enqueue: one job, and files of many."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pgqueue import Client
from pgqueue.client import LiveJob
from tests.python.support import Run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs.jsonl"


def write(file: Path, *lines: Any) -> str:
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(file)


def all_jobs(client: Client) -> list[LiveJob]:
    return sorted(client.jobs("q", n=100_000))


def test_one_job_with_all_options(run: Run, client: Client) -> None:
    options = ["--task", "t", "--priority", "-3", "--delay", "1 hour", "--group-key", "g", "--unique-key", "k"]
    id = int(run("enqueue", "q", '{"a": 1}', *options, "--headers", '{"h": 1}').output)
    (job,) = client.jobs("q")
    assert (job.id, job.task, job.priority, job.group_key, job.payload) == (id, "t", -3, "g", {"a": 1})
    assert json.loads(run("enqueue", "q", "[2]", "--unique-key", "k", "--json").output) == {"id": id}
    assert run("enqueue", "q", "--run-at", "2100-01-01 12:00+00").exit_code == 0
    assert {job.state for job in client.jobs("q")} == {"scheduled"}
    assert len(client.jobs("q")) == 2


@pytest.mark.parametrize("bad", [["{"], ["--headers", "[]"], ["--priority", "101"], ["--run-at", "someday"]])
def test_a_bad_job_is_refused(run: Run, client: Client, bad: list[str]) -> None:
    result = run("enqueue", "q", *bad)
    assert (result.exit_code, "Error" in result.output) == (1, True)
    assert client.jobs("q") == []


def test_each_line_of_a_file_is_a_job(run: Run, client: Client, file: Path) -> None:
    payloads = [{"n": n} for n in range(2500)]
    result = run("enqueue", "q", "--file", write(file, *payloads), "--task", "t", "--priority", "2")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("2,500 enqueued in ")
    assert "jobs/s" in result.output
    jobs = all_jobs(client)
    assert [job.payload for job in jobs] == payloads
    assert {(job.task, job.priority) for job in jobs} == {("t", 2)}


def test_lines_come_from_stdin_too(run: Run, client: Client) -> None:
    result = run("enqueue", "q", "--file", "-", "--json", stdin='\ufeff1\n\n "two"\r\n[3]')
    assert json.loads(result.output)["enqueued"] == 3
    assert [job.payload for job in all_jobs(client)] == [1, "two", [3]]


def test_lines_come_from_a_pipe(run: Run, client: Client) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"1\n2\n")
    os.close(writing)
    assert run("enqueue", "q", "--file", f"/dev/fd/{reading}").output.startswith("2 enqueued")
    os.close(reading)
    assert [job.payload for job in all_jobs(client)] == [1, 2]


def test_an_empty_file_adds_nothing(run: Run, client: Client, file: Path) -> None:
    assert run("enqueue", "q", "--file", write(file)).output.startswith("0 enqueued")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{to: ann}", "line 1502 is no JSON"),
        (b'"\xff"', "line 1502 is no JSON"),
        ('"\\u0000"', "line 1502"),
        ("1e999", "line 1502"),
        ('"\\ud800"', "line 1502"),
        ("[" * 100_000, "line 1502 is no JSON"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_added(
    run: Run, client: Client, file: Path, bad: str | bytes, says: str
) -> None:
    lines = [b"{}"] * 1500 + [b"", bad if isinstance(bad, bytes) else bad.encode(), b"{}"]
    file.write_bytes(b"\n".join(lines))
    result = run("enqueue", "q", "--file", str(file))
    assert result.exit_code == 1
    assert says in result.output
    assert client.jobs("q") == []


def test_what_the_database_refuses_is_named_by_its_batch(run: Run, client: Client, file: Path, db: Any) -> None:
    db.execute("CREATE OR REPLACE FUNCTION is_even(jsonb) RETURNS boolean LANGUAGE sql AS 'SELECT $1::int % 2 = 0'")
    client.set_validator("q", "is_even(jsonb)")
    result = run("enqueue", "q", "--file", write(file, *[2] * 1500, 3))
    assert (result.exit_code, "lines 1001 to 1501: " in result.output) == (1, True)
    assert client.jobs("q") == []
    db.execute("SELECT pgq.set_validator('q', NULL); DROP FUNCTION is_even(jsonb)")


def test_envelopes_say_more_than_the_payload(run: Run, client: Client, file: Path) -> None:
    lines = [
        {"payload": {"to": "ann"}, "task": "mail", "group_key": "ann"},
        {"payload": {"to": "bob"}, "task": "mail", "group_key": "bob", "priority": 7},
        {},
        {"payload": 4, "delay": 3600, "headers": {"h": 1}, "max_attempts": 2},
        {"payload": 5, "unique_key": "k"},
        {"payload": 6, "unique_key": "k"},
        {"payload": None, "run_at": "2100-01-01 00:00+00"},
    ]
    result = run("enqueue", "q", "--file", write(file, *lines), "--envelope", "--task", "other", "--json")
    assert json.loads(result.output)["enqueued"] == 7
    jobs = all_jobs(client)
    assert [(job.payload, job.task, job.group_key, job.priority) for job in jobs] == [
        ({"to": "ann"}, "mail", "ann", 0),
        ({"to": "bob"}, "mail", "bob", 7),
        ({}, "other", None, 0),
        (4, "other", None, 0),
        (5, "other", None, 0),
        (None, "other", None, 0),
    ]
    assert [job.state for job in jobs] == ["ready", "ready", "ready", "scheduled", "ready", "scheduled"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1]", "line 2 is no envelope"),
        ('{"payload": 1, "priorty": 2}', "line 2 has an unknown name: priorty"),
        ('{"priority": "high"}', "lines 2 to 2"),
        ('{"priority": {}}', "lines 2 to 2"),
        ('{"group_key": ""}', "lines 1 to 2"),
        ('{"group_key": [1]}', "lines 1 to 2"),
    ],
)
def test_bad_envelopes_are_named(run: Run, client: Client, file: Path, line: str, says: str) -> None:
    result = run("enqueue", "q", "--file", write(file, {}, line), "--envelope")
    assert (result.exit_code, says in result.output) == (1, True), result.output
    assert client.jobs("q") == []


def test_options_that_do_not_go_together_are_refused(run: Run, client: Client, file: Path) -> None:
    write(file, 1)
    for bad in (["{}", "--file", str(file)], ["--file", str(file), "--unique-key", "k"], ["--envelope"]):
        assert run("enqueue", "q", *bad).exit_code == 1
    assert run("enqueue", "q", "--file", str(file) + "x").exit_code == 2
    assert run("enqueue", "nowhere", "--file", str(file)).exit_code == 1
    assert client.jobs("q") == []
