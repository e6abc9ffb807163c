"""`python -m tests.chaos`: the queue under fire.

A run is a series of rounds of some minutes. Each has a database of its own, clients and faults by a schedule, and ends
with the proof that nothing was lost and nothing doubled.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import click

from tests.chaos.conductor import Result, Round
from tests.chaos.processes import ROOT
from tests.chaos.schedule import FAULTS, Event, schedule
from tests.chaos.server import Server
from tests.chaos.violations import Kind

LONGEST_ROUND = 120.0
STORIES = 20
LOST = {Kind.LOST, Kind.STUCK, Kind.END_LOST, Kind.TORN}
DOUBLED = {Kind.DONE_TWICE, Kind.TWO_LEASES, Kind.AGAIN_AFTER_END, Kind.SETTLED_TWICE, Kind.ENQUEUED_TWICE}


def _faults(_: click.Context, __: click.Parameter, value: str) -> set[str]:
    wanted = set(FAULTS if value == "all" else filter(None, value.split(",")))
    if unknown := wanted - set(FAULTS):
        raise click.BadParameter(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    return wanted


@click.command()
@click.option("--minutes", default=5.0, show_default=True, help="How long faults and load go on.")
@click.option("--seed", help="Decides the schedule and what clients do; else a new one.")
@click.option("--faults", default="all", callback=_faults, show_default=True, help=f"Of {', '.join(FAULTS)}.")
@click.option("--without", default="", callback=_faults, help="Leave these out.")
@click.option("--pace", default=1.0, show_default=True, help="Pauses of the clients; 0: none.")
@click.option("--times", default=1.0, show_default=True, help="How many times as often as usual a fault happens.")
@click.option("--pg", default="18", show_default=True, help="16, 18 (from the wheel) or a bin directory.")
@click.option("--output", default=ROOT / "build", type=click.Path(path_type=Path), help="Where results go.")
def main(
    minutes: float,
    seed: str | None,
    faults: set[str],
    without: set[str],
    pace: float,
    times: float,
    pg: str,
    output: Path,
) -> None:
    """Try the queue under load with every fault there is."""
    seed = seed or str(random.SystemRandom().randrange(1_000_000))
    faults -= without
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rounds = max(round(minutes * 60 / LONGEST_ROUND), 1)
    seconds = minutes * 60 / rounds
    click.echo(
        f"seed {seed}, {rounds} rounds of {seconds:g} seconds, PostgreSQL {pg}, faults: {', '.join(sorted(faults))}"
    )
    plans = [schedule(f"{seed} {number}", seconds, faults, times) for number in range(rounds)]
    output.mkdir(exist_ok=True)
    written = "\n".join(_written(number, events) for number, events in enumerate(plans))
    (output / "chaos-schedule.txt").write_text(written + "\n")
    click.echo(
        written if len(plans) == 1 else f"schedule: {sum(map(len, plans))} faults, in {output}/chaos-schedule.txt"
    )
    history = output / "chaos"
    shutil.rmtree(history, ignore_errors=True)
    home = Path(tempfile.mkdtemp(prefix="pgq-chaos-", dir="/tmp"))
    home.chmod(0o711)
    total = Result()
    server: Server | None = None
    try:
        server = Server(home / "server", pg, disk="disk" in faults)
        for fault, possible in (("disk", server.can_fill_the_disk), ("notify", server.can_fill_the_notify_queue)):
            if fault in faults and not possible:
                click.echo(f"skipped: {fault} ({_WHY_NOT[fault]})")
        for number, events in enumerate(plans):
            began = time.monotonic()
            round_ = Round(server, f"r{number}", history, f"{seed} {number}", events, faults, pace)
            try:
                result = round_.play(seconds)
            except KeyboardInterrupt:
                if not number:
                    raise
                click.echo("ended early; what follows is of the rounds before")
                minutes = number * seconds / 60
                break
            total.add(result)
            _report(f"round {number} ({time.monotonic() - began:.0f} s)", result)
            if result.violations:
                _keep(round_.folder, result, server)
            else:
                shutil.rmtree(round_.folder)
    finally:
        if server is not None:
            server.delete()
        shutil.rmtree(home, ignore_errors=True)
    _report("all", total)
    figures = _figures(seed, minutes, total)
    (output / "chaos.json").write_text(json.dumps(figures, indent=2) + "\n")
    if total.violations:
        again = f"--seed {seed} --minutes {minutes:g} --pace {pace:g} --times {times:g} --pg {pg}"
        click.echo(f"\nThe histories are kept in {history}. Again: {again}")
        sys.exit(1)


def _written(number: int, events: list[Event]) -> str:
    text = "; ".join(map(str, events)) or "no faults"
    return textwrap.fill(f"round {number}: {text}", 120, subsequent_indent="  ")


_WHY_NOT = {
    "disk": "it takes root and a kernel that lets it mount a tmpfs",
    "notify": "before PostgreSQL 17 the queue cannot be made small",
}


def _figures(seed: str, minutes: float, total: Result) -> dict[str, Any]:
    kinds = [violation.kind for violation in total.violations]
    return {
        "seed": seed,
        "minutes": minutes,
        "jobs": total.jobs,
        "server_crashes": total.server_crashes,
        "killed_clients": total.killed_clients,
        "terminated": total.terminated,
        "faults": dict(sorted(total.faults.items())),
        "lost": sum(kind in LOST for kind in kinds),
        "doubled": sum(kind in DOUBLED for kind in kinds),
        "violations": {kind.name: kinds.count(kind) for kind in Kind if kind in kinds},
    }


def _report(title: str, result: Result) -> None:
    figures = _figures("", 0, result)
    click.echo(
        f"{title}: {result.jobs} jobs, {result.server_crashes} crashes of the server, {result.killed_clients} clients "
        f"killed, {result.terminated} sessions terminated, {figures['lost']} lost, {figures['doubled']} doubled, "
        f"{len(result.violations)} violations"
    )
    faults = ", ".join(f"{count} × {name}" for name, count in sorted(result.faults.items()))
    click.echo(textwrap.fill(f"faults: {faults}", 120, initial_indent="  ", subsequent_indent="  "))
    for violation in result.violations[:STORIES] if title != "all" else ():
        click.echo(textwrap.indent(str(violation), "  "))


def _keep(folder: Path, result: Result, server: Server) -> None:
    """Keep what is needed to find out why."""
    (folder / "violations.txt").write_text("\n\n".join(map(str, result.violations)) + "\n")
    shutil.copyfile(server.cluster.log, folder / "server.log")


if __name__ == "__main__":
    main()
