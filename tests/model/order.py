"""The order in which a claim hands jobs out, as far as it is promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from tests.model.data import Place


@dataclass(frozen=True)
class Line:
    """What a claim could have taken, and how strict its order is."""

    candidates: Sequence[Place]
    shards: int | None
    """How many shards the queue has always had; None: it was changed, so nobody knows which job is in which."""

    carried_at: int
    """When jobs were last carried out of an old segment, to the front, where they stand in the order of their ids."""

    complete: bool
    """Nobody else is claiming: no lane was skipped."""


def check_claim(line: Line, taken: Sequence[Place], batch: int) -> None:
    """Nothing was passed over: not in what was taken, and not between that and what was left."""
    assert len(set(taken)) == len(taken) <= batch, f"{[p.job.id for p in taken]} for a batch of {batch}"
    if line.complete:
        wanted = min(batch, len(line.candidates))
        assert len(taken) == wanted, f"claimed {len(taken)} of {wanted}: left {[p.job.id for p in line.candidates]}"
    for first, second in combinations(taken, 2):
        assert not _before(line, second, first), f"{first} came before {second}"
    for left in set(line.candidates) - set(taken):
        for place in taken:
            passed_over = _before(line, left, place, lane_only=not line.complete)
            assert not passed_over, f"{place} was claimed before {left}"


def check_turns(candidates: Sequence[Place], taken: Sequence[Place], batch: int) -> None:
    """Of a group, what lies where it was first put is first in, first out. The rest depends on who runs what."""
    assert len(set(taken)) == len(taken) <= batch, f"{[p.job.id for p in taken]} for a batch of {batch}"
    unmoved = [place for place in candidates if place is place.job.places[0]]
    for left in set(unmoved) - set(taken):
        for place in (place for place in taken if place in unmoved):
            alike = (left.job.group, left.priority) == (place.job.group, place.priority)
            before = left.born is place.born or left.born.ended < place.born.began
            passed_over = alike and before and left.job.id < place.job.id
            assert not passed_over, f"{place} was claimed before {left}, and both are of group {left.job.group}"


def _before(line: Line, a: Place, b: Place, *, lane_only: bool = False) -> bool:
    """Whether `a` has to come before `b`; `lane_only`: a lane may have been skipped, which says nothing of others."""
    if a.priority != b.priority:
        return not lane_only and a.priority < b.priority
    if a.front != b.front:
        return not lane_only and a.front and not (_may_be_carried(line, a) or _may_be_carried(line, b))
    if a.front or (line.shards is not None and a.job.id % line.shards == b.job.id % line.shards):
        return _precedes(line, a, b)
    return False


def _precedes(line: Line, a: Place, b: Place) -> bool:
    """First in, first out: transactions that overlap may come in either order."""
    if a.born is b.born:
        return a.job.id < b.job.id and a.made <= b.made
    carried = [place for place in (a, b) if _may_be_carried(line, place)]
    if carried and (a.front or a.job.id > b.job.id):
        return False  # carried jobs stand behind others at the front, and among themselves in the order of their ids
    return a.born.ended < b.born.began


def _may_be_carried(line: Line, place: Place) -> bool:
    return place.born.began < line.carried_at
