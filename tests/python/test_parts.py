"""The parts of the worker, each alone."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import datetime, timezone
from typing import Any

import psycopg
import pytest

from pgqueue import App, Client, Job, QueueNotFound, TimedOut, VersionMismatch
from pgqueue._calls import Call, HeldJob, JsonText, check_queue
from pgqueue.worker.heartbeat import Heartbeat
from pgqueue.worker.leases import Leases
from pgqueue.worker.link import Link, is_transient
from pgqueue.worker.listen import Listener
from pgqueue.worker.maintain import maintain
from pgqueue.worker.run import arguments, describe, unknown
from pgqueue.worker.settle import Settler
from pgqueue.worker.slots import Item, Slots
from pgqueue.worker.timeouts import GivenUp, Run, Timeouts
from pgqueue.worker.wake import Wake
from tests.python.support import eventually

app = App()


@app.task("sync")
def sync_task(n: int = 0) -> None: ...


@app.task("async")
async def async_task(job: Job, n: int = 0) -> None: ...


def held(id: int, lease: int = 1, task: str = "sync", payload: Any = None, expires_in: float = 60) -> HeldJob:
    now = datetime.now(timezone.utc)
    return HeldJob(id, lease, "q", task, {} if payload is None else payload, 1, 20, 0, now, None, expires_in)


def item(id: int, task: str = "sync", lease: int = 1) -> Item:
    return Item(held(id, lease, task), app.tasks[task])


class Calls:
    """Slots whose callbacks only count."""

    def __init__(self, limit: int) -> None:
        self.asyncs = self.syncs = self.lows = 0
        self.slots = Slots(limit, start_async=self._async, start_sync=self._sync, low=self._low)

    def _async(self, count: int) -> None:
        self.asyncs += count

    def _sync(self, count: int) -> None:
        self.syncs = count

    def _low(self) -> None:
        self.lows += 1


def test_slots_run_no_more_than_their_limit_in_order() -> None:
    slots = Calls(2).slots
    items = [item(n) for n in range(4)]
    slots.put(items)
    first, second = slots.take(False, None), slots.take(False, None)
    assert (first, second) == (items[0], items[1])
    assert slots.take(False, None) is None
    assert slots.take(False, second) == items[2]
    assert (slots.held, slots.waiting, slots.finished) == (3, 1, 1)


def test_slots_keep_the_order_between_both_kinds_of_handlers() -> None:
    calls = Calls(1)
    calls.slots.put([item(1, "async"), item(2, "sync"), item(3, "async")])
    assert calls.slots.take(False, None) is None
    first = calls.slots.take(True, None)
    assert first is not None
    assert calls.slots.take(True, first) is None
    second = calls.slots.take(False, None)
    assert second is not None
    assert second.job.id == 2
    before = calls.asyncs
    assert calls.slots.take(False, second) is None
    assert calls.asyncs > before, "nobody was started for the head"


def test_slots_say_when_they_run_low() -> None:
    calls = Calls(1)
    calls.slots.put([item(n) for n in range(3)])
    calls.slots.low_mark = 1
    one = calls.slots.take(False, None)
    two = calls.slots.take(False, one)
    assert calls.lows == 0
    calls.slots.take(False, two)
    assert calls.lows == 1


def test_slots_do_not_start_jobs_of_lost_leases() -> None:
    slots = Calls(8).slots
    slots.put([item(1, lease=1), item(2, lease=2), item(3, lease=1)])
    slots.lose([1])
    taken = slots.take(False, None)
    assert taken is not None
    assert taken.job.id == 2
    assert slots.take(False, None) is None
    assert slots.held == 1


def test_slots_give_back_the_last_ones() -> None:
    slots = Calls(1).slots
    slots.put([item(n) for n in range(5)])
    assert [one.job.id for one in slots.shed(2)] == [2, 3, 4]
    assert slots.shed(9) == []


def test_a_thread_waits_for_work_until_the_end() -> None:
    slots = Calls(1).slots
    taken: list[Item | None] = []
    thread = threading.Thread(target=lambda: taken.extend([slots.take_blocking(None), slots.take_blocking(None)]))
    thread.start()
    slots.put([item(1)])
    eventually(lambda: len(slots.running) == 1)
    slots.close()
    thread.join(5)
    assert [one and one.job.id for one in taken] == [1, None]


def test_leases_are_due_at_a_third_of_their_time() -> None:
    leases = Leases()
    sooner: list[None] = []
    leases.sooner = lambda: sooner.append(None)
    leases.add([held(1, 7), held(2, 7), held(3, 8, expires_in=30)], claimed_at=100.0)
    assert leases.due(109.0) == ([], 1.0)
    assert leases.due(110.0) == ([8], 10.0)
    assert leases.extended([8], {8: 30.0}, asked_at=110.0) == []
    assert leases.due(111.0) == ([], 9.0)
    leases.drop([held(1, 7)])
    assert leases.due(120.0)[0] == [7, 8]
    leases.drop([held(2, 7)])
    assert leases.due(120.0)[0] == [8]
    assert leases.extended([8, 7], {}, asked_at=120.0) == [8], "7 is settled, not lost"
    leases.add([held(9, 9, expires_in=3)], claimed_at=120.0)
    assert len(sooner) == 2


def test_a_wake_is_not_lost_and_has_a_timeout() -> None:
    async def main() -> None:
        wake = Wake()
        wake.set()
        assert await wake.wait(5)
        assert not await wake.wait(0.001)
        threading.Timer(0.01, wake.set).start()
        assert await wake.wait()
        asyncio.get_running_loop().call_later(0.01, wake.set)
        assert await wake.wait(5)
        assert not await wake.wait(0.001)

    asyncio.run(main())


def test_a_wake_in_the_moment_when_time_is_over_counts_once() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for ticks in range(6):
            wake = Wake()
            waiting = asyncio.create_task(wake.wait(0))
            for _ in range(ticks):
                await asyncio.sleep(0)
            wake.set()
            noticed, began = await waiting, loop.time()
            assert await wake.wait(0.05) is not noticed, f"after {ticks} ticks"
            assert not noticed or loop.time() - began >= 0.04, f"after {ticks} ticks"

    asyncio.run(main())


class Refusing(Link):
    """A link to a database that refuses some calls."""

    def __init__(self, *refused: bytes) -> None:
        super().__init__("", "test")
        self.refused = refused
        self.calls: list[bytes] = []

    async def call(self, call: Call[Any]) -> Any:
        self.calls.append(call.sql)
        if any(name in call.sql for name in self.refused):
            raise VersionMismatch("it was upgraded")
        return {7: 0.3} if b"extend" in call.sql else [] if b"cancel" in call.sql else {"more": False}

    def count(self, name: bytes) -> int:
        return sum(name in sql for sql in self.calls)


def test_the_heartbeat_goes_on_when_a_job_cannot_be_rejected() -> None:
    async def main() -> None:
        leases, link = Leases(), Refusing(b"pgq.reject")
        heartbeat = Heartbeat(link, leases, None, lambda lost: None, lambda cancelled: None)
        heartbeat.start()
        leases.add([held(1, 7, expires_in=0.3), held(2, 7, expires_in=0.3)], time.monotonic())
        heartbeat.reject(held(1, 7), "it does not end")
        await asyncio.to_thread(eventually, lambda: link.count(b"pgq.reject"))
        before = link.count(b"pgq.extend_many")
        await asyncio.to_thread(eventually, lambda: link.count(b"pgq.extend_many") > before + 1, timeout=5)
        await heartbeat.stop()

    asyncio.run(main())


def test_maintenance_goes_on_after_an_error() -> None:
    async def main() -> None:
        link = Refusing(b"pgq.maintain")
        task = asyncio.create_task(maintain(link, 0.01))
        await asyncio.to_thread(eventually, lambda: link.count(b"pgq.maintain") > 2 or task.done())
        assert not task.done()
        task.cancel()

    asyncio.run(main())


def test_what_ends_in_time_is_not_told_and_what_does_not_is_given_up() -> None:
    given_up: list[Item] = []
    timeouts = Timeouts(given_up.append)
    quick, slow = Run(item(1), 0.05, None), Run(item(2), 0.05, None)
    timeouts.add(quick)
    timeouts.add(slow)
    timeouts.remove(quick)
    eventually(lambda: given_up == [slow.item])
    timeouts.remove(quick)
    for _ in range(2):
        with pytest.raises(GivenUp):
            timeouts.remove(slow)
    assert not quick.told
    timeouts.stop()


def test_a_thread_may_be_told_at_any_step_of_its_end() -> None:
    """Also while it notes its end: no lock stays locked, no exception comes later, and the watch goes on."""
    timeouts = Timeouts(lambda item: None)
    ended: list[int] = []

    def be_busy(
        seconds: float,
    ) -> None:  # no loop in the `try`: Python 3.13.0 does not cover its end
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass

    def work(number: int) -> None:
        for n in range(150):
            run = Run(item(number), 0.004 + n % 10 * 0.0001, threading.get_ident())
            try:
                try:
                    timeouts.add(run)
                    be_busy(0.0042)
                finally:
                    timeouts.remove(run)
            except TimedOut:
                timeouts.remove(run)
        ended.append(number)

    threads = [threading.Thread(target=work, args=[number], daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ended) == [0, 1, 2, 3]
    timeouts.stop()


def test_arguments_come_from_the_payload() -> None:
    assert arguments(Item(held(1, payload={"n": 3}), app.tasks["sync"])) == {"n": 3}
    given = arguments(Item(held(1, payload={"n": 3}), app.tasks["async"]))
    assert isinstance(given["job"], Job)
    assert (given["job"].id, given["job"].payload, given["n"]) == (1, {"n": 3}, 3)
    with pytest.raises(TypeError, match="object"):
        arguments(Item(held(1, payload=[3]), app.tasks["sync"]))


def test_a_traceback_is_text_that_postgres_can_store() -> None:
    try:
        raise ValueError("a\0b\ud800" + "x" * 100_000)
    except ValueError as error:
        text = describe(error)
    assert len(text) < 25_000
    assert "\0" not in text
    text.encode()


def test_an_unknown_task_is_explained() -> None:
    assert "'nope'" in unknown(held(1, task="nope"), app.tasks)
    assert "sync" in unknown(held(1, task="nope"), app.tasks)
    assert "names no task" in unknown(held(1)._replace(task=None), app.tasks)


def test_a_result_that_cannot_be_stored_rejects_only_its_own_job(dsn: str, client: Client) -> None:
    ids = client.enqueue_many("q", [{}, {}, {}])
    claimed = client.claim("q", 3)
    results = [JsonText("1"), JsonText('"\\u0000"'), None]

    async def main() -> None:
        link = Link(dsn, "settle")
        settler = Settler(link, Leases(), lambda: None)
        for job, result in zip(claimed, results, strict=True):
            settler.ack(held(job.id, job.lease), result)
        settler.stop()
        await settler.run()
        await link.close()

    asyncio.run(main())
    states = [client.job_status(job.id) for job in claimed]
    assert len(ids) == 3
    assert [state and state.state for state in states] == ["done", states[1] and states[1].state, "done"]
    assert states[1] is not None
    assert states[1].state != "done"
    assert "cannot be stored" in (states[1].error or "")


@pytest.mark.direct("terminates the session")
def test_a_link_comes_back(dsn: str, db: psycopg.Connection[Any]) -> None:
    from pgqueue._calls import version

    async def main() -> None:
        link = Link(dsn, "test")
        assert await link.call(version()) == "0.2.0"
        assert not link.pooled
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgq-worker/test'")
        assert await link.insist(version(), asyncio.sleep) == "0.2.0"
        assert not link.failing
        await link.close()

    asyncio.run(main())


def test_a_look_whether_a_queue_exists_leaves_no_watch(dsn: str, client: Client, db: psycopg.Connection[Any]) -> None:
    """As the session may be a pooler's, and go on."""

    async def main() -> None:
        link = Link(dsn, "test")
        await link.call(check_queue("q"))
        with pytest.raises(QueueNotFound):
            await link.call(check_queue("nowhere"))
        mine = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        assert db.execute(f"SELECT FROM pg_locks WHERE locktype = 'advisory' AND {mine}").fetchall() == []
        await link.close()

    asyncio.run(main())


@pytest.mark.direct("LISTEN belongs to a session")
def test_a_notification_in_the_same_packet_as_an_answer_is_not_lost(
    dsn: str, client: Client, db: psycopg.Connection[Any]
) -> None:
    answered = (
        "SELECT FROM pg_stat_activity WHERE application_name = 'pgq-worker/listen' AND state = 'idle' AND query ~ %s"
    )

    async def main() -> None:
        notified = asyncio.Event()
        listener = Listener(dsn, ["q"], lambda queue: notified.set())
        await listener.watch()
        call = asyncio.create_task(listener.unwatch())
        await asyncio.sleep(0)
        # From here on the event loop reads nothing until both have arrived.
        eventually(lambda: db.execute(answered, ["pgq.unwatch"]).fetchall())
        db.execute("NOTIFY pgq, 'q'")
        arrives_at = time.monotonic() + 0.05
        eventually(lambda: time.monotonic() > arrives_at)
        await call
        await asyncio.wait_for(notified.wait(), 5)
        await listener.close()

    asyncio.run(main())


def test_what_is_transient() -> None:
    assert is_transient(psycopg.OperationalError("connection refused"))
    assert is_transient(psycopg.errors.AdminShutdown())
    assert is_transient(psycopg.errors.ReadOnlySqlTransaction())
    assert not is_transient(psycopg.errors.SyntaxError())
    assert not is_transient(psycopg.DataError("NUL"))
