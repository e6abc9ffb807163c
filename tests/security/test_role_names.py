"""A role may have any name: it is data when it is granted something, and never SQL."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgqueue import Client
from tests.security.conftest import MakeRole
from tests.security.test_names import NAMES
from tests.sql.support import Connection, column, one

# A role's name has at most 63 bytes, and PostgreSQL cuts off the rest.
ROLES = {
    **{id: name for id, name in NAMES.items() if name.strip() and len(name.encode()) <= 64},
    "keyword": "user",
    "who calls": "current_user",
    "everybody, in capitals": "PUBLIC",
    "capitals": "Ops",
    "number": "10",
    "qualified": "pgq.admin",
    "list": "a, b",
    "64 bytes, the last letter cut": "x" * 62 + "é",
}
KINDS = {"producer": "enqueue", "consumer": "claim", "admin": "drop_queue"}
MAY = """
    SELECT r.rolname FROM pg_roles r, pg_proc p
    WHERE p.pronamespace = 'pgq'::regnamespace AND p.proname = %s
        AND NOT r.rolsuper AND has_function_privilege(r.oid, p.oid, 'EXECUTE')
"""


@pytest.fixture(params=list(ROLES.values()), ids=list(ROLES))
def role(request: pytest.FixtureRequest, make_role: MakeRole) -> str:
    name: str = request.param
    make_role("nobody", name)
    return name


def cut(name: str) -> str:
    """What PostgreSQL makes of a name: its first 63 bytes, without half a letter at the end."""
    return name.encode()[:63].decode(errors="ignore")


def test_rights_go_to_the_role_of_that_name_and_to_nobody_else(db: Connection, role: str) -> None:
    for kind, function in KINDS.items():
        assert column(db, MAY, function) in ([], [cut(role)])
        quoted = sql.Identifier(role).as_string()
        db.execute(sql.SQL("SELECT {}({})").format(sql.Identifier("pgq", f"grant_{kind}"), quoted))
        assert column(db, MAY, function) == [cut(role)]
    db.execute(sql.SQL("SET SESSION AUTHORIZATION {}").format(sql.Identifier(role)))
    assert one(db, "SELECT session_user") == cut(role)
    db.execute(
        "SELECT pgq.create_queue('q'); SELECT pgq.enqueue('q'); SELECT FROM pgq.claim('q'); SELECT * FROM pgq.archive"
    )
    db.execute("RESET SESSION AUTHORIZATION")


@pytest.mark.parametrize("kind", KINDS)
def test_the_client_takes_the_name_as_it_is(db: psycopg.Connection[Any], make_role: MakeRole, kind: str) -> None:
    client = Client(connection=db)
    for name in ("Ops", "ops", 'we"ird', "two words", "10", "%s %I"):
        make_role("nobody", name)
        before = set(column(db, MAY, KINDS[kind]))
        getattr(client, f"grant_{kind}")(name)
        assert set(column(db, MAY, KINDS[kind])) - before == {name}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["'public'", "'nobody_of_this_name'", "'1'::oid", "'-'", "NULL", "4294967295::oid"])
def test_what_is_no_role_gets_nothing(db: Connection, kind: str, name: str) -> None:
    """PUBLIC above all."""
    with pytest.raises(psycopg.Error):
        db.execute(f"SELECT pgq.grant_{kind}({name})")
    assert (
        column(db, "SELECT 1 FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname = 'pgq' AND a.grantee = 0")
        == []
    )
