"""`python -m tests.failover`: many promotions under load."""

from __future__ import annotations

import logging
import secrets
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import click

from tests.cluster import find_binaries, kill_clusters
from tests.failover.rounds import Report, rounds

BUILD = Path(__file__).parent.parent.parent / "build"


@click.command()
@click.option("--rounds", "count", default=20, show_default=True, help="How many promotions.")
@click.option("--asynchronous", is_flag=True, help="The standby may lag; in every other round it is made to.")
@click.option("--jobs", default=100, show_default=True, help="Jobs enqueued and done before each kill, at least.")
@click.option("--seed", type=int, help="Draw what happens from this number.")
@click.option("--pg", default="18", show_default=True, help="16, 18 or a bin directory.")
@click.option("--keep", is_flag=True, help="Keep the histories and logs of the clients.")
def main(count: int, asynchronous: bool, jobs: int, seed: int | None, pg: str, keep: bool) -> None:
    """Kill the primary under load, promote the standby, bring the old one back, again and again."""
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it tells of each server that is no primary
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    click.echo(f"failover: {count} rounds, {'a' if asynchronous else ''}synchronous, --seed {seed}")
    root = Path(tempfile.mkdtemp(prefix="pgq-failover-", dir="/tmp"))
    root.chmod(0o711)
    try:
        report = _run(root, count, asynchronous, jobs, seed, pg)
    except BaseException:
        click.echo(f"histories and logs: {root}")
        raise
    finally:
        kill_clusters(root)
    BUILD.mkdir(exist_ok=True)
    (BUILD / f"failover{'-asynchronous' if asynchronous else ''}.json").write_text(report.json() + "\n")
    verdict = report.verdict
    click.echo(
        f"{len(report.outages)} promotions, outage median {statistics.median(report.outages):.2f} s,"
        f" max {max(report.outages):.2f} s; {verdict.jobs} jobs, {verdict.lost} lost, {verdict.doubled} doubled"
    )
    if asynchronous:
        click.echo(f"{report.lost_txns} transactions were committed, but not on the standby; only theirs may be lost")
    for flaw in verdict.broken[:50]:
        click.echo(f"BROKEN: {flaw}")
    if keep or verdict.broken:
        click.echo(f"histories and logs: {root}")
    else:
        shutil.rmtree(root, ignore_errors=True)
    sys.exit(bool(verdict.broken))


def _run(root: Path, count: int, asynchronous: bool, jobs: int, seed: int, pg: str) -> Report:
    with rounds(root / "run", find_binaries(pg), synchronous=not asynchronous, seed=seed) as running:
        for number in range(count):
            behind = asynchronous and number % 2 == 0
            outage = running.round(jobs, behind=behind)
            click.echo(f"round {number + 1}: outage {outage:.2f} s{', standby behind' if behind else ''}")
        return running.finish()


if __name__ == "__main__":
    main()
