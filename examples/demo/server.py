"""The demo's own server, in a new private directory each time; the link `.demo` in the clone leads there."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path

import psycopg

from pgqueue.embedded import EmbeddedPostgres

ROOT = Path(__file__).parent.parent.parent
SQL = ROOT / "python/src/pgqueue/sql/pgqueue.sql"
DATABASE = "demo"
_PREFIX = "pgqueue-demo-"


def start(link: Path) -> EmbeddedPostgres:
    """Remove what an earlier demo left, then start a new server and install pgqueue in its database `demo`."""
    remove(link)
    # Not inside the clone: a socket's path must be short, and under root another user must be able to get there.
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    link.symlink_to(path)
    server = EmbeddedPostgres(path, config={"max_connections": 50})
    server.start()
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}")
    with psycopg.connect(server.dsn(DATABASE), autocommit=True) as connection:
        connection.execute(SQL.read_bytes())
    return server


def remove(link: Path) -> bool:
    """Stop the server of the last demo and delete its directory. Return whether there was one."""
    if not link.is_symlink():
        return False
    path = link.readlink()
    found = path.name.startswith(_PREFIX) and path.is_dir()
    if found:
        EmbeddedPostgres(path).delete()
    link.unlink()
    return found


def psql_line(server: EmbeddedPostgres) -> str:
    """Return the command with which to look inside; with the wheel's psql if there is no other."""
    psql = "psql" if shutil.which("psql") else str(server.bin / "psql")
    return shlex.join([psql, "-h", server.host, "-U", server.superuser, DATABASE])
