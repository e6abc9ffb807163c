"""Nothing is open to everybody: not by a grant, not by PostgreSQL's defaults, not by those of the owner."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.conftest import PLAIN_SQL, Clock
from tests.security.conftest import MakeRole
from tests.security.life import live
from tests.sql.support import Connect, Connection, call, column, one, refused, retire_all

# Everything that can have an access control list, with the default one where none was set. A row type counts, too: who
# may use it can make a table with a column of it, and then ours can neither be dropped nor have its columns changed.
TO_PUBLIC = """
    SELECT concat(o.kind, ' ', o.name, ': ', a.privilege_type)
    FROM (
        SELECT 'schema', n.nspname::text, coalesce(n.nspacl, acldefault('n', n.nspowner))
        FROM pg_namespace n WHERE n.nspname = 'pgq'
        UNION ALL
        SELECT 'function', p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner))
        FROM pg_proc p WHERE p.pronamespace = 'pgq'::regnamespace
        UNION ALL
        SELECT 'relation', c.oid::regclass::text,
            coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))
        FROM pg_class c WHERE c.relnamespace = 'pgq'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
        UNION ALL
        SELECT 'column of', a.attrelid::regclass::text, a.attacl
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE c.relnamespace = 'pgq'::regnamespace
        UNION ALL
        SELECT 'type', t.oid::regtype::text, coalesce(t.typacl, acldefault('T', t.typowner))
        FROM pg_type t WHERE t.typnamespace = 'pgq'::regnamespace AND t.typelem = 0
    ) o (kind, name, acl)
    CROSS JOIN aclexplode(o.acl) a
    WHERE a.grantee = 0
    ORDER BY 1
"""


@pytest.fixture
def lived(db: Connection, clock: Clock) -> Connection:
    """A database whose archive has partitions."""
    live(db, clock)
    assert column(db, "SELECT c.relname FROM pg_class c WHERE c.relname ~ '^archive_' AND c.relkind = 'r'")
    return db


def test_nothing_is_granted_to_public(lived: Connection, make_role: MakeRole) -> None:
    for kind in ("producer", "consumer", "admin"):
        make_role(kind)
    assert column(lived, TO_PUBLIC) == []


@pytest.fixture
def generous(bare_dsn: str) -> Iterator[Connection]:
    """An empty database whose owner lets everybody do anything with whatever he creates."""
    with psycopg.connect(bare_dsn, autocommit=True) as db:
        for objects in ("TABLES", "SEQUENCES", "FUNCTIONS", "TYPES", "SCHEMAS"):
            db.execute(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON {objects} TO PUBLIC")
        yield db


def test_default_privileges_of_the_owner_open_nothing(generous: Connection) -> None:
    """The install script may find them, and so does whatever makes tables later."""
    generous.execute(PLAIN_SQL.read_bytes())
    assert column(generous, TO_PUBLIC) == []
    live(generous, Clock(generous))
    generous.execute("DROP SCHEMA test_clock CASCADE")
    assert column(generous, "SELECT c.relname FROM pg_class c WHERE c.relname ~ '^archive_' AND c.relkind = 'r'")
    assert column(generous, TO_PUBLIC) == []


def test_a_producer_cannot_keep_the_archive_from_being_dropped(
    lived: Connection, connect: Connect, make_role: MakeRole, clock: Clock
) -> None:
    """A table with a column of a partition's row type would."""
    role = make_role("producer")
    lived.execute(f"CREATE SCHEMA theirs_{role} AUTHORIZATION {role}")
    with psycopg.connect(lived.info.dsn, user=role, autocommit=True) as producer:
        for partition in column(lived, "SELECT relname FROM pg_class WHERE relname ~ '^archive_' AND relkind = 'r'"):
            try:
                producer.execute(f"CREATE TABLE theirs_{role}.{partition} (kept pgq.{partition})")
            except psycopg.errors.InsufficientPrivilege:
                continue
    clock.advance(10 * 86400)
    call(lived, "create_queue", "q")
    retire_all(lived)
    call(lived, "enqueue", "q")
    assert call(lived, "rotate", seal=True)["opened"] is not None


def test_maintenance_goes_on_if_something_depends_on_a_partition(lived: Connection, clock: Clock) -> None:
    """Not only by malice: a view of the owner's is enough."""
    partition = one(lived, "SELECT min(relname) FROM pg_class WHERE relname ~ '^archive_' AND relkind = 'r'")
    lived.execute(f"CREATE VIEW report AS SELECT * FROM pgq.{partition}")
    retire_all(lived)
    clock.advance(10 * 86400)
    call(lived, "create_queue", "q")
    call(lived, "enqueue", "q")
    assert "sealed" in call(lived, "rotate", seal=True)
    clock.advance(120)
    call(lived, "maintain")
    assert one(lived, "SELECT to_regclass(%s)", f"pgq.{partition}") is not None
    lived.execute("DROP VIEW report")
    clock.advance(120)
    for _ in range(5):  # a turn that truncates does nothing else
        call(lived, "maintain")
    assert one(lived, "SELECT to_regclass(%s)", f"pgq.{partition}") is None


@pytest.mark.parametrize("kind", ["producer", "consumer", "admin"])
def test_no_role_can_build_on_a_type_and_so_forbid_an_upgrade(
    db: Connection, connect: Connect, make_role: MakeRole, kind: str
) -> None:
    role = make_role(kind)
    db.execute(f"CREATE SCHEMA theirs_{role} AUTHORIZATION {role}")
    session = connect(user=role)
    for type in ("queue", "job", "claimed_job", "outcome_kind"):
        with refused("42501"):
            session.execute(f"CREATE TABLE theirs_{role}.{type} (it pgq.{type})")
