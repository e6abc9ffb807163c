"""When schedules fire, in plain arithmetic: the lines are so simple that nobody needs to read them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from tests.model.transactions import Row

LINES = {"*/5 * * * *": timedelta(minutes=5), "@hourly": timedelta(hours=1), "0 */6 * * *": timedelta(hours=6)}
"""How long it is from one tick to the next; there is one at midnight."""

MIDNIGHT = datetime(2000, 1, 1, tzinfo=timezone.utc)
LATE = timedelta(minutes=1)
"""A tick that is later than this was missed."""

MOST = 100
"""So many jobs of one schedule are enqueued at once."""


@dataclass(eq=False)
class Schedule(Row):
    """One version of a schedule: a new one begins whenever it fires, or is changed."""

    name: str
    queue: str
    cron: str
    catch_up: str
    payload: Any
    next_at: datetime


def next_tick(cron: str, after: datetime) -> datetime:
    every = LINES[cron]
    return MIDNIGHT + ((after - MIDNIGHT) // every + 1) * every


def fired(schedule: Schedule, now: datetime) -> tuple[list[datetime], datetime]:
    """The ticks that become jobs now, and the one that is next."""
    ticks, coming = [], schedule.next_at
    while coming <= now:
        ticks.append(coming)
        coming += LINES[schedule.cron]
    if schedule.catch_up == "all":
        return ticks[:MOST], (ticks[MOST:] or [coming])[0]
    if schedule.catch_up == "skip" and ticks[0] < now - LATE:
        return [], coming
    return ticks[-1:], coming
