"""Printing: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, with durations in seconds.")
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def print_json(value: Any) -> None:
    """Print a value as JSON; durations are seconds, and times are text."""
    click.echo(json.dumps(value, default=_plain, indent=2))


def show(rows: list[Any], as_json: bool, title: str, columns: Sequence[str] = ()) -> None:
    """Print named tuples as a table, which may have room for some columns only, or as JSON."""
    if as_json:
        print_json([row._asdict() for row in rows])
    elif not rows:
        click.echo(f"no {title}")
    else:
        from rich.table import Table

        table = Table(title=title)
        columns = columns or rows[0]._fields
        for name in columns:
            number = isinstance(getattr(rows[0], name), int)
            table.add_column(name.replace("_", " "), justify="right" if number else "left", overflow="fold")
        for row in rows:
            values = {**row._asdict(), "error": line(getattr(row, "error", None))}
            table.add_row(*(cell(values[name]) for name in columns))
        console().print(table)


def show_facts(facts: Mapping[str, Any]) -> None:
    """Print one fact a line, and what may be long below its name."""
    for name, value in facts.items():
        if name in ("result", "error") and value is not None:
            text = value if name == "error" else json.dumps(value, indent=2)
            click.echo(f"{name}:\n{printable(text, lines=True)}")
        else:
            click.echo(f"{name + ':':<13} {'-' if value is None else printable(str(value))}")


def console(stderr: bool = False) -> Console:
    """Return a console that does not break lines for programs that read them."""
    from rich.console import Console

    made = Console(stderr=stderr)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 10_000
    return made


def cell(value: Any) -> Any:
    """Return what a table shows for a value, as it is and not as markup."""
    from rich.text import Text

    if isinstance(value, timedelta):
        value = duration(value)
    elif isinstance(value, datetime):
        value = value.isoformat(" ", "seconds")
    elif isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, list):
        value = ", ".join(map(str, value))
    return Text("-" if value is None else printable(str(value)))


def printable(text: str, lines: bool = False) -> str:
    """Return a text with what would move the cursor or change the terminal as escapes; with lines they stay."""
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def line(text: str | None) -> str | None:
    """Return as much of a text as a table has room for."""
    return text.partition("\n")[0][:200] if text else None


def duration(time: timedelta | None) -> str | None:
    """Return a duration as its two greatest units, as in 1h 30m; below a minute with a fraction."""
    if time is None:
        return None
    left = time.total_seconds()
    if left < 60:
        return f"{left:.3f}".rstrip("0").rstrip(".") + "s"
    parts = []
    for unit, size in _UNITS.items():
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count:.0f}{unit}")
    return " ".join(parts[:2])


def _plain(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else str(value)
