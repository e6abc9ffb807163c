"""The command line of the benchmark: `python -m tests.bench --help`."""

from __future__ import annotations

import dataclasses
import datetime
import time
from pathlib import Path

import click
from rich.console import Console

from tests.cluster import find_binaries

from .report import Row, print_table, write_json
from .rows import Bench, measurements
from .server import PGQ_SQL, ROOT, Server

QUICK = {
    "seconds": 1,
    "rounds": 3,
    "pinned_seconds": 12,
    "deep_jobs": 1_000_000,
    "life_jobs": 100_000,
    "wakes": 100,
    "drain_jobs": 100_000,
}


@click.command()
@click.option("--pg", default="16", show_default=True, help="16, 18, or a directory of binaries.")
@click.option("--quick", is_flag=True, help="Short turns and small queues: minutes, and rough.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(measurements())),
    help="Measure only this; may be repeated.",
)
@click.option("--seconds", type=click.IntRange(1), help="Length of one turn.")
@click.option("--rounds", type=click.IntRange(1), help="Turns of each competitor.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=ROOT / "build" / "bench.json",
    help="Where the raw figures go.",
)
@click.option(
    "--sql",
    "pgq_sql",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=PGQ_SQL,
    help="The install script to measure.",
)
def main(
    pg: str,
    quick: bool,
    only: tuple[str, ...],
    seconds: int | None,
    rounds: int | None,
    out: Path,
    pgq_sql: Path,
) -> None:
    """Measure pgq against a bare INSERT and a conventional queue, on one server in one run."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    rows: list[Row] = []
    began = time.monotonic()
    with Server.start(find_binaries(pg), pgq_sql) as server:
        bench = Bench(server, **QUICK) if quick else Bench(server)
        bench = dataclasses.replace(bench, seconds=seconds or bench.seconds, rounds=rounds or bench.rounds)
        facts = server.facts()
        for name, measure in measurements().items():
            if only and name not in only:
                continue
            with console.status(f"{name} …"):
                for row in measure(bench):
                    rows.append(row)
                    console.print(f"{time.monotonic() - began:5.0f} s  {row}", highlight=False)
    facts |= {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "quick": quick,
        "took_seconds": round(time.monotonic() - began),
        "method": f"{bench.rounds} rounds of {bench.seconds} s, median of the rounds' ratios",
    }
    print_table(rows, facts, console)
    write_json(out, rows, facts)
    console.print(f"{len(rows)} rows in {facts['took_seconds']} s, raw figures in {out}")


if __name__ == "__main__":
    main()
