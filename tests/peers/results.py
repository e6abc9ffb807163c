"""Medians and ratios of the raw figures, as build/peers.json has them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .figures import FIGURES, Figure, Wanted

OURS = "pgqueue"
Content = Mapping[str, Any]


def is_ours(system: str) -> bool:
    """Whether it is pgqueue, as it comes or with other settings."""
    return system == OURS or system.startswith(f"{OURS}-")


def rounds(content: Content, workload: str, key: str, system: str) -> dict[int, float]:
    """A figure of one system by round."""
    return {
        run["round"]: run["figures"][key]
        for run in content["runs"]
        if run["workload"] == workload and run["system"] == system and run["figures"].get(key) is not None
    }


def value(content: Content, figure: Figure, system: str) -> float | None:
    """The median of its rounds."""
    found = rounds(content, figure.workload, figure.key, system)
    return median(found.values()) if found else None


def ratio(content: Content, workload: str, key: str, system: str) -> float | None:
    """The median of the rounds' ratios of pgqueue to this system: what disturbs one round does not move it."""
    ours, theirs = (rounds(content, workload, key, name) for name in (OURS, system))
    found = [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys()) if theirs[number]]
    return median(found) if found else None


def errors(content: Content, workload: str, system: str) -> list[str]:
    return [
        run["error"]
        for run in content["runs"]
        if run["workload"] == workload and run["system"] == system and run["error"]
    ]


def lost(content: Content) -> list[tuple[Figure, str, float, float]]:
    """Where somebody is ahead of pgqueue: figure, system, ours, theirs."""
    found = []
    for figure in FIGURES:
        ours = value(content, figure, OURS)
        if ours is None or not figure.judged:
            continue
        for system in content["systems"]:
            theirs = value(content, figure, system)
            if not is_ours(system) and theirs is not None and figure.behind(ours, theirs):
                found.append((figure, system, ours, theirs))
    return found


def met(content: Content, wanted: Wanted, system: str) -> bool | None:
    """Whether what is wanted against this system is reached; None: it was not measured."""
    by_key = {(figure.workload, figure.key): figure for figure in FIGURES}
    figure = by_key[wanted.workload, wanted.key]
    if wanted.least is not None:
        reached = ratio(content, wanted.workload, wanted.key, system)
        return None if reached is None else reached >= wanted.least
    ours, theirs = value(content, figure, OURS), value(content, figure, system)
    return None if ours is None or theirs is None else not figure.behind(ours, theirs)


def figure(value: float | None) -> str:
    if value is None:
        return "–"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def show(content: Content, console: Console) -> None:
    """Print all medians."""
    table = Table(title="the field", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("what", min_width=28)
    for system in content["systems"]:
        table.add_column(system, justify="right")
    for one in FIGURES:
        values = [value(content, one, system) for system in content["systems"]]
        if any(found is not None for found in values):
            table.add_row(f"{one.workload}: {one.title}, {one.unit}", *map(figure, values))
    console.print(table)
