"""The pictures of a run, as SVG: a few kilobytes each, and the same for the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from .metrics import METRICS
from .sample import Sample

# More would not be seen in a picture of this width.
POINTS = 120
TITLES = {metric.key: metric.title for metric in METRICS}


@dataclass(frozen=True)
class Panel:
    """One set of axes: some figures in one unit."""

    unit: str
    keys: tuple[str, ...]
    log: bool = False


PICTURES: dict[str, tuple[Panel, ...]] = {
    "rate": (Panel("jobs/s", ("enqueued", "done")), Panel("jobs waiting", ("ready",), log=True)),
    "latency": (
        Panel("ms", ("enqueue_p50", "enqueue_p99", "claim_p50", "claim_p99", "ack_p50", "ack_p99"), log=True),
        Panel("ms", ("lag_p50", "lag_p99", "wake_p50", "wake_p99"), log=True),
    ),
    "memory": (Panel("MB, all sessions", ("private_sum",)), Panel("MB, one session", ("private_max",))),
    "space": (
        Panel("MB", ("size_live", "size_archive"), log=True),
        Panel("rows", ("dead",)),
        Panel("of 16", ("free_segments",)),
    ),
    "work": (
        Panel("ms", ("maintain_p50", "maintain_max", "stats_ms"), log=True),
        Panel("cores", ("cpu_server", "cpu_machine")),
        Panel("bytes/job", ("wal_per_job",)),
    ),
}


def draw(samples: Sequence[Sample], folder: Path) -> list[Path]:
    """Draw load-*.svg; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pyplot.rcParams.update({"svg.hashsalt": "pgqueue", "svg.fonttype": "none", "font.size": 9, "path.simplify": True})
    written = []
    for name, panels in PICTURES.items():
        figure, rows = pyplot.subplots(
            len(panels), sharex=True, squeeze=False, figsize=(8, 2.2 * len(panels)), layout="constrained"
        )
        for axes, panel in zip(rows[:, 0], panels, strict=True):
            _draw(axes, panel, samples)
        rows[-1, 0].set_xlabel("minutes")
        path = folder / f"load-{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
        written.append(path)
    return written


def _draw(axes: Axes, panel: Panel, samples: Sequence[Sample]) -> None:
    for key in panel.keys:
        if points := thinned(samples, key):
            axes.plot(*zip(*points, strict=True), label=TITLES[key], linewidth=1)
    axes.set_ylabel(panel.unit)
    if panel.log:
        axes.set_yscale("symlog" if any(s[k] == 0 for s in samples for k in panel.keys) else "log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    for label, begins, ends in spans(samples):
        if label == "pinned" or label.startswith("wide"):
            axes.axvspan(begins, ends, alpha=0.12, color="tab:red" if label == "pinned" else "tab:blue", linewidth=0)
    axes.legend(loc="upper left", fontsize=7, ncols=3)


def thinned(samples: Sequence[Sample], key: str) -> list[tuple[float, float]]:
    """Minutes and figures of the samples that have one; of neighbours that would share a point the largest."""
    known = [(sample["at"] / 60, sample[key]) for sample in samples if sample[key] is not None]
    step = -(-len(known) // POINTS) or 1
    return [max(known[n : n + step], key=itemgetter(1)) for n in range(0, len(known), step)]


def spans(samples: Sequence[Sample]) -> list[tuple[str, float, float]]:
    """The phases, with their begin and end in minutes."""
    found: list[tuple[str, float, float]] = []
    began = 0.0
    for before, after in zip(samples, [*samples[1:], None], strict=True):
        if after is None or after["phase"] != before["phase"]:
            found.append((before["phase"], began, before["at"] / 60))
            began = before["at"] / 60
    return found
