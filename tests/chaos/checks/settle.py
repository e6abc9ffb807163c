"""Each attempt ends once, under the lease that holds it, and in the way that was said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.dump import Ended
from tests.chaos.history import NEVER, Effect
from tests.chaos.index import End, Handout, Index
from tests.chaos.violations import Kind, Violation

LOST_LEASE = "PQ001"


def check(index: Index) -> Iterator[Violation]:
    """Yield what is wrong."""
    archive: dict[tuple[int, int], list[Ended]] = defaultdict(list)
    for ended in index.dump.archive:
        archive[ended.id, ended.lease].append(ended)
    for pair, rows in archive.items():
        if len(rows) > 1:
            yield Violation(Kind.ARCHIVED_TWICE, f"job {pair[0]}, lease {pair[1]}\n" + "\n".join(map(str, rows)))
        yield from _phantom(index, rows[0])
    following = _following(index)
    for pair, ends in index.ends.items():
        job = index.by_id.get(pair[0])
        if job is not None and (job.queue in index.unrecorded or job.queue in index.dropped):
            continue
        yield from _settled(index, pair, ends, following.get(pair), archive.get(pair, []))
    yield from _effects(index, archive)


def _following(index: Index) -> dict[tuple[int, int], Handout]:
    """For each lease of a job, the next time that the job was handed out for certain."""
    following: dict[tuple[int, int], Handout] = {}
    for job in index.jobs.values():
        later: Handout | None = None
        for handout in reversed(job.handouts):
            if later is not None and later.lease != handout.lease:
                following[handout.id, handout.lease] = later
            if handout.certain:
                later = handout
    return following


def _settled(
    index: Index, pair: tuple[int, int], ends: list[End], following: Handout | None, archive: list[Ended]
) -> Iterator[Violation]:
    handout = index.handouts.get(pair)
    accepted = [end for end in ends if end.accepted is Effect.YES]
    if len(accepted) > 1:
        yield Violation(Kind.SETTLED_TWICE, f"job {pair[0]}\n" + "\n".join(str(end.by) for end in accepted))
    for end in accepted:
        if handout is None:
            yield Violation(Kind.FOREIGN_LEASE, f"job {pair[0]} was not handed out under lease {pair[1]}\n{end.by}")
            continue
        if following is not None and following.by.ended < end.by.began:
            yield Violation(Kind.LATE_SETTLE, f"job {pair[0]}\n{handout.by}\n{following.by}\n{end.by}")
        yield from _on_record(index, end, archive)
    if handout is not None:
        yield from _refused(index, handout, ends)
    for ended in archive:
        if ended.kind in ("done", "retry", "dead") and not any(end.possible for end in ends):
            story = "\n".join(str(end.by) for end in ends)
            yield Violation(Kind.PHANTOM_END, f"job {pair[0]} has the outcome {ended}, but\n{story}")
        done = [end for end in ends if end.possible and end.kind == "done"]
        if ended.kind == "done" and done and all(end.result != ended.result for end in done):
            story = "\n".join(str(end.by) for end in done)
            yield Violation(Kind.RESULT, f"job {pair[0]}, on record: {ended.result}\n{story}")


def _on_record(index: Index, end: End, archive: list[Ended]) -> Iterator[Violation]:
    kinds = [ended.kind for ended in archive]
    stopped = ["cancelled"] if any(o.args["id"] == end.id for o in index.named["cancel"]) else []
    if end.kind == "released":
        wrong = bool(kinds) and kinds != stopped
    elif end.by.name == "reject_many":
        wrong = not kinds or kinds[0] not in ("retry", "dead", *stopped)
    else:
        wrong = end.kind not in kinds
    if wrong:
        yield Violation(Kind.END_LOST, f"job {end.id}, on record: {archive or 'nothing'}\n{end.by}")


def _refused(index: Index, handout: Handout, ends: list[End]) -> Iterator[Violation]:
    """A lease that had not run out, and whose attempt nobody else has tried to end, must be accepted."""
    if not handout.certain or any(end.possible for end in ends):
        return
    for end in ends:
        answered = end.by.error == LOST_LEASE or (end.by.ok and end.by.transaction is None)
        # Being certain, the claim was committed before the same client went on; another one may be too early.
        if not answered or end.by.client != handout.by.client or end.by.number < handout.by.number:
            continue
        if index.may_have_been_lost(handout.by, end.by.ended) or _repeated(end):
            continue
        expiry = index.expiry(handout)
        if expiry is not None and end.by.ended < NEVER and expiry > index.clock.latest(end.by.ended):
            yield Violation(Kind.REFUSED, f"job {end.id}, lease good until {expiry}\n{handout.by}\n{end.by}")


def _repeated(end: End) -> bool:
    return "ids" in end.by.args and list(end.by.args["ids"]).count(end.id) > 1


def _phantom(index: Index, ended: Ended) -> Iterator[Violation]:
    """An outcome that only a client can have written must have been tried by one."""
    if ended.queue in index.unrecorded:
        # Handlers of real workers return the job's token.
        if ended.kind == "done" and ended.result not in (None, {"k": ended.payload["k"]}):
            yield Violation(Kind.RESULT, f"job {ended.id}: {ended}")
        return
    if (ended.id, ended.lease) in index.ends:
        return
    if ended.kind in ("done", "retry", "dead"):
        yield Violation(Kind.PHANTOM_END, f"nobody has settled job {ended.id}, but it has the outcome {ended}")


def _effects(index: Index, archive: dict[tuple[int, int], list[Ended]]) -> Iterator[Violation]:
    written = set(index.dump.effects)
    if len(written) < len(index.dump.effects):
        yield Violation(Kind.EFFECT, "a handler's effect is there twice")
    for pair in written:
        if not any(ended.kind == "done" for ended in archive.get(pair, ())):
            yield Violation(Kind.EFFECT, f"job {pair[0]}, lease {pair[1]}: it has had its effect, but is not done")
    for operation in index.named["effect"]:
        pair = (operation.args["id"], operation.args["lease"])
        if operation.effect is Effect.YES and pair not in written:  # that table is not the queue's
            yield Violation(Kind.EFFECT, f"job {pair[0]} is done, but has had no effect\n{operation}")
