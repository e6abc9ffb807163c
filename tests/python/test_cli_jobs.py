"""The commands about queues and jobs.

queues, alter-queue, set-limits, set-unique, purge, pause, resume, jobs, wait, cancel.
"""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from pgqueue import Client
from tests.python.support import Run

BIG = 2**63 - 1


def listed(run: Run, *arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


# Queues ---------------------------------------------------------------------------------------------------------------


def test_queues_are_listed_with_settings_and_limits(run: Run, client: Client) -> None:
    client.create_queue("a", lease=90, retention="2 days", shards=1)
    client.set_limits("a", running_limit=1_000_000, rate=5, rate_period=60, group_limit=None, fair=True)
    client.set_unique("a", unique_for=3600)
    first, second = listed(run, "queues")
    assert (first["queue"], first["lease"], first["retention"], first["rate_period"]) == ("a", 90, 172800, 60)
    assert (first["running_limit"], first["group_limit"], first["unique_for"]) == (1_000_000, None, 3600)
    assert (second["queue"], second["backoff"], second["group_limit"]) == ("q", 0, 1)
    table = run("queues").output
    for text in ("1m 30s", "2d", "1000000 running, 5 per 1m, fair", "for 1h, keep", "1 running a group"):
        assert text in table


def test_no_queues(run: Run, dsn: str) -> None:
    assert run("queues").output == "no queues\n"
    assert listed(run, "queues") == []


def test_settings_are_changed(run: Run, client: Client) -> None:
    assert run("alter-queue", "q", "--lease", "5 minutes", "--max-attempts", "3", "--no-notify").exit_code == 0
    (queue,) = client.queues()
    assert (queue.lease.total_seconds(), queue.max_attempts, queue.notify, queue.shards) == (300, 3, False, 8)
    for bad in (["q"], ["nowhere", "--shards", "1"], ["q", "--shards", "65"], ["q", "--lease", "soon"]):
        result = run("alter-queue", *bad)
        assert (result.exit_code, "Error" in result.output) == (1, True)


def test_limits_are_set_all_together(run: Run, client: Client) -> None:
    def limits() -> tuple[Any, ...]:
        (queue,) = client.queues()
        rates = [period and period.total_seconds() for period in (queue.rate_period, queue.group_period)]
        counts = (queue.group_limit, queue.running_limit, queue.rate, queue.group_rate)
        return (*counts, *rates, queue.fair, queue.keep_place)

    begun = limits()
    rates = ["--rate", "9", "--rate-period", "1 minute", "--group-rate", "2", "--group-period", "1 s"]
    result = run("set-limits", "q", *rates, "--running-limit", "5", "--no-group-limit", "--fair", "--no-keep-place")
    assert (result.exit_code, result.output) == (0, "queue q changed\n")
    assert limits() == (None, 5, 9, 2, 60, 1, True, False)
    assert run("set-limits", "q", "--running-limit", "6").exit_code == 0
    assert limits() == (1, 6, None, None, None, None, False, True)
    assert run("set-limits", "q", "--group-limit", "3").exit_code == 0
    assert limits()[:2] == (3, None)
    assert run("set-limits", "q", "--group-limit", "1").exit_code == 0
    assert limits() == begun


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["q"], "name a limit"),
        (["q", "--group-limit", "2", "--no-group-limit"], "not both"),
        (["q", "--rate", "5"], "the period of rate must be given"),
        (["q", "--running-limit", "0"], "running_limit must be"),
        (["q", "--rate", "5", "--rate-period", "soon"], "soon"),
        (["nowhere", "--fair"], "nowhere"),
    ],
)
def test_what_is_no_limit_is_explained(run: Run, client: Client, bad: list[str], message: str) -> None:
    result = run("set-limits", *bad)
    assert (result.exit_code, "Error" in result.output, message in result.output) == (1, True, True), result.output


def test_unique_keys_are_set_all_together(run: Run, client: Client) -> None:
    def keys() -> tuple[Any, ...]:
        (queue,) = client.queues()
        return queue.unique_until, queue.unique_for and queue.unique_for.total_seconds(), queue.on_repeat

    result = run("set-unique", "q", "--unique-for", "1 hour", "--on-repeat", "debounce")
    assert (result.exit_code, result.output) == (0, "queue q changed\n")
    assert keys() == (None, 3600, "debounce")
    assert run("set-unique", "q", "--unique-until", "claimed").exit_code == 0
    assert keys() == ("claimed", None, "keep")
    assert run("set-unique", "q", "--on-repeat", "replace").exit_code == 0
    assert keys() == ("finished", None, "replace")


@pytest.mark.parametrize(
    ("bad", "code", "message"),
    [
        (["q"], 1, "name a setting"),
        (["q", "--unique-until", "claimed", "--unique-for", "1 h"], 1, "not both"),
        (["q", "--unique-for", "0"], 1, "between 1 ms and 10 years"),
        (["q", "--unique-until", "never"], 2, "never"),
        (["nowhere", "--on-repeat", "keep"], 1, "nowhere"),
    ],
)
def test_what_is_no_unique_setting_is_explained(
    run: Run, client: Client, bad: list[str], code: int, message: str
) -> None:
    result = run("set-unique", *bad)
    assert (result.exit_code, "Error" in result.output, message in result.output) == (code, True, True), result.output


def test_a_queue_is_purged_by_state(run: Run, client: Client) -> None:
    client.enqueue_many("q", [{}] * 3)
    client.enqueue("q", delay=3600)
    (job,) = client.claim("q")
    client.reject(job.id, job.lease, retry=False)
    assert listed(run, "purge", "q", "--state", "scheduled") == {"purged": 1}
    assert run("purge", "q", "--state", "dead").output == "1 purged\n"
    assert run("purge", "q", "--all").output == "2 purged\n"
    assert listed(run, "purge", "q", "--all") == {"purged": 0}
    for state in ("ready", "parked", "waiting", "retrying", "archived"):
        assert run("purge", "q", "--state", state).output == "0 purged\n"


@pytest.mark.parametrize(
    ("bad", "code", "message"),
    [
        (["q"], 1, "--all"),
        (["q", "--all", "--state", "ready"], 1, "--all"),
        (["q", "--state", "running"], 2, "running"),
        (["nowhere", "--all"], 1, "nowhere"),
    ],
)
def test_nothing_is_purged_by_mistake(run: Run, client: Client, bad: list[str], code: int, message: str) -> None:
    client.enqueue("q")
    result = run("purge", *bad)
    assert (result.exit_code, "Error" in result.output, message in result.output) == (code, True, True), result.output
    assert client.stats()[0].ready == 1


def test_a_queue_is_paused_and_resumed(run: Run, client: Client) -> None:
    client.enqueue("q")
    assert run("pause", "q").output == "queue q paused\n"
    assert client.claim("q") == []
    assert run("resume", "q").output == "queue q resumed\n"
    assert len(client.claim("q")) == 1
    for command in ("pause", "resume"):
        assert run(command, "nowhere").exit_code == 1


# Jobs -----------------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_by_state_and_task(run: Run, client: Client) -> None:
    assert run("jobs", "q").output == "no jobs\n"
    assert listed(run, "jobs", "q") == []
    made = client.enqueue_many("q", [{}] * 3, task="mail")
    later = client.enqueue("q", task="[odd] \x1b[2Jsms", delay=3600)
    (job,) = client.claim("q", worker="host:1")
    running, *ready = listed(run, "jobs", "q", "--task", "mail")
    assert (running["id"], running["state"], running["worker"]) == (job.id, "running", "host:1")
    assert running["lease"] == job.lease
    left = [id for id in made if id != job.id]
    assert [(row["id"], row["state"]) for row in ready] == [(id, "ready") for id in left]
    assert [row["id"] for row in listed(run, "jobs", "q", "--state", "scheduled")] == [later]
    assert [row["id"] for row in listed(run, "jobs", "q", "--state", "ready", "--newest", "--limit", "1")] == left[1:]
    table = run("jobs", "q").output
    for text in (str(made[0]), "host:1", "running", "scheduled", "[odd] \\x1b[2Jsms"):
        assert text in table
    assert "\x1b" not in table


def test_lines_are_not_broken_for_programs(run: Run, client: Client) -> None:
    client.enqueue("q", task="a very long name of a task, " * 10)
    (line,) = [line for line in run("jobs", "q").output.splitlines() if "ready" in line]
    assert "a very long name of a task, " * 9 in line


@pytest.mark.parametrize("bad", [["nowhere"], ["q", "--limit", "0"], ["q", "--limit", str(BIG)]])
def test_bad_lists_are_refused(run: Run, client: Client, bad: list[str]) -> None:
    result = run("jobs", *bad)
    assert (result.exit_code, "Error" in result.output) == (1, True)
    assert run("jobs", "q", "--state", "dead").exit_code == 2


def test_big_numbers_are_shown_as_they_are(run: Run, client: Client, db: psycopg.Connection[Any]) -> None:
    db.execute("SELECT setval('pgq.job_id', %s)", [2**62])
    id = client.enqueue("q")
    assert id == 2**62 + 1
    assert [row["id"] for row in listed(run, "jobs", "q")] == [id]
    assert str(id) in run("jobs", "q").output
    assert listed(run, "show", str(id))["id"] == id
    assert run("cancel", str(id)).output == f"{id}: cancelled\n"
    for command in ("show", "wait"):
        assert run(command, str(BIG + 1)).exit_code == 1
    db.execute("SELECT setval('pgq.job_id', 1000000)")


# Waiting --------------------------------------------------------------------------------------------------------------


def test_waiting_prints_the_result_and_tells_by_the_exit_code(run: Run, client: Client) -> None:
    done, dead, cancelled, waiting = client.enqueue_many("q", [{}] * 4)
    leases = {job.id: job.lease for job in client.claim("q", 4)}
    client.ack(done, leases[done], {"sent": [1, "ü"]})
    client.reject(dead, leases[dead], "no such \x1b[2Juser", retry=False)
    client.cancel_claimed(cancelled, leases[cancelled], "not wanted")
    result = run("wait", str(done))
    assert (result.exit_code, json.loads(result.output)) == (0, {"sent": [1, "ü"]})
    for id, state, reason in ((dead, "dead", "no such \\x1b[2Juser"), (cancelled, "cancelled", "not wanted")):
        result = run("wait", str(id))
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"job {id} is {state}: {reason}\n"
        result = run("wait", str(id), "--json")
        assert (result.exit_code, json.loads(result.stdout)["state"]) == (1, state)
    result = run("wait", str(waiting), "--timeout", "0.1")
    assert (result.exit_code, result.stdout) == (75, "")
    assert "0.1 seconds" in result.stderr
    result = run("wait", "999999")
    assert (result.exit_code, "no job 999999" in result.stderr) == (1, True)


def test_the_exit_codes_of_wait_are_in_its_help(run: Run) -> None:
    help = run("wait", "--help").output
    assert "0 if it is done" in help
    assert "75" in help


# Cancelling -----------------------------------------------------------------------------------------------------------


def test_jobs_are_cancelled_by_id(run: Run, client: Client) -> None:
    running, done, ready = client.enqueue_many("q", [{}] * 3)
    leases = {job.id: job.lease for job in client.claim("q", 3)}
    client.ack(done, leases[done])
    client.release([ready], [leases[ready]])
    result = run("cancel", str(ready), str(running))
    assert (result.exit_code, result.output) == (0, f"{ready}: cancelled\n{running}: requested\n")
    result = run("cancel", str(done), "999999", "--json")
    assert (result.exit_code, json.loads(result.output)) == (1, {str(done): "finished", "999999": "not found"})


def test_the_jobs_of_a_queue_are_cancelled(run: Run, client: Client) -> None:
    client.enqueue_many("q", [{}] * 2, task="mail")
    client.claim("q")
    client.enqueue_many("q", [{}] * 3, task="sms")
    assert run("cancel", "--queue", "q", "--task", "mail").output == "1 cancelled\n"
    result = run("cancel", "--queue", "q", "--running", "--json")
    assert json.loads(result.output) == {"cancelled": 4}
    assert run("cancel", "--queue", "q").output == "0 cancelled\n"


@pytest.mark.parametrize(
    "bad", [[], ["1", "--queue", "q"], ["1", "--running"], ["--task", "t"], ["--queue", "nowhere"], [str(BIG + 1)]]
)
def test_cancel_says_what_it_needs(run: Run, client: Client, bad: list[str]) -> None:
    result = run("cancel", *bad)
    assert (result.exit_code, "Error" in result.output) == (1, True)
