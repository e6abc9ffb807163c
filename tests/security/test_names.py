"""Names of queues and workers are data, whatever is in them."""

from __future__ import annotations

import pytest

from tests.conftest import Clock
from tests.sql.support import (
    Connect,
    Connection,
    call,
    claim,
    column,
    create,
    enqueue,
    findings,
    fingerprint,
    heard,
    leases,
    listen,
    one,
    refused,
    rows,
    stats,
    status,
)

NAMES = {
    "quote": "it's",
    "double quote": 'a"b',
    "percent": "%s %I %L %% %(x)s",
    "dollar": "$$ $1 $pgq$",
    "backslash": "a\\b\\'",
    "injection": "q'); DROP TABLE pgq.job CASCADE; --",
    "newline": "a\nb\r\tc",
    "blank": " ",
    "spaces around": "  q  ",
    "null": "NULL",
    "array": '{a,"b",NULL}',
    "braces": "{} {0} {q}",
    "control": "\x01\x7f",
    "unicode": "Ünïcödé ☃ 🎉 \u202e\u200b",
    "combining": "e\u0301",
    "63 bytes": "x" * 63,
    "64 bytes": "x" * 64,
    "128 bytes": "x" * 128,
    "128 letters of 2 bytes": "é" * 128,
    "128 letters of 4 bytes": "🎉" * 128,
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_queue_of_any_name_does_everything(db: Connection, connect: Connect, clock: Clock, name: str) -> None:
    create(db, name[:-1] + "?")  # one that is almost the same
    create(db, name, lease="1 hour")
    with refused("42710") as caught:
        create(db, name)
    assert name in (caught.value.diag.message_primary or "")
    call(db, "alter_queue", name, max_attempts=2)
    worker = listen(connect, name)
    call(db, "enqueue", name)
    call(db, "enqueue", name, priority=1)
    call(db, "enqueue", name, delay="1 minute")
    enqueue(db, 2, name)
    assert set(heard(db, worker)) == {name}
    call(worker, "unwatch", [name])
    call(db, "pause", name)
    assert claim(db, 10, name) == []
    clock.advance(62)
    call(db, "maintain")
    assert findings(db)["no_claims"][1] == f"queue {name}"
    assert one(db, "SELECT ready FROM pgq.stats() WHERE queue = %s", name) == 5
    hint = findings(db)["no_claims"][3]
    db.execute(hint[hint.index("SELECT") : hint.rindex(")") + 1].encode())  # the doctor's advice works as it is
    jobs = claim(db, 10, name, worker=name)
    assert [job.queue for job in jobs] == [name] * 5
    call(db, "ack", jobs[0].id, jobs[0].lease)
    call(db, "reject", jobs[1].id, jobs[1].lease, name)
    call(db, "reject", jobs[2].id, jobs[2].lease, retry=False)
    rows(db, "release", [jobs[3].id], [jobs[3].lease])
    call(db, "extend", jobs[4].lease)
    assert (status(db, jobs[1].id).queue, status(db, jobs[1].id).error) == (name, name)
    assert stats(db, name) == {"ready": 1, "running": 1, "retrying": 1, "dead": 1}
    listed = db.execute("SELECT queue, state, worker FROM pgq.jobs(%s)", [name]).fetchall()
    assert listed == [(name, "running", name), (name, "ready", None), (name, "retrying", None)]
    assert db.execute("SELECT worker, queues FROM pgq.workers()").fetchall() == [(name, [name])]
    assert set(column(db, "SELECT queue FROM pgq.failures()")) == {name}
    assert call(db, "redrive", name) == 1
    assert call(db, "purge", name) == 3
    with refused("PQ005") as caught:
        call(db, "drop_queue", name)
    assert name in (caught.value.diag.message_primary or "")
    call(db, "drop_queue", name, force=True)
    with refused("PQ002") as caught:
        call(db, "enqueue", name)
    assert name in (caught.value.diag.message_primary or "")
    assert column(db, "SELECT queue FROM pgq.stats()") == [name[:-1] + "?"]


@pytest.mark.parametrize("letter", ["x", "é", "🎉"])
def test_a_name_of_129_letters_is_too_long(db: Connection, letter: str) -> None:
    before = fingerprint(db)
    with refused("22023"):
        create(db, letter * 129)
    with refused("PQ002"):
        call(db, "enqueue", letter * 129)
    assert fingerprint(db) == before


def test_names_that_look_alike_are_different_queues(db: Connection) -> None:
    names = ["q", "Q", "q ", " q", "é", "e\u0301", "x" * 63, "x" * 64]
    for n, name in enumerate(names):
        create(db, name)
        enqueue(db, n + 1, name)
    assert [one(db, "SELECT ready FROM pgq.stats() WHERE queue = %s", name) for name in names] == list(range(1, 9))
    assert [len(leases(claim(db, 100, name))) for name in names] == list(range(1, 9))


@pytest.mark.parametrize("text", NAMES.values(), ids=NAMES)
def test_a_task_and_a_worker_may_be_called_anything(db: Connection, clock: Clock, text: str) -> None:
    create(db, max_attempts=1)
    call(db, "enqueue", "q", {text: text}, task=text, headers={text: text})
    (job,) = claim(db, worker=text)
    assert (job.task, job.payload, job.headers) == (text, {text: text}, {text: text})
    clock.advance(3600)
    call(db, "maintain")
    assert one(db, "SELECT history -> 0 ->> 'worker' FROM pgq.dead") == text
    assert status(db, job.id).task == text
