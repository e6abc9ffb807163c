"""The table on the terminal and the figures in build/bench.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Wanted:
    """A bound: on the ratio where there is somebody to compare with, else on pgq's own figure."""

    kind: str  # 'at least' or 'at most'
    value: float

    def met(self, figure: float) -> bool:
        return figure >= self.value if self.kind == "at least" else figure <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.kind == 'at least' else '≤'} {self.value:g}"


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    name: str
    unit: str
    pgq: float
    against: str = ""
    other: float | None = None
    ratio: float | None = None
    wanted: Wanted | None = None
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool | None:
        if self.wanted is None:
            return None
        return self.wanted.met(self.pgq if self.ratio is None else self.ratio)

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f", ratio {self.ratio:.2f}"
        other = "" if self.other is None else f" / {_figure(self.other)}"
        return f"{self.name.strip()}: {_figure(self.pgq)}{other} {self.unit}{ratio}"


def at_least(value: float) -> Wanted:
    return Wanted("at least", value)


def at_most(value: float) -> Wanted:
    return Wanted("at most", value)


def print_table(rows: list[Row], facts: dict[str, Any], console: Console) -> None:
    table = Table(title="pgqueue benchmark", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("what", min_width=30)
    table.add_column("pgq", justify="right", no_wrap=True)
    table.add_column("other", justify="right", no_wrap=True)
    table.add_column("against")
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("wanted", justify="right", no_wrap=True)
    table.add_column("met", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            f"{_figure(row.pgq)} {row.unit}",
            "" if row.other is None else f"{_figure(row.other)} {row.unit}",
            row.against,
            "" if row.ratio is None else f"{row.ratio:.2f}",
            str(row.wanted or ""),
            {None: "", True: "[green]yes[/]", False: "[red]NO[/]"}[row.ok],
        )
    console.print(table)
    settings = ", ".join(f"{name} = {value}" for name, value in facts["settings"].items())
    console.print(f"{facts['postgres']}\n{settings}", style="dim", highlight=False)
    console.print(
        f"{facts['cpus']} × {facts['cpu']}, {facts['memory_gb']} GB,"
        f" one 8 kB fdatasync {facts['fdatasync_us']} µs; {facts['method']}",
        style="dim",
        highlight=False,
    )


def write_json(path: Path, rows: list[Row], facts: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        **facts,
        "rows": [
            {
                **asdict(row),
                "wanted": str(row.wanted) if row.wanted else None,
                "ok": row.ok,
            }
            for row in rows
        ],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def _figure(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
