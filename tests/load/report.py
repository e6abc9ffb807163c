"""The summary of a run: its JSON, and the table that says what stayed flat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .metrics import METRICS, Metric
from .phases import Outcome
from .plan import Plan
from .sample import Sample

# What counts as steady: after the warm-up and before the many queues.
STEADY = ("steady", "pinned")


@dataclass(frozen=True)
class Trend:
    """The median of a figure in the first and the last tenth of the steady time, and its extreme in all of it."""

    metric: Metric
    first: float
    last: float
    largest: float

    @property
    def ratio(self) -> float | None:
        return self.last / self.first if self.first else None

    @property
    def flat(self) -> bool | None:
        return self.metric.flat(self.first, self.last)


def steady(samples: Sequence[Sample]) -> list[Sample]:
    return [s for s in samples if s["phase"] in STEADY]


def trends(samples: Sequence[Sample]) -> list[Trend]:
    """How each figure went in the steady time."""
    chosen = steady(samples)
    tenth = max(len(chosen) // 10, 1)
    found = []
    for metric in METRICS:
        first = [s[metric.key] for s in chosen[:tenth] if s[metric.key] is not None]
        last = [s[metric.key] for s in chosen[-tenth:] if s[metric.key] is not None]
        if first and last:
            largest = max(s[metric.key] for s in chosen if s[metric.key] is not None)
            typical = max if metric.peak else median
            found.append(Trend(metric, typical(first), typical(last), largest))
    return found


def read_samples(lines: Path) -> list[Sample]:
    return [json.loads(line) for line in lines.read_text().splitlines()]


def summary(plan: Plan, outcome: Outcome, facts: dict[str, Any]) -> dict[str, Any]:
    """What build/load.json holds."""
    verdict = outcome.verdict
    return {
        "minutes": plan.minutes,
        "rate": plan.rate,
        "jobs": verdict.done,
        "queues": plan.queues,
        "connections": plan.connections,
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "violations": verdict.violations,
        "flat": [
            {
                "key": t.metric.key,
                "what": t.metric.title,
                "unit": t.metric.unit,
                "first": t.first,
                "last": t.last,
                "ratio": t.ratio,
                "largest": t.largest,
                "flat": t.flat,
            }
            for t in trends(outcome.samples)
        ],
        "pinned": outcome.pinned,
        "wide": outcome.wide,
        "archive": outcome.archive,
        "events": outcome.events,
        "other_endings": outcome.other_endings,
        "plan": asdict(plan),
        **facts,
    }


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def show(content: dict[str, Any], console: Console) -> None:
    """Print a summary."""
    table = Table(title="load: first tenth, last tenth", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("what", min_width=30)
    for column in ("first", "last", "ratio", "largest", "flat"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in content["flat"]:
        table.add_row(
            row["what"],
            f"{figure(row['first'])} {row['unit']}",
            f"{figure(row['last'])} {row['unit']}",
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            figure(row["largest"]),
            {None: "", True: "[green]yes[/]", False: "[red]NO[/]"}[row["flat"]],
        )
    console.print(table)
    for name in ("pinned", "wide", "archive", "events", "other_endings"):
        console.print(f"{name}: {json.dumps(content[name])}", highlight=False, soft_wrap=True)
    console.print(f"{content['jobs']:,} jobs, {content['lost']} lost, {content['doubled']} doubled", highlight=False)
    for violation in content["violations"]:
        console.print(f"[red]{violation}[/]", soft_wrap=True)


def figure(value: float) -> str:
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
