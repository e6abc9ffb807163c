"""What the database holds at the end of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt in the archive."""

    id: int
    lease: int
    kind: str
    attempt: int
    queue: str
    priority: int
    task: str | None
    payload: Any
    headers: Any
    result: Any
    error: str | None


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead letter."""

    id: int
    queue: str
    attempt: int
    max_attempts: int | None
    task: str | None
    payload: Any
    headers: Any


@dataclass(frozen=True, slots=True)
class Left:
    """A job that has not ended, in whichever table it is."""

    id: int
    place: str
    payload: Any


@dataclass(frozen=True)
class Dump:
    """The state of a database in which every job should have ended.

    left: what has not.
    effects: pairs of job and lease that handlers wrote down as part of their acknowledgement.
    states: what job_status says about some of the jobs.
    counts: what stats says is not zero, by queue and name.
    """

    archive: list[Ended] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    effects: list[tuple[int, int]] = field(default_factory=list)
    states: dict[int, str | None] = field(default_factory=dict)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)


def read(connection: Connection, look_at: Iterable[int] = ()) -> Dump:
    """Read the final state; `look_at`: ids of jobs to ask job_status about."""
    return Dump(
        archive=[Ended(*row) for row in connection.execute(_ARCHIVE)],
        dead=[Dead(*row) for row in connection.execute(_DEAD)],
        left=[Left(*row) for row in connection.execute(_LEFT)],
        effects=list(connection.execute("SELECT job_id, lease_id FROM chaos.effect")),
        states=dict(connection.execute(_STATES, [list(look_at)]).fetchall()),
        counts={(queue, name): count for queue, name, count in connection.execute(_COUNTS) if count},
    )


# All that is read from the tables of the queue themselves, rather than from functions and views for everybody.

_ARCHIVE = """
SELECT a.id, a.lease, a.kind::text, a.attempt, a.queue, a.priority, a.task, a.payload, a.headers, a.result, a.error
FROM pgq.archive a
"""

_DEAD = """
SELECT d.id, q.name, d.attempt, d.max_attempts, d.task, d.payload, d.headers
FROM pgq.dead d JOIN pgq.queue q ON q.id = d.lane >> 16
"""

# Segments are all retired by now, so that a row in one is a job that has not been worked off.
_LEFT = """
SELECT j.id, 'segment ' || j.slot || ', attempt ' || j.attempt, j.payload FROM pgq.job j
UNION ALL SELECT s.id, 'scheduled', s.payload FROM pgq.scheduled s
UNION ALL SELECT p.id, 'parked', p.payload FROM pgq.parked p
UNION ALL SELECT s.id, 'straggler', s.payload FROM pgq.straggler s
"""

_STATES = "SELECT i.id, s.state FROM unnest(%s::bigint[]) i (id) LEFT JOIN LATERAL pgq.job_status(i.id) s ON true"

_COUNTS = """
SELECT s.queue, c.name, c.count
FROM pgq.stats() s,
    LATERAL (VALUES ('ready', s.ready), ('running', s.running), ('scheduled', s.scheduled), ('retrying', s.retrying),
        ('parked', s.parked), ('waiting', s.waiting)) c (name, count)
"""
