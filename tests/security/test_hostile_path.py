"""Functions run with the rights of their owner: nothing that a caller puts in the way may be called or read instead."""

from __future__ import annotations

import pytest

from tests.conftest import Clock
from tests.security.conftest import MakeRole
from tests.security.life import live
from tests.security.shadows import OVERLOADS, SHADOWS, TEMPORARY
from tests.sql.support import Connect, Connection, column, flush_counts, one

PATHS = ["evil, pg_temp, pg_catalog", "pg_temp, evil, public, pgq", "pgq, evil", "evil", "''"]


@pytest.fixture
def expected(db: Connection, connect: Connect, make_role: MakeRole, clock: Clock) -> list[object]:
    return live(connect(user=make_role("admin", f"{db.info.dbname}_plain")), clock)


@pytest.mark.parametrize("path", PATHS)
def test_what_lies_in_the_search_path_changes_nothing(
    db: Connection, connect: Connect, make_role: MakeRole, clock: Clock, expected: list[object], path: str
) -> None:
    role = make_role("admin")
    db.execute(f"CREATE SCHEMA evil; GRANT ALL ON SCHEMA evil TO {role}")
    attacker = connect(user=role)
    db.execute(SHADOWS)
    db.execute(OVERLOADS)
    db.execute(f"GRANT ALL ON ALL FUNCTIONS IN SCHEMA evil TO {role}")
    assert one(db, "SELECT count(*) FROM pg_operator WHERE oprnamespace = 'evil'::regnamespace") > 100
    assert one(db, "SELECT count(*) FROM pg_proc WHERE pronamespace = 'evil'::regnamespace AND proname !~ '^op_'") > 50
    attacker.execute(TEMPORARY)
    attacker.execute(f"SET search_path = {path}")
    assert live(attacker, clock) == expected


def test_the_shadows_are_real(db: Connection) -> None:
    db.execute("CREATE SCHEMA evil")
    db.execute(SHADOWS)
    db.execute(OVERLOADS)
    for trap in [
        "format('%s', 1)",
        "format('%s', 'x'::text)",
        "'{1}'::int8[] && '{1}'::int8[]",
        "array_agg(1::int8)",
    ]:
        db.execute("SET search_path = evil")  # pg_catalog comes first, and yet
        with pytest.raises(Exception, match="hijacked"):
            db.execute(f"SELECT {trap}")
    db.execute("SET search_path = evil, pg_catalog")
    for trap in ["1::bigint + 1::bigint", "length('x')", "clock_timestamp()", "pg_notify('a', 'b')"]:
        with pytest.raises(Exception, match="hijacked"):
            db.execute(f"SELECT {trap}")


def test_every_function_that_does_something_was_called(
    db: Connection, connect: Connect, make_role: MakeRole, clock: Clock
) -> None:
    db.execute("SET track_functions = 'all'; ALTER ROLE postgres SET track_functions = 'all'")
    session = connect()
    live(session, clock)
    flush_counts(session)
    db.execute("ALTER ROLE postgres RESET track_functions")
    session.close()
    called = set(
        column(db, "SELECT funcname FROM pg_stat_user_functions WHERE schemaname = 'pgq' AND funcname !~ '^_'")
    )
    public = column(db, "SELECT proname FROM pg_proc WHERE pronamespace = 'pgq'::regnamespace AND proname !~ '^_'")
    # Triggers and procedures are tried in tests/sql/test_outbox.py and test_work.py; the others are the owner's.
    elsewhere = {"enqueue_row", "enqueue_rows", "work", "wait", "set_validator"}
    grants = {"grant_producer", "grant_consumer", "grant_admin"}
    assert set(public) - elsewhere - grants - {"version"} <= called
