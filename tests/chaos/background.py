"""Faults that last: a pinned snapshot, a dump, all connections taken, a NOTIFY queue at its end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable

import psycopg

from tests.chaos.install import ROLE
from tests.chaos.server import Server

Work = Callable[[threading.Event], None]
# Well below max_connections times the length of a message, well above the smallest queue.
NOTIFICATION = "x" * 7000


class Nuisance(threading.Thread):
    """Something that goes on in a thread for so many seconds. If the server crashes meanwhile, it is over."""

    def __init__(self, work: Work) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._over = threading.Event()

    def run(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self._work(self._over)

    def stop(self) -> None:
        self._over.set()


def snapshot(server: Server, dbname: str, seconds: float) -> Work:
    """A report that reads for long."""

    def work(over: threading.Event) -> None:
        with server.connect(dbname, application_name="snapshot") as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            connection.execute("SELECT count(*) FROM pgq.archive")
            over.wait(seconds)
            connection.execute("COMMIT")

    return work


def dump(server: Server, dbname: str, seconds: float) -> Work:
    """A dump that takes its time: whoever reads it does not, at first."""

    def work(over: threading.Event) -> None:
        process = subprocess.Popen(
            [server.cluster.program("pg_dump"), "-d", server.cluster.dsn(dbname)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PGAPPNAME": "dump"},
        )
        try:
            over.wait(seconds)
            assert process.stdout is not None
            while not over.is_set() and process.stdout.read(1 << 20):
                pass
        finally:
            process.kill()
            process.communicate()

    return work


def connections(server: Server, dbname: str, seconds: float) -> Work:
    """Every connection that others may have is taken."""

    def work(over: threading.Event) -> None:
        taken: list[psycopg.Connection[object]] = []
        try:
            with contextlib.suppress(psycopg.OperationalError):
                while not over.is_set():
                    taken.append(psycopg.connect(server.cluster.dsn(dbname, user=ROLE)))
            over.wait(seconds)
        finally:
            for connection in taken:
                connection.close()

    return work


def notify(server: Server, dbname: str, seconds: float) -> Work:
    """Somebody listens, sits idle in a transaction, and the queue of notifications fills up."""

    def work(over: threading.Event) -> None:
        with server.connect(dbname) as listener, server.connect(dbname) as talker:
            listener.execute("LISTEN chaos")
            listener.execute("BEGIN")
            listener.execute("SELECT 1")
            with contextlib.suppress(psycopg.OperationalError):
                for n in range(1000):
                    talker.execute("SELECT pg_notify('chaos', %s)", [f"{n} {NOTIFICATION}"])
            over.wait(seconds)
            listener.execute("COMMIT")

    return work
