"""The database that the model is held against: emptied for each example, with a clock that stands still."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
from psycopg import sql

from tests.cluster import Cluster
from tests.sql.support import column, eventually, one

NAME = "model"
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
PATIENCE = "60s"
"""For locks that nobody should hold: longer than any busy machine takes."""

Connection = psycopg.Connection[tuple[Any, ...]]

# A sequence, so that the time is the same for everybody and does not go back when a transaction is rolled back.
CLOCK = """
    CREATE SCHEMA test_clock;
    CREATE SEQUENCE test_clock.now;
    GRANT USAGE ON SCHEMA test_clock TO PUBLIC;
    GRANT SELECT ON SEQUENCE test_clock.now TO PUBLIC;
    CREATE OR REPLACE FUNCTION pgq._now() RETURNS timestamptz LANGUAGE sql VOLATILE
        SET search_path = pg_catalog, pg_temp
        AS $$ SELECT 'epoch'::timestamptz + pg_sequence_last_value('test_clock.now') * interval '1 microsecond' $$;
"""

# What pgq calls, and what calls it: a validator, a handler for pgq.work, and tables whose changes become jobs.
AROUND = """
    CREATE FUNCTION test_clock.valid(payload jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE
        AS $$ SELECT NOT payload ? 'bad' $$;
    CREATE FUNCTION test_clock.handle(payload jsonb) RETURNS jsonb LANGUAGE plpgsql
        AS $$
        BEGIN
            IF (payload ->> 'n')::int % 4 = 0 THEN
                RAISE 'four of them';
            END IF;
            RETURN jsonb_build_object('worked', payload);
        END;
        $$;
    CREATE TABLE test_clock.one (n int);
    CREATE TABLE test_clock.many (n int);
    CREATE TRIGGER enqueue AFTER INSERT ON test_clock.one
        FOR EACH ROW EXECUTE FUNCTION pgq.enqueue_row('line', 'changed');
    CREATE TRIGGER enqueue AFTER INSERT ON test_clock.many REFERENCING NEW TABLE AS new
        FOR EACH STATEMENT EXECUTE FUNCTION pgq.enqueue_rows('line', 'changed');
    CREATE FUNCTION test_clock.enqueue_row(n int) RETURNS bigint LANGUAGE plpgsql
        AS $$
        BEGIN
            INSERT INTO test_clock.one VALUES (n);
            RETURN currval('pgq.job_id');
        END;
        $$;
    CREATE FUNCTION test_clock.enqueue_rows(n int[]) RETURNS SETOF bigint LANGUAGE plpgsql
        AS $$
        BEGIN
            INSERT INTO test_clock.many SELECT unnest(n);
            RETURN QUERY SELECT generate_series(currval('pgq.job_id') - cardinality(n) + 1, currval('pgq.job_id'));
        END;
        $$;
"""

ROLE = "model_role"
GRANTED = """
    SELECT kind FROM (VALUES ('producer', 'enqueue'), ('consumer', 'claim'), ('admin', 'stats')) k (kind, function)
    WHERE (
        SELECT bool_and(has_function_privilege('model_role', p.oid, 'EXECUTE')) FROM pg_proc p
        WHERE p.pronamespace = 'pgq'::regnamespace AND p.proname = k.function
    )
"""

TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'pgq'::regnamespace AND relkind = 'r'"
# These wait for five seconds by themselves; here the session says how long.
PATIENT = """
    SELECT oid::regprocedure::text FROM pg_proc
    WHERE pronamespace = 'pgq'::regnamespace AND 'lock_timeout=5s' = ANY (proconfig)
"""
SEQUENCES = """
    SELECT sequencename, coalesce(last_value, start_value), last_value IS NOT NULL
    FROM pg_sequences WHERE schemaname = 'pgq'
"""


class Database:
    """One database, used for one example after the other: making a new one would take longer than most examples."""

    def __init__(self, cluster: Cluster, template: str) -> None:
        self.cluster = cluster
        if not cluster.running:
            cluster.start()
        with psycopg.connect(cluster.dsn(), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {NAME} TEMPLATE {template}")
        self.observer = self.connect(sync=False)
        self.observer.execute(CLOCK + AROUND)
        self.observer.execute(f"CREATE ROLE {ROLE}")
        for function in column(self.observer, PATIENT):
            self.observer.execute(f"ALTER FUNCTION {function} RESET lock_timeout")
        self._sessions: dict[int, Connection] = {}
        self._initial = self.observer.execute(SEQUENCES).fetchall()
        assert self._filled() == [], "a fresh installation is not empty"

    def connect(self, *, sync: bool = True) -> Connection:
        """A session in autocommit mode."""
        options = f"-c lock_timeout={PATIENCE} -c timezone=UTC -c synchronous_commit={'on' if sync else 'off'}"
        return psycopg.connect(self.cluster.dsn(NAME), autocommit=True, options=options)

    def session(self, number: int, *, sync: bool) -> Connection:
        """A session with nothing left of who had it before. It is kept: it knows all functions by then."""
        session = self._sessions.get(number)
        if session is None or session.closed:
            session = self._sessions[number] = self.connect(sync=sync)
        # What is chance in the engine (which shard comes first, half of a backoff) shall be the same in each run.
        session.execute("SELECT pg_advisory_unlock_all(), setseed(0.5)")
        return session

    def restart(self, mode: str) -> None:
        self.cluster.restart(mode)
        for session in (self.observer, *self._sessions.values()):
            session.close()
        self.observer = self.connect(sync=False)

    def close(self) -> None:
        self._forget_prepared()
        for session in (self.observer, *self._sessions.values()):
            session.close()
        with psycopg.connect(self.cluster.dsn(), autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {NAME} WITH (FORCE)")
            admin.execute(f"DROP ROLE {ROLE}")

    def set_clock(self, now: datetime) -> None:
        self.observer.execute("SELECT setval('test_clock.now', %s)", [(now - EPOCH) // timedelta(microseconds=1)])

    def _filled(self) -> list[str]:
        return column(self.observer, TABLES + " AND pg_relation_size(oid) > 0")

    def granted(self, connection: Connection | None = None) -> set[str]:
        """Which rights the role of the tests has, as a session sees it."""
        return set(column(connection or self.observer, GRANTED))

    def empty(self) -> None:
        """As it was after the installation."""
        for session in self._sessions.values():
            if session.info.transaction_status:
                session.rollback()
        self._forget_prepared()
        if self.granted():
            self.observer.execute(f"DROP OWNED BY {ROLE}")
        names = [sql.Identifier("pgq", name) for name in self._filled()]
        if names:
            self.observer.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(names)))
        for name in column(self.observer, TABLES + r" AND relname ~ '^archive_\d'"):
            self.observer.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier("pgq", name)))
        self.observer.execute(
            "SELECT setval(format('pgq.%%I', s.name)::regclass, s.last, s.called)"
            " FROM unnest(%s::text[], %s::bigint[], %s::boolean[]) s (name, last, called)",
            [list(values) for values in zip(*self._initial, strict=True)],
        )

    def _forget_prepared(self) -> None:
        for gid in column(self.observer, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"):
            self.observer.execute(sql.SQL("ROLLBACK PREPARED {}").format(gid))

    def until_gone(self, pid: int) -> None:
        """Wait until a session has ended, and its locks with it."""
        query = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = %s"
        eventually(lambda: one(self.observer, query, pid), f"the end of session {pid}", timeout=60)

    def unfinished_segments(self) -> list[int]:
        """Segments that are not free, or hold something."""
        query = """
            SELECT slot FROM pgq.segment
            WHERE state NOT IN ('free', 'open') OR pg_relation_size(('pgq.job_' || slot)::regclass) > 0
        """
        return column(self.observer, query)
