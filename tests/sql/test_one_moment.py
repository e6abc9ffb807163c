"""What is said about a job or a queue is true of one moment: nothing is missed while it moves from table to table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sql.support import (
    Connect,
    Connection,
    call,
    claim_one,
    create,
    enqueue,
    in_background,
    stats,
    status,
    until_blocked,
)

Moves = dict[str, object]


@pytest.mark.parametrize("move", [{"retry": False}, {"retry_in": "1 hour"}], ids=["to the dead letters", "to a retry"])
@pytest.mark.parametrize(
    "ask", [lambda db, job: [status(db, job).state], lambda db, _: list(stats(db))], ids=["status", "stats"]
)
def test_a_job_is_seen_once_although_it_moves_meanwhile(
    db: Connection, connect: Connect, move: Moves, ask: Callable[[Connection, int], list[str]]
) -> None:
    """The look at the segment waits for a lock, by which time the job has left it for a table looked at before."""
    create(db)
    enqueue(db)
    job = claim_one(db)
    mover, reader = connect(autocommit=False), connect()
    mover.execute("LOCK TABLE pgq.lease_0, pgq.outcome_0")
    call(mover, "reject", job.id, job.lease, **move)
    seen = in_background(ask, reader, job.id)
    until_blocked(db, reader)
    mover.commit()
    assert seen.result() in (["running"], ["dead" if "retry" in move else "retrying"])
