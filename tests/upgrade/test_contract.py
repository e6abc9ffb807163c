"""What programs of an older version of the same major version rely on is still there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from pgqueue._versions import numbers
from tests.build.catalog import Connection
from tests.golden import compare
from tests.upgrade.contract import Contract, Function, broken, contract
from tests.upgrade.gate import Form
from tests.upgrade.tree import Upgrade


@pytest.fixture
def db(db: Connection) -> Iterator[Connection]:
    with db.transaction(force_rollback=True):
        yield db


def test_the_contract_is_the_one_that_was_reviewed(db: Connection) -> None:
    compare(str(contract(db)), Path(__file__).parent / "contract.txt")


@pytest.mark.parametrize("form", ["plain"], indirect=True)
def test_the_contract_of_every_older_version_is_kept(form: Form, upgrade: Upgrade, old_db: Connection) -> None:
    if numbers(upgrade.old.number)[0] != numbers(upgrade.new.number)[0]:
        return  # a new major version may break with the old one
    old = contract(old_db)
    with form.database(upgrade.new) as dsn, psycopg.connect(dsn) as new_db:
        assert broken(old, contract(new_db)) == []
    assert len(old.functions) > 30


PURGE = "CREATE FUNCTION pgq.purge({}) RETURNS {} LANGUAGE sql AS 'SELECT NULL::bigint'"
GONE = "no longer there: function pgq.purge"
BREACHES = {
    "DROP FUNCTION pgq.purge(text)": GONE,
    "ALTER FUNCTION pgq.purge(text) RENAME TO empty": GONE,
    f"DROP FUNCTION pgq.purge(text); {PURGE.format('name text', 'bigint')}": GONE,
    f"DROP FUNCTION pgq.purge(text); {PURGE.format('queue text', 'SETOF bigint')}": GONE,
    f"DROP FUNCTION pgq.purge(text); {PURGE.format('queue text, really boolean', 'bigint')}": GONE,
    PURGE.format("queue text, really boolean DEFAULT true", "bigint"): "ambiguous: function pgq.purge",
    "ALTER TYPE pgq.finding DROP ATTRIBUTE hint": "columns of pgq.finding",
    "ALTER TYPE pgq.finding ALTER ATTRIBUTE hint TYPE varchar": "columns of pgq.finding",
    "ALTER TABLE pgq.archive RENAME COLUMN worker TO who": "columns of pgq.archive",
    "ALTER TYPE pgq.outcome_kind RENAME VALUE 'done' TO 'ok'": "labels of pgq.outcome_kind",
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_is_named(db: Connection, breach: str) -> None:
    before = contract(db)
    db.execute(breach.encode())
    (said,) = broken(before, contract(db))
    assert BREACHES[breach] in said


def test_what_is_added_is_no_breach(db: Connection) -> None:
    before = contract(db)
    db.execute("DROP FUNCTION pgq.purge(text)")
    db.execute(PURGE.format("queue text, slowly boolean DEFAULT false", "bigint").encode())
    db.execute(
        """
        CREATE FUNCTION pgq.pause(queue text, till timestamptz) RETURNS void LANGUAGE sql AS '';
        CREATE FUNCTION pgq.wholly_new() RETURNS void LANGUAGE sql AS '';
        ALTER TYPE pgq.finding ADD ATTRIBUTE since timestamptz;
        ALTER TYPE pgq.outcome_kind ADD VALUE 'noted' BEFORE 'done';
        ALTER TABLE pgq.archive ADD COLUMN colour text;
        """
    )
    after = contract(db)
    assert after != before
    assert broken(before, after) == []
    assert len(broken(after, before)) == 6


def test_an_argument_that_became_required_is_a_breach() -> None:
    old = Contract((Function("f", ("a text", "b int"), 1, "void"),), {})
    new = Contract((replace(old.functions[0], optional=0),), {})
    assert broken(old, new)
    assert broken(new, old) == []
