"""Jobs that were there before an upgrade go on after it, whatever state they were in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.build.catalog import Catalog, Connection, differences
from tests.sql.support import Connect, call, column, one, refused, retire_all, rows, stats
from tests.upgrade.conftest import SYNTHETIC
from tests.upgrade.gate import Form, describe, pgqueue, rights, unequal_partitions, without_contents
from tests.upgrade.jobs import job_states, leave_behind, run_all, stopped_clock, work_off
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


@pytest.mark.parametrize("tree", ["0.1.0"], indirect=True)
def test_what_is_new_in_0_2_works_with_what_was_there(
    form: Form,
    tree: Tree,
    upgrade: Upgrade,
    old_dsn: str,
    old_db: Connection,
    connect_old: Connect,
    roles: dict[str, str],
) -> None:
    form.provide(upgrade)
    with stopped_clock(old_db) as clock:
        live = leave_behind(old_db, connect_old, clock)
    pgqueue(tree, old_dsn, "upgrade")
    with connect_old(user=roles["consumer"]) as consumer:
        with refused("42501"):
            call(consumer, "cancel_requested", [1])
        call(old_db, "grant_consumer", roles["consumer"])
        assert rows(consumer, "cancel_requested", [1]) == []
    db, made = old_db, live.made
    with stopped_clock(db) as clock:
        clock.advance(60)
        in_an_hour = one(db, "SELECT pgq._now() + interval '1 hour'")
        # What waits, in segments of every age.
        waiting = [made[queue][0] for queue in ("closed", "sealed", "paused", "scheduled", "retrying")]
        assert [call(db, "cancel", id) for id in waiting] == ["cancelled"] * 5
        assert call(db, "cancel_many", "withdrawn") == 2
        assert call(db, "reschedule", made["sealed"][1], in_an_hour)
        assert call(db, "reschedule", made["scheduled"][1], in_an_hour)
        assert call(db, "set_priority", made["closed"][1], -1)
        # What runs, a straggler among it.
        straggler, stopping, snoozed = (
            next(job for job in live.held if job.queue == queue) for queue in ("straggler", "running", "claimed")
        )
        assert call(db, "progress", straggler.id, straggler.lease, {"done": 1})
        assert call(db, "job_progress", straggler.id) == {"done": 1}
        assert call(db, "cancel", stopping.id) == "requested"
        assert call(db, "reject", stopping.id, stopping.lease) == "cancelled"
        call(db, "snooze", snoozed.id, snoozed.lease, "1 hour")
        for job in live.held:
            if job not in (stopping, snoozed):
                call(db, "ack", job.id, job.lease)
        # What has ended.
        assert column(db, "SELECT error FROM pgq.dead_letters('dead')") == ["broken"]
        assert column(db, "SELECT state FROM pgq.attempts(%s)", made["dead"][0]) == ["dead"]
        assert column(db, "SELECT state FROM pgq.attempts(%s)", made["archived"][0]) == ["done"]
        assert call(db, "redrive_where", "dead", error="broken") == 1
        # The queues.
        named = {"task": "note", "unique_key": "one"}
        made["silent"] += [call(db, "enqueue", "silent", {"n": 0}, **named)]
        assert call(db, "enqueue", "silent", {"n": 1}, **named) == made["silent"][-1]
        call(db, "schedule", "tick", "0 * * * *", "many", {"n": 0}, "note")

        clock.advance(2 * 3600)
        call(db, "resume", "paused")
        call(db, "maintain")
        made["many"].append(one(db, "SELECT last_job FROM pgq.schedule"))
        cancelled = {*waiting, *made["withdrawn"], stopping.id}
        run_all(make_conninfo(old_dsn, user=roles["consumer"]), list(made))
        clock.advance(3 * 86400)
        retire_all(db)
        ended = job_states(db, live.ids)
        assert {id for id, state in ended.items() if state == "cancelled"} == cancelled
        assert {id for id, state in ended.items() if state == "done"} == ended.keys() - cancelled
        assert ended.keys() == set(live.ids) - set(made["unarchived"])
        assert stats(db, "many") == {}


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
            "TRUNCATE pgq.unique_key",
            "TRUNCATE pgq.cancel_request",
            "TRUNCATE pgq.progress",
            "TRUNCATE pgq.dependent",
            "UPDATE pgq.schedule SET next_at = 'infinity'",
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
