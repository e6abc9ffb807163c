"""The command line: `python -m tests.peers --help`."""

from __future__ import annotations

import datetime
import json
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tests.cluster import find_binaries

from .environment import BUILD, ROOT
from .field import FIELD, OURS
from .plan import FULL, QUICK, Plan
from .results import figure, show
from .server import Server
from .system import System
from .turns import Bench, Run, take, turns
from .workloads import WORKLOADS

PUBLISHED = ROOT / "docs" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"


def _chosen(context: click.Context, parameter: click.Parameter, value: str | None) -> list[System]:
    if value is None:
        return list(FIELD.values())
    names = value.split(",")
    if unknown := [name for name in names if name not in FIELD]:
        raise click.BadParameter(f"{', '.join(unknown)}; there are {', '.join(FIELD)}")
    return [system for name, system in FIELD.items() if name in names or name == OURS]


@click.command()
@click.option("--pg", default="16", show_default=True, help="16, 18, or a directory of binaries.")
@click.option("--quick", is_flag=True, help="Short turns and one round: minutes, and rough.")
@click.option("--rounds", type=click.IntRange(1), help="Turns of each system in the workloads that have several.")
@click.option("--only", multiple=True, type=click.Choice(list(WORKLOADS)), help="Measure only this; may be repeated.")
@click.option("--peers", callback=_chosen, help="Only these, with commas between; pgqueue always takes part.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=ROOT / "build" / "peers.json",
    help="Where the raw figures go.",
)
@click.option("--report", is_flag=True, help=f"Only make the page and its pictures, from docs/{PUBLISHED.name}.")
def main(
    pg: str, quick: bool, rounds: int | None, only: tuple[str, ...], peers: list[System], out: Path, report: bool
) -> None:
    """Measure pgqueue and the systems that one could take instead, on one server in one run."""
    if report:
        from .report import write  # matplotlib is an extra of its own

        for path in write(json.loads(PUBLISHED.read_text()), PAGE):
            click.echo(path)
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up then, too
    began = time.monotonic()
    plan = QUICK if quick else FULL
    systems, about = _install(peers, console)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="pgqueue-peers-") as folder, Server.start(find_binaries(pg)) as server:
        bench = Bench(server, plan, Path(folder))
        facts = server.facts()
        whole = tuple(name for name, workload in WORKLOADS.items() if not workload.only_if_named)
        for run in _measure(bench, systems, only or whole, rounds or plan.rounds):
            runs.append(run)
            console.print(f"{time.monotonic() - began:5.0f} s  {_line(run)}", highlight=False)
            facts |= {
                "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "took_seconds": round(time.monotonic() - began),
                "quick": quick,
            }
            _write(out, facts, about, plan, runs)  # after each turn, so that an interrupted run is not lost
    show(json.loads(out.read_text()), console)
    console.print(f"{len(runs)} turns in {facts['took_seconds']} s, raw figures in {out}")


def _install(systems: list[System], console: Console) -> tuple[list[System], dict[str, dict[str, Any]]]:
    """Make all environments; who cannot be installed is told of, and does not take part."""
    BUILD.mkdir(parents=True, exist_ok=True)
    there: list[System] = []
    about: dict[str, dict[str, Any]] = {}
    for system in systems:
        facts: dict[str, Any] = {
            "language": system.language,
            "settings": dict(system.settings),
            "recovery": system.recovery,
            "bulk": system.bulk,
        }
        try:
            facts["versions"] = system.install()
        except Exception as error:
            facts["error"] = str(error)
            console.print(f"{system.name} cannot be installed: {error}", style="red", highlight=False)
        else:
            there.append(system)
        about[system.name] = facts
    return there, about


def _measure(bench: Bench, systems: list[System], only: tuple[str, ...], rounds: int) -> Any:
    for name in only:
        workload = WORKLOADS[name]
        taking = [system for system in systems if not system.only or name in system.only]
        for number, system in turns(taking, rounds * workload.per_round or 1):
            yield take(bench, workload, number, system)


def _write(out: Path, facts: dict[str, Any], about: dict[str, Any], plan: Plan, runs: list[Run]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({**facts, "plan": plan.as_json(), "systems": about}, indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(run.as_json()) for run in runs)  # one turn a line
    out.write_text(f'{head},\n "runs": [\n{lines}\n ]\n}}\n')


def _line(run: Run) -> str:
    found = ", ".join(f"{name} {figure(value)}" for name, value in run.figures.items())
    return f"{run.workload} {run.round + 1} {run.system}: {run.error or found} ({run.took} s)"


if __name__ == "__main__":
    main()
