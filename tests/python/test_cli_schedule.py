"""The commands about recurring jobs."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import psycopg
import pytest

from pgqueue import Client
from tests.python.support import Run


def test_schedules_are_listed_by_name(run: Run, client: Client) -> None:
    assert run("schedule", "list").output == "no schedules\n"
    assert json.loads(run("schedule", "list", "--json").output) == []
    client.schedule("b", "30 2 * * *", "q", timezone="Europe/Berlin")
    client.schedule("a", "0 0 1 1 *", "q")
    first, second = json.loads(run("schedule", "list", "--json").output)
    assert list(first) == ["name", "cron", "timezone", "queue", "next_at", "last_at", "error"]
    assert (first["name"], first["cron"], first["timezone"], first["queue"]) == ("a", "0 0 1 1 *", "UTC", "q")
    assert first["next_at"] is not None
    assert (first["last_at"], first["error"]) == (None, None)
    assert (second["name"], second["timezone"]) == ("b", "Europe/Berlin")


def test_the_table_has_room_for_an_error(
    run: Run, client: Client, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    client.schedule("nightly", "30 2 * * *", "q")
    db.execute("UPDATE pgq.schedule SET last_at = '2026-01-01 02:30:00.5+00', error = E'PQ004: no\nsecond line'")
    output = run("schedule", "list").output
    for text in ("nightly", "30 2 * * *", "UTC", "PQ004: no"):
        assert text in output
    for text in ("second line", "02:30:00.5"):
        assert text not in output


def test_next_runs_of_a_line_by_the_clock_that_was_asked_for(run: Run, client: Client) -> None:
    lines = run("next-runs", "30 2 * * *").output.splitlines()
    assert len(lines) == 5
    assert all(line.endswith(" 02:30:00+00:00") for line in lines)
    (one,) = json.loads(run("next-runs", "0 0 1 1 *", "--timezone", "asia/kolkata", "-n", "1", "--json").output)
    assert one.endswith("-01-01 00:00:00+05:30")
    assert datetime.fromisoformat(one) == client.next_runs("0 0 1 1 *", "Asia/Kolkata", 1)[0]


def test_a_schedule_is_added_changed_and_removed(run: Run, client: Client) -> None:
    assert run("schedule", "add", "nightly", "30 2 * * *", "q", '{"a": 1}', "--task", "report").exit_code == 0
    changed = run("schedule", "add", "nightly", "0 3 * * *", "q", "--timezone", "Europe/Berlin", "--catch-up", "all")
    assert changed.output == "schedule nightly is there\n"
    (row,) = json.loads(run("schedule", "list", "--json").output)
    assert (row["name"], row["cron"], row["timezone"]) == ("nightly", "0 3 * * *", "Europe/Berlin")
    assert run("schedule", "remove", "nightly").output == "schedule nightly removed\n"
    again = run("schedule", "remove", "nightly")
    assert (again.exit_code, "nightly" in again.stderr) == (1, True)
    for bad in (["x", "no line", "q"], ["x", "@daily", "nowhere"], ["x", "@daily", "q", "{"], ["", "@daily", "q"]):
        result = run("schedule", "add", *bad)
        assert (result.exit_code, "Error" in result.stderr) == (1, True)
    assert run("schedule", "list").output == "no schedules\n"


@pytest.mark.parametrize("zone", ["CET", "Mars/Olympus"])
def test_a_bad_time_zone_is_refused(run: Run, client: Client, zone: str) -> None:
    result = run("next-runs", "@daily", "--timezone", zone)
    assert result.exit_code == 1
    assert zone in result.stderr


def test_a_bad_line_is_explained(run: Run, client: Client) -> None:
    result = run("next-runs", "0 25 * * *")
    assert result.exit_code == 1
    assert 'Field 2 (hour), character 3: "25" is not 0 to 23.' in result.stderr
    assert "Allowed for the hour" in result.stderr
