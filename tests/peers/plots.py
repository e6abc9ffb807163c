"""The pictures of the page: the same for the same figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from .figures import FIGURES, Figure
from .results import Content, value


@dataclass(frozen=True)
class Bars:
    """A picture with a bar for each system, one panel a figure."""

    keys: tuple[str, ...]
    log: bool = False


# The raw figures that each picture with a line for each system is drawn from.
CURVES = {"pinned": "per_second", "offered": "steps"}
BARS = {"drain": Bars(("rate",), log=True), "idle": Bars(("p50", "p99"), log=True), "life": Bars(("wal", "versions"))}
SMOOTH = 5  # seconds of a running mean
DPI = 110


def draw(content: Content, folder: Path) -> list[Path]:
    """Draw peers-*.png; returns the paths of those for which there are figures."""
    folder.mkdir(parents=True, exist_ok=True)
    pyplot.rcParams.update({"font.size": 9})
    written = []
    for name in drawn(content):
        path = folder / name_of(name)
        canvas = _draw(content, name)
        canvas.savefig(path, dpi=DPI, metadata={"Software": None})
        pyplot.close(canvas)
        written.append(path)
    return written


def name_of(picture: str) -> str:
    return f"peers-{picture}.png"


def drawn(content: Content) -> list[str]:
    """The pictures for which there are figures."""
    found = [name for name, key in CURVES.items() if _raw(content, name, key)]
    return found + [name for name in BARS if _known(content, name)]


def _draw(content: Content, name: str) -> Canvas:
    colours = {system: f"C{number}" for number, system in enumerate(content["systems"])}
    if name in CURVES:
        return (_pinned if name == "pinned" else _offered)(_raw(content, name, CURVES[name]), colours)
    return _bars(content, _known(content, name), colours, log=BARS[name].log)


def _known(content: Content, name: str) -> list[Figure]:
    """The figures of a picture with bars that anybody has."""
    return [
        figure
        for figure in FIGURES
        if figure.workload == name
        and figure.key in BARS[name].keys
        and any(value(content, figure, system) is not None for system in content["systems"])
    ]


def _raw(content: Content, workload: str, key: str) -> dict[str, dict[str, Any]]:
    """The raw figures of the first turn of each system."""
    return {
        run["system"]: run["raw"]
        for run in reversed(content["runs"])
        if run["workload"] == workload and run["raw"].get(key)
    }


def _pinned(found: dict[str, dict[str, Any]], colours: dict[str, str]) -> Canvas:
    """As it is, and as a share of what each did at the beginning."""
    canvas, (absolute, relative) = pyplot.subplots(2, sharex=True, figsize=(8, 6), layout="constrained")
    for system in (name for name in colours if name in found):
        raw = found[system]
        rates = smoothed(raw["per_second"])
        seconds = range(raw["from"], raw["from"] + len(rates))
        under = [rate for second, rate in zip(seconds, raw["per_second"], strict=True) if second >= 0]
        quarter = under[: max(len(under) // 4, 1)]
        base = sum(quarter) / len(quarter)
        _line(absolute, seconds, rates, system, colours)
        _line(relative, seconds, [rate / base for rate in rates] if base else [], system, colours)
    absolute.set_yscale("log")
    absolute.set_ylabel("jobs/s")
    relative.set_ylabel("of the first quarter")
    relative.set_ylim(bottom=0)
    relative.set_xlabel("seconds under a pinned snapshot")
    for axes in (absolute, relative):
        axes.axvline(0, color="grey", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
    absolute.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), fontsize=8, ncols=7, frameon=False)
    return canvas


def _line(axes: Axes, x: Any, y: Any, system: str, colours: dict[str, str]) -> None:
    if y:
        width = 2.2 if system == next(iter(colours)) else 1.2
        axes.plot(x, y, label=system, color=colours[system], linewidth=width)


def smoothed(rates: list[float]) -> list[float]:
    """A running mean over some seconds, so that lines can be told from each other."""
    half = SMOOTH // 2
    windows = (rates[max(n - half, 0) : n + half + 1] for n in range(len(rates)))
    return [sum(window) / len(window) for window in windows]


def _offered(found: dict[str, dict[str, Any]], colours: dict[str, str]) -> Canvas:
    canvas, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for system in (name for name in colours if name in found):
        steps = sorted((step["rate"], step["p99"]) for step in found[system]["steps"] if step["p99"] is not None)
        axes.plot(*zip(*steps, strict=True), marker="o", markersize=3, label=system, color=colours[system])
    axes.axhline(1000, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("jobs/s offered")
    axes.set_ylabel("due to handler, p99, ms")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.13), fontsize=8, ncols=7, frameon=False)
    return canvas


def _bars(content: Content, figures: list[Figure], colours: dict[str, str], log: bool) -> Canvas:
    canvas, row = pyplot.subplots(1, len(figures), squeeze=False, sharey=True, figsize=(8, 2.6), layout="constrained")
    for axes, figure in zip(row[0], figures, strict=True):
        values = {system: value(content, figure, system) or 0 for system in colours}
        bars = axes.barh(list(values), list(values.values()), color=list(colours.values()))
        axes.bar_label(bars, fmt="{:,.3g}" if max(values.values()) < 100 else "{:,.0f}", padding=3, fontsize=8)
        axes.set_xlabel(f"{figure.title}, {figure.unit}")
        axes.margins(x=0.2)
        if log:
            axes.set_xscale("log")
    row[0][0].invert_yaxis()
    return canvas
