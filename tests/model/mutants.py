"""Mistakes that the engine does not make, and for each the few steps that the model needs to notice it.

A mutant is one word changed in one function. When that function is rewritten and the word is gone, find it a new place:
a mutant that cannot be made is a failure of its test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from tests.model.data import Settings
from tests.model.database import Connection
from tests.model.world import World

Steps = Callable[[World], None]

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Mutant:
    """In the functions whose names match, `old` becomes `new`; `steps` show that something is wrong."""

    name: str
    functions: str
    old: str
    new: str
    steps: Steps


def start(world: World, **settings: object) -> None:
    world.create_queue(0, "q", Settings(**{"shards": 1, "lease": MINUTE, "max_attempts": 2, **settings}))  # type: ignore[arg-type]


def pairs(world: World, batch: int, who: int = 0) -> list[tuple[int | None, int | None]]:
    return [(job.id, job.lease) for job in world.claim(who, "q", batch)]


def settle_twice(world: World) -> None:
    start(world)
    world.enqueue(0, "q")
    (pair,) = pairs(world, 1)
    world.ack(0, pair)
    world.ack(1, pair)


def settle_two_twice(world: World) -> None:
    start(world)
    world.enqueue_many(0, "q", 2)
    held = pairs(world, 2)
    world.ack_many(0, held[:1])
    world.ack_many(1, held)


def settle_one_of_a_whole_lease(world: World) -> None:
    start(world)
    world.enqueue_many(0, "q", 10)
    held = pairs(world, 10)
    world.ack_many(0, held)
    world.reject_many(0, held[:1])


def settle_while_another_does(world: World) -> None:
    start(world)
    world.enqueue(0, "q")
    (pair,) = pairs(world, 1)
    world.begin(0)
    world.ack(0, pair)
    world.ack(1, pair)


def extend_and_reap(world: World) -> None:
    start(world)
    world.enqueue(0, "q")
    ((_, lease),) = pairs(world, 1)
    world.extend(0, lease, 5 * MINUTE)
    world.advance(2 * MINUTE)
    world.reap(0)


def fail_until_dead(world: World) -> None:
    start(world)
    world.enqueue(0, "q")
    for _ in range(2):
        (pair,) = pairs(world, 1)
        world.reject(0, pair, error="bad", retry_in=SECOND)
        world.advance(SECOND)
        world.promote(0)
    world.finish()


def let_expire_until_dead(world: World) -> None:
    start(world)
    world.enqueue(0, "q")
    for _ in range(2):
        assert pairs(world, 1)
        world.advance(2 * MINUTE)
        world.reap(0)


def claim_one_by_one(world: World) -> None:
    start(world)
    world.enqueue_many(0, "q", 3)
    for _ in range(3):
        pairs(world, 1)


def claim_by_priority(world: World) -> None:
    start(world)
    world.enqueue(0, "q", priority=5)
    world.enqueue(0, "q", priority=-5)
    pairs(world, 1)


def release_and_claim(world: World) -> None:
    start(world)
    world.enqueue_many(0, "q", 3)
    world.release(0, pairs(world, 2)[1:])
    pairs(world, 1)


def purge(world: World) -> None:
    start(world)
    world.enqueue(0, "q", delay=MINUTE)
    world.enqueue(0, "q")
    world.purge(0, "q")
    world.check()


def redrive(world: World) -> None:
    start(world)
    world.enqueue_many(0, "q", 3)
    for pair in pairs(world, 3):
        world.reject(0, pair, retry=False)
    world.redrive(0, "q")
    world.check()


def claim_in_the_transaction_that_enqueues(world: World) -> None:
    start(world)
    world.begin(0)
    world.enqueue(0, "q")
    pairs(world, 1)


def commit_late(world: World) -> None:
    start(world)
    world.begin(0)
    world.enqueue(0, "q")
    world.enqueue(1, "q")
    pairs(world, 1, who=1)
    world.commit(0)
    pairs(world, 1, who=1)


def claim_while_another_does(world: World) -> None:
    start(world, shards=2)
    world.enqueue_many(0, "q", 2)
    world.begin(0)
    pairs(world, 2)
    pairs(world, 2, who=1)


def claim_from_a_paused_queue(world: World) -> None:
    start(world)
    world.enqueue(0, "q")
    world.pause(0, "q")
    pairs(world, 1)


def promote_early(world: World) -> None:
    start(world)
    world.enqueue(0, "q", delay=10 * MINUTE)
    world.advance(9 * MINUTE)
    world.promote(0)


def archive_a_retry(world: World) -> None:
    start(world)
    world.enqueue(0, "q")
    (pair,) = pairs(world, 1)
    world.reject(0, pair, error="bad")
    world.finish()


def watch_and_enqueue(world: World) -> None:
    start(world)
    world.watch("q")
    world.enqueue(0, "q")  # the first call after a start of the server takes the long way
    world.enqueue(0, "q")


def drop_what_is_not_empty(world: World) -> None:
    start(world)
    world.enqueue(0, "q", delay=MINUTE)
    world.drop_queue(0, "q")


def lose_a_commit(world: World) -> None:
    """Session 1 does not wait for the disk: after a crash its claim may never have been, and so it comes again."""
    start(world)
    world.enqueue(0, "q")
    (pair,) = pairs(world, 1, who=1)
    world.restart("immediate")
    again = pairs(world, 1)
    world.ack(0, pair)
    world.ack_many(0, again)


def claim_while_a_rotation_is_open(world: World) -> None:
    """Whatever a transaction does to segments that are worked off, claims do not wait for its end."""
    start(world)
    world.enqueue(0, "q")
    world.ack_many(0, pairs(world, 1))
    world.begin(0)
    for _ in range(4):
        world.rotate(0)
    world.enqueue(1, "q")
    assert pairs(world, 1, who=1)


def carry_forward_in_order(world: World) -> None:
    """Two jobs that nobody claims, in two segments, are taken along from one segment to the next."""
    start(world)
    world.enqueue(0, "q")
    world.rotate(0)
    world.enqueue(0, "q")
    for _ in range(4):
        world.advance(61 * SECOND)
        world.rotate(0)
        world.rotate(0)
    assert len(pairs(world, 2)) == 2


def redrive_and_look(world: World) -> None:
    """A redriven job runs in the segment in which it has failed before: its error is that of its past."""
    start(world)
    world.enqueue(0, "q")
    (pair,) = pairs(world, 1)
    world.reject(0, pair, error="bad", retry=False)
    world.redrive(0, "q")
    world.check(full=True)
    assert pairs(world, 1)
    world.check(full=True)


def redrive_in_an_older_transaction(world: World) -> None:
    """The transaction that redrives is older than the job: the job's new row sorts before its first one."""
    start(world)
    world.begin(1)
    world.enqueue(1, "q")
    world.enqueue(0, "q")
    (pair,) = pairs(world, 1)
    world.reject(0, pair, error="first", retry=False)
    world.redrive(1, "q")
    world.commit(1)
    for pair in pairs(world, 2):
        world.reject(0, pair, error="second", retry=False)


MUTANTS = [
    Mutant("ack without fencing", "ack", "PERFORM pgq._lost(id, lease)", "NULL", settle_twice),
    Mutant(
        "ack_many tells what it did not do",
        "ack_many",
        "SELECT s.id\n        FROM (",
        "SELECT unnest(u.ids)\n        FROM (",
        settle_two_twice,
    ),
    Mutant(
        "a lease that has ended as a whole is open",
        r"_settle_many_\d+",
        "w.kind = 'done'",
        "w.kind = 'dead'",
        settle_one_of_a_whole_lease,
    ),
    Mutant("an extension is ignored", r"_expired_\d+", "max(x.expires_at)", "min(x.expires_at)", extend_and_reap),
    Mutant("an attempt too many", "_fail", "a.attempt < coalesce", "a.attempt <= coalesce", fail_until_dead),
    Mutant(
        "an expiry is no failure",
        "_fail",
        "f.attempt + 1, f.max_attempts,\n            f.task",
        "f.attempt, f.max_attempts,\n            f.task",
        let_expire_until_dead,
    ),
    Mutant(
        "last in, first out",
        r"_take_one_\d+",
        "ORDER BY j.xid, j.id",
        "ORDER BY j.xid DESC, j.id DESC",
        claim_one_by_one,
    ),
    Mutant("the last priority first", "claim", "ORDER BY l.lane)", "ORDER BY l.lane DESC)", claim_by_priority),
    Mutant(
        "release counts the attempt",
        "release",
        "h.attempt, h.max_attempts",
        "h.attempt + 1, h.max_attempts",
        release_and_claim,
    ),
    Mutant(
        "release puts to the end",
        "release",
        "pgq._front(h.lane), pg_current",
        "h.lane, pg_current",
        release_and_claim,
    ),
    Mutant(
        "purge forgets scheduled jobs",
        "_clear_scheduled",
        "s.lane >> 16 = _clear_scheduled.queue_id",
        "s.lane < 0",
        purge,
    ),
    Mutant("reject forgets the error", "_fail", "left(u.error, 10000)", "NULL", fail_until_dead),
    Mutant(
        "redrive forgets one",
        "_redrive",
        "FROM gone g WHERE per_second IS NULL AND NOT g.waits",
        "FROM gone g WHERE per_second IS NULL OFFSET 1",
        redrive,
    ),
    Mutant(
        "a claim takes its own jobs",
        "claim",
        "IF v_queue.own IS NOT NULL",
        "IF false",
        claim_in_the_transaction_that_enqueues,
    ),
    Mutant(
        "a late commit is overlooked",
        "claim",
        "ARRAY(SELECT pg_snapshot_xip(pg_current_snapshot()))",
        "'{}'::xid8[]",
        commit_late,
    ),
    Mutant(
        "lanes are not locked",
        r"_take(_one)?_\d+",
        "pg_try_advisory_xact_lock(pgq._lane_key(v_lane))",
        "true",
        claim_while_another_does,
    ),
    Mutant("pause is ignored", "claim", "NOT q.paused AND current", "current", claim_from_a_paused_queue),
    Mutant("promote does not wait", "promote", ":= pgq._now();", ":= pgq._now() + '2 minutes';", promote_early),
    Mutant(
        "the archive has no retries", "_archive_segment", "('released', ", "('released', 'retry', ", archive_a_retry
    ),
    Mutant("nobody is woken", "enqueue", "PERFORM pgq._wake(v_queue, queue)", "NULL", watch_and_enqueue),
    Mutant("a full queue is dropped", "drop_queue", "force IS NOT TRUE", "false", drop_what_is_not_empty),
]

SCENARIOS: list[Steps] = list(
    dict.fromkeys(
        [
            *(mutant.steps for mutant in MUTANTS),
            settle_while_another_does,
            lose_a_commit,
            claim_while_a_rotation_is_open,
            carry_forward_in_order,
            redrive_and_look,
            redrive_in_an_older_transaction,
        ]
    )
)


@contextmanager
def applied(mutant: Mutant, db: Connection) -> Iterator[None]:
    """The database with a mistake in it."""
    query = """
        SELECT pg_get_functiondef(oid) FROM pg_proc
        WHERE pronamespace = 'pgq'::regnamespace AND proname ~ ('^' || %s || '$')
    """
    originals = [row[0] for row in db.execute(query, [mutant.functions])]
    assert originals, f"there is no function {mutant.functions} any more"
    assert all(mutant.old in text for text in originals), f"{mutant.functions} does not say {mutant.old!r} any more"
    try:
        for text in originals:
            db.execute(text.replace(mutant.old, mutant.new).encode())
        yield
    finally:
        for text in originals:
            db.execute(text.encode())
