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
from tests.model.transactions import OUTSIDE
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


def cancel_and_claim(world: World) -> None:
    start(world)
    world.cancel(0, world.enqueue_many(0, "q", 2)[0])
    pairs(world, 2)


def cancel_scheduled(world: World) -> None:
    start(world)
    world.cancel(0, world.enqueue_many(0, "q", 1, delay=MINUTE)[0])
    world.check(full=True)


def cancel_running(world: World) -> None:
    """Four ways in which a running job can end; the fifth comes back before anybody sees the request."""
    start(world)
    world.enqueue_many(0, "q", 6)
    held = pairs(world, 5)
    unseen = pairs(world, 1)
    for id in (1, 2, 3, 4, 5):
        world.cancel(0, id)
    world.cancel_requested(0, [held[0][1]])
    world.ack(0, held[0])
    world.reject(0, held[1], error="bad")
    world.release(0, held[2:3])
    world.snooze(0, held[3], MINUTE)
    world.begin(1)
    world.release(1, unseen)
    world.cancel(0, 6)
    world.commit(1)
    world.advance(2 * MINUTE)
    world.maintain(0)
    world.check(full=True)


def cancel_many(world: World) -> None:
    start(world)
    world.enqueue_many(0, "q", 2)
    world.enqueue(0, "q", task="task")
    world.enqueue(0, "q", task="task", delay=MINUTE)
    pairs(world, 1)
    world.cancel_many(0, "q", task="task")
    world.cancel_many(0, "q", running=True)
    world.check(full=True)


def reschedule(world: World) -> None:
    start(world)
    (later,) = world.enqueue_many(0, "q", 1, delay=MINUTE)
    (now,) = world.enqueue_many(0, "q", 1)
    world.reschedule(0, later, world.model.now + 2 * MINUTE)
    world.reschedule(0, now, world.model.now + 3 * MINUTE)
    world.check(full=True)


def set_priority(world: World) -> None:
    """One comes to the front, one goes to the end, and one that waits for its time comes between."""
    start(world)
    first, _, last = world.enqueue_many(0, "q", 3)
    (later,) = world.enqueue_many(0, "q", 1, delay=MINUTE)
    world.set_priority(0, last, -5)
    pairs(world, 1)
    world.set_priority(0, first, 7)
    world.set_priority(0, later, 5)
    world.advance(MINUTE)
    world.promote(0)
    pairs(world, 3)


def tell_progress(world: World) -> None:
    start(world)
    world.enqueue_many(0, "q", 2)
    first, second = pairs(world, 2)
    world.progress(0, first, 1)
    world.progress(0, first, 2)
    world.advance(2 * SECOND)
    world.progress(0, first, 3)
    world.check(full=True)
    world.ack(0, second)
    world.progress(0, second, 4)


def fail_in_many_ways(world: World) -> None:
    """Every attempt is told once: from its segment, from the archive, and from the history of the job."""
    start(world, retention=timedelta(0))
    world.create_queue(0, "kept", Settings(shards=1, max_attempts=3))
    world.enqueue(0, "q")
    world.enqueue(0, "kept")
    for _ in range(2):
        for name in ("q", "kept"):
            for job in world.claim(0, name):
                world.reject(0, (job.id, job.lease), error="bad", retry_in=SECOND)
        world.attempts(0)
        for _ in range(4):
            world.rotate(0)
        world.attempts(0)
        world.advance(2 * SECOND)
        world.promote(0)
    world.check(full=True)


def wait_for_others(world: World) -> None:
    start(world)
    others = world.enqueue_many(0, "q", 2)
    world.enqueue_after(0, others, "q", 1, on_dead="run")
    world.ack_many(0, pairs(world, 1))
    world.maintain(0)
    world.check(full=True)


def add_to_batch(world: World) -> None:
    start(world)
    first, second = world.enqueue_many(0, "q", 2)
    (batch,) = world.enqueue_after(0, [first], "q", 1, on_dead="run")
    world.add_to_batch(0, batch, [second])
    world.check(full=True)


def one_of_a_group(world: World) -> None:
    start(world)
    world.enqueue(0, "q", group_key="a")
    world.enqueue_many(0, "q", 3, group_keys=["a", "a", "b"])
    pairs(world, 4)
    world.finish()


def keep_its_place(world: World) -> None:
    """While a job waits for its next attempt, nobody of its group overtakes it."""
    start(world)
    world.enqueue_many(0, "q", 3, group_keys=["a", "a", "b"])
    world.reject(0, pairs(world, 1)[0], retry_in=MINUTE)
    pairs(world, 3)
    world.advance(MINUTE)
    world.maintain(0)
    pairs(world, 3)


def limit_a_queue(world: World) -> None:
    start(world)
    world.set_limits(0, "q", 2, 2)
    world.enqueue_many(0, "q", 4, group_keys=["a", "b", "c", "d"])
    pairs(world, 1)
    pairs(world, 3)


def wait_for_the_end(world: World) -> None:
    start(world)
    world.enqueue_many(0, "q", 2)
    world.watch_job(1)
    world.watch_job(2)
    world.ack_many(0, pairs(world, 1))
    world.cancel(0, 2)


def be_exclusive(world: World) -> None:
    start(world)
    world.begin(0)
    world.try_exclusive(0, "a")
    world.exclusive_holder(1, "a")
    world.try_exclusive(1, "a")
    world.try_exclusive(1, "b")


def purge_one_state(world: World) -> None:
    start(world)
    world.enqueue(0, "q")
    world.enqueue(0, "q", delay=MINUTE)
    world.reject(0, pairs(world, 1)[0])
    for state in ("ready", "retrying", "scheduled"):
        world.purge(0, "q", state)
        world.check()


def set_rules(world: World) -> None:
    start(world)
    world.set_unique(0, "q", "claimed")
    world.enqueue_unique(0, "q", ["a"])
    pairs(world, 1)
    world.enqueue_unique(0, "q", ["a"])
    world.set_validator(0, "q", True)
    world.enqueue(0, "q", bad=True)
    world.enqueue(0, "q")


def fire(world: World) -> None:
    """A tick, and then some that nobody was there for; those that are skipped, too."""
    start(world)
    world.schedule(0, "one", "*/5 * * * *", "q", "one")
    world.next_runs(0, "*/5 * * * *", 3)
    world.schedule(0, "all", "*/5 * * * *", "q", "all")
    world.schedule(0, "skip", "*/5 * * * *", "q", "skip")
    for _ in range(2):
        world.advance_to_next(OUTSIDE)
        world.maintain(0)
        world.advance(17 * MINUTE)
    world.promote(0)
    world.schedule(0, "one", "@hourly", "q", "one")
    world.unschedule(0, "all")
    world.check(full=True)
    pairs(world, 100)


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
    Mutant(
        "cancel only says so",
        "_cancel",
        "IF EXISTS (SELECT FROM pgq._withdraw_job(",
        "IF true OR EXISTS (SELECT FROM pgq._withdraw_job(",
        cancel_and_claim,
    ),
    Mutant(
        "a cancelled job is done", "_cancel_waiting", "p.places, 'cancelled')", "p.places, 'done')", cancel_scheduled
    ),
    Mutant(
        "reject does not stop", "_fail", "WHEN f.stopped THEN 'cancelled' WHEN f.again", "WHEN f.again", cancel_running
    ),
    Mutant("release does not stop", "release", "WHERE NOT h.stopped", "", cancel_running),
    Mutant("nobody is asked to stop", r"_asked_\d+", "c.id = u.id", "c.id = 0", cancel_running),
    Mutant("an acknowledged job is asked for ever", "_pursue", "PERFORM pgq._cancel(v_id)", "NULL", cancel_running),
    Mutant("cancel_many takes every task", r"_ready_\d+", "named IS NULL OR j.task = named", "true", cancel_many),
    Mutant("cancel_many never asks", "cancel_many", "IF running THEN", "IF false THEN", cancel_many),
    Mutant("reschedule keeps the time", "_put_off", "greatest(_put_off.run_at,", "greatest(s.run_at,", reschedule),
    Mutant(
        "reschedule means now", "reschedule", "SELECT reschedule.run_at, w.id", "SELECT pgq._now(), w.id", reschedule
    ),
    Mutant(
        "the priority stays",
        "set_priority",
        "pgq._new_lane(v_queue, set_priority.priority, w.id",
        "pgq._new_lane(v_queue, 0, w.id",
        set_priority,
    ),
    Mutant("a tick is fired twice", "_fire_one", "SET next_at = v_next", "SET next_at = v_tick", fire),
    Mutant("missed ticks are not skipped", "_fire_one", "v_tick < now - v_minute", "false", fire),
    Mutant("one job for all missed ticks", "_fire_one", "schedule.catch_up <> 'all'", "true", fire),
    Mutant(
        "progress at any pace",
        "progress",
        "    IF FOUND THEN\n        RETURN false",
        "    IF false THEN\n        RETURN false",
        tell_progress,
    ),
    Mutant("progress of the dead", r"_running_since_\d+", "AND NOT EXISTS (", "AND true OR EXISTS (", tell_progress),
    Mutant("attempts are told twice", "attempts", "k.attempt = f.attempt", "k.attempt < f.attempt", fail_in_many_ways),
    Mutant(
        "attempts are forgotten",
        "_failures",
        "'{scheduled,parked,dead,straggler}'",
        "'{parked,straggler}'",
        fail_in_many_ways,
    ),
    Mutant(
        "dead letters of the first page",
        "dead_letters",
        "d.id > after_id)",
        "d.id > after_id) AND d.attempt = 1",
        fail_until_dead,
    ),
    Mutant(
        "what has ended is pending", "_take_in", "done = t.done + c.jobs * v_done", "done = t.done", wait_for_others
    ),
    Mutant(
        "everybody is exclusive",
        "try_exclusive",
        "RETURN pg_try_advisory_xact_lock(pgq._exclusive_key(name))",
        "RETURN true",
        be_exclusive,
    ),
    Mutant(
        "one state is all", "_clear_scheduled", "pgq._state_of(s.run_at, s.attempt) = state", "true", purge_one_state
    ),
    Mutant(
        "set_unique is forgotten",
        "set_unique",
        "SET unique_until = set_unique.unique_until",
        "SET unique_until = q.unique_until",
        set_rules,
    ),
    Mutant("everything is valid", "_validate", "v_valid IS NOT TRUE", "false", set_rules),
    Mutant(
        "nothing is added to a batch",
        "add_to_batch",
        "unnest(ids) i ON CONFLICT",
        "unnest(ids[1:0]) i ON CONFLICT",
        add_to_batch,
    ),
    Mutant("one too many of a group", "_pick_of", "v_limit - v_held), 0)", "v_limit - v_held + 1), 0)", one_of_a_group),
    Mutant(
        "last in, first out of a group",
        "_pick_of",
        "p.priority, p.id\n        LIMIT greatest",
        "p.priority, p.id DESC\n        LIMIT greatest",
        one_of_a_group,
    ),
    Mutant("a permit is not given back", "_end_permits", "ELSE 'ended' END", "ELSE m.state END", one_of_a_group),
    Mutant("a failed job loses its place", "_end_permits", "WHEN again AND", "WHEN false AND", keep_its_place),
    Mutant("a queue has no limit", "_claim_limited", "AND m.state = 'running'", "AND false", limit_a_queue),
    Mutant(
        "the next run is tomorrow",
        "next_runs",
        "coalesce(after, pgq._now())",
        "coalesce(after, pgq._now() + '1 day')",
        fire,
    ),
    Mutant(
        "nobody hears of the end", "_tell", "WHERE pgq._is_watched(pgq._wait_key(i))", "WHERE false", wait_for_the_end
    ),
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
