"""Writes the figures of the last long runs into docs/reliability.md: `python -m tests.reliability`.

Reads what `make chaos`, `make failover` and `make load` left in build/. A run that is missing is named as such: no
figure outlives the file that it came from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

Content = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the table. `least` is what a long run must reach, `zero` that there must be none."""

    what: str
    value: str
    least: int | None = None
    zero: bool = False
    number: float | None = None

    def __str__(self) -> str:
        if self.number is None or (self.least is None and not self.zero):
            return f"| {self.what} | {self.value} | |"
        met = self.number == 0 if self.zero else self.number >= (self.least or 0)
        wanted = "0" if self.zero else f"≥ {self.least:,}"
        return f"| {self.what} | {self.value} | {wanted}{'' if met else ', **missed**'} |"


def counted(what: str, number: int, least: int | None = None, zero: bool = False) -> Row:
    return Row(what, f"{number:,}", least, zero, number)


def amount(value: Any) -> int:
    """A number of violations, whether it was written as a number or as a list of them."""
    return value if isinstance(value, int) else len(value)


def chaos(run: Content) -> Iterator[Row]:
    yield Row("chaos", f"{run['minutes']:g} minutes, seed {run['seed']}")
    yield counted("jobs", run["jobs"])
    yield counted("crashes of the server", run["server_crashes"], least=1000)
    yield counted("workers and producers killed", run["killed_clients"], least=1000)
    yield counted("sessions terminated", run["terminated"])
    faults = ", ".join(f"{name} {count:,}" for name, count in sorted(run["faults"].items()))
    yield Row("other faults", faults or "none")
    yield from endings(run)


def failover(run: Content) -> Iterator[Row]:
    yield Row("failover", f"{run['mode']}")
    yield counted("promotions", run["rounds"], least=100)
    yield counted("jobs", run["jobs"])
    if outages := run["outage_seconds"]:
        yield Row("outage for clients, median and longest", f"{median(outages):.1f} s, {max(outages):.1f} s")
    yield from endings(run)


def load(run: Content) -> Iterator[Row]:
    yield Row(
        "load",
        f"{run['minutes']:g} minutes at {run['rate']:,} jobs/s, {run['connections']} connections, then"
        f" {run['queues']:,} queues",
    )
    yield counted("jobs", run["jobs"], least=10_000_000)
    yield from endings(run)


def endings(run: Content) -> Iterator[Row]:
    yield counted("jobs lost", run["lost"], zero=True)
    yield counted("jobs done twice", run["doubled"], zero=True)
    if "violations" in run:
        yield counted("violations of any kind", amount(run["violations"]), zero=True)


READERS = {"chaos": chaos, "failover": failover, "load": load}


def figures(build: Path, images: Path) -> str:
    """The section between the markers."""
    lines = ["| what | last long run | wanted |", "|---|---|---|"]
    runs: dict[str, Content] = {}
    for name, read in READERS.items():
        file = build / f"{name}.json"
        if file.exists():
            runs[name] = json.loads(file.read_text())
            title, *rows = read(runs[name])
            lines += [f"| **{title.what}** (`make {name}`) | {title.value} | |", *map(str, rows)]
        else:
            lines.append(f"| **{name}** (`make {name}`) | not run | |")
    if flat := runs.get("load", {}).get("flat"):
        lines += ["", *steadiness(flat)]
        pictures = sorted(images.glob("load-*.svg"))
        lines += [f"\n![{path.stem}]({images.name}/{path.name})" for path in pictures]
    return "\n".join(lines)


def steadiness(flat: list[Content]) -> Iterator[str]:
    """What stayed flat during the hour."""
    yield "| during the steady load | first tenth | last tenth | ratio | flat |"
    yield "|---|---|---|---|---|"
    words = {True: "yes", False: "**no**", None: ""}
    for row in flat:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        yield (
            f"| {row['what']} | {figure(row['first'])} {row['unit']} | {figure(row['last'])} {row['unit']} | {ratio}"
            f" | {words[row['flat']]} |"
        )


def figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def rewrite(text: str, section: str) -> str:
    """The document with a new section between its markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise click.ClickException(f"the document has no section between {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{section}\n{END}{tail}"


@click.command()
@click.option(
    "--build", type=click.Path(path_type=Path), default=ROOT / "build", help="Where the runs left their JSON."
)
@click.option("--document", type=click.Path(path_type=Path, exists=True), default=ROOT / "docs/reliability.md")
def main(build: Path, document: Path) -> None:
    """Rewrite the figures in docs/reliability.md from build/chaos.json, build/failover.json and build/load.json."""
    document.write_text(rewrite(document.read_text(), figures(build, document.parent / "images")))
    click.echo(f"wrote {document}")


if __name__ == "__main__":
    main()
