"""One node at a time: a lock that is held on a connection, and a command that runs while it is."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

import pgqueue
from pgqueue import AsyncClient, Client, InvalidArgument, NullArgument
from pgqueue.exclusive import Exclusive, ExclusiveLost
from tests.pgbouncer.bouncer import PgBouncer
from tests.python.support import Face, alive, eventually

Connection = psycopg.Connection[Any]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name of its own for each test."""
    return str(request.node.name)


@pytest.fixture
def admin(module_dsn: str) -> Iterator[Connection]:
    """A session to look from outside."""
    with psycopg.connect(module_dsn, autocommit=True) as connection:
        yield connection


def holders(admin: Connection, name: str) -> list[tuple[Any, ...]]:
    return admin.execute("SELECT pid FROM pgq.exclusive_holder(%s)", [name]).fetchall()


def standing_by(admin: Connection, name: str) -> list[tuple[Any, ...]]:
    query = """
        SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'pgq-exclusive/%%' AND query = 'ROLLBACK'
            AND pid NOT IN (SELECT pid FROM pgq.exclusive_holder(%s))
    """
    return admin.execute(query, [name]).fetchall()


def end_holder(admin: Connection, name: str) -> None:
    (ended,) = admin.execute("SELECT pg_terminate_backend(pid) FROM pgq.exclusive_holder(%s)", [name])
    assert ended == (True,)


# In Python ------------------------------------------------------------------------------------------------------------


def test_one_at_a_time(client: Client, dsn: str, name: str) -> None:
    with client.exclusive(name) as first:
        assert first
        first.check()
        with Client(dsn).exclusive(name) as second:
            assert not second
            assert not second.lost
            with pytest.raises(ExclusiveLost):
                second.check()
        with client.exclusive(name + "x") as other:
            assert other
        holder = client.exclusive_holder(name)
        assert holder is not None
        assert holder.username == "postgres"
        assert holder.application_name == f"pgq-exclusive/{socket.gethostname()}:{os.getpid()}"[:63]
        assert holder.since is not None
    assert not first
    assert client.exclusive_holder(name) is None
    with client.exclusive(name) as third:
        assert third


@pytest.mark.parametrize("timeout", [0.2, timedelta(seconds=0.2)])
def test_waiting_ends(client: Client, name: str, timeout: Any) -> None:
    with client.exclusive(name):
        began = time.monotonic()
        with client.exclusive(name, timeout) as second:
            assert not second
        assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("timeout", [20, None])
def test_who_waits_is_next(client: Client, name: str, timeout: float | None) -> None:
    order: list[str] = []

    def second() -> None:
        with client.exclusive(name, timeout) as alone:
            assert alone
            order.append("second")

    thread = threading.Thread(target=second)
    with client.exclusive(name):
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_an_error_in_the_block_gives_it_up(client: Client, name: str) -> None:
    with pytest.raises(ZeroDivisionError), client.exclusive(name):
        _ = 1 / 0
    assert client.exclusive_holder(name) is None


def test_the_connection_holds_up_nothing(client: Client, admin: Connection, name: str) -> None:
    query = """
        SELECT state, backend_xmin::text, backend_xid::text FROM pg_stat_activity
        WHERE pid = (SELECT pid FROM pgq.exclusive_holder(%s))
    """
    with client.exclusive(name):
        assert admin.execute(query, [name]).fetchall() == [("idle in transaction", None, None)]
        eventually(lambda: admin.execute(query, [name]).fetchall() == [("idle in transaction", None, None)])


@pytest.mark.direct("settings of the session")
def test_a_limit_on_idle_transactions_does_not_end_it(client: Client, dsn: str, admin: Connection, name: str) -> None:
    limited = psycopg.conninfo.make_conninfo(dsn, options="-c idle_in_transaction_session_timeout=50")
    with Client(limited).exclusive(name) as alone:
        time.sleep(0.3)
        assert alone
        assert len(holders(admin, name)) == 1


def test_a_lost_connection_is_noticed(client: Client, admin: Connection, name: str) -> None:
    noticed = threading.Event()

    def work() -> None:
        with client.exclusive(name) as alone:
            alone.on_lost = noticed.set
            end_holder(admin, name)
            assert noticed.wait(20)
            assert not alone
            assert alone.lost
            with client.exclusive(name) as other:
                assert other

    with pytest.raises(ExclusiveLost):
        work()
    with client.exclusive(name) as alone:
        assert alone


def test_the_error_of_the_block_comes_before_the_loss(client: Client, admin: Connection, name: str) -> None:
    def work() -> None:
        with client.exclusive(name) as alone:
            end_holder(admin, name)
            eventually(lambda: alone.lost)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        work()


def test_a_loss_at_the_very_end_is_noticed(client: Client, admin: Connection, name: str) -> None:
    class Blind(Exclusive):
        def _watch(self) -> None:
            """Look at nothing."""

    with pytest.raises(ExclusiveLost), Blind(admin.info.dsn, name, 0):
        end_holder(admin, name)


def test_who_waits_survives_the_loss_of_its_connection(client: Client, admin: Connection, name: str) -> None:
    order: list[bool] = []

    def second() -> None:
        with client.exclusive(name, None) as alone:
            order.append(bool(alone))

    thread = threading.Thread(target=second)
    with client.exclusive(name):
        thread.start()
        eventually(lambda: standing_by(admin, name))
        assert admin.execute("SELECT pg_terminate_backend(%s)", standing_by(admin, name)[0]).fetchone() == (True,)
    thread.join(20)
    assert order == [True]


@pytest.mark.parametrize("wrong", ["a\0b", None])
def test_what_is_no_name_is_refused(client: Client, wrong: Any) -> None:
    with pytest.raises(InvalidArgument if wrong else NullArgument), client.exclusive(wrong):
        pass


def test_a_database_that_is_not_there_is_an_error_at_once(client: Client) -> None:
    with pytest.raises(psycopg.OperationalError), Client("host=/nowhere").exclusive("n", None):
        pass


def test_the_callers_connection_is_not_used(admin: Connection) -> None:
    with pytest.raises(TypeError, match="connection string"):
        Client(connection=admin).exclusive("n")


def test_try_exclusive_joins_the_transaction_of_the_caller(client: Client, dsn: str, name: str) -> None:
    with psycopg.connect(dsn) as connection:
        assert client.try_exclusive(name, connection=connection)
        assert not client.try_exclusive(name)
        assert client.exclusive_holder(name) is not None
    assert client.try_exclusive(name)


def test_both_faces_look(face: Face, name: str) -> None:
    assert face.exclusive_holder(name) is None
    assert face.try_exclusive(name)


# With asyncio ---------------------------------------------------------------------------------------------------------


def test_one_task_at_a_time(client: Client, dsn: str, name: str) -> None:
    async def main() -> list[str]:
        order: list[str] = []
        async with AsyncClient(dsn) as tasks:

            async def one(which: str) -> None:
                async with tasks.exclusive(name, None) as alone:
                    assert alone
                    order.append(f"{which} begins")
                    await asyncio.sleep(0.05)
                    order.append(f"{which} ends")

            async with tasks.exclusive(name) as alone, tasks.exclusive(name, 0.1) as other:
                assert alone
                assert not other
            await asyncio.gather(one("a"), one("b"))
        return order

    order = asyncio.run(main())
    assert [step.split()[1] for step in order] == ["begins", "ends"] * 2


def test_the_block_is_cancelled_when_the_connection_is_lost(
    client: Client, admin: Connection, dsn: str, name: str
) -> None:
    async def main() -> str:
        async with AsyncClient(dsn) as tasks:
            try:
                async with tasks.exclusive(name) as alone:
                    end_holder(admin, name)
                    await asyncio.sleep(20)
            except ExclusiveLost:
                await asyncio.sleep(0)
                assert alone.lost
                return "lost"
            return "not noticed"

    assert asyncio.run(main()) == "lost"


def test_a_cancelled_block_stays_cancelled(client: Client, dsn: str, name: str) -> None:
    async def main() -> None:
        async with AsyncClient(dsn) as tasks:
            inside = asyncio.Event()

            async def one() -> None:
                async with tasks.exclusive(name):
                    inside.set()
                    await asyncio.sleep(20)

            task = asyncio.create_task(one())
            await inside.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await tasks.exclusive_holder(name) is None

    asyncio.run(main())


def test_an_error_in_an_async_block_gives_it_up(client: Client, dsn: str, name: str) -> None:
    async def main() -> None:
        async with AsyncClient(dsn) as tasks:
            with pytest.raises(ZeroDivisionError):
                async with tasks.exclusive(name):
                    _ = 1 / 0
            async with tasks.exclusive(name) as alone:
                assert alone

    asyncio.run(main())


# Through a pooler -----------------------------------------------------------------------------------------------------


def test_it_holds_behind_a_pooler(bouncer: PgBouncer, module_dsn: str, admin: Connection, name: str) -> None:
    pooled = Client(bouncer.dsn(module_dsn))
    with pooled.exclusive(name) as first:
        assert first
        for _ in range(5):
            with pooled.exclusive(name) as second:
                assert not second
        time.sleep(1.2)  # two beats
        assert first
        assert len(holders(admin, name)) == 1
    assert holders(admin, name) == []

    def work() -> None:
        with pooled.exclusive(name) as alone:
            end_holder(admin, name)
            eventually(lambda: alone.lost)

    with pytest.raises(ExclusiveLost):
        work()
    pooled.close()


def test_it_leaves_no_setting_behind_in_the_pool(bouncer: PgBouncer, module_dsn: str, name: str) -> None:
    pooled = Client(bouncer.dsn(module_dsn))
    with pooled.exclusive(name):
        pass
    with psycopg.connect(bouncer.dsn(module_dsn), autocommit=True, prepare_threshold=None) as connection:
        for _ in range(6):
            row = connection.execute("SELECT current_setting('idle_in_transaction_session_timeout')").fetchone()
            assert row == ("0",)
            row = connection.execute("SELECT source FROM pg_settings WHERE name LIKE 'idle_in_tr%'").fetchone()
            assert row == ("default",)
    pooled.close()


# The command ----------------------------------------------------------------------------------------------------------


class Node:
    """`pgqueue exclusive NAME -- …`, which appends its pid to a file, and again every 10 ms."""

    def __init__(self, dsn: str, name: str, *command: str, options: tuple[str, ...] = (), before: str = "") -> None:
        code = f"{before}\nfrom pgqueue.cli import main; main(prog_name='pgqueue')"
        package = Path(pgqueue.__file__).parent.parent
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "exclusive", "--dsn", dsn, *options, name, "--", *command],
            env={**os.environ, "PYTHONPATH": str(package)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, timeout: float = 20) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err


Start = Callable[..., Node]


@pytest.fixture
def start(dsn: str, name: str) -> Iterator[Start]:
    """Start a node: `start("sh", "-c", "…")`."""
    nodes: list[Node] = []

    def start(*command: str, **more: Any) -> Node:
        nodes.append(Node(dsn, name, *command, **more))
        return nodes[-1]

    yield start
    for node in nodes:
        if node.process.poll() is None:
            node.process.kill()
        node.process.communicate()


def serve(log: Path) -> tuple[str, ...]:
    """A command that writes its pid and goes on, with a child that does too."""
    return ("sh", "-c", f"sleep 1000 & echo $$ $! >> {log}; wait")


def pids(log: Path) -> list[list[int]]:
    return [[int(pid) for pid in line.split()] for line in log.read_text().splitlines()] if log.exists() else []


def test_a_signal_while_the_command_is_being_started_is_passed_on(client: Client, start: Start, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    before = f"""
import os, pathlib, signal, subprocess, time
start = subprocess.Popen.__init__
def start_and_be_told(self, *args, **options):
    start(self, *args, **options)
    while not pathlib.Path({str(ready)!r}).exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
subprocess.Popen.__init__ = start_and_be_told
"""
    command = f"trap 'echo got it; exit 7' TERM; touch {ready}; while :; do sleep 0.01; done"
    assert start("sh", "-c", command, before=before).end()[:2] == (7, "got it\n")


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_passed_on(client: Client, start: Start, code: int) -> None:
    assert start("sh", "-c", f"echo out; echo err >&2; exit {code}").end() == (code, "out\n", "err\n")


def test_a_signal_that_ends_the_command_shows(client: Client, start: Start) -> None:
    assert start("sh", "-c", "kill -USR1 $$").end()[0] == 128 + signal.SIGUSR1


def test_options_of_the_command_are_its_own(client: Client, start: Start) -> None:
    assert start("echo", "-n", "--dsn", "x", "--", "--help").end()[:2] == (0, "--dsn x -- --help")


def test_a_command_that_is_not_there(client: Client, start: Start, admin: Connection, name: str) -> None:
    code, _, err = start("/no/such/command").end()
    assert code == 1
    assert "/no/such/command" in err
    eventually(lambda: holders(admin, name) == [])


def test_signals_are_passed_on(client: Client, start: Start, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    node = start("sh", "-c", f"trap 'echo got it; exit 7' TERM; touch {ready}; while :; do sleep 0.01; done")
    eventually(ready.exists)
    node.process.terminate()
    assert node.end()[:2] == (7, "got it\n")


def test_a_stand_by_ends_on_a_signal(
    client: Client, start: Start, admin: Connection, tmp_path: Path, name: str
) -> None:
    with client.exclusive(name):
        node = start("touch", str(tmp_path / "ran"))
        eventually(lambda: standing_by(admin, name))
        node.process.terminate()
        assert node.end()[0] == 128 + signal.SIGTERM
    assert not (tmp_path / "ran").exists()


def test_a_stand_by_does_not_wait_longer_than_told(client: Client, start: Start, tmp_path: Path, name: str) -> None:
    with client.exclusive(name):
        code, _, err = start("touch", str(tmp_path / "ran"), options=("--timeout", "0")).end()
    assert code == 75
    assert name in err
    assert not (tmp_path / "ran").exists()


def test_another_node_takes_over_when_one_is_killed(client: Client, start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    nodes = [start(*serve(log)) for _ in range(3)]
    for turn in range(2):
        eventually(lambda n=turn + 1: len(pids(log)) == n)  # type: ignore[misc]
        running = pids(log)[-1]
        assert all(alive(pid) for pid in running)
        parent = psutil.Process(running[0]).ppid()
        (node,) = [node for node in nodes if node.process.pid == parent]
        node.process.kill()
        killed = time.monotonic()
        eventually(lambda pids=running: not any(alive(pid) for pid in pids))  # type: ignore[misc]
        eventually(lambda n=turn + 2: len(pids(log)) == n)  # type: ignore[misc]
        assert time.monotonic() - killed < 10  # a second on a machine that has nothing else to do
    assert len(pids(log)) == 3


def test_the_command_is_killed_when_the_connection_is_lost(
    client: Client, start: Start, admin: Connection, name: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    node = start(*serve(log))
    eventually(lambda: pids(log))
    end_holder(admin, name)
    code, _, err = node.end()
    assert code == 75
    assert "killed" in err
    assert not any(alive(pid) for pid in pids(log)[0])


def test_what_the_command_leaves_running_is_killed(client: Client, start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert start("sh", "-c", f"sleep 1000 > /dev/null 2>&1 & echo $! > {log}").end()[0] == 0
    eventually(lambda: not alive(pids(log)[0][0]))
