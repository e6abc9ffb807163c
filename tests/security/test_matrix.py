"""matrix.txt, which is checked in and reviewed: for every function of the schema, who may execute it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.golden import compare
from tests.security.conftest import MakeRole
from tests.sql.support import Connection

GOLDEN = Path(__file__).parent / "matrix.txt"
ROLES = ["nobody", "producer", "consumer", "admin", "owner"]
HEAD = """\
Who may execute which function of schema pgq. The owner is a role without any other right.
A name with {N} stands for the sixteen functions of the segments.

"""
QUERY = """
    SELECT p.oid::regprocedure::text,
        ARRAY(SELECT has_function_privilege(r, p.oid, 'EXECUTE') FROM unnest(%s::text[]) r)
    FROM pg_proc p WHERE p.pronamespace = 'pgq'::regnamespace
"""


def matrix(db: Connection, roles: list[str]) -> str:
    """Every function and who may execute it, as a table."""
    lines: dict[tuple[str, tuple[bool, ...]], int] = {}
    for signature, rights in db.execute(QUERY, [roles]):
        name = re.sub(r"_\d+(?=\()", "_{N}", signature)
        lines[name, tuple(rights)] = lines.get((name, tuple(rights)), 0) + 1
    # If the sixteen are not alike, each kind has a line of its own and says how many there are.
    text = {f"{name}{'' if n in (1, 16) else f' ({n} of them)'}": rights for (name, rights), n in lines.items()}
    table = ["  ".join([*ROLES, "function"])]
    for name, rights in sorted(text.items()):
        marks = [f"{'yes' if right else '-':{len(role)}}" for role, right in zip(ROLES, rights, strict=True)]
        table.append("  ".join([*marks, name]))
    return HEAD + "\n".join(table) + "\n"


@pytest.fixture
def roles(owner: Connection) -> Iterator[list[str]]:
    """One role of each kind in the owner's database."""
    with psycopg.connect(owner.info.dsn, user="postgres", autocommit=True) as admin:
        made = [f"{owner.info.dbname}_{kind}" for kind in ROLES[:-1]]
        for role, kind in zip(made, ROLES, strict=False):
            admin.execute(f"CREATE ROLE {role}")
            if kind != "nobody":
                owner.execute(f"SELECT pgq.grant_{kind}('{role}')")
        yield [*made, owner.info.user]
        for role in made:
            admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_everybody_may_execute_what_the_matrix_says_and_nothing_else(owner: Connection, roles: list[str]) -> None:
    compare(matrix(owner, roles), GOLDEN)


def test_nobody_but_the_owner_reaches_what_is_internal(db: Connection, make_role: MakeRole) -> None:
    """Except for the clock, which a worker reads before it goes to sleep, and what procedures call that commit."""
    helpers = ["_handler(text)", "_nap(interval)", "_now()", "_outside_of_a_transaction_block()"]
    for kind in ROLES[:-1]:
        reached = db.execute(
            """
            SELECT p.oid::regprocedure::text FROM pg_proc p
            WHERE p.pronamespace = 'pgq'::regnamespace AND p.proname ~ '^_'
                AND has_function_privilege(%s, p.oid, 'EXECUTE')
            """,
            [make_role(kind)],
        ).fetchall()
        expected = [(f"pgq.{helper}",) for helper in helpers]
        assert sorted(reached) == (expected if kind in ("consumer", "admin") else []), kind
