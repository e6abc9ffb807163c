"""Roles for the tests of what they may do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from psycopg import sql

from tests.sql.support import Connect, Connection

MakeRole = Callable[..., str]


@pytest.fixture
def make_role(db: Connection) -> Iterator[MakeRole]:
    """Create login roles: make_role("producer") has what pgq.grant_producer gives, make_role("nobody") nothing."""
    made: list[str] = []

    def make(kind: str, name: str | None = None) -> str:
        role = name or f"{db.info.dbname}_{kind}"
        db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        made.append(role)
        if kind != "nobody":
            function = sql.Identifier("pgq", f"grant_{kind}")
            db.execute(sql.SQL("SELECT {}({})").format(function, sql.Identifier(role).as_string()))
        return role

    yield make
    for role in made:
        db.execute(sql.SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(sql.Identifier(role)))


@pytest.fixture
def connect_as(connect: Connect, make_role: MakeRole) -> Callable[[str], Connection]:
    """Connect as a new role of this kind."""
    return lambda kind: connect(user=make_role(kind))
