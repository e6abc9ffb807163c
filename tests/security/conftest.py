"""Roles for the tests of what they may do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql

from tests.conftest import PLAIN_SQL
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


@pytest.fixture
def owner(bare_dsn: str) -> Iterator[Connection]:
    """A connection as the role that installed pgq, which may create schemas in this database and nothing else."""
    with psycopg.connect(bare_dsn, autocommit=True) as admin:
        database = admin.info.dbname
        role = f"{database}_owner"
        admin.execute(f"CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {database} TO {role}")
        try:
            with psycopg.connect(bare_dsn, user=role, autocommit=True) as connection:
                connection.execute(PLAIN_SQL.read_bytes())
                yield connection
        finally:
            admin.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")
