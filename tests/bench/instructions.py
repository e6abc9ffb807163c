"""Instructions per job, which do not wobble: `python -m tests.bench.instructions --help`.

A server in single-user mode runs under valgrind's callgrind, once with few calls and once with more: what the second
run takes in addition, per call, is the price of a call. No client, no commit that waits for a disk, no chance.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.cluster import find_binaries

from .server import PGQ_SQL, ROOT, Database, Server
from .systems import PAYLOAD, both

RELEASED = ROOT / "sql" / "upgrade" / "release"
FEW, MANY = 100, 300

# What a call does, the statement, and the jobs that it is about. The conventional queue has the same functions.
CALLS: list[tuple[str, str, int]] = [
    ("enqueue", f"SELECT pgq.enqueue('bench', '{PAYLOAD}')", 1),
    (
        "enqueue_many, 100 jobs",
        f"SELECT count(*) FROM pgq.enqueue_many('bench', array_fill('{PAYLOAD}'::jsonb, ARRAY[100]))",
        100,
    ),
    ("claim", "SELECT * FROM pgq.claim('bench')", 1),
    ("claim and ack", "SELECT pgq.ack(c.id, c.lease) FROM pgq.claim('bench') c", 1),
    (
        "claim and ack_many, 100 jobs",
        "SELECT count(*) FROM (SELECT array_agg(id) AS ids, array_agg(lease) AS leases FROM pgq.claim('bench', 100)) c,"
        " pgq.ack_many(c.ids, c.leases)",
        100,
    ),
]


@contextmanager
def installed(bin_dir: Path, script: Path) -> Iterator[Database]:
    """A database of a server that is down, with both systems, each with a queue with enough ready jobs."""
    with Server.start(bin_dir, script) as server, server.database() as database:
        for queue in both(database):
            queue.load(MANY * 100)
            queue.tidy()
        server.cluster.stop()
        try:
            yield database
        finally:
            server.cluster.start()


def count(database: Database, statement: str, calls: int) -> int:
    """Instructions of a server that starts, makes so many calls, and ends. The data are those of before, each time."""
    cluster = database.server.cluster
    owner = cluster.data.stat()
    with tempfile.TemporaryDirectory(prefix="pgqueue-instructions-") as folder:
        data, out = Path(folder) / "data", Path(folder) / "callgrind"
        shutil.copytree(cluster.data, data, ignore=shutil.ignore_patterns("postmaster.*"))
        if as_root := os.geteuid() == 0:
            for path in (Path(folder), data, *data.rglob("*")):
                os.chown(path, owner.st_uid, owner.st_gid)
        tool = ["setarch", "-R", "valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
        done = subprocess.run(
            [*tool, str(cluster.bin / "postgres"), "--single", "-D", str(data), database.name],
            input="SELECT setseed(0.5)\n" + f"{statement}\n" * calls,
            check=False,
            capture_output=True,
            text=True,
            cwd=folder,
            user=owner.st_uid if as_root else None,
            group=owner.st_gid if as_root else None,
        )
        found = re.search(r"Collected : (\d+)", done.stderr)
        if done.returncode or not found or "ERROR" in done.stderr:
            raise click.ClickException(f"valgrind failed:\n{done.stderr[-2000:]}")
        return int(found[1])


def measure(bin_dir: Path, script: Path, *schemas: str) -> list[list[float]]:
    """Instructions per job of each kind of call, for each schema."""
    with installed(bin_dir, script) as database:
        return [
            [
                (count(database, call, MANY) - count(database, call, FEW)) / (MANY - FEW) / jobs
                for call, jobs in ((statement.replace("pgq.", f"{schema}."), jobs) for _, statement, jobs in CALLS)
            ]
            for schema in schemas
        ]


@click.command()
@click.option("--pg", default="16", show_default=True, help="16, 18, or a directory of binaries.")
@click.option(
    "--sql", "ours", type=click.Path(exists=True, path_type=Path), default=PGQ_SQL, help="The script to measure."
)
@click.option(
    "--against",
    type=click.Path(exists=True, path_type=Path),
    default=RELEASED / "0.1.0" / "pgqueue.sql",
    help="The script to compare it with.",
)
def main(pg: str, ours: Path, against: Path) -> None:
    """Compare the instructions per job of two install scripts, and of a conventional queue.

    Needs valgrind; takes some minutes.
    """
    if not shutil.which("valgrind"):
        raise click.ClickException("valgrind is not installed; on Debian and Ubuntu: apt-get install valgrind")
    bin_dir = find_binaries(pg)
    (before,) = measure(bin_dir, against, "pgq")
    after, other = measure(bin_dir, ours, "pgq", "conv")
    table = Table("instructions per job", "before", "after", "change", "conventional", "ratio")
    for (name, _, _), old, new, theirs in zip(CALLS, before, after, other, strict=True):
        figures = (f"{old:,.0f}", f"{new:,.0f}", f"{new / old - 1:+.1%}", f"{theirs:,.0f}", f"{theirs / new:.2f}")
        table.add_row(name, *figures)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
