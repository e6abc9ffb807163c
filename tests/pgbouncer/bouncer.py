"""A private PgBouncer in transaction mode in front of a server under test."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import psutil
import psycopg
from psycopg.conninfo import make_conninfo

from pgqueue.embedded import _run_as, _server_user
from tests.cluster import Cluster
from tests.sql.support import eventually

SETTINGS: dict[str, str | int] = {
    "pool_mode": "transaction",
    # A client gets another session with each transaction, as far as there are some: whatever leaks is found.
    "server_round_robin": 1,
    "min_pool_size": 3,
    "default_pool_size": 40,
    "max_client_conn": 500,
    "server_login_retry": 1,
    "server_connect_timeout": 5,
    "ignore_startup_parameters": "extra_float_digits",
}


PID_FILE = "bouncer.pid"


def find_program() -> Path | None:
    """The program, None if it is not installed. Debian puts it where only root looks."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


class PgBouncer:
    """PgBouncer on a Unix socket, for all databases and users of a server.

    Args:
        program: the program.
        path: directory for its files, with a short path.
        server: who is behind it.
        settings: instead of SETTINGS.
    """

    def __init__(self, program: Path, path: Path, server: Cluster, **settings: str | int) -> None:
        self.program = program
        self.path = path
        self.port = 6432
        self.log = path / "log"
        self._server = server
        self._settings = {**SETTINGS, **settings}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def version(self) -> tuple[int, int]:
        """Its version, for instance (1, 18)."""
        text = subprocess.run([self.program, "--version"], check=True, capture_output=True, text=True).stdout
        numbers = re.search(r"PgBouncer (\d+)\.(\d+)", text)
        assert numbers is not None, text
        return int(numbers[1]), int(numbers[2])

    def start(self) -> None:
        """Start it, as the server's user: like the server it refuses to run as root."""
        self.path.mkdir(exist_ok=True)
        user = _server_user()
        config = {
            "listen_port": self.port,
            "unix_socket_dir": self.path,
            "logfile": self.log,
            "auth_type": "trust",
            "auth_user": self._server.superuser,
            "auth_query": "SELECT usename, passwd FROM pg_shadow WHERE usename = $1",
            "auth_file": self.path / "users",
            "admin_users": self._server.superuser,
            **self._settings,
        }
        (self.path / "users").write_text(f'"{self._server.superuser}" ""\n')
        (self.path / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={self._server.host} port={self._server.port}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in config.items())
        )
        if user is not None:
            for path in (self.path, *self.path.iterdir()):
                os.chown(path, user.pw_uid, user.pw_gid)
        self._process = subprocess.Popen(
            [self.program, "--quiet", self.path / "pgbouncer.ini"], cwd="/", stdin=subprocess.DEVNULL,
            **_run_as(user),
        )  # fmt: skip
        (self.path / PID_FILE).write_text(str(self._process.pid))
        eventually(self._answers, "an answer of PgBouncer", 60)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text() if self.log.exists() else "PgBouncer ended"
        try:
            self.admin("SHOW VERSION")
        except psycopg.OperationalError:
            return False
        return True

    def admin(self, command: str) -> list[tuple[object, ...]]:
        """Run a command of its console, and return the rows."""
        dsn = make_conninfo(host=str(self.path), port=self.port, dbname="pgbouncer", user=self._server.superuser)
        with psycopg.connect(dsn, autocommit=True) as console:
            cursor = psycopg.ClientCursor(console)  # it knows only the simple protocol
            cursor.execute(command.encode())
            return cursor.fetchall() if cursor.description else []

    def dsn(self, direct: str) -> str:
        """Return the connection string that leads through it to the same database."""
        return make_conninfo(direct, host=str(self.path), port=self.port)

    def stop(self) -> None:
        """Stop it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def kill_bouncers(root: Path) -> None:
    """Kill those whose directories lie below `root`, whoever started them: the last resort after an abort."""
    for pid_file in root.glob(f"**/{PID_FILE}"):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(pid_file.read_text()))
            if process.name() == "pgbouncer":
                process.kill()
