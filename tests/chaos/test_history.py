"""What clients write down survives their death, and is put together as it was."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.chaos.history import NEVER, Effect, Recorder, combine, load
from tests.chaos.script import Script


def test_a_killed_client_leaves_an_invocation_without_an_answer(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        recorder = Recorder(tmp_path, "worker-1.1")
        recorder.ok(recorder.invoke("claim", {"queue": "q"}), [], [1, 2, 3, 4])
        recorder.invoke("ack", {"id": 1, "lease": 2})
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    claim, ack = load(tmp_path)
    assert (claim.answered, claim.result, claim.effect) == (True, [], Effect.YES)
    assert (ack.answered, ack.effect, ack.began, ack.ended, ack.done_by) == (False, Effect.MAYBE, 2, NEVER, NEVER)


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "worker-1.1")
    recorder.ok(recorder.invoke("look", {}), None, [1, 2, 3, 4])
    with (tmp_path / "worker-1.1.jsonl").open("a") as file:
        file.write('{"n":2,"op":"cla')
    assert [operation.name for operation in load(tmp_path)] == ["look"]


@pytest.mark.parametrize(
    ("end", "effects"),
    [
        ({"what": "commit"}, [Effect.YES, Effect.NO, Effect.YES]),
        ({"what": "commit", "lost": True}, [Effect.MAYBE, Effect.NO, Effect.MAYBE]),
        ({"what": "commit", "error": "40001"}, [Effect.NO] * 3),
        ({"what": "rollback"}, [Effect.NO] * 3),
        ({"what": "rollback", "lost": True}, [Effect.NO] * 3),
        ({"what": "session"}, [Effect.NO] * 3),
    ],
)
def test_a_transaction_takes_effect_as_its_end_says(end: dict[str, object], effects: list[Effect]) -> None:
    script = Script()
    script.command("producer", "begin")
    script.enqueue(1)
    script.command("producer", "savepoint", name="s")
    script.enqueue(2)
    script.command("producer", "rollback_to", name="s")
    script.enqueue(3)
    script.command("producer", str(end.pop("what")), **end)  # type: ignore[arg-type]
    assert [o.effect for o in combine(script.clients) if o.name == "enqueue"] == effects


@pytest.mark.parametrize(
    ("ends", "effect"),
    [
        ([("commit_prepared", False)], Effect.YES),
        ([("commit_prepared", True)], Effect.MAYBE),
        ([("commit_prepared", True), ("rollback_prepared", False)], Effect.NO),
        ([("rollback_prepared", True)], Effect.NO),
        ([], Effect.NO),
    ],
)
def test_a_prepared_transaction_is_ended_by_anybody(ends: list[tuple[str, bool]], effect: Effect) -> None:
    script = Script()
    script.command("producer", "begin")
    script.enqueue(1)
    script.command("producer", "prepare", gid="g")
    for number, (name, lost) in enumerate(ends):
        script.command(f"resolver-{number}", name, gid="g", lost=lost)
    (enqueue,) = (o for o in combine(script.clients) if o.name == "enqueue")
    assert enqueue.effect is effect


def test_a_transaction_that_could_not_begin_is_none() -> None:
    script = Script()
    script.command("producer", "begin", error="57014")
    script.enqueue(1)
    (enqueue,) = (o for o in combine(script.clients) if o.name == "enqueue")
    assert enqueue.effect is Effect.YES


def test_a_session_that_began_alone_ends_what_was_in_doubt() -> None:
    script = Script()
    script.claim(1, client="fifo-1.1", lost=True)
    script.call("fifo-1.2", "session", {"alone": True})
    claim, session = (o for o in combine(script.clients) if o.client.startswith("fifo"))
    assert claim.effect is Effect.MAYBE
    assert claim.ended == claim.done_by == session.began
