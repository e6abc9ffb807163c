"""Through PgBouncer in transaction mode: each transaction may run in another session, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import AsyncClient, Client, LeaseLost, _calls
from pgqueue.worker.link import Link
from tests.cluster import Cluster
from tests.pgbouncer.bouncer import PgBouncer
from tests.python.conftest import WorkerProcess
from tests.sql.support import claim, claim_one, eventually, ids, one, rotate, stats

Connection = psycopg.Connection[Any]
# What functions of pgq or the worker set for themselves, and nobody else may inherit.
SETTINGS = (
    "synchronous_commit", "lock_timeout", "statement_timeout", "search_path", "jit", "plan_cache_mode",
    "enable_seqscan", "enable_bitmapscan", "enable_sort", "enable_mergejoin", "enable_hashjoin", "timezone",
)  # fmt: skip


@pytest.fixture
def pooled(bouncer: PgBouncer, direct_dsn: str) -> str:
    """Connection string through PgBouncer, to a fresh database with pgq and a queue named q."""
    with closing(connect(direct_dsn)) as db:
        db.execute("SELECT pgq.create_queue('q', backoff => '0', shards => 2)")
    return bouncer.dsn(direct_dsn)


@pytest.fixture
def direct(direct_dsn: str) -> Iterator[Connection]:
    """A session of one's own in the same database, to look from outside."""
    with closing(connect(direct_dsn)) as db:
        yield db


def connect(dsn: str, **options: Any) -> Connection:
    return psycopg.connect(dsn, **{"autocommit": True, "prepare_threshold": None, **options})


def settings(dsn: str) -> dict[int, dict[str, str]]:
    """The settings in three or more sessions of the pool: how a client finds them."""
    columns = ", ".join(f"current_setting('{name}')" for name in SETTINGS)
    columns += ", (SELECT count(*) FROM pg_listening_channels())"
    found: dict[int, dict[str, str]] = {}

    def look() -> bool:
        with closing(connect(dsn)) as db:
            for pid, *values, channels in db.execute(f"SELECT pg_backend_pid(), {columns}"):
                assert channels == 0
                found[pid] = dict(zip(SETTINGS, values, strict=True))
        return len(found) >= 3

    eventually(look, "three sessions in the pool", 60)
    return found


def locks(direct: Connection) -> int:
    """Advisory locks that some session of this database holds."""
    query = """
        SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
        WHERE l.locktype = 'advisory' AND d.datname = current_database()
    """
    return int(one(direct, query))


def test_one_client_sees_several_sessions(pooled: str) -> None:
    """Or all that is tested here would prove nothing."""
    assert len(settings(pooled)) >= 3


def test_enqueue_is_part_of_the_transaction_of_its_caller(pooled: str) -> None:
    with closing(connect(pooled, autocommit=False)) as first, closing(connect(pooled, autocommit=False)) as second:
        kept = [one(first, "SELECT pgq.enqueue('q')")]
        one(second, "SELECT pgq.enqueue('q')")
        kept += [one(first, "SELECT pgq.enqueue('q', run_at => now() - interval '1 s', priority => 5)")]
        first.execute("SAVEPOINT s")
        one(first, "SELECT pgq.enqueue('q')")
        first.execute("ROLLBACK TO s")
        first.commit()
        second.rollback()
    with closing(connect(pooled)) as db:
        assert ids(claim(db, 10)) == kept


@pytest.mark.parametrize("face", [Client, AsyncClient])
def test_what_one_session_claims_another_one_settles(pooled: str, face: type[Client] | type[AsyncClient]) -> None:
    loop = asyncio.new_event_loop()
    clients = [face(pooled, pool_size=2) for _ in range(3)]

    def call(client: int, name: str, *arguments: Any, **named: Any) -> Any:
        result = getattr(clients[client], name)(*arguments, **named)
        return loop.run_until_complete(result) if asyncio.iscoroutine(result) else result

    jobs = call(0, "enqueue_many", "q", [{"n": n} for n in range(20)])
    one_by_one = [call(n % 3, "claim", "q")[0] for n in range(4)]
    batch = call(1, "claim", "q", 16)
    assert sorted(job.id for job in one_by_one + batch) == jobs
    call(2, "ack", one_by_one[0].id, one_by_one[0].lease, result={"a": 1})
    assert call(0, "reject", one_by_one[1].id, one_by_one[1].lease, "no", retry=False) == "dead"
    assert call(1, "reject", one_by_one[2].id, one_by_one[2].lease, "no", retry_in=0) == "retry"
    call(2, "extend", one_by_one[3].lease, lease_for=60)
    assert call(0, "release", [one_by_one[3].id], [one_by_one[3].lease]) == [one_by_one[3].id]
    with pytest.raises(LeaseLost):
        call(1, "ack", one_by_one[3].id, one_by_one[3].lease)
    done, failed = batch[:10], batch[10:]
    held = call(2, "extend_many", {job.lease for job in batch})
    assert set(held) == {job.lease for job in batch}
    columns = [job.id for job in done], [job.lease for job in done]
    assert call(0, "ack_many", *columns, results=list(range(10))) == columns[0]
    assert call(1, "ack_many", *columns) == []
    columns = [job.id for job in failed], [job.lease for job in failed]
    assert sorted(call(2, "reject_many", *columns)) == sorted(columns[0])
    call(0, "promote")
    assert sorted(job.id for job in call(1, "claim", "q", 20)) == sorted([
        one_by_one[2].id, one_by_one[3].id, *columns[0]
    ])  # fmt: skip
    for client in range(3):
        call(client, "close")
    loop.close()


def test_clients_prepare_no_statements_that_another_session_would_not_know(pooled: str, direct: Connection) -> None:
    with Client(pooled, prepare_threshold=0) as client:
        for _ in range(30):
            client.enqueue("q")
    assert stats(direct) == {"ready": 30}


def test_prepared_statements_work_where_pgbouncer_knows_them(
    bouncer: PgBouncer, cluster: Cluster, direct_dsn: str, run_dir: Path, pooled: str
) -> None:
    if bouncer.version < (1, 21):
        pytest.skip(f"PgBouncer {bouncer.version} knows no prepared statements")
    knowing = PgBouncer(bouncer.program, run_dir / "prepared", cluster, max_prepared_statements=100)
    knowing.start()
    try:
        clients = [connect(knowing.dsn(direct_dsn), prepare_threshold=0) for _ in range(4)]
        for turn in range(40):
            Client(connection=clients[turn % 4]).enqueue("q", {"n": turn})
            (job,) = Client(connection=clients[(turn + 1) % 4]).claim("q")
            Client(connection=clients[(turn + 2) % 4]).ack(job.id, job.lease)
        for client in clients:
            client.close()
    finally:
        knowing.stop()


def test_the_claims_of_a_worker_wait_for_no_disk_and_the_next_client_does(pooled: str, direct: Connection) -> None:
    """Whoever commits synchronously waits here for a standby that does not exist."""

    async def main() -> None:
        link = Link(pooled, "claim")
        held: list[_calls.HeldJob] = []
        for _ in range(12):
            jobs = await link.call(_calls.claim_held("q", 1, None, "w"))
            held += jobs
        await link.close()
        assert link.pooled
        assert len(held) == 12

    def standby(names: str) -> None:
        direct.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        direct.execute("SELECT pg_reload_conf()")
        eventually(lambda: {one(direct, "SHOW synchronous_standby_names")} == {names}, "the new setting", 60)
        # Twice: the checkpointer, who makes commits wait, looks at settings between two checkpoints.
        direct.execute("CHECKPOINT")
        direct.execute("CHECKPOINT")

    with Client(pooled) as client:
        client.enqueue_many("q", [{}] * 12)
    standby("nobody")
    try:
        asyncio.run(asyncio.wait_for(main(), 60))
        with closing(connect(pooled)) as other:
            waiting = ThreadPoolExecutor(1).submit(other.execute, "SELECT pgq.enqueue('q')")
            eventually(
                lambda: one(direct, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"), "it", 60
            )
            assert not waiting.done()
            standby("")
            waiting.result(60)
    finally:
        standby("")
        direct.execute("ALTER SYSTEM RESET synchronous_standby_names")
        direct.execute("SELECT pg_reload_conf()")
    assert {found["synchronous_commit"] for found in settings(pooled).values()} == {"on"}


Start = Callable[..., WorkerProcess]


@pytest.fixture
def start_worker(pooled: str, direct: Connection, tmp_path: Path) -> Iterator[Start]:
    """Start a worker process through PgBouncer: `start_worker("--concurrency", "2")`."""
    started: list[WorkerProcess] = []
    direct.execute("CREATE TABLE started (job bigint, attempt int, pid int)")

    def start(*options: str) -> WorkerProcess:
        started.append(WorkerProcess(pooled, tmp_path / f"worker{len(started)}.log", "--queue", "q", *options))
        return started[-1]

    yield start
    for one_of_them in started:
        if one_of_them.process.poll() is None:
            one_of_them.kill()


def finished(direct: Connection, count: int) -> None:
    """Wait until so many jobs are done."""
    query = "SELECT count(*) FROM started"
    eventually(lambda: one(direct, query) >= count and stats(direct) == {}, f"{count} jobs are done", 60)


@pytest.mark.parametrize("options", [["--no-listen"], []], ids=["polling", "listening in vain"])
def test_a_worker_polls_through_it(pooled: str, direct: Connection, start_worker: Start, options: list[str]) -> None:
    worker = start_worker("--poll", "0.05", *options)
    with Client(pooled) as client:
        for count in (1, 20, 300):
            client.enqueue_many("q", [{}] * count, task="count")
        finished(direct, 321)
    assert ("there is a pooler in between" in worker.log) == (options == [])
    eventually(lambda: locks(direct) == 0, "it watches nothing", 60)
    worker.terminate()
    assert worker.wait(60) == 0
    assert one(direct, "SELECT count(DISTINCT (job, attempt)) = count(*) FROM started")
    assert locks(direct) == 0
    assert {tuple(found.values()) for found in settings(pooled).values()} == {tuple(settings_of(direct).values())}


def settings_of(db: Connection) -> dict[str, str]:
    """The settings of a session that never had anything to do with the pool."""
    return {name: str(one(db, "SELECT current_setting(%s)", name)) for name in SETTINGS}


def test_a_direct_connection_for_listening_wakes_it(
    pooled: str, direct_dsn: str, direct: Connection, start_worker: Start
) -> None:
    worker = start_worker("--poll", "50", "--listen-dsn", direct_dsn)
    eventually(lambda: locks(direct) == 1, "the worker watches", 60)
    with Client(pooled) as client:
        for count in range(1, 6):
            client.enqueue("q", task="count")
            finished(direct, count)
    assert "pooler" not in worker.log
    worker.terminate()
    assert worker.wait(60) == 0
    eventually(lambda: locks(direct) == 0, "the watch ends with its session", 60)


def test_a_worker_survives_the_loss_of_the_sessions_and_of_pgbouncer_itself(
    bouncer: PgBouncer, pooled: str, direct: Connection, start_worker: Start
) -> None:
    worker = start_worker("--poll", "0.05", "--lease", "2 seconds")
    with Client(pooled) as client:
        for count in (300, 600):
            client.enqueue_many("q", [{}] * 300, task="count")
            eventually(lambda: one(direct, "SELECT count(*) FROM started") > count - 280, "the first jobs", 60)  # noqa: B023
            direct.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            finished(direct, count)
    with Client(pooled) as client:
        client.enqueue_many("q", [{}] * 300, task="count")
        eventually(lambda: one(direct, "SELECT count(*) FROM started") > 620, "the first jobs", 60)
        bouncer.stop()
        bouncer.start()
        client.enqueue_many("q", [{}] * 10, task="count")
        finished(direct, 910)
    assert worker.process.poll() is None


def test_many_clients_of_a_small_pool_work_and_maintain(
    bouncer: PgBouncer, cluster: Cluster, direct_dsn: str, direct: Connection, run_dir: Path, pooled: str
) -> None:
    small = PgBouncer(bouncer.program, run_dir / "small", cluster, default_pool_size=4)
    small.start()
    done: Counter[int] = Counter()
    enqueued: list[int] = []
    lock = threading.Lock()

    def client(number: int) -> None:
        with closing(connect(small.dsn(direct_dsn))) as db:
            mine = Client(connection=db)
            for turn in range(8):
                new = mine.enqueue_many("q", [{"n": turn}] * 5, delay=0.01 if turn % 3 == 0 else None)
                jobs = mine.claim("q", 7)
                acked = mine.ack_many([job.id for job in jobs], [job.lease for job in jobs])
                mine.maintain()
                if turn % 4 == number % 4:
                    mine.rotate(seal=True)
                with lock:
                    enqueued.extend(new)
                    done.update(acked)

    try:
        with ThreadPoolExecutor(20) as executor:
            for future in [executor.submit(client, number) for number in range(20)]:
                future.result(120)
        with closing(connect(small.dsn(direct_dsn))) as db:
            eventually(
                lambda: one(db, "SELECT pgq.promote()") == 0 and "scheduled" not in stats(db), "nothing waits", 60
            )
            while jobs := claim(db, 1000):
                done.update(Client(connection=db).ack_many(ids(jobs), [job.lease for job in jobs]))
            rotate(db)
        assert sorted(enqueued) == sorted(done)
        assert max(done.values()) == 1
        assert locks(direct) == 0
        assert {tuple(found.values()) for found in settings(small.dsn(direct_dsn)).values()} == {
            tuple(settings_of(direct).values())
        }
    finally:
        small.stop()


def test_a_claim_without_a_commit_blocks_only_until_its_client_goes(pooled: str, direct: Connection) -> None:
    """A client that disconnects in a transaction gives back its session clean: no lane stays locked."""
    with Client(pooled) as client:
        job = client.enqueue("q")
    rude = connect(pooled, autocommit=False)
    assert claim_one(rude).id == job
    assert locks(direct) > 0
    rude.pgconn.finish()
    eventually(lambda: locks(direct) == 0, "the lane is free", 60)
    with closing(connect(pooled)) as db:
        assert claim_one(db).id == job
