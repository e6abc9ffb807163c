"""Example outbox: no change without its job, no job without its change, each forwarded once."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pgqueue import Client
from tests.conftest import Connection
from tests.examples.conftest import StartWorker
from tests.examples.support import EXAMPLES, alike, block, shell
from tests.python.support import eventually

WORKER = "examples.outbox.app:app"


@pytest.fixture
def db(db: Connection) -> Connection:
    """A connection to a database with the example's tables."""
    db.execute((EXAMPLES / "outbox/schema.sql").read_bytes())
    return db


def rows(db: Connection, query: str) -> list[tuple[Any, ...]]:
    return db.execute(query).fetchall()


def jobs(db: Connection) -> int:
    return int(rows(db, "SELECT ready + running FROM pgq.stats()")[0][0])


def same(db: Connection) -> bool:
    return rows(db, "SELECT id, name, email FROM customer ORDER BY id") == rows(
        db, "SELECT id, name, email FROM customer_copy WHERE NOT deleted ORDER BY id"
    )


def test_a_change_that_is_rolled_back_leaves_no_job(db: Connection) -> None:
    with db.transaction(force_rollback=True):
        db.execute("INSERT INTO customer VALUES (1, 'Ann', 'ann@example.org', 'secret')")
        assert jobs(db) == 1
    assert jobs(db) == 0


def test_no_job_contains_a_password(db: Connection, client: Client) -> None:
    db.execute("INSERT INTO customer VALUES (1, 'Ann', 'ann@example.org', 'secret')")
    (job,) = client.claim("customers")
    assert job.payload == {
        "op": "INSERT", "schema": "public", "table": "customer", "old": None,
        "new": {"id": 1, "name": "Ann", "email": "ann@example.org"},
    }  # fmt: skip


def test_the_copy_follows_although_a_worker_is_killed(
    db: Connection, client: Client, start_worker: StartWorker
) -> None:
    """Every change arrives exactly once: those that the killed one had begun, too."""
    client.alter_queue("customers", lease=1)
    db.execute("INSERT INTO customer SELECT n, 'name ' || n, n || '@example.org', 'x' FROM generate_series(1, 40) n")
    victim = start_worker(WORKER, "--concurrency", "4")
    eventually(lambda: rows(db, "SELECT FROM forwarded"), "it has begun")
    chance = random.Random(5)
    for _ in range(150):
        id = chance.randint(1, 40)
        if chance.random() < 0.1:
            db.execute("DELETE FROM customer WHERE id = %s", [id])
        else:
            db.execute("UPDATE customer SET name = %s WHERE id = %s", [f"name {chance.random()}", id])
    victim.kill()
    victim.wait()
    assert not same(db)
    start_worker(WORKER, "--concurrency", "4")
    eventually(lambda: jobs(db) == 0, "all is forwarded")
    assert same(db)
    changes = rows(db, "SELECT last_value FROM pgq.job_id")[0][0]
    assert rows(db, "SELECT count(*), count(DISTINCT job) FROM forwarded") == [(changes, changes)]


def test_an_older_change_that_comes_late_changes_nothing(
    db: Connection, client: Client, start_worker: StartWorker
) -> None:
    db.execute("INSERT INTO customer VALUES (1, 'Ann', 'ann@example.org', 'secret')")
    (late,) = client.claim("customers")
    db.execute("UPDATE customer SET name = 'Anna'")
    db.execute("DELETE FROM customer")
    start_worker(WORKER)
    eventually(lambda: len(rows(db, "SELECT FROM forwarded")) == 2, "the younger changes are there")
    client.release([late.id], [late.lease])
    eventually(lambda: len(rows(db, "SELECT FROM forwarded")) == 3, "and the older one")
    assert rows(db, "SELECT name, deleted FROM customer_copy") == [("Anna", True)]


def test_the_readme(environment: dict[str, str]) -> None:
    assert alike(shell(block("outbox", "sh"), environment)) == alike(block("outbox", "text"))
