"""Limits: how many jobs may run and start, that those come which may, and that groups take their turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tests.model.data import Limits, Place, Queue, Started, Turn
from tests.model.transactions import Transaction, visible

LOOK_AGAIN = timedelta(milliseconds=50)
"""When a claim comes back to a group of which somebody was changing a job."""


@dataclass
class Book:
    """What counts against the limits of all queues."""

    started: list[Started] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    disturbed: dict[int, datetime] = field(default_factory=dict)
    """When a claim of a queue last found a job that somebody was changing."""

    def room(self, tx: Transaction, queue: Queue, now: datetime, group: str | None = None) -> int | None:
        """How many more may start now, of the queue or of a group; None: any number."""
        limits = queue.limits
        rate, period = (limits.group_rate, limits.group_period) if group else (limits.rate, limits.rate_period)
        if rate is None or period is None:
            return None
        own = [row for row in self.started if (row.queue, row.group) == (queue.serial, group)]
        return max(rate - sum(row.jobs for row in own if row.at > now - period and visible(tx, row)), 0)

    def start(self, tx: Transaction, queue: Queue, now: datetime, taken: Sequence[Place]) -> None:
        """These were claimed: no more than the rates allow."""
        groups = Counter(place.job.group for place in taken)
        counts: list[tuple[str | None, int]] = [(None, len(taken)), *((g, n) for g, n in groups.items() if g)]
        for group, count in counts:
            room = self.room(tx, queue, now, group)
            if room is not None and count:
                assert count <= room, f"{count} jobs of group {group} were claimed, and {room} may start"
                row = Started(tx, None, queue.serial, group, now, count)
                self.started.append(row)
                tx.log.append(("born", row))

    def take_turns(
        self, tx: Transaction, queue: Queue, event: int, free: Sequence[Place], taken: Sequence[Place], *, sure: bool
    ) -> None:
        """No group has two turns while another one waits that could have had its own; `sure`: nobody disturbs."""
        limits = queue.limits
        sure = sure and limits.group_limit is None and limits.group_rate is None
        seen = [row for row in self.turns if row.queue == queue.serial and visible(tx, row)]
        last = {row.group: row for row in sorted(seen, key=lambda row: row.event) if row.event[0] > queue.dealt}
        left = list(free)
        for nth, place in enumerate(taken):
            left.remove(place)
            mine = last.get(place.job.group)
            if sure and mine and mine.sure:
                for other in left:
                    if other.job.group != place.job.group and other.priority <= place.priority:
                        parked = other.born.ended < mine.event[0]  # the claim of that turn has seen it
                        had = last.get(other.job.group)
                        fair = not parked or (had and had.event > mine.event)
                        assert fair, f"{place} was claimed, and {other} had waited for its turn"
            row = last[place.job.group] = Turn(tx, None, queue.serial, place.job.group, (event, nth), sure)
            self.turns.append(row)
            tx.log.append(("born", row))

    def least(
        self, tx: Transaction, queue: Queue, now: datetime, batch: int, free: list[Place], busy: list[Place]
    ) -> int:
        """So many jobs at least must a claim return that nobody disturbs: of groups without limit, or nothing running.

        `busy`: the jobs of the queue that run, or have begun and may come again.
        """
        limits = queue.limits
        groups = Counter(place.job.group for place in free)
        if limits.group_limit is not None:
            begun = {place.job.group for place in busy}
            groups = Counter({group: 1 for group in groups if group not in begun})
        able = 0
        for group, count in groups.items():
            room = self.room(tx, queue, now, group)
            able += count if room is None else min(room, count)
        running = sum(place.state == "running" for place in busy)
        rooms = [self.room(tx, queue, now), None if limits.running_limit is None else limits.running_limit - running]
        return max(min([batch, able, *(room for room in rooms if room is not None)]), 0)


def check_running(
    queue: Queue, ever: Sequence[Limits], taken: Sequence[Place], running: list[Place], again: list[Place]
) -> None:
    """A group has so many jobs running, or waiting for their next attempt, as its limit was at most.

    `ever`: all limits that the queue has had. Who was let in by an older one stays, and is not counted by one of the
    whole queue if there was none before. `again`: have begun, and come again.
    """
    most = [limits.group_limit for limits in ever if limits.group_limit is not None]
    kept = again if all(limits.keep_place for limits in ever) else []
    if len(most) == len(ever):
        for group in {place.job.group for place in taken if place.job.group}:
            busy = [place for place in running + kept if place.job.group == group]
            assert len(busy) <= max(most), f"claimed {taken} of a group that has {busy}"
    limit = queue.limits.running_limit
    counted = not any(limits.group_limit is limits.running_limit is None for limits in ever)
    if limit is not None and taken and counted:
        assert len(running) <= limit, f"claimed {taken}, and these are running: {running}"
