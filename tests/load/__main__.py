"""The command line of the load test: `python -m tests.load --help`."""

from __future__ import annotations

import datetime
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console

from tests.cluster import find_binaries

from .phases import Run
from .plan import Plan
from .report import read_samples, show, summary, write
from .server import ROOT, Server

DEFAULTS = Plan()


@click.command()
@click.option("--pg", default="18", show_default=True, help="16, 18, or a directory of binaries.")
@click.option("--minutes", type=click.FloatRange(0.01), default=DEFAULTS.minutes, show_default=True)
@click.option("--rate", type=click.IntRange(10), default=DEFAULTS.rate, show_default=True, help="Jobs per second.")
@click.option("--queues", type=click.IntRange(0), default=DEFAULTS.queues, show_default=True, help="In the wide phase.")
@click.option("--connections", type=click.IntRange(60), default=DEFAULTS.connections, show_default=True)
@click.option(
    "--wide-minutes", type=float, help="Length of the phase with many queues; a sixth of the rest if not given."
)
@click.option(
    "--sample", "sample_seconds", type=click.FloatRange(0.1), default=DEFAULTS.sample_seconds, show_default=True
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=ROOT / "build/load.json",
    help="The summary; the samples go beside it, as .jsonl.",
)
@click.option("--report", is_flag=True, help="Only show the last run, and draw its pictures.")
@click.option(
    "--images",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "docs/images",
    help="Where --report puts the pictures.",
)
def main(
    pg: str,
    minutes: float,
    rate: int,
    queues: int,
    connections: int,
    wide_minutes: float | None,
    sample_seconds: float,
    out: Path,
    report: bool,
    images: Path,
) -> None:
    """Offer jobs at a steady rate, sample everything, and account for every job at the end."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    lines = out.with_suffix(".jsonl")
    if report:
        from .plots import draw  # matplotlib is an extra of its own

        show(json.loads(out.read_text()), console)
        for path in draw(read_samples(lines), images):
            console.print(path)
        return
    plan = Plan(
        minutes=minutes,
        rate=rate,
        queues=queues,
        connections=connections,
        wide_minutes=wide_minutes,
        sample_seconds=sample_seconds,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up then, too
    out.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pgqueue-load-") as folder:
        place = Path(folder)
        place.chmod(0o711)  # under root the server belongs to another user
        with Server.start(place / "server", find_binaries(pg), connections) as server:
            facts = server.facts()
            console.print(f"{facts['postgres']}\n{plan}", highlight=False)
            outcome = Run(plan, server, place, lines, lambda line: console.print(line, highlight=False))()
    facts |= {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "took_seconds": round(time.monotonic() - began),
    }
    content = summary(plan, outcome, facts)
    write(out, content)
    show(content, console)
    console.print(f"summary in {out}, samples in {lines}")
    sys.exit(bool(content["violations"]))


if __name__ == "__main__":
    main()
