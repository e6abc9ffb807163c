"""The worker, in a thread of the test."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgqueue import App, Client, Job, QueueNotFound, SchemaMissing, Worker
from tests.cluster import Cluster
from tests.python.conftest import Running
from tests.python.support import Until, eventually, status


def test_it_runs_sync_and_async_handlers_and_keeps_results(
    app: App, client: Client, running: Running, until: Until
) -> None:
    @app.task("add", queue="q")
    def add(x: int, y: int = 1) -> int:
        assert threading.current_thread().name.startswith("pgq-run")
        return x + y

    @app.task("add_async", queue="q")
    async def add_async(x: int, y: int = 1) -> dict[str, int]:
        await asyncio.sleep(0)
        return {"sum": x + y}

    jobs = [add.enqueue(1, y=2), add_async.enqueue(3), add.enqueue(4)]
    with running():
        for job in jobs:
            until(job, "done")
    assert [status(client, job).result for job in jobs] == [3, {"sum": 4}, 5]


def test_a_handler_gets_its_job(app: App, client: Client, running: Running, until: Until) -> None:
    seen: list[Job] = []

    @app.task("look", queue="q")
    def look(job: Job, n: int) -> None:
        seen.append(job)

    job = look.using(headers={"trace": "x"}, max_attempts=3).enqueue(n=7)
    with running():
        until(job, "done")
    assert [(j.id, j.attempt, j.max_attempts, j.headers, j.payload) for j in seen] == [
        (job, 1, 3, {"trace": "x"}, {"n": 7})
    ]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_exception_is_kept_with_its_traceback_and_tried_again(
    app: App, client: Client, running: Running, until: Until, kind: str
) -> None:
    def fail_twice(job: Job) -> str:
        if job.attempt < 3:
            raise ValueError(f"attempt {job.attempt} \0")
        return "at last"

    async def fail_twice_async(job: Job) -> str:
        return fail_twice(job)

    function: Callable[..., Any] = fail_twice if kind == "sync" else fail_twice_async
    job = app.task("fail", queue="q")(function).enqueue()
    hopeless = app.task("hopeless", queue="q", max_attempts=2)(lambda: 1 / 0).enqueue()
    with running(poll=0.05):
        until(job, "done")
        until(hopeless, "dead")
    assert (status(client, job).attempt, status(client, job).result) == (3, "at last")
    dead = status(client, hopeless)
    assert dead.attempt == 2
    assert dead.error.startswith("Traceback")
    assert "ZeroDivisionError" in dead.error
    assert "pgqueue/worker" not in dead.error


def test_even_sys_exit_only_fails_the_job(app: App, client: Client, running: Running, until: Until) -> None:
    def leave() -> None:
        raise SystemExit(3)

    async def leave_async() -> None:
        raise SystemExit(3)

    async def cancel_itself() -> None:
        raise asyncio.CancelledError

    functions: list[Callable[..., Any]] = [leave, leave_async, cancel_itself]
    jobs = [app.task(f.__name__, queue="q", max_attempts=1)(f).enqueue() for f in functions]
    with running():
        for job in jobs:
            until(job, "dead")


def test_what_it_cannot_run_is_rejected_with_a_reason(app: App, client: Client, running: Running, until: Until) -> None:
    @app.task("add", queue="q")
    def add(x: int) -> object:
        return object()

    cases = {
        client.enqueue("q", {}, task="subtract", max_attempts=1): "no task 'subtract'",
        client.enqueue("q", {}, max_attempts=1): "names no task",
        client.enqueue("q", [1], task="add", max_attempts=1): "must be an object",
        client.enqueue("q", {"y": 1}, task="add", max_attempts=1): "unexpected keyword argument",
        client.enqueue("q", {"x": 1}, task="add", max_attempts=1): "cannot be sent as JSON",
    }
    with running():
        for job, reason in cases.items():
            until(job, "dead")
            assert reason in status(client, job).error


@pytest.mark.parametrize("kind", ["sync", "async", "mixed"])
def test_no_more_jobs_run_than_the_concurrency_allows(app: App, client: Client, running: Running, kind: str) -> None:
    most, now, lock = 0, 0, threading.Lock()

    def enter() -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)

    def leave() -> None:
        nonlocal now
        with lock:
            now -= 1

    @app.task("sync", queue="q")
    def in_thread() -> None:
        enter()
        time.sleep(0.002)
        leave()

    @app.task("async", queue="q")
    async def in_loop() -> None:
        enter()
        await asyncio.sleep(0.002)
        leave()

    if kind in ("sync", "mixed"):
        in_thread.enqueue_many([{}] * 100)
    if kind in ("async", "mixed"):
        in_loop.enqueue_many([{}] * 100)
    with running(concurrency=4, mode="drain"):
        eventually(lambda: client.stats()[0].ready + client.stats()[0].running == 0)
    assert most == 4


def test_one_at_a_time_keeps_the_order(app: App, client: Client, running: Running) -> None:
    client.create_queue("fifo", shards=1)
    seen: list[int] = []

    @app.task("sync", queue="fifo")
    def in_thread(n: int) -> None:
        seen.append(n)

    @app.task("async", queue="fifo")
    async def in_loop(n: int) -> None:
        seen.append(n)

    for n in range(50):
        (in_thread if n % 3 else in_loop).enqueue(n)
    with running(queues=["fifo"], concurrency=1, mode="drain"):
        eventually(lambda: len(seen) == 50)
    assert seen == list(range(50))


@pytest.mark.parametrize(
    "options", [{"listen": True}, {"listen": False}, {"mode": "drain"}], ids=["woken", "polling", "drain"]
)
def test_jobs_of_a_group_run_one_after_the_other_without_pauses(
    app: App, client: Client, running: Running, options: dict[str, Any]
) -> None:
    seen: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    busy: set[str] = set()

    @app.task("work", queue="q")
    def work(key: str, n: int) -> None:
        assert key not in busy
        busy.add(key)
        time.sleep(0.001)
        busy.discard(key)
        seen[key].append(n)

    for n in range(20):
        for key in seen:
            work.using(group_key=key).enqueue(key, n)
    with running(concurrency=4, poll=60, **options):
        eventually(lambda: all(len(done) == 20 for done in seen.values()))
    assert all(done == list(range(20)) for done in seen.values())
    assert client.stats()[0].dead == 0


def test_drain_ends_when_everything_is_done(app: App, client: Client) -> None:
    seen: list[int] = []

    @app.task("spawn", queue="q")
    def spawn(depth: int) -> None:
        seen.append(depth)
        if depth:
            spawn.enqueue(depth - 1)
            spawn.enqueue(depth - 1)

    spawn.enqueue(7)
    asyncio.run(Worker(app, concurrency=4, mode="drain").run())
    (stat,) = client.stats()
    assert (stat.ready, stat.running, stat.dead) == (0, 0, 0)
    assert len(seen) == 2**8 - 1


def test_once_runs_one_job(app: App, client: Client) -> None:
    seen: list[int] = []

    @app.task("note", queue="q")
    def note(n: int) -> None:
        seen.append(n)

    note.enqueue_many([{"n": 1}, {"n": 2}])
    asyncio.run(Worker(app, mode="once").run())
    assert len(seen) == 1
    asyncio.run(Worker(app, mode="once").run())
    asyncio.run(Worker(app, mode="once").run())
    assert sorted(seen) == [1, 2]


def test_it_works_on_several_queues(app: App, client: Client, running: Running) -> None:
    client.create_queue("other")
    seen: list[str] = []

    @app.task("note")
    def note(queue: str) -> None:
        seen.append(queue)

    for queue in ("q", "other"):
        note.using(queue=queue).enqueue_many([{"queue": queue}] * 50)
    with running(queues=["q", "other"], concurrency=2):
        eventually(lambda: len(seen) == 100)
    assert {"q", "other"} == set(seen[:20]), "one queue starves"


@pytest.mark.direct("LISTEN belongs to a session")
def test_an_empty_variable_names_no_connection_to_listen_on(
    app: App, client: Client, running: Running, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGQUEUE_LISTEN_DSN", "")
    task = app.task("t", queue="q")(lambda: None)
    with running(poll=50):
        until(task.enqueue(), "done")
        time.sleep(0.2)
        until(task.enqueue(), "done")


@pytest.mark.parametrize("listen", [True, False])
def test_it_goes_on_when_one_of_its_queues_is_dropped(
    app: App, client: Client, running: Running, until: Until, listen: bool, caplog: pytest.LogCaptureFixture
) -> None:
    client.create_queue("other")
    task = app.task("t", queue="q")(lambda: None)
    with running(queues=["q", "other"], poll=0.05, listen=listen):
        until(task.enqueue(), "done")
        client.drop_queue("other")
        eventually(lambda: "looking again" in caplog.text)
        time.sleep(0.2)
        until(task.enqueue(), "done")
        client.create_queue("other")
        until(task.using(queue="other").enqueue(), "done")


@pytest.mark.direct("LISTEN belongs to a session")
@pytest.mark.parametrize("listen", [True, False])
def test_an_idle_worker_takes_new_jobs(app: App, client: Client, running: Running, listen: bool) -> None:
    seen: list[int] = []

    @app.task("note", queue="q")
    async def note(n: int) -> None:
        seen.append(n)

    # Only the notification can be so quick, or only polling is left.
    with running(poll=60.0 if listen else 0.01, listen=listen):
        for n in range(20):
            note.enqueue(n)
            eventually(lambda n=n: len(seen) == n + 1)  # type: ignore[misc]


@pytest.mark.direct("watch belongs to a session")
def test_an_idle_worker_wakes_for_scheduled_jobs(app: App, client: Client, running: Running, until: Until) -> None:
    job = app.task("note", queue="q")(lambda: None).using(delay=0.3).enqueue()
    with running(poll=60.0, maintain=False):
        until(job, "done")


def test_a_long_job_keeps_its_lease(
    app: App, client: Client, running: Running, until: Until, db: psycopg.Connection[Any]
) -> None:
    client.alter_queue("q", lease=0.6)
    gate = threading.Event()

    @app.task("block", queue="q")
    async def block() -> None:
        gate.wait()  # and with it blocks the worker's event loop

    job = block.enqueue()
    with running():
        until(job, "running")
        started = time.monotonic()
        eventually(lambda: time.monotonic() > started + 1.5)
        assert client.reap() == 0
        gate.set()
        until(job, "done")
    assert status(client, job).attempt == 1


def test_a_lost_lease_is_noticed_and_the_late_ack_changes_nothing(
    app: App, client: Client, running: Running, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    seen: list[Job] = []

    @app.task("note", queue="q")
    def note(job: Job) -> int:
        seen.append(job)
        attempt = len(seen)
        gate.wait()
        return attempt

    job = note.enqueue()
    with caplog.at_level(logging.WARNING), running(concurrency=2, lease=0.4, maintain=False):
        eventually(lambda: seen)
        assert client.release([job], [seen[0].lease]) == [job]
        note.enqueue()
        eventually(lambda: len(seen) == 2)
        eventually(lambda: "leases lost" in caplog.text)
        gate.set()
        until(job, "done")
        eventually(lambda: "lease lost, so not acknowledged" in caplog.text)
    assert {one.lease for one in seen if one.id == job} != {seen[0].lease}
    assert status(client, job).result != 1


@pytest.mark.direct("terminates sessions")
def test_it_survives_the_loss_of_all_its_connections(
    app: App, client: Client, running: Running, db: psycopg.Connection[Any]
) -> None:
    seen: list[int] = []

    @app.task("note", queue="q")
    async def note(n: int) -> None:
        await asyncio.sleep(0.001)
        seen.append(n)

    with running(poll=0.1, lease=1):
        for n in range(5):
            note.enqueue_many([{"n": 100 * n + m} for m in range(100)])
            eventually(lambda n=n: len(seen) > 100 * n + 10)  # type: ignore[misc]
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'pgq-worker/%'"
            )
        eventually(lambda: set(seen) == set(range(500)))
        eventually(lambda: client.stats()[0].running == 0)


@pytest.mark.direct("terminates a session")
@pytest.mark.parametrize("name", ["claim", "settle", "heartbeat", "listen", "maintain"])
def test_it_survives_the_loss_of_any_one_connection(
    app: App, client: Client, running: Running, db: psycopg.Connection[Any], name: str
) -> None:
    seen: list[int] = []
    gate = threading.Event()

    @app.task("note", queue="q")
    def note(n: int) -> None:
        seen.append(n)
        if n == 1:
            gate.wait(60)  # long enough for the heartbeat to be needed, before and after

    sessions = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s AND pid <> ALL (%s)"

    def pids(*without: int) -> list[int]:
        return [pid for (pid,) in db.execute(f"SELECT pid {sessions}", [f"pgq-worker/{name}", list(without)])]

    with running(poll=0.1, lease=1):
        note.enqueue(0)
        note.enqueue(1)
        eventually(lambda: sorted(seen) == [0, 1] and pids(), f"a job runs, and {name} is connected", timeout=60)
        before = pids()
        db.execute("SELECT pg_terminate_backend(pid, 60000) FROM unnest(%s::int[]) pid", [before])
        note.enqueue(2)
        eventually(lambda: set(seen) == {0, 1, 2}, timeout=60)
        eventually(lambda: pids(*before), f"{name} is connected again", timeout=60)
        gate.set()
        eventually(lambda: client.stats()[0].running == 0, timeout=60)
    assert sorted(set(seen)) == [0, 1, 2]


def test_it_survives_a_restart_of_the_server(app: App, client: Client, running: Running, cluster: Cluster) -> None:
    seen: list[int] = []

    @app.task("note", queue="q")
    def note(n: int) -> None:
        seen.append(n)
        time.sleep(0.005)

    note.enqueue_many([{"n": n} for n in range(200)])
    with running(poll=0.1, lease=1):
        eventually(lambda: len(seen) > 10)
        cluster.restart("immediate")
        eventually(lambda: set(seen) == set(range(200)), timeout=30)
        eventually(lambda: client.stats()[0].running == 0)


def test_it_waits_for_a_database_that_is_away(app: App, client: Client, running: Running, cluster: Cluster) -> None:
    seen: list[int] = []

    @app.task("note", queue="q")
    def note() -> None:
        seen.append(1)

    note.enqueue()
    app.close()
    cluster.stop()
    with running():
        cluster.start()
        eventually(lambda: seen, timeout=30)


def test_its_connections_are_never_idle_in_a_transaction(
    app: App, client: Client, running: Running, db: psycopg.Connection[Any], until: Until
) -> None:
    job = app.task("note", queue="q")(lambda: None).enqueue()
    with running(poll=0.02):
        until(job, "done")
        for _ in range(50):
            rows = db.execute(
                "SELECT application_name, state FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'pgq-worker/%' AND state ~ 'in trans'"
            ).fetchall()
            assert rows == []


def test_stop_releases_what_did_not_start_and_waits_for_what_runs(
    app: App, client: Client, running: Running, until: Until
) -> None:
    gate, seen = threading.Event(), []

    @app.task("note", queue="q")
    def note(n: int) -> int:
        seen.append(n)
        gate.wait()
        return n

    jobs = note.enqueue_many([{"n": n} for n in range(10)])
    with running(concurrency=3) as worker:
        eventually(lambda: len(seen) == 3)
        worker.stop()
        gate.set()
    states = [status(client, job) for job in jobs]
    assert [s.state for s in states].count("done") == 3
    assert [s.state for s in states].count("ready") == 7
    assert len(client.claim("q", 10)) == 7


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_after_the_grace_time_running_jobs_are_released(
    app: App, client: Client, running: Running, until: Until, kind: str
) -> None:
    gate = threading.Event()

    async def wait_async() -> None:
        await asyncio.sleep(60)

    function: Callable[..., Any] = wait_async if kind == "async" else lambda: gate.wait(60)
    job = app.task("wait", queue="q")(function).enqueue()
    with running(grace=0.1) as worker:
        until(job, "running")
        worker.stop()
        until(job, "ready")
    gate.set()
    (claimed,) = client.claim("q")
    assert (claimed.id, claimed.attempt) == (job, 1)


def test_it_needs_no_rights_but_those_of_a_consumer(
    app: App, client: Client, running: Running, until: Until, db: psycopg.Connection[Any]
) -> None:
    db.execute("DROP ROLE IF EXISTS only_consumer; CREATE ROLE only_consumer LOGIN")
    try:
        client.grant_consumer("only_consumer")
        app.dsn = psycopg.conninfo.make_conninfo(app.dsn, user="only_consumer")
        gate = threading.Event()
        job = client.enqueue("q", {}, task="note")
        failing = client.enqueue("q", {}, task="fail", max_attempts=1)
        app.task("note", queue="q")(lambda: gate.wait(5))
        app.task("fail", queue="q")(lambda: 1 / 0)
        with running(lease=0.3):
            until(failing, "dead")
            held = (
                "SELECT FROM pg_stat_activity WHERE application_name = 'pgq-worker/heartbeat' AND query ~ 'extend_many'"
            )
            eventually(lambda: db.execute(held).fetchall())
            gate.set()
            until(job, "done")
            assert status(client, job).attempt == 1
    finally:
        db.execute("DROP OWNED BY only_consumer; DROP ROLE only_consumer")


@pytest.mark.direct("watch belongs to a session")
def test_a_busy_worker_no_longer_asks_to_be_notified(
    app: App, client: Client, running: Running, db: psycopg.Connection[Any]
) -> None:
    gate = threading.Event()
    app.task("wait", queue="q")(lambda: gate.wait(20))
    watching = """
        SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.application_name = 'pgq-worker/listen'
        AND a.datname = current_database() AND l.locktype = 'advisory' AND l.granted
    """
    with running(concurrency=1, poll=0.05):
        eventually(lambda: db.execute(watching).fetchall(), "it watches")
        time.sleep(0.2)  # several times over
        app.tasks["wait"].enqueue()
        eventually(lambda: not db.execute(watching).fetchall(), "it watches no more")
        gate.set()
        eventually(lambda: db.execute(watching).fetchall(), "it watches again")


def test_an_unknown_queue_stops_it_at_once(app: App, client: Client) -> None:
    with pytest.raises(QueueNotFound):
        asyncio.run(Worker(app, ["nowhere"]).run())


def test_a_database_without_pgq_stops_it_at_once(bare_dsn: str) -> None:
    with pytest.raises(SchemaMissing, match="pgqueue install"):
        asyncio.run(Worker(App(bare_dsn), ["q"]).run())


def test_without_tasks_and_queues_there_is_nothing_to_do(app: App) -> None:
    with pytest.raises(ValueError, match="no tasks"):
        Worker(app)
