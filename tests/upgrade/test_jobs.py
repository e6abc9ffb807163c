"""Jobs that were there before an upgrade go on after it, whatever state they were in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.build.catalog import Catalog, Connection, differences
from tests.sql.support import Connect, retire_all
from tests.upgrade.conftest import SYNTHETIC
from tests.upgrade.gate import Form, describe, pgqueue, rights, unequal_partitions, without_contents
from tests.upgrade.jobs import job_states, leave_behind, stopped_clock, work_off
from tests.upgrade.tree import Tree, Upgrade, Version


@pytest.fixture
def connect_old(old_dsn: str) -> Iterator[Connect]:
    """Open autocommit connections to the database that is upgraded."""
    opened: list[Connection] = []

    def connect(**options: Any) -> Connection:
        opened.append(psycopg.connect(old_dsn, autocommit=True, **options))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def roles(old_db: Connection) -> Iterator[dict[str, str]]:
    """Roles with the rights that can be granted, by the kind of them."""
    made = {kind: f"{old_db.info.dbname}_{kind}" for kind in ("producer", "consumer", "admin")}
    for kind, role in made.items():
        old_db.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        old_db.execute(sql.SQL("SELECT {}({})").format(sql.Identifier("pgq", f"grant_{kind}"), role))
    yield made
    for role in made.values():
        old_db.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def test_jobs_in_every_state_go_on(
    form: Form,
    tree: Tree,
    upgrade: Upgrade,
    old_dsn: str,
    old_db: Connection,
    connect_old: Connect,
    roles: dict[str, str],
    fresh: Callable[[Form, Version], Catalog],
) -> None:
    form.provide(upgrade)
    with stopped_clock(old_db) as clock:
        live = leave_behind(old_db, connect_old, clock)
    before = rights(old_db)
    pgqueue(tree, old_dsn, "upgrade")
    assert before - rights(old_db) == set()
    found = describe(old_db, pristine=False, but_for=roles.values())
    assert differences(found, without_contents(fresh(form, upgrade.new))) == []

    with stopped_clock(old_db) as clock:
        clock.advance(60)
        work_off(old_db, live, clock, make_conninfo(old_dsn, user=roles["consumer"]))
        clock.advance(3 * 86400)
        retire_all(old_db)
        archived = job_states(old_db, live.ids)
        assert archived.keys() == set(live.ids) - set(live.made["unarchived"])
        assert set(archived.values()) == {"done"}
        assert old_db.execute(
            "SELECT sum(ready + running + scheduled + retrying + dead) FROM pgq.stats()"
        ).fetchone() == (0,)
        assert unequal_partitions(old_db) == []


LOSSES = [
    "TRUNCATE pgq.scheduled",
    "SELECT pg_catalog.setval('pgq.live', 0)",
    *(
        pytest.param(statement, marks=pytest.mark.long)
        for statement in (
            "DELETE FROM pgq.straggler",
            "DELETE FROM pgq.dead",
            "UPDATE pgq.job SET lane = lane + 1",
            "UPDATE pgq.lease SET job_ids = NULL",
            "TRUNCATE pgq.archive",
        )
    ),
]


@pytest.mark.parametrize("tree", [SYNTHETIC], indirect=True)
@pytest.mark.parametrize("form", ["plain"], indirect=True)
@pytest.mark.parametrize("statement", LOSSES)
def test_an_upgrade_that_loses_jobs_does_not_pass(
    form: Form, upgrade: Upgrade, old_dsn: str, old_db: Connection, connect_old: Connect, statement: str
) -> None:
    with stopped_clock(old_db) as clock:
        live = leave_behind(old_db, connect_old, clock)
    with old_db.transaction():
        form.apply(old_db, upgrade, lambda script: f"{script};\n{statement};")
    with stopped_clock(old_db) as clock:
        clock.advance(60)
        with pytest.raises(AssertionError):
            work_off(old_db, live, clock, old_dsn)
