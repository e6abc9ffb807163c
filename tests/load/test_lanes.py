"""More lanes than the lock table has room for: the ring turns all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.cluster import Cluster, find_binaries
from tests.conftest import PLAIN_SQL, Clock
from tests.load import database
from tests.sql.support import Connection, call, claim

QUEUES, SHARDS = 400, 8


@pytest.fixture
def crowded(request: pytest.FixtureRequest, run_dir: Path) -> Iterator[Connection]:
    """A session on a server with few locks, and a job in each lane of many queues."""
    conf: dict[str, str | int | bool] = {
        "max_connections": 10,
        "max_locks_per_transaction": 24,
        "max_prepared_transactions": 0,
        "shared_buffers": "64MB",
    }
    server = Cluster.create(run_dir / "lanes", bin=find_binaries(request.config.getoption("--pg")), conf=conf)
    try:
        with psycopg.connect(server.dsn(), autocommit=True) as db:
            db.execute(PLAIN_SQL.read_bytes())
            db.execute("SELECT pgq.create_queue('q' || n) FROM generate_series(1, %s) n", [QUEUES])
            db.execute(
                """
                SELECT count(id)
                FROM generate_series(1, %s) n, pgq.enqueue_many('q' || n, array_fill('{}'::jsonb, ARRAY[%s])) id
                """,
                [QUEUES, SHARDS],
            )
            yield db
    finally:
        server.delete()


def test_jobs_that_wait_in_many_lanes_are_carried_forward(crowded: Connection) -> None:
    clock = Clock(crowded)
    call(crowded, "rotate", seal=True)
    clock.advance(61)
    for _ in range(200):
        call(crowded, "rotate")
        if database.ring(crowded).retired:
            break
    assert database.ring(crowded).retired
    assert database.waiting(crowded) == {"ready": 3200, "running": 0, "scheduled": 0, "retrying": 0, "dead": 0}
    assert len(claim(crowded, 100, "q1")) == SHARDS
