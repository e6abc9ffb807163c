"""Runs pgbench and reads what it prints and logs."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .server import Database

SCRIPTS = Path(__file__).resolve().parent / "scripts"


class BenchmarkError(Exception):
    """The run did not measure what it should have: no figure is better than a wrong one."""


@dataclass(frozen=True)
class Run:
    """One run of pgbench."""

    transactions: int
    seconds: float
    cpu_seconds: float = 0  # of the server, whatever it did meanwhile
    progress: list[float] = field(default_factory=list)  # transactions/s of each second
    latencies: list[float] = field(default_factory=list)  # ms of each transaction

    @property
    def tps(self) -> float:
        return self.transactions / self.seconds

    def percentile(self, percent: float) -> float:
        return percentile(self.latencies, percent)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed."""
    if not values:
        raise BenchmarkError("nothing was measured")
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=1000, method="inclusive")[round(percent * 10) - 1]


def command(
    database: Database,
    script: Path,
    *,
    clients: int,
    seconds: int | None = None,
    transactions: int | None = None,
    variables: Mapping[str, str] | None = None,
    rate: float | None = None,
    protocol: str = "prepared",
) -> list[str]:
    """The command line; `transactions` is for each client."""
    if (seconds is None) == (transactions is None):
        raise ValueError("give either seconds or transactions")
    words = [str(database.server.cluster.bin / "pgbench"), "--no-vacuum", "-M", protocol]
    words += ["-c", str(clients), "-j", str(min(clients, os.cpu_count() or 1))]
    words += ["-T", str(seconds)] if seconds else ["-t", str(transactions)]
    words += ["-f", str(script)]
    for name, value in (variables or {}).items():
        words += ["-D", f"{name}={value}"]
    if rate is not None:
        words += ["-R", f"{rate:g}"]
    return [*words, database.dsn]


def environment(search_path: str, synchronous_commit: bool = True) -> dict[str, str]:
    options = f"-c search_path={search_path},pg_catalog"
    if not synchronous_commit:
        options += " -c synchronous_commit=off"
    return {**os.environ, "PGOPTIONS": options, "LC_ALL": "C"}


def run(
    database: Database,
    script: str | Path,
    *,
    search_path: str,
    clients: int,
    seconds: int | None = None,
    transactions: int | None = None,
    variables: Mapping[str, str] | None = None,
    progress: bool = False,
    log: bool = False,
    synchronous_commit: bool = True,
) -> Run:
    """Runs a script to its end; a client that fails fails the benchmark."""
    words = command(
        database,
        SCRIPTS / script,
        clients=clients,
        seconds=seconds,
        transactions=transactions,
        variables=variables,
    )
    with tempfile.TemporaryDirectory(prefix="pgqueue-pgbench-") as folder:
        if progress:
            words[-1:-1] = ["-P", "1"]
        if log:
            words[-1:-1] = ["-l", f"--log-prefix={folder}/log"]
        cpu = database.server.cpu_seconds()
        ran = subprocess.run(
            words,
            env=environment(search_path, synchronous_commit),
            capture_output=True,
            text=True,
            check=False,
        )
        time.sleep(0.2)  # for the backends to end, and the postmaster to count them
        cpu = database.server.cpu_seconds() - cpu
        if ran.returncode != 0:
            raise BenchmarkError(f"{' '.join(words)}\n{ran.stderr[-3000:]}")
        # client, transaction, time in µs, script, epoch, µs
        latencies = [
            float(line.split()[2]) / 1000
            for file in sorted(Path(folder).iterdir())
            for line in file.read_text().splitlines()
        ]
    done = _number(r"transactions actually processed: (\d+)", ran.stdout)
    tps = _number(r"tps = ([\d.]+)", ran.stdout)
    if done == 0 or tps == 0:
        raise BenchmarkError(f"no transaction was processed\n{ran.stdout}")
    return Run(
        transactions=int(done),
        seconds=done / tps,
        cpu_seconds=cpu,
        progress=[float(n) for n in re.findall(r"^progress: .* s, ([\d.]+) tps", ran.stderr, re.M)],
        latencies=latencies,
    )


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if not found:
        raise BenchmarkError(f"pgbench did not say {pattern!r}:\n{text}")
    return float(found[1])
