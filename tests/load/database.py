"""What the load test reads from the tables of pgq, one statement a function. All else goes through public functions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from psycopg import sql

from .server import Connection
from .tally import Tally


@dataclass(frozen=True)
class Space:
    """What schema pgq occupies, in bytes."""

    live: int
    archive: int
    relations: int


def space(db: Connection) -> Space:
    row = db.execute(
        """
        SELECT coalesce(sum(size) FILTER (WHERE relname !~ '^archive'), 0)::bigint,
            coalesce(sum(size) FILTER (WHERE relname ~ '^archive'), 0)::bigint,
            count(*)
        FROM (
            SELECT relname, CASE WHEN relkind IN ('r', 'S') THEN pg_total_relation_size(oid) END AS size
            FROM pg_class WHERE relnamespace = 'pgq'::regnamespace
        ) c
        """
    ).fetchone()
    assert row is not None
    return Space(*row)


def dead_tuples(db: Connection) -> int:
    """Dead tuples in all tables of the schema, as the statistics have it: late by a second, and an estimate."""
    row = db.execute(
        "SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables WHERE schemaname = 'pgq'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def count_dead_tuples(db: Connection) -> dict[str, int]:
    """Dead tuples of each table but the archive, counted by a VACUUM: no estimate, but it removes what it may."""
    notices: list[str] = []
    found: dict[str, int] = {}
    db.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    tables = db.execute(
        """
        SELECT relname FROM pg_class
        WHERE relnamespace = 'pgq'::regnamespace AND relkind = 'r' AND relname !~ '^archive'
        """
    ).fetchall()
    for (table,) in tables:
        notices.clear()
        vacuum = "VACUUM (VERBOSE, INDEX_CLEANUP OFF, TRUNCATE OFF, SKIP_LOCKED) {}"
        db.execute(sql.SQL(vacuum).format(sql.Identifier("pgq", table)))
        pattern = r"tuples: (\d+) removed, \d+ remain, (\d+) are dead but not yet removable"
        dead = sum(int(gone) + int(kept) for gone, kept in re.findall(pattern, "\n".join(notices)))
        if dead:
            found[table] = dead
    return found


@dataclass(frozen=True)
class Ring:
    """Where the ring of segments stands."""

    free: int
    open: int
    generation: int

    @property
    def retired(self) -> bool:
        """Whether every segment but the open one is empty again."""
        return self.free + self.open == 16


def ring(db: Connection) -> Ring:
    row = db.execute(
        """
        SELECT 16 - count(*) FILTER (WHERE state <> 'free'), count(*) FILTER (WHERE state = 'open'),
            coalesce(max(generation), 0)
        FROM pgq.segment
        """
    ).fetchone()
    assert row is not None
    return Ring(*row)


def empty(db: Connection) -> bool:
    """Whether the ring holds no job and no outcome."""
    row = db.execute("SELECT NOT EXISTS (SELECT FROM pgq.job) AND NOT EXISTS (SELECT FROM pgq.outcome)").fetchone()
    assert row is not None
    return bool(row[0])


def archived(db: Connection) -> Tally:
    """How often the archive has each id as done."""
    tally = Tally()
    with db.cursor().copy("COPY (SELECT id FROM pgq.archive WHERE kind = 'done') TO STDOUT") as rows:
        tally.add(int(bytes(row)) for row in rows)
    return tally


def other_endings(db: Connection) -> dict[str, int]:
    """Archived attempts that did not end as done, by kind: a lease that ran out on a stalled machine, for instance."""
    return dict(db.execute("SELECT kind::text, count(*) FROM pgq.archive WHERE kind <> 'done' GROUP BY 1").fetchall())


def waiting(db: Connection) -> dict[str, int]:
    """Jobs in all queues, by state."""
    row = db.execute(
        """
        SELECT coalesce(sum(ready), 0)::bigint, coalesce(sum(running), 0)::bigint, coalesce(sum(scheduled), 0)::bigint,
            coalesce(sum(retrying), 0)::bigint, coalesce(sum(dead), 0)::bigint
        FROM pgq.stats()
        """
    ).fetchone()
    assert row is not None
    return dict(zip(("ready", "running", "scheduled", "retrying", "dead"), map(int, row), strict=True))
