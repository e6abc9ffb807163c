"""The end of a run: every job is worked off, every segment retired, and the clock runs ahead where time has to pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from tests.chaos.session import Session

# Longer than any lease and backoff, than any jump of the clock together with the pause between two full sweeps: what
# came to an end while the clock was ahead is not looked for by any other.
STEP = 1200
# More turns than any healthy ring and any number of retries need. A queue that is broken does not end.
MOST_TURNS = 200

_ROWS = "SELECT FROM pgq.job UNION ALL SELECT FROM pgq.outcome UNION ALL SELECT FROM pgq.straggler LIMIT 1"


def drain(session: Session, queues: Sequence[str], ahead: float, patience: int = MOST_TURNS) -> float:
    """Claim and acknowledge until nothing is left; returns how far the clock is ahead now.

    Args:
        session: on record, like every other client; it may set the clock.
        queues: all of them.
        ahead: how far the clock is ahead, in seconds.
        patience: give up after so many turns.
    """
    for queue in queues:
        session.resume(queue)
    began = ahead
    for _ in range(patience):
        session.maintain()
        worked = 0
        for queue in queues:
            while jobs := session.claim(queue, 500, worker="drain"):
                worked += len(session.ack_many([job.id for job in jobs], [job.lease for job in jobs]))
        if worked:
            continue
        if ahead > began and not _outstanding(session.connection):
            return ahead
        ahead += STEP
        session.set_clock(ahead)
    return ahead


def _outstanding(connection: psycopg.Connection[Any]) -> int:
    query = """
        SELECT coalesce(sum(s.ready + s.parked + s.running + s.scheduled + s.waiting + s.retrying), 0)::bigint
        FROM pgq.stats() s
    """
    (row,) = connection.execute(query).fetchall()
    return int(row[0])


def retire(session: Session, ahead: float, patience: int = MOST_TURNS) -> None:
    """Turn the ring until every segment is empty, or nothing moves any more."""
    idle = 0
    for _ in range(patience):
        done = session.rotate(seal=True)
        if not session.connection.execute(_ROWS).fetchall():
            return
        idle = 0 if done.keys() - {"more"} else idle + 1
        if idle == 3:
            ahead += 120  # let what waits in a segment be carried, and what runs become a straggler
            session.set_clock(ahead)
        elif idle == 10:
            return
