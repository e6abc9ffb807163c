"""Example passwords: two nodes share a key space, and measure themselves one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import pytest

from examples.passwords.app import app
from examples.passwords.crack import crack
from examples.passwords.setup import setup
from pgqueue import Client, ExclusiveLost
from tests.conftest import Connection
from tests.examples.conftest import StartWorker
from tests.examples.support import alike, block, shell
from tests.python.support import eventually

WORKER = ("examples.passwords.app:app", "--concurrency", "1")


@pytest.fixture(autouse=True)
def connected(dsn: str) -> Iterator[None]:
    """Have the example use the test's database."""
    with app.connected_to(dsn):
        yield


def hashed(word: str) -> str:
    return sha256(word.encode()).hexdigest()


def test_a_word_is_found_and_the_rest_is_cancelled(client: Client, start_worker: StartWorker, db: Connection) -> None:
    setup()
    for node in ("one", "two"):
        start_worker(*WORKER, "--name", node)
    found = crack(client, hashed("cabin"), 5, timeout=30)
    assert found.word == "cabin"
    assert found.tried + found.cancelled == 26**2
    assert found.tried < 26**2 / 2
    nodes = {a.worker for chunk in range(1, 60) for a in client.attempts(chunk) if a.state == "done"}
    assert nodes == {"one", "two"}


def test_a_word_that_is_not_there_has_every_chunk_tried(client: Client, start_worker: StartWorker) -> None:
    setup()
    start_worker(*WORKER, "--processes", "2")
    found = crack(client, hashed("Zoo"), 3, timeout=30)
    assert (found.word, found.tried, found.cancelled) == (None, 26, 0)


def test_one_search_at_a_time(client: Client, dsn: str) -> None:
    setup()
    with Client(dsn).exclusive("passwords.crack"), pytest.raises(ExclusiveLost):
        crack(client, hashed("zoo"), 3, timeout=0.1)
    assert next(stat.ready for stat in client.stats() if stat.queue == "passwords") == 0


def test_nobody_claims_more_than_it_can_work_on(client: Client, start_worker: StartWorker) -> None:
    """Chunks of a second each: a worker that runs one has claimed one, and the others can go elsewhere."""
    setup()
    start_worker(*WORKER)
    job = {"digest": "", "prefix": "a", "length": 6}
    client.enqueue_many("passwords", [job] * 10, task="passwords.try")

    def running() -> int:
        return next(stat.running for stat in client.stats() if stat.queue == "passwords")

    eventually(lambda: running() > 0, "one runs")
    assert running() == 1
    client.cancel_many("passwords", running=True)
    eventually(lambda: running() == 0, "the one that ran is told")


def test_speed_is_measured_on_one_node_at_a_time(client: Client, start_worker: StartWorker, db: Connection) -> None:
    """It is due each second and takes 1.5."""
    setup("* * * * * *", 1.5)
    for _ in range(2):
        start_worker(*WORKER)

    def ended() -> list[str]:
        rows = db.execute("SELECT generate_series(1, last_value) FROM pgq.job_id").fetchall()
        states = [state for (id,) in rows if (state := client.job_status(id)) is not None]
        return [state.state for state in states if state.state in ("done", "cancelled")]

    eventually(lambda: ended().count("done") >= 2 and "cancelled" in ended(), "two measured, one gave way")
    overlaps = "a.ctid < b.ctid AND (a.began, a.ended) OVERLAPS (b.began, b.ended)"
    assert db.execute(f"SELECT count(*) FROM speed a, speed b WHERE {overlaps}").fetchone() == (0,)


def test_the_readme(environment: dict[str, str]) -> None:
    assert alike(shell(block("passwords", "sh"), environment)) == alike(block("passwords", "text"))
