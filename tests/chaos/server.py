"""The server under test: crashed in every way, out of disk space, out of connections."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg

from pgqueue.embedded import EmbeddedError, _server_user
from tests.cluster import Cluster, find_binaries

_SOME_BACKEND = """
SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
ORDER BY backend_start LIMIT 1
"""
DISK_SIZE = "2g"
RECOVERY = b"automatic recovery in progress"


class Server:
    """A server whose data directory may be on a disk of its own, small enough to be filled.

    Args:
        path: directory for it, short enough for a socket.
        pg: version or bin directory.
        disk: whether to put the data on a disk of its own; it takes root to mount one.
    """

    def __init__(self, path: Path, pg: str, disk: bool) -> None:
        self.cluster = Cluster(path, bin_dir=find_binaries(pg), config=SETTINGS)
        self._mounted = False
        self._read = 0
        self._recoveries = 0
        self.expected = 0
        """Recoveries that somebody has caused."""
        path.mkdir(mode=0o711)
        if (user := _server_user()) is not None:
            os.chown(path, user.pw_uid, user.pw_gid)
        if disk:
            self._mounted = _mount(self.cluster.data)
        self.start()
        if self.cluster.version >= 17:  # near its end soon, then
            with self.connect() as connection:
                connection.execute("ALTER SYSTEM SET max_notify_queue_pages = 64")
            self.cluster.restart()

    @property
    def can_fill_the_disk(self) -> bool:
        return self._mounted

    @property
    def can_fill_the_notify_queue(self) -> bool:
        return self.cluster.version >= 17

    def connect(self, dbname: str = "postgres", **options: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.cluster.dsn(dbname), autocommit=True, **options)

    def start(self) -> None:
        """Start it if it is down, however long what is left of the one before takes to go."""
        for patience in range(60, -1, -1):
            try:
                self.cluster.start()
                return
            except EmbeddedError:
                if not patience:
                    raise
                time.sleep(0.5)

    def crash(self, how: str) -> None:
        """Crash it in one of the ways of schedule.CRASHES, and start it again."""
        if how == "backend":
            self._kill_backend()
            return
        self.expected += 1
        if how == "immediate":
            self.cluster.stop("immediate")
        elif how == "postmaster":
            postmaster = self.cluster.postmaster()
            postmaster.kill()
            postmaster.wait(30)
        else:
            self.cluster.kill()
        self.start()

    def _kill_backend(self) -> None:
        """The server takes down all others with it, and recovers by itself."""
        before = self.recoveries()
        with self.connect() as connection:
            victims = connection.execute(_SOME_BACKEND).fetchall()
        for (pid,) in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.expected += 1
                deadline = time.monotonic() + 60
                while self.recoveries() == before and time.monotonic() < deadline:
                    time.sleep(0.05)
        self.await_connection()

    def await_connection(self) -> None:
        """Wait until it accepts connections; start it if it has given up."""
        deadline = time.monotonic() + 120
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                if not self.cluster.running:
                    self.start()
                time.sleep(0.1)

    def recoveries(self) -> int:
        """How often it has recovered from a crash, according to its log."""
        with self.cluster.log.open("rb") as log:
            log.seek(self._read)
            text = log.read()
        whole = text.rpartition(b"\n")[0]
        self._read += len(whole)
        self._recoveries += whole.count(RECOVERY)
        return self._recoveries

    # The disk ---------------------------------------------------------------------------------------------------------

    def fill_disk(self) -> None:
        """Leave no free space."""
        ballast = self._ballast()
        space = os.statvfs(ballast.parent)
        filled, step = 0, space.f_bavail * space.f_frsize
        with ballast.open("wb") as file:
            while step >= space.f_frsize:
                try:
                    os.posix_fallocate(file.fileno(), filled, step)
                    filled += step
                except OSError:  # others take space meanwhile
                    step //= 2

    def empty_disk(self) -> None:
        """Make room again, and see to it that the server is up."""
        self._ballast().unlink(missing_ok=True)
        self.await_connection()

    def _ballast(self) -> Path:
        return self.cluster.data / "ballast"

    def delete(self) -> None:
        with contextlib.suppress(EmbeddedError):
            self.cluster.stop("immediate")
        if self._mounted:
            subprocess.run(["umount", "--lazy", self.cluster.data], check=False)
        self.cluster.delete()


def _mount(path: Path) -> bool:
    """Mount a disk in memory; False if that is not possible here."""
    user = _server_user()
    if user is None:
        return False
    path.mkdir(mode=0o700)
    options = f"size={DISK_SIZE},mode=0700,uid={user.pw_uid},gid={user.pw_gid}"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "pgqueue-chaos", path], check=False)
    if done.returncode:
        path.rmdir()
    return done.returncode == 0


SETTINGS: dict[str, str | int | bool] = {
    # The operating system survives all that happens here, so what was written is there.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "max_connections": 80,
    "max_prepared_transactions": 20,
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "min_wal_size": "80MB",
    "log_line_prefix": "%m [%p] %a: ",
    "restart_after_crash": "on",
}
