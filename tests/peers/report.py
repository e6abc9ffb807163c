"""docs/benchmarks.md, from the raw figures alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from . import plots, results
from .figures import FIGURES, PINNED_LEAST, WANTED, Figure
from .remarks import remark
from .results import OURS, Content, errors, lost, met, ratio, value
from .workloads import around, crash, drain, enqueue, idle, life, offered, pinned

HEAD = """# Benchmarks: pgqueue and the field

Made by `python -m tests.peers --report` from `docs/benchmarks.json`, which has every raw figure; not edited by hand. To
measure anew (the peers are installed from their packages at run time, which needs pip and npm):

```sh
make bench-peers                      # about an hour; ARGS=--quick for minutes, and rough
cp build/peers.json docs/benchmarks.json
make bench-peers ARGS=--report        # this page and its pictures
```

Each system runs through its public API, with the settings that its documentation recommends for speed, with one worker
process, on the same server, one after the other; where there are several rounds the order is reversed in every second
one, and the figure is the median. Commits are durable everywhere. Each turn has a fresh database. The payload of a job
is about 100 bytes of JSON, and its handler does nothing. Whether a job is done is asked of the database, not of the
worker. The machine is small and shared, so **only ratios within this page mean anything**.
"""

# Title, what is measured (its own docstring says it), which figures, and the pictures.
SECTIONS: list[tuple[str, ModuleType, tuple[str, ...], tuple[str, ...]]] = [
    ("Enqueue", enqueue, ("enqueue-single", "enqueue-bulk"), ()),
    ("Drain", drain, ("drain",), ("drain",)),
    ("Under a pinned snapshot", pinned, ("pinned",), ("pinned",)),
    ("At an offered rate", offered, ("offered",), ("offered",)),
    ("An idle worker", idle, ("idle",), ("idle",)),
    ("With much lying around", around, ("around",), ()),
    ("A crash", crash, ("crash",), ()),
    ("What a job costs", life, ("life",), ("life",)),
]


def write(content: Content, page: Path) -> list[Path]:
    """Write the page and draw its pictures; returns their paths."""
    pictures = plots.draw(content, page.parent / "images")
    page.write_text(text(content))
    return [page, *pictures]


def text(content: Content) -> str:
    parts = [HEAD, _run(content), _wanted(content), _lost(content)]
    parts += [_section(content, *section) for section in SECTIONS]
    parts.append(_who(content))
    return "\n".join(part for part in parts if part)


def _run(content: Content) -> str:
    settings = ", ".join(f"`{name} = {setting}`" for name, setting in content["settings"].items())
    kind = "The quick form, which is rough: o" if content["quick"] else "O"
    plan = content["plan"]
    sizes = f"{plan['around']:,} jobs of each kind lying around, {plan['pinned_seconds']:.0f} s under a pinned snapshot"
    return (
        f"{kind}n {content['date'][:10]}, {content['took_seconds'] / 60:.0f} minutes on {content['cpus']} CPUs"
        f" ({content['cpu']}), {content['memory_gb']} GB, {content['postgres'].split(' on ')[0]}; one durable write of"
        f" 8 kB took {content['fdatasync_us']:.0f} µs.\n{sizes}; {settings}.\n"
    )


def _wanted(content: Content) -> str:
    rows = []
    for wanted in WANTED:
        figure = next(one for one in FIGURES if (one.workload, one.key) == (wanted.workload, wanted.key))
        for system in wanted.against:
            reached = met(content, wanted, system)
            if reached is None:
                continue
            rows.append(
                (
                    f"{wanted.workload}: {figure.title}",
                    _with_unit(value(content, figure, OURS), figure.unit),
                    f"{system}: {_with_unit(value(content, figure, system), figure.unit)}",
                    results.figure(ratio(content, figure.workload, figure.key, system)),
                    _limit(figure, wanted.least),
                    "yes" if reached else "**no**",
                )
            )
    flat = next(one for one in FIGURES if (one.workload, one.key) == ("pinned", "ratio"))
    if (share := value(content, flat, OURS)) is not None:
        row = ("pinned: last : first, by itself", f"{share:.2f}", "", "", f"≥ {PINNED_LEAST}")
        rows.append((*row, "yes" if share >= PINNED_LEAST else "**no**"))
    if not rows:
        return ""
    return "## What was wanted\n\n" + _table(["", OURS, "against", "ratio", "wanted", "met"], rows, right=(1, 3, 4))


def _limit(figure: Figure, least: float | None) -> str:
    if least is not None:
        return f"≥ {least:g}"
    return f"within {figure.level:g} {figure.unit}" if figure.level else "not behind"


def _lost(content: Content) -> str:
    found = lost(content)
    if not found:
        return "## Where others are ahead\n\nNowhere in this run.\n"
    lines = ["## Where others are ahead", "", "Everything by which a peer beats pgqueue by more than is noise.", ""]
    for figure, system, ours, theirs in found:
        why = remark(figure.workload, figure.key, system) or "No cause is known yet."
        lines.append(
            f"- **{figure.workload}, {figure.title}: {system}** {_with_unit(theirs, figure.unit)},"
            f" pgqueue {_with_unit(ours, figure.unit)}. {why}"
        )
    return "\n".join(lines) + "\n"


def _section(content: Content, title: str, about: ModuleType, workloads: Sequence[str], pictures: Sequence[str]) -> str:
    figures = [
        one
        for one in FIGURES
        if one.workload in workloads and any(value(content, one, system) is not None for system in content["systems"])
    ]
    if not figures:
        return ""
    parts = [f"## {title}", inspect.getdoc(about) or ""]
    parts.append(
        _table(["", *(_head(one) for one in figures)], _rows(content, figures), right=range(1, len(figures) + 1))
    )
    parts += [f"![{name}](images/{plots.name_of(name)})\n" for name in pictures if name in plots.drawn(content)]
    if failed := list(_failed(content, workloads)):
        parts.append("\n".join(failed) + "\n")
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _head(figure: Figure) -> str:
    return f"{figure.title}, {figure.unit}" if figure.unit else figure.title


def _rows(content: Content, figures: Sequence[Figure]) -> Iterator[list[str]]:
    """The best of each column is set in bold."""
    values = {system: [value(content, one, system) for one in figures] for system in content["systems"]}
    best: list[float | None] = []
    for number, figure in enumerate(figures):
        known = [figure.counted(known) for found in values.values() if (known := found[number]) is not None]
        best.append((max if figure.more_is_better else min)(known, default=None))
    for system, found in values.items():
        if any(one is not None for one in found):
            yield [
                system,
                *(
                    f"**{results.figure(one)}**"
                    if one is not None and figures[n].counted(one) == best[n] and figures[n].judged
                    else results.figure(one)
                    for n, one in enumerate(found)
                ),
            ]


def _failed(content: Content, workloads: Sequence[str]) -> Iterator[str]:
    for workload in workloads:
        for system in content["systems"]:
            for error in sorted(set(errors(content, workload, system))):
                yield f"- {workload}, {system}: failed with `{' '.join(error.split())[:300]}`"
    for run in (run for run in content["runs"] if run["workload"] in workloads):
        system, raw = run["system"], run["raw"]
        if raw.get("left"):
            recovery = content["systems"][system]["recovery"]
            yield (
                f"- {system}: after {raw['patience']:.0f} s {raw['left']} of {raw['jobs']} jobs were not done;"
                f" they come back when {recovery}."
            )
        if raw.get("open"):
            yield f"- {system}: the highest rate that was tried was still sustained."


def _who(content: Content) -> str:
    rows = []
    for name, about in content["systems"].items():
        versions = about.get("versions", {})
        shown = ", ".join(f"{package} {number}" for package, number in versions.items() if _is_shown(package, name))
        settings = "; ".join(f"{setting}: {found}" for setting, found in about["settings"].items())
        rows.append((name, about["language"], shown or f"not installed: {about.get('error', '')[:200]}", settings))
    return "## Who took part\n\n" + _table(["", "in", "versions", "settings other than as it comes"], rows)


def _is_shown(package: str, name: str) -> bool:
    """The system itself, what it runs on, and its driver; the JSON has the rest."""
    plain = package.lower().replace("_", "-")
    return plain in ("python", "node", "asyncpg", "psycopg", "pg", "uvloop") or plain.startswith(name)


def _with_unit(number: float | None, unit: str) -> str:
    return f"{results.figure(number)} {unit}".strip()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    aligned = set(right)
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + "|".join("---:" if n in aligned else "---" for n in range(len(head))) + "|",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
