"""A primary and its streaming standby, which change places again and again.

Operated as most people do it: the standby is synchronous while there is one; after a promotion the new primary commits
alone until the old one is back and has caught up.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg.conninfo import make_conninfo

from tests.cluster import FAST, Cluster, free_port

SETTINGS: dict[str, str | int | bool] = {
    **FAST,
    "listen_addresses": "127.0.0.1",
    # pg_rewind needs both, and the WAL since the last checkpoint that both servers have seen.
    "wal_log_hints": "on",
    "full_page_writes": "on",
    "wal_keep_size": "2GB",
    "wal_retrieve_retry_interval": "100ms",
    "shared_buffers": "64MB",
    "max_connections": 100,
    "synchronous_standby_names": "",
}
_COMMIT = re.compile(r"tx:\s+(\d+), lsn: ([0-9A-F]+/[0-9A-F]+),.* desc: COMMIT ")


def eventually(condition: Callable[[], object], what: str, timeout: float = 60) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} seconds: {what}"
        time.sleep(0.01)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Node(Cluster):
    """One of the two servers; what it is at the moment, the Pair knows."""

    _killed: Sequence[psutil.Process] = ()

    def kill(self) -> None:
        """Kill every process of the server at once. They are dead on return, but may not yet be buried."""
        postmaster = self.postmaster()
        postmaster.suspend()  # so that it starts no further process meanwhile
        self._killed = [postmaster, *postmaster.children(recursive=True)]
        for process in self._killed:
            process.kill()
        eventually(lambda: not any(map(_alive, self._killed)), "the death of the server")

    @property
    def running(self) -> bool:
        """Whether the server is up. A dead process that is not buried still counts as one that runs."""
        psutil.wait_procs(self._killed, timeout=60)
        return super().running

    def configure(self, **settings: str) -> None:
        """Change settings of the running server. Has taken effect, wherever that matters here, on return."""
        self.config.update(settings)
        self._configure()
        self._run("pg_ctl", "reload", "-D", self.data)
        eventually(lambda: all(self.fetch(f"SHOW {name}") == value for name, value in settings.items()), str(settings))
        # A session that began after the postmaster has read the file: so it has told the checkpointer, who is the one
        # that makes commits wait for a standby. He looks for news between two checkpoints.
        for _ in range(2):
            self.fetch("CHECKPOINT")

    def fetch(self, query: str, dbname: str = "postgres") -> Any:
        """The first value of what a query returns in a session of its own, None if it returns nothing."""
        with psycopg.connect(self.dsn(dbname), autocommit=True) as connection:
            cursor = connection.execute(query)
            row = cursor.fetchone() if cursor.description else None
            return row and row[0]

    def clone(self, source: Node) -> None:
        """Become a copy of a running server."""
        self._prepare()
        self._run("pg_basebackup", "--checkpoint=fast", "--no-sync", "-D", self.data, "-d", source.tcp())

    def rewind(self, source: Node) -> None:
        """Forget what the other server does not know, and learn what it does. This one must be down."""
        assert not self.running
        self._run("pg_rewind", "--no-sync", "-D", self.data, f"--source-server={source.tcp()}")

    def follow(self, source: Node) -> None:
        """Start as the standby of another server."""
        self.config["primary_conninfo"] = source.tcp()
        signal = self.data / "standby.signal"
        signal.touch()
        self.start()

    def promote(self) -> None:
        """Become the primary, and take writes on return."""
        self._run("pg_ctl", "promote", "--wait", "--timeout=120", "-D", self.data)

    def tcp(self, dbname: str = "postgres") -> str:
        """Connection string that does not depend on the socket's directory."""
        return make_conninfo(host="127.0.0.1", port=self.port, dbname=dbname, user=self.superuser)


class Pair:
    """Two servers, one of which is the primary.

    Args:
        path: directory for both; its parent must be open to the server's user.
        bin_dir: the binaries.
        synchronous: whether commits wait for the standby, whenever there is one.
    """

    def __init__(self, path: Path, bin_dir: Path, *, synchronous: bool) -> None:
        path.mkdir()
        path.chmod(0o711)
        self.synchronous = synchronous
        self.primary, self.standby = (
            Node(path / name, bin_dir=bin_dir, config={**SETTINGS, "port": free_port()}) for name in "ab"
        )
        self._whole = False
        # The order of the hosts in the connection string never changes, whoever is the primary.
        self._ports = f"{self.primary.port},{self.standby.port}"

    def start(self, prepare: Callable[[Node], None]) -> None:
        """Start both; `prepare` fills the primary before there is a standby."""
        self.primary.start()
        prepare(self.primary)
        self.standby.clone(self.primary)
        self.standby.follow(self.primary)
        self.wait_in_sync()

    def dsn(self, dbname: str, **options: str) -> str:
        """What a client needs to find the primary, whichever it is."""
        return make_conninfo(
            host="127.0.0.1,127.0.0.1", port=self._ports, dbname=dbname, user=self.primary.superuser,
            target_session_attrs="read-write", connect_timeout="10", **options,
        )  # fmt: skip

    def wait_in_sync(self) -> None:
        """Wait until everything acknowledged so far is on the standby, and switch synchronous commits on."""
        self._caught_up("streaming")
        if self.synchronous:
            self.primary.configure(synchronous_standby_names="*")
            # Whoever was acknowledged without waiting has flushed his commit before this position.
            self._caught_up("sync")
        self._whole = True

    def _caught_up(self, state: str) -> None:
        now = self.primary.fetch("SELECT pg_current_wal_flush_lsn()")
        column = "state" if state == "streaming" else "sync_state"
        query = f"SELECT count(*) FROM pg_stat_replication WHERE {column} = '{state}' AND flush_lsn >= '{now}'"
        eventually(lambda: self.primary.fetch(query) == 1, f"the standby is {state} at {now}")

    def cut(self) -> None:
        """Let the standby hear nothing more, so that it falls behind."""
        self._whole = False
        self.standby.configure(primary_conninfo="")
        query = "SELECT count(*) FROM pg_stat_replication"
        eventually(lambda: self.primary.fetch(query) == 0, "the standby is cut off")

    def fail(self) -> None:
        """Kill the primary with all its sessions."""
        self._whole = False
        self.primary.kill()

    def promote(self) -> None:
        """Make the standby the primary; from then on the old one may only come back as a standby."""
        self.primary, self.standby = self.standby, self.primary
        self.primary.promote()

    def lost(self) -> set[tuple[int, int]]:
        """The transactions that the old primary has committed and the new one does not know: timeline and xid.

        Read from the WAL of the old one, behind the place where the new one has left its history. To be asked between
        promotion and `rejoin`.
        """
        timeline, switched_at = self._switch()
        high, low = (int(part, 16) for part in switched_at.split("/"))
        # Named, or pg_waldump would learn the size of files from any, and the killed server may have left an empty one.
        first = f"{timeline:08X}{high:08X}{low >> 24:08X}"
        done = subprocess.run(
            [
                self.primary.bin / "pg_waldump", "--rmgr=Transaction", f"--timeline={timeline}",
                f"--start={switched_at}", "--path", self.standby.data / "pg_wal", first,
            ],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        # It always ends with the complaint that the log ends. Nothing at all behind the switch is one of these, too.
        if not re.search(r"invalid record|could not find a valid record|invalid magic|record with", done.stderr):
            raise AssertionError(f"pg_waldump: {done.stderr}")
        return {(timeline, int(xid)) for xid, _ in _COMMIT.findall(done.stdout)}

    def _switch(self) -> tuple[int, str]:
        """The old timeline, and where the new primary has left it."""
        history = max((self.primary.data / "pg_wal").glob("*.history"))
        timeline, position, _ = history.read_text().splitlines()[-1].split("\t")
        return int(timeline), position

    def rejoin(self) -> None:
        """Bring the old primary back as the standby of the new one."""
        self.primary.fetch("CHECKPOINT")  # pg_rewind reads the timeline from the control file
        self.standby.config["synchronous_standby_names"] = ""
        self.standby.rewind(self.primary)
        self.standby.follow(self.primary)
        self.wait_in_sync()

    def mend(self) -> None:
        """Bring the old primary back after a promotion, unless that was done."""
        if not self._whole:
            self.rejoin()

    def delete(self) -> None:
        """Stop both, and delete them."""
        self.standby.delete()
        self.primary.delete()


@contextmanager
def paired(path: Path, bin_dir: Path, prepare: Callable[[Node], None], *, synchronous: bool) -> Iterator[Pair]:
    """A running pair."""
    pair = Pair(path, bin_dir, synchronous=synchronous)
    try:
        pair.start(prepare)
        yield pair
    finally:
        pair.delete()
