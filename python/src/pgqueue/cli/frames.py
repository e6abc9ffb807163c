"""What ``pgqueue top`` shows: one look at the database, and how it is drawn."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from rich.console import ConsoleDimensions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pgqueue.cli.database import select
from pgqueue.cli.output import cell, duration, line, printable

if TYPE_CHECKING:
    from pgqueue import Client
    from pgqueue.client import Failure, QueueActivity, WorkerStat

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 20
_RED = "bold red"
_MANY = 10_000
"""From here on pgq.activity may have stopped counting."""


@dataclass(frozen=True)
class Frame:
    """One look."""

    at: datetime
    queues: list[QueueActivity]
    workers: list[WorkerStat]
    failures: list[Failure]

    def facts(self) -> dict[str, Any]:
        """Return all of it in a form for JSON."""
        return {
            "at": self.at,
            "queues": [row._asdict() for row in self.queues],
            "workers": [row._asdict() for row in self.workers],
            "failures": [row._asdict() for row in self.failures],
        }


def look(client: Client, period: float) -> Frame:
    """Ask the database once; rates are those of the last seconds."""
    ((now,),) = select(client, "SELECT pgq._now()")
    return Frame(now, client.activity(period), client.workers(), client.failures(10))


class History:
    """The last rates of each queue."""

    def __init__(self) -> None:
        self._rates: dict[tuple[str, str], deque[float]] = defaultdict(lambda: deque(maxlen=_WIDTH))

    def add(self, frame: Frame) -> None:
        for queue in frame.queues:
            self._rates[queue.queue, "in"].append(queue.enqueue_rate)
            self._rates[queue.queue, "done"].append(queue.done_rate)

    def plot(self, queue: str, what: str) -> str:
        """Return the rates of a queue, "in" or "done", as a row of bars."""
        return sparkline(self._rates.get((queue, what), ()))


def sparkline(values: Iterable[float]) -> str:
    """Draw values as bars, the greatest one as the highest."""
    known = list(values)
    highest = max(known, default=0.0)
    if highest <= 0:
        return _BARS[0] * len(known)
    return "".join(_BARS[round(value / highest * (len(_BARS) - 1))] for value in known)


def screen(frame: Frame, history: History, size: ConsoleDimensions | None = None) -> RenderableType:
    """Draw a look; on a terminal only as many rows as there is room for, the busiest queues first."""
    width, lines = size or (10_000, 10_000)
    failures = frame.failures[: max(lines // 5, 3)]
    workers = frame.workers[: max(lines // 4, 4)]
    room = max(lines - len(failures) - len(workers) - 8, 3)
    busiest = {queue.queue for queue in sorted(frame.queues, key=_busy, reverse=True)[:room]}
    queues = [queue for queue in frame.queues if queue.queue in busiest]
    counts = [_of(len(queues), len(frame.queues), "queues"), _of(len(workers), len(frame.workers), "workers")]
    return Group(
        Text(f"pgqueue top  {frame.at.isoformat(' ', 'seconds')}  {', '.join(counts)}", style="bold"),
        Text(),
        _queues(queues, history if size and width >= 120 else None),
        Text(),
        _workers(workers, frame.at),
        Text(),
        _failures(failures),
    )


def _busy(queue: QueueActivity) -> tuple[float, int]:
    rates = queue.enqueue_rate + queue.done_rate + queue.failure_rate
    return rates, queue.ready + queue.running + queue.dead


def _of(shown: int, all: int, what: str) -> str:
    return f"{shown} of {all} {what}" if shown < all else f"{all} {what}"


def _queues(rows: list[QueueActivity], history: History | None) -> Table:
    # The states that not every installation has are columns if there is anything in them.
    states = [
        name
        for name in ("ready", "running", "scheduled", "retrying", "parked", "waiting", "dead")
        if name in ("ready", "running", "scheduled", "dead") or any(getattr(row, name) for row in rows)
    ]
    table = _table("queue", numbers=[*states, "lag", "in/s", "done/s", "failed/s"])
    if history:
        table.add_column("in", style="cyan", no_wrap=True)
        table.add_column("done", style="green", no_wrap=True)
    for row in rows:
        name = Text(printable(row.queue) + (" (paused)" if row.paused else ""), style="yellow" if row.paused else "")
        counts = [Text(_count(row, state), style=_RED if state == "dead" and row.dead else "") for state in states]
        rates = [_rate(row.enqueue_rate), _rate(row.done_rate)]
        failed = Text(_rate(row.failure_rate), style=_RED if row.failure_rate else "")
        plots = [history.plot(row.queue, what) for what in ("in", "done")] if history else []
        table.add_row(name, *counts, duration(row.oldest_ready) or "-", *rates, failed, *plots)
    return table


def _workers(rows: list[WorkerStat], now: datetime) -> Table:
    table = _table("worker", "queues", numbers=("jobs", "oldest", "lease ends in"))
    for row in rows:
        expired = row.expires_at < now
        left = "expired" if expired else duration(row.expires_at - now)
        table.add_row(
            cell(row.worker),
            cell(row.queues),
            f"{row.jobs:,}",
            duration(max(now - row.oldest, timedelta())),
            Text(str(left), style=_RED if expired else ""),
        )
    return table


def _failures(rows: list[Failure]) -> Table:
    table = _table("failed", "queue", "task", "kind", "error", numbers=())
    for row in rows:
        when = row.at.isoformat(" ", "seconds")[11:19]
        error = Text(printable(line(row.error) or "-"), no_wrap=True, overflow="ellipsis")
        table.add_row(f"{when}  {row.id} try {row.attempt}", cell(row.queue), cell(row.task), row.kind, error)
    return table


def _table(*names: str, numbers: Iterable[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for name in names:
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _count(row: QueueActivity, state: str) -> str:
    count = getattr(row, state)
    return f"{count:,}{'' if row.exact or count < _MANY or state == 'running' else '+'}"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
