"""On a managed server nobody is a superuser: a role that may only create a schema installs and runs everything."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import Clock
from tests.security.life import live
from tests.sql.support import Connection, claim, column, create, enqueue, findings, one


@pytest.fixture
def clock(owner: Connection) -> Clock:
    return Clock(owner)


def test_an_owner_without_other_rights_lives_as_a_superuser_does(
    owner: Connection, clock: Clock, db: Connection
) -> None:
    assert one(owner, "SELECT NOT rolsuper AND NOT rolcreatedb FROM pg_roles WHERE rolname = current_user")
    schema = "SELECT has_schema_privilege('public', 'CREATE')"
    assert one(owner, schema) == (owner.info.server_version < 150000)
    theirs = live(owner, clock)
    db.execute("DROP SCHEMA IF EXISTS test_clock CASCADE")
    assert theirs == live(db, Clock(db))


@pytest.fixture
def worker(owner: Connection) -> Iterator[Connection]:
    """A session of another role, into which the owner cannot look."""
    role = f"{owner.info.dbname}_worker"
    with psycopg.connect(owner.info.dsn, user="postgres", autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN")
        owner.execute(f"SELECT pgq.grant_consumer('{role}')")
        with psycopg.connect(owner.info.dsn, user=role, autocommit=True) as connection:
            yield connection
        admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_the_doctor_does_not_take_a_claim_of_this_moment_for_a_stuck_one(owner: Connection, worker: Connection) -> None:
    """pg_stat_activity does not tell an ordinary role when another's transaction began."""
    create(owner)
    enqueue(owner, 3)
    with worker.transaction():
        assert len(claim(worker, 3)) == 3
        assert one(owner, "SELECT count(xact_start) FROM pg_stat_activity WHERE pid = %s", worker.info.backend_pid) == 0
        assert "stuck_lane" not in findings(owner)


def test_nothing_that_pgq_calls_needs_a_superuser(owner: Connection) -> None:
    """What is refused to ordinary roles by default, managed servers never allow."""
    refused = """
        SELECT DISTINCT p.oid::regprocedure::text
        FROM pg_proc q
        CROSS JOIN regexp_matches(q.prosrc, '\\m(pg_[a-z_0-9]+)\\(', 'g') w
        JOIN pg_proc p ON p.proname = w[1] AND p.pronamespace = 'pg_catalog'::regnamespace
        WHERE q.pronamespace = 'pgq'::regnamespace AND NOT has_function_privilege(p.oid, 'EXECUTE')
    """
    assert column(owner, refused) == []


def test_a_start_of_the_server_is_noticed_by_an_owner_without_other_rights(owner: Connection) -> None:
    """The first caller compares the cluster with the one on record, which needs pg_control_system()."""
    create(owner)
    enqueue(owner)
    epoch = one(owner, "SELECT pg_sequence_last_value('pgq.epoch')")
    one(owner, "SELECT setval('pgq.epoch', (%s >> 36 << 36) | (4711 << 4) | (%s & 15))", epoch, epoch)
    enqueue(owner)
    assert one(owner, "SELECT pg_sequence_last_value('pgq.epoch')") == epoch
    assert len(claim(owner, 10)) == 2
