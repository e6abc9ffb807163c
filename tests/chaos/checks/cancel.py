"""A job that was cancelled before anybody had it is never handed out, and is not done."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import Effect
from tests.chaos.index import Index
from tests.chaos.violations import Kind, Violation


def check(index: Index) -> Iterator[Violation]:
    """Yield what is wrong."""
    for operation in index.named["cancel"]:
        job = index.by_id.get(operation.args["id"])
        if job is None or not operation.ok or operation.effect is not Effect.YES or operation.result != ["cancelled"]:
            continue
        for handout in job.handouts:
            if handout.certain and handout.by.began > operation.done_by:
                yield Violation(Kind.CANCELLED, f"{job}\n{operation}\n{handout.by}")
        if any(ended.kind == "done" for ended in job.archive):
            story = "\n".join(map(str, job.archive))
            yield Violation(Kind.CANCELLED, f"{job} is done\n{operation}\n{story}")
