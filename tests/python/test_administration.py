"""Attempts, progress and dead letters: the methods of both clients, and the commands."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from pgqueue import Client, InvalidArgument, LeaseLost, QueueNotFound
from pgqueue.client import DeadLetter, Failure, JobAttempt, LiveJob, QueueActivity, QueueSetting, WorkerStat
from tests.python.support import Face, Run


def bury(client: Any, count: int = 1, error: str = "broken", task: str | None = None) -> list[int]:
    """Jobs that failed for good."""
    ids: list[int] = client.enqueue_many("q", [{}] * count, task=task)
    for job in client.claim("q", count, worker="w"):
        client.reject(job.id, job.lease, error, retry=False)
    return ids


# The clients ----------------------------------------------------------------------------------------------------------


def test_attempts_and_progress(face: Face) -> None:
    id = face.enqueue("q")
    assert face.attempts(id) == []
    (job,) = face.claim("q", worker="w")
    assert face.job_progress(id) is None
    assert face.progress(id, job.lease, {"done": 1, "of": 2}) is True
    assert face.progress(id, job.lease, None) is False
    assert face.job_progress(id) == {"done": 1, "of": 2}
    (running,) = face.attempts(id)
    assert isinstance(running, JobAttempt)
    assert (running.attempt, running.state, running.worker) == (1, "running", "w")
    assert (running.lease, running.expires_at, running.progress) == (job.lease, job.expires_at, {"done": 1, "of": 2})
    face.ack(id, job.lease, [1])
    (done,) = face.attempts(id)
    assert (done.state, done.result, done.progress, done.expires_at) == ("done", [1], None, None)
    assert done.finished_at >= done.started_at
    with pytest.raises(LeaseLost):
        face.progress(id, job.lease, 1)
    with pytest.raises(InvalidArgument):
        face.progress(id, job.lease, "x" * 1000)
    with pytest.raises(InvalidArgument):
        face.progress(id, job.lease, float("nan"))


def test_dead_letters(face: Face) -> None:
    first, second = bury(face, 2, task="mail")
    (third,) = bury(face, error="timeout")
    (letter,) = face.dead_letters("q", error="time")
    assert isinstance(letter, DeadLetter)
    assert (letter.id, letter.queue, letter.error, letter.history[0]["worker"]) == (third, "q", "timeout", "w")
    assert [letter.id for letter in face.dead_letters("q", n=2)] == [first, second]
    assert [letter.id for letter in face.dead_letters("q", after_id=first, task="mail")] == [second]
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    assert face.dead_letters("q", since=later) == []
    assert face.redrive_where("q", task="mail", before=later, n=1, per_second=0.5) == 1
    assert face.job_status(first).state == "scheduled"
    assert face.discard("q", iter([second, first])) == 1
    assert face.redrive_where("q", since=later) == 0
    assert face.redrive_where("q", error="timeout") == 1
    assert face.job_status(third).state == "ready"
    bury(face, 3)
    assert face.discard_where("q", n=1) == 1
    assert face.purge_state("q", "dead") == 2
    assert face.purge_state("q", "scheduled") == 1
    with pytest.raises(InvalidArgument):
        face.purge_state("q", "running")
    with pytest.raises(InvalidArgument):
        face.redrive_where("q", per_second=0)
    for method in (face.dead_letters, face.redrive_where, face.discard_where):
        with pytest.raises(QueueNotFound):
            method("nowhere")


def test_what_goes_on(face: Face) -> None:
    face.enqueue_many("q", [{"n": n} for n in range(5)], task="t")
    broken, other = face.claim("q", 2, worker="w")
    face.reject(broken.id, broken.lease, "broken", retry_in=3600)
    (queue,) = face.queues()
    assert isinstance(queue, QueueSetting)
    assert (queue.queue, queue.max_attempts, queue.backoff) == ("q", 20, timedelta(0))
    running, *ready, retrying = face.jobs("q", task="t")
    assert isinstance(running, LiveJob)
    assert (running.state, running.worker, running.payload) == ("running", "w", other.payload)
    assert ([job.state for job in ready], retrying.id) == (["ready"] * 3, broken.id)
    assert [job.id for job in face.jobs("q", state="ready", n=1, newest=True)] == [max(job.id for job in ready)]
    (worker,) = face.workers()
    assert isinstance(worker, WorkerStat)
    assert (worker.worker, worker.queues, worker.jobs) == ("w", ["q"], 1)
    (activity,) = face.activity(timedelta(minutes=1))
    assert isinstance(activity, QueueActivity)
    assert (activity.ready, activity.running, activity.retrying, activity.exact) == (3, 1, 1, True)
    (failure,) = face.failures(5)
    assert isinstance(failure, Failure)
    assert (failure.id, failure.task, failure.kind, failure.error) == (broken.id, "t", "retry", "broken")
    with pytest.raises(QueueNotFound):
        face.jobs("nowhere")
    for bad in ({"state": "dead"}, {"n": 0}):
        with pytest.raises(InvalidArgument):
            face.jobs("q", **bad)


# The commands ---------------------------------------------------------------------------------------------------------


def test_dead_letters_are_listed(run: Run, client: Client) -> None:
    assert "no dead letters" in run("dead", "list", "q").output
    assert run("dead", "list", "q", "--json").output == "[]\n"
    first, second = bury(client, 2, error="[/odd] [bold]one\nand more", task="mail")
    shown = run("dead", "list", "q").output
    assert "[/odd]" in shown
    assert "and more" not in shown
    (letter,) = json.loads(run("dead", "list", "q", "--after-id", str(first), "--json").output)
    assert (letter["id"], letter["task"], letter["history"][0]["worker"]) == (second, "mail", "w")
    for options, count in [
        (["--task", "mail"], 2),
        (["--task", "sms"], 0),
        (["--error", "more"], 2),
        (["--since", "2020-01-01", "--before", "tomorrow"], 2),
        (["--before", "2020-01-01"], 0),
        (["--limit", "1"], 1),
    ]:
        assert len(json.loads(run("dead", "list", "q", *options, "--json").output)) == count
    for bad in (["q", "--limit", "0"], ["q", "--since", "someday"], ["nowhere"]):
        result = run("dead", "list", *bad)
        assert (result.exit_code, "Error" in result.output) == (1, True)


def test_dead_letters_are_redriven(run: Run, client: Client) -> None:
    made = bury(client, 6, task="mail")
    assert run("dead", "redrive", "q", str(made[5]), str(made[0])).output == "2 redriven\n"
    assert run("dead", "redrive", "q", "--task", "sms").output == "0 redriven\n"
    assert run("dead", "redrive", "q", "--limit", "1", "--rate", "0.1").output == "1 redriven\n"
    (stat,) = client.stats()
    assert (stat.ready, stat.scheduled, stat.dead) == (2, 1, 3)
    assert run("dead", "redrive", "q", str(made[3]), "--rate", "1").exit_code == 1
    assert run("dead", "redrive", "q").output == "3 redriven\n"


def test_dead_letters_are_discarded(run: Run, client: Client) -> None:
    made = bury(client, 6)
    refused = run("dead", "discard", "q")
    assert (refused.exit_code, "--all" in refused.output) == (1, True)
    assert run("dead", "discard", "q", str(made[0]), "--error", "x").exit_code == 1
    assert run("dead", "discard", "q", str(made[0])).output == "1 discarded\n"
    assert run("dead", "discard", "q", "--error", "broken", "--limit", "2").output == "2 discarded\n"
    assert [letter.id for letter in client.dead_letters("q")] == made[3:]
    assert run("dead", "discard", "q", "--all").output == "3 discarded\n"


def test_a_job_is_shown_with_its_attempts(run: Run, client: Client) -> None:
    assert run("show", "999999").exit_code == 1
    (id,) = bury(client, error="no such user")
    client.redrive("q")
    shown = run("show", str(id))
    assert (shown.exit_code, "ready" in shown.output, "dead" in shown.output) == (0, True, True)
    (job,) = client.claim("q", worker="me")
    client.progress(id, job.lease, 0.5)
    facts = json.loads(run("show", str(id), "--json").output)
    assert facts["state"] == "running"
    assert [(a["attempt"], a["state"], a["worker"], a["error"], a["progress"]) for a in facts["attempts"]] == [
        (1, "dead", "w", "no such user", None),
        (1, "running", "me", None, 0.5),
    ]
    client.reject(id, job.lease, retry=False)
    client.discard("q", [id])
    facts = json.loads(run("show", str(id), "--json").output)
    assert (facts["id"], facts["state"], len(facts["attempts"])) == (id, None, 2)
    assert "attempts" in run("show", str(id)).output
