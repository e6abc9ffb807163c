"""Waiting for the end of a job."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgqueue import AsyncClient, Client
from pgqueue._vigil import AsyncVigil, Vigil
from tests.python.support import Face, eventually


def answer(client: Client, count: int) -> threading.Thread:
    """Work off so many jobs, each with its payload as the result."""

    def work() -> None:
        for _ in range(count):
            eventually(lambda: answer_one(client))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def answer_one(client: Client) -> bool:
    jobs = client.claim("q")
    for job in jobs:
        client.ack(job.id, job.lease, job.payload)
    return bool(jobs)


def test_the_result_comes_back(face: Face, dsn: str) -> None:
    with Client(dsn) as worker:
        for n in range(5):
            job = face.enqueue("q", {"n": n})
            thread = answer(worker, 1)
            state = face.wait(job)
            assert (state.state, state.result) == ("done", {"n": n})
            thread.join()
            assert face.wait(job, 0).result == {"n": n}


def test_a_retry_is_waited_for_and_a_dead_job_is_not(face: Face, dsn: str) -> None:
    job = face.enqueue("q", max_attempts=2)

    def fail() -> None:
        with Client(dsn) as worker:
            for n in range(2):
                eventually(lambda: worker.maintain() and worker.job_status(job).state == "ready")  # type: ignore[union-attr]
                (claimed,) = worker.claim("q")
                worker.reject(claimed.id, claimed.lease, f"e{n}")

    thread = threading.Thread(target=fail)
    thread.start()
    state = face.wait(job, None)
    assert (state.state, state.error) == ("dead", "e1")
    thread.join()


@pytest.mark.parametrize("timeout", [0, 0.05, timedelta(milliseconds=50)])
def test_it_waits_no_longer_than_told(face: Face, timeout: Any) -> None:
    job = face.enqueue("q")
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="ready"):
        face.wait(job, timeout)
    assert time.monotonic() - began >= (0.05 if timeout else 0)


def test_an_unknown_job_is_none(face: Face) -> None:
    assert face.wait(2**40) is None


def test_an_archived_job_is_found(client: Client, db: psycopg.Connection[Any]) -> None:
    job = client.enqueue("q", {"n": 1})
    answer_one(client)

    def retired() -> bool:
        client.rotate(seal=True)
        return db.execute("SELECT count(*) FROM pgq.job WHERE id = %s", [job]).fetchone() == (0,)

    eventually(retired)
    state = client.wait(job)
    assert state is not None
    assert (state.state, state.result) == ("done", {"n": 1})


def test_many_tasks_wait_at_once(client: Client, dsn: str) -> None:
    async def main() -> list[Any]:
        async with AsyncClient(dsn, pool_size=3) as tasks:
            jobs = await tasks.enqueue_many("q", list(range(50)))
            states = await asyncio.gather(*(tasks.wait(job) for job in jobs))
            return [state and state.result for state in states]

    thread = answer(client, 50)
    assert asyncio.run(main()) == list(range(50))
    thread.join()


def listeners(db: psycopg.Connection[Any]) -> int:
    """How many sessions are registered as waiting for a job."""
    query = """
        SELECT count(*) FROM pg_locks
        WHERE locktype = 'advisory' AND mode = 'ShareLock' AND classid::bigint = pgq._wait_key(0) >> 32
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """
    row = db.execute(query).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.direct("listens")
def test_who_waits_for_long_is_told(
    face: Face, dsn: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does not have to look."""
    monkeypatch.setattr(Vigil, "_pause", lambda self, told: 3600.0 if told else 0.01)
    monkeypatch.setattr(AsyncVigil, "_pause", lambda self, told: 3600.0 if told else 0.01)
    job = face.enqueue("q", {"n": 1})

    def work() -> None:
        with Client(dsn) as worker:
            eventually(lambda: listeners(db) == 1)
            time.sleep(0.3)
            assert answer_one(worker)

    thread = threading.Thread(target=work)
    thread.start()
    assert face.wait(job).result == {"n": 1}
    thread.join()
    eventually(lambda: listeners(db) == 0)


def listener(db: psycopg.Connection[Any]) -> int:
    """The process of the one session that is registered, or was."""
    query = """
        SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND query ~ 'watch_job|UNLISTEN' AND pid <> pg_backend_pid()
    """
    ((pid,),) = db.execute(query).fetchall()
    return int(pid)


@pytest.mark.direct("terminates a session")
def test_the_connection_is_kept_for_the_next_wait(
    face: Face, dsn: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_for_one() -> int:
        pids: list[int] = []

        def work() -> None:
            with Client(dsn) as worker:
                eventually(lambda: listeners(db) == 1)
                pids.append(listener(db))
                assert answer_one(worker)

        job = face.enqueue("q", {"n": 1})
        thread = threading.Thread(target=work)
        thread.start()
        assert face.wait(job).result == {"n": 1}
        thread.join()
        eventually(lambda: listeners(db) == 0)
        assert listener(db) == pids[0]
        return pids[0]

    first = wait_for_one()
    monkeypatch.setattr("pgqueue._vigil._PATIENCE", 3600.0)
    assert wait_for_one() == first, "and it listens from the beginning"
    monkeypatch.undo()
    db.execute("SELECT pg_terminate_backend(%s, 10000)", [first])
    assert wait_for_one() != first
    face.close()
    query = "SELECT FROM pg_stat_activity WHERE query ~ 'UNLISTEN' AND pid <> pg_backend_pid()"
    eventually(lambda: db.execute(query).rowcount == 0)


@pytest.mark.direct("listens")
def test_a_commit_that_was_on_its_way_is_seen_soon(client: Client, db: psycopg.Connection[Any], dsn: str) -> None:
    """Who had acknowledged before the watch, and commits after it, notifies nobody."""
    for _ in range(2):  # by the second one the client has its connection
        job = client.enqueue("q")
        (claimed,) = client.claim("q")
        with psycopg.connect(dsn) as worker, ThreadPoolExecutor(1) as pool:
            worker.execute("SELECT pgq.ack(%s, %s)", [claimed.id, claimed.lease])
            state = pool.submit(client.wait, job)
            eventually(lambda: listeners(db) == 1)
            worker.commit()
            began = time.monotonic()
            assert state.result(20) is not None
            assert time.monotonic() - began < 0.9


@pytest.mark.direct("listens")
def test_no_more_than_four_connections_listen(client: Client, db: psycopg.Connection[Any]) -> None:
    jobs = client.enqueue_many("q", [1] * 10)
    with ThreadPoolExecutor(10) as pool:
        states = [pool.submit(client.wait, job) for job in jobs]
        eventually(lambda: listeners(db) == 4)
        time.sleep(0.2)
        assert listeners(db) == 4
        for job in client.claim("q", 10):
            client.ack(job.id, job.lease)
        assert [state.result().state for state in states] == ["done"] * 10  # type: ignore[union-attr]
    eventually(lambda: listeners(db) == 0)


@pytest.mark.direct("terminates a session")
def test_a_wait_survives_the_connection_on_which_it_is_told(client: Client, db: psycopg.Connection[Any]) -> None:
    job = client.enqueue("q")
    with ThreadPoolExecutor(1) as pool:
        state = pool.submit(client.wait, job)
        eventually(lambda: listeners(db) == 1)
        query = (
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE query ~ %s AND pid <> pg_backend_pid()"
        )
        db.execute(query, ["watch_job"])
        answer_one(client)
        found = state.result(20)
        assert found is not None
        assert found.state == "done"


def test_a_queue_that_does_not_notify_is_looked_at(client: Client, db: psycopg.Connection[Any]) -> None:
    client.alter_queue("q", notify=False)
    job = client.enqueue("q")
    with ThreadPoolExecutor(1) as pool:
        state = pool.submit(client.wait, job)
        time.sleep(0.3)
        assert listeners(db) == 0
        answer_one(client)
        found = state.result(20)
        assert found is not None


@pytest.mark.direct("listens")
def test_a_wait_that_is_cancelled_while_it_connects_leaves_no_connection(
    client: Client, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()

    class Slow(psycopg.AsyncConnection[Any]):
        async def execute(self, query: Any, *args: Any, **options: Any) -> Any:
            if query == "SELECT pg_backend_pid()":
                opened.put_nowait(self)
                await asyncio.sleep(60)
            return await super().execute(query, *args, **options)

    async def main() -> None:
        async with AsyncClient(dsn) as tasks:
            job = await tasks.enqueue("q")
            monkeypatch.setattr(psycopg, "AsyncConnection", Slow)
            for _ in range(6):  # more often than it may have connections
                wait = asyncio.create_task(tasks.wait(job))
                connection = await asyncio.wait_for(opened.get(), 10)
                wait.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await wait
                assert connection.closed

    asyncio.run(main())


def test_a_cancelled_wait_ends(client: Client, dsn: str) -> None:
    async def main() -> None:
        async with AsyncClient(dsn) as tasks:
            job = await tasks.enqueue("q")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(tasks.wait(job), 0.05)
            assert (await tasks.stats())[0].ready == 1

    asyncio.run(main())
