"""What a turn costs the server and leaves behind: WAL, commits, CPU, dead rows, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from .server import Database

# Sessions that have ended have flushed their counters; the harness reads in a session of its own each time.
COUNTERS = """
    SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, xact_commit
    FROM pg_stat_database WHERE datname = current_database()
"""
ROWS = """
    SELECT coalesce(sum(n_tup_upd + n_tup_del), 0)::bigint, coalesce(sum(n_dead_tup), 0)::bigint
    FROM pg_stat_user_tables WHERE schemaname = ANY (%s)
"""
BYTES = """
    SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY (%s) AND c.relkind IN ('r', 'm')
"""


@dataclass(frozen=True)
class Usage:
    """A reading of the counters."""

    wal: int
    commits: int
    cpu: float

    @classmethod
    def now(cls, database: Database) -> Usage:
        with database.connect() as db:
            row = db.execute(COUNTERS).fetchone()
        assert row is not None
        return cls(int(row[0]), int(row[1]), database.server.cpu_seconds())

    def since(self, before: Usage) -> Usage:
        return Usage(self.wal - before.wal, self.commits - before.commits, self.cpu - before.cpu)


@dataclass(frozen=True)
class Space:
    """Rows and bytes in the tables of a system."""

    versions: int
    """Row versions that were replaced or deleted so far, whether they were cleaned up since or not."""
    dead: int
    """Those that nothing has cleaned up yet."""
    bytes: int

    @classmethod
    def now(cls, database: Database, schemas: Sequence[str]) -> Space:
        with database.connect() as db:
            rows = db.execute(ROWS, [list(schemas)]).fetchone()
            size = db.execute(BYTES, [list(schemas)]).fetchone()
        assert rows is not None
        assert size is not None
        return cls(int(rows[0]), int(rows[1]), int(size[0]))


def vacuum(database: Database) -> None:
    """Clean up everything at once, so that nobody's upkeep is left out of the account."""
    database.run(sql.SQL("VACUUM"))
