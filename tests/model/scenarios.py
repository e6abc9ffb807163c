"""Short lives of a queue, each of which shows one thing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from tests.model.data import Limits, Settings
from tests.model.transactions import OUTSIDE
from tests.model.world import World

Steps = Callable[[World], None]

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


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


def use_a_priority_now_and_then(world: World) -> None:
    """Its line counts for some segments, is added again, and is forgotten when they are gone."""
    start(world)
    for turns in range(3, 6):
        world.enqueue(0, "q", priority=-3)
        world.advance(61 * SECOND)
        for _ in range(3):
            world.maintain(0)
        world.ack_many(0, pairs(world, 1))
        for _ in range(turns):
            world.enqueue(0, "q")
            world.ack_many(0, pairs(world, 1))
            for _ in range(4):
                world.rotate(0)


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


def lose_its_limit(world: World) -> None:
    """While a job of a group waits for its next attempt, its group has no limit, and then has one again."""
    start(world)
    world.enqueue_many(0, "q", 1, group_keys=["a"])
    world.reject(0, pairs(world, 1)[0], retry_in=MINUTE)
    world.set_limits(0, "q", Limits(group_limit=None))
    world.advance(MINUTE)
    world.maintain(0)
    world.ack_many(0, pairs(world, 1))
    world.set_limits(0, "q", Limits())
    world.enqueue_many(0, "q", 1, group_keys=["a"])
    pairs(world, 1)


def limit_a_queue(world: World) -> None:
    start(world)
    world.set_limits(0, "q", Limits(group_limit=2, running_limit=2))
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


def start_so_many(world: World) -> None:
    """Two in a minute, and then again two."""
    start(world)
    world.set_limits(0, "q", Limits(rate=2, rate_period=MINUTE))
    world.enqueue_many(0, "q", 4, group_keys=["a", "b", "c", "d"])
    for _ in range(2):
        pairs(world, 1)
        pairs(world, 2)
        pairs(world, 1)
        world.advance(MINUTE)


def start_so_many_of_a_group(world: World) -> None:
    start(world)
    world.set_limits(0, "q", Limits(group_limit=None, group_rate=1, group_period=MINUTE))
    world.enqueue_many(0, "q", 4, group_keys=["a", "a", "a", "b"])
    for _ in range(2):
        pairs(world, 3)
        pairs(world, 3)
        world.advance(MINUTE)


def take_turns(world: World) -> None:
    start(world)
    world.set_limits(0, "q", Limits(group_limit=None, fair=True))
    world.enqueue_many(0, "q", 6, group_keys=["a", "a", "a", "a", "b", "b"])
    for _ in range(4):
        pairs(world, 1)


def begin_to_take_turns(world: World) -> None:
    """Those of a group have waited before, and in line."""
    start(world)
    world.set_limits(0, "q", Limits(group_limit=None))
    world.enqueue_many(0, "q", 6, group_keys=["a", "a", "a", "a", "b", "b"])
    pairs(world, 1)
    world.set_limits(0, "q", Limits(group_limit=None, fair=True))
    for _ in range(3):
        pairs(world, 1)


def cancel_claimed(world: World) -> None:
    start(world)
    world.enqueue(0, "q")
    world.cancel_claimed(0, pairs(world, 1)[0], "no longer wanted")
    world.finish()


def work_in_sql(world: World) -> None:
    start(world)
    world.enqueue_many(0, "q", 5)
    world.maintain(0)
    world.work(0, "q", 2)
    world.check(full=True)


def wait_without_patience(world: World) -> None:
    start(world)
    world.enqueue(0, "q")
    world.ack(0, pairs(world, 1)[0], {"ok": 1})
    world.wait(0, 1)


def change_rows(world: World) -> None:
    world.create_queue(0, "line", Settings())
    world.change_rows(0, 1)
    world.change_rows(0, 2)
    world.claim(0, "line", 3)


def grant(world: World) -> None:
    start(world)
    world.grant(0, "consumer")
    world.check(full=True)


def look(world: World) -> None:
    """While there is something in every list."""
    start(world)
    world.enqueue_many(0, "q", 3)
    world.enqueue_many(0, "q", 1, delay=MINUTE)
    world.claim(0, "q", 1, worker="w")
    world.reject(0, pairs(world, 1)[0], error="bad", retry=False)
    world.look(0)
