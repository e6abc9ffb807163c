"""Checksums of every file in a folder, computed by workers of which one is killed half-way: `make demo`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import psycopg
from psycopg.types.json import Jsonb
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from examples.demo import server as demo_server
from examples.demo.app import checksum
from pgqueue.embedded import EmbeddedPostgres

QUEUE = "files"
WORKERS = 2
Connection = psycopg.Connection[tuple[Any, ...]]
console = Console(highlight=False, soft_wrap=True)


def find_files(folder: Path | None) -> list[str]:
    """Return every regular file below a folder; by default Python's standard library without installed packages."""
    top = folder or Path(sysconfig.get_paths()["stdlib"])
    found = []
    for directory, subdirectories, names in os.walk(top.resolve()):
        if folder is None:
            subdirectories[:] = [name for name in subdirectories if name not in ("site-packages", "dist-packages")]
        paths = (Path(directory, name) for name in names)
        found += [str(path) for path in paths if path.is_file() and not path.is_symlink() and _is_text(str(path))]
    return sorted(found)


def _is_text(path: str) -> bool:
    """Return whether a name is UTF-8; others cannot be stored as text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def enqueue(connection: Connection, paths: list[str]) -> list[int]:
    """Enqueue one job for each file, all of them or, should anything fail, none."""
    with connection.transaction():
        # A short lease, so that the jobs of the killed worker are soon back.
        connection.execute(
            "SELECT pgq.create_queue(%s, lease => '5 seconds', max_attempts => 3, backoff => '0.2 seconds')", [QUEUE]
        )
        return [
            id_
            for (id_,) in connection.execute(
                "SELECT pgq.enqueue_many(%s, %s, task => 'checksum')",
                [QUEUE, [Jsonb({"path": path}) for path in paths]],
            )
        ]


class Worker:
    """A pgq-worker process."""

    def __init__(self, dsn: str, log: Path) -> None:
        self.log = log
        command = [str(Path(sys.executable).with_name("pgq-worker")), "examples.demo.app:app"]
        options = ["--queue", QUEUE, "--concurrency", "8", "--dsn", dsn]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *options],
                cwd=demo_server.ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the workers
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raise if it has ended by itself."""
        if (code := self.process.poll()) is not None:
            raise click.ClickException(f"worker {self.pid} ended with {code}:\n{self.log.read_text()}")

    def kill(self) -> None:
        """Kill it as a crash or the OOM killer would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Let it finish what it runs, and end."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()


class Speed(ProgressColumn):
    """Jobs per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} jobs/s")


def run(connection: Connection, total: int, new_worker: Callable[[], Worker]) -> None:
    """Run workers until every job is done or dead, and kill one of them when half are."""
    workers = [new_worker() for _ in range(WORKERS)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("checksums", total=total)
            killed = False
            for settled in _watch(connection, total):
                progress.update(bar, completed=settled)
                for worker in workers:
                    worker.check()
                if not killed and settled >= total / 2:
                    killed = True
                    victim = workers.pop(0)
                    victim.kill()
                    workers.append(new_worker())
                    progress.print(
                        f"{settled} jobs done: killed worker {victim.pid} with SIGKILL, started {workers[-1].pid}. "
                        "What the dead one held comes back when its lease of 5 s expires."
                    )
    finally:
        for worker in workers:
            worker.stop()


def _watch(connection: Connection, total: int) -> Iterator[int]:
    """Yield how many jobs are settled until all are."""
    settled = 0
    while settled < total:
        time.sleep(0.1)
        row = connection.execute(
            "SELECT ready + running + scheduled + retrying FROM pgq.stats() WHERE queue = %s", [QUEUE]
        ).fetchone()
        assert row is not None
        settled = total - row[0]
        yield settled


@dataclass
class Report:
    """What became of the jobs."""

    jobs: int
    states: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    matching: int = 0
    changed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Jobs that are neither done nor dead."""
        return self.jobs - self.states["done"] - self.states["dead"]

    @property
    def good(self) -> bool:
        return self.lost == 0 and not self.wrong

    def print(self) -> None:
        console.print(f"{self.matching} results match their file, computed again")
        for title, paths in (
            ("files changed meanwhile", self.changed),
            ("files could not be read, their jobs are dead letters", self.dead),
            ("results are WRONG", self.wrong),
        ):
            if paths:
                some = ", ".join(paths[:3]) + (", …" if paths[3:] else "")
                console.print(f"{len(paths)} {title}: {some}", markup=False)


def verify(connection: Connection, ids: list[int], paths: list[str], started: float) -> Report:
    """Compute every result again, here, and compare it with what the job stored."""
    report = Report(len(ids))
    rows = connection.execute(
        "SELECT s.id, s.state, s.attempt, s.result FROM unnest(%s::bigint[]) job (id), pgq.job_status(job.id) s", [ids]
    )
    status = {id_: (state, attempt, result) for id_, state, attempt, result in rows}
    with ThreadPoolExecutor() as pool:
        for id_, path, expected in zip(ids, paths, pool.map(_checksum_again, paths), strict=True):
            state, attempt, result = status.get(id_, ("lost", 0, None))
            report.states[state] += 1
            report.retried += attempt > 1
            if state == "dead":
                report.dead.append(path)
            elif state == "done" and result == expected:
                report.matching += 1
            elif state == "done":
                (report.changed if _changed_since(path, started) else report.wrong).append(path)
    return report


def _checksum_again(path: str) -> object:
    try:
        return checksum(path)
    except OSError:
        return None


def _changed_since(path: str, moment: float) -> bool:
    try:
        return Path(path).stat().st_mtime >= moment - 1  # file systems have coarse clocks
    except OSError:
        return True


@click.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--keep", is_flag=True, help="Leave the server running at the end.")
@click.option("--stop", is_flag=True, help="Only stop the server that an earlier demo left running.")
@click.option(
    "--link",
    type=click.Path(path_type=Path),
    default=demo_server.ROOT / ".demo",
    help="Symbolic link to make to the server's directory.",
)
def main(folder: Path | None, keep: bool, stop: bool, link: Path) -> None:
    """Compute checksums of every file in FOLDER (default: Python's standard library) with pgqueue."""
    if stop:
        console.print("stopped and deleted" if demo_server.remove(link) else "there is no server to stop")
        return
    paths = find_files(folder)
    if not paths:
        raise click.ClickException(f"there are no files in {folder}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    good = False
    try:
        good = demo(demo_server.start(link), paths, keep)
    finally:
        if not (keep and good):
            demo_server.remove(link)
    sys.exit(0 if good else 1)


def demo(server: EmbeddedPostgres, paths: list[str], keep: bool) -> bool:
    """Run it all; return whether every job was settled and every result is right."""
    started = time.time()
    dsn = server.dsn(demo_server.DATABASE)
    wait = not keep and sys.stdin.isatty()
    until = (
        "until `make demo-stop` or the next demo" if keep
        else "until you press Enter at the end" if wait
        else "while the demo runs; `make demo KEEP=1` leaves it up"
    )  # fmt: skip
    console.print(f"PostgreSQL {server.version} with pgqueue is up {until}. Look inside with")
    console.print(f"\n  {demo_server.psql_line(server)}\n")
    console.print("  SELECT * FROM pgq.stats();        -- how many jobs are ready, running, dead")
    console.print("  SELECT * FROM pgq.job_status(1);  -- one job and its result\n")

    with psycopg.connect(dsn, autocommit=True) as connection:
        begun = time.monotonic()
        ids = enqueue(connection, paths)
        console.print(f"enqueued {len(ids)} jobs in one transaction, in {time.monotonic() - begun:.2f} s")
        number = iter(range(1, 100))
        run(connection, len(ids), lambda: Worker(dsn, server.path / f"worker-{next(number)}.log"))
        report = verify(connection, ids, paths, started)
    report.print()
    console.print(
        f"{report.jobs} jobs, {report.states['done']} done, {report.retried} retried, {report.lost} lost",
        style="bold green" if report.good else "bold red",
    )
    if wait:
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            input()
    return report.good


if __name__ == "__main__":
    main(prog_name="make demo")
