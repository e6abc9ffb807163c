"""Every id that was enqueued was done exactly once: what the clients were told, against what the archive says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .tally import Tally, differences

SHOWN = 20


@dataclass(frozen=True)
class Verdict:
    """What became of the jobs. `violations` are sentences, the first of each kind with ids."""

    enqueued: int
    done: int
    lost: int
    doubled: int
    violations: list[str] = field(default_factory=list)


def check(enqueued: Tally, done: Tally, archived: Tally, left: dict[str, int]) -> Verdict:
    """Compare the ids that enqueue returned, those whose ack took effect, and those archived as done.

    Args:
        enqueued: ids that producers got back from committed calls.
        done: ids whose ack took effect, as consumers were told.
        archived: ids in the archive as done.
        left: jobs that the queues still hold, by state.
    """
    violations: list[str] = []
    lost: set[int] = set()
    doubled: set[int] = set()

    def note(ids: Iterable[int], what: str) -> None:
        found = sorted(ids)
        if found:
            shown = ", ".join(map(str, found[:SHOWN])) + (", …" if len(found) > SHOWN else "")
            violations.append(f"{len(found)} ids {what}: {shown}")

    def repeated(tally: Tally) -> set[int]:
        if len(tally.counts) == tally.counts.count(0) + tally.counts.count(1):
            return set()
        return {id for id, count in enumerate(tally.counts) if count > 1}

    note(repeated(enqueued), "were given out twice by enqueue")
    doubled |= repeated(done)
    note(doubled, "were acked twice with effect")
    again = repeated(archived)
    note(again, "are archived as done twice")
    doubled |= again

    gaps = list(differences(enqueued, done))
    missing = {id for id, given, acked in gaps if given and not acked}
    note(missing, "were enqueued and never done")
    note((id for id, given, acked in gaps if acked and not given), "were done and never enqueued")
    lost |= missing

    gaps = list(differences(done, archived))
    missing = {id for id, acked, kept in gaps if acked and not kept}
    note(missing, "were acked and are not in the archive")
    note((id for id, acked, kept in gaps if kept and not acked), "are archived as done and were never acked")
    lost |= missing

    violations += [f"{count} jobs are still {state}" for state, count in left.items() if count]
    return Verdict(enqueued.total(), done.total(), len(lost), len(doubled), violations)
