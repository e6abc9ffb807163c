"""Short plays for concurrent sessions, step by step, so that what is to be seen is seen each time.

On an engine in order nothing is wrong with any of them; each is fatal to some engine that is broken.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.chaos.world import World, refused

Story = Callable[[World], None]
# Enough for whatever is done to a batch as a whole.
MANY = 40


def an_ack_under_the_lease_of_another_job(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    for token in "ab":
        producer.enqueue("q", {"k": token})
    (one,) = worker.claim("q")
    (two,) = worker.claim("q")
    with refused():
        worker.ack(two.id, one.lease)
    worker.ack(one.id, one.lease)


def a_batch_under_the_lease_of_another_job(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    for token in "abc":
        producer.enqueue("q", {"k": token})
    (one,) = worker.claim("q")
    (two,) = worker.claim("q")
    worker.ack_many([one.id, two.id], [two.lease, one.lease])
    worker.reject_many([two.id], [one.lease])
    worker.release([one.id], [two.lease])


def a_batch_under_the_lease_of_another_batch(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    producer.enqueue_many("q", [{"k": f"{n}"} for n in range(2 * MANY)])
    one, two = worker.claim("q", MANY), worker.claim("q", MANY)
    worker.ack_many([job.id for job in two], [job.lease for job in one])


def two_claimers_at_once(world: World) -> None:
    producer, slow, quick = world.session("producer"), world.session("slow"), world.session("quick")
    producer.enqueue("q", {"k": "a"})
    slow.begin()
    slow.claim("q")
    quick.claim("q")
    quick.claim("q", 10)
    slow.commit()
    quick.claim("q")


def a_producer_commits_late(world: World) -> None:
    late, producer, worker = world.session("late"), world.session("producer"), world.session("worker")
    late.begin()
    late.enqueue("q", {"k": "a"})
    producer.enqueue("q", {"k": "b"})
    for job in worker.claim("q", 10):
        worker.ack(job.id, job.lease)
    late.commit()
    for job in worker.claim("q", 10):
        worker.ack(job.id, job.lease)


def a_late_transaction_is_handed_out_in_parts(world: World) -> None:
    late, producer, worker = world.session("late"), world.session("producer"), world.session("worker")
    late.begin()
    late.enqueue_many("q", [{"k": f"late {n}"} for n in range(4)])
    producer.enqueue("q", {"k": "b"})
    worker.claim("q", 10)
    late.commit()
    for _ in range(3):
        worker.claim("q", 2)


def a_zombie_acknowledges_after_the_reaper(world: World) -> None:
    producer, zombie, worker = world.session("producer"), world.session("zombie"), world.session("worker")
    producer.enqueue("q", {"k": "a"})
    (lost,) = zombie.claim("q")
    world.advance(120)
    worker.reap()
    (job,) = worker.claim("q")
    with refused():
        zombie.ack(lost.id, lost.lease)
    worker.ack(job.id, job.lease)


def a_lease_is_extended(world: World) -> None:
    producer, worker, other = world.session("producer"), world.session("worker"), world.session("other")
    producer.enqueue("q", {"k": "a"})
    (job,) = worker.claim("q")
    worker.extend(job.lease, "10 minutes")
    world.advance(120)
    other.reap()
    other.claim("q")
    with refused():
        worker.ack(job.id, job.lease)


def a_job_is_held(world: World) -> None:
    producer, worker, other = world.session("producer"), world.session("worker"), world.session("other")
    producer.enqueue("q", {"k": "a"})
    (job,) = worker.claim("q")
    other.reap()
    other.claim("q")
    with refused():
        worker.ack(job.id, job.lease)


def an_ended_lease_is_extended(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    producer.enqueue("q", {"k": "a"})
    (job,) = worker.claim("q")
    worker.ack(job.id, job.lease)
    with refused():
        worker.extend(job.lease)


def jobs_are_carried_to_the_next_segment(world: World) -> None:
    producer, maintainer = world.session("producer"), world.session("maintainer")
    for token in "abc":
        producer.enqueue("q", {"k": token})
    maintainer.rotate()
    maintainer.rotate()
    world.advance(61)
    maintainer.rotate()
    producer.enqueue("q", {"k": "d"})
    maintainer.rotate()
    for job in maintainer.claim("q", 10):
        maintainer.ack(job.id, job.lease)


def the_second_to_carry_jobs_forward_began_first(world: World) -> None:
    producer, one, two = world.session("producer"), world.session("one"), world.session("two")
    producer.enqueue("q", {"k": "a"})
    one.rotate()
    one.rotate(seal=False)
    world.advance(61)
    producer.enqueue("q", {"k": "b"})
    two.begin()
    two.assign_xid()  # as promote and reap do in pgq.maintain, before it comes to the ring
    one.rotate()
    one.rotate(seal=False)
    world.advance(61)
    two.rotate(seal=False)
    two.commit()
    for _ in range(2):
        for job in one.claim("q"):
            one.ack(job.id, job.lease)


def what_was_carried_before_is_carried_again(world: World) -> None:
    producer, worker, maintainer = world.session("producer"), world.session("worker"), world.session("maintainer")
    producer.enqueue("q", {"k": "a"})
    maintainer.rotate()
    maintainer.rotate(seal=False)
    world.advance(40)
    producer.enqueue("q", {"k": "b"})
    maintainer.rotate()
    maintainer.rotate(seal=False)
    world.advance(22)
    maintainer.rotate(seal=False)  # a is older than a minute, and goes to the front of the third segment
    maintainer.rotate()
    world.advance(40)
    maintainer.rotate(seal=False)  # b is, too, and must not go to the fourth before a has
    world.advance(30)
    for _ in range(3):
        maintainer.rotate(seal=False)
        world.advance(3)
    for _ in range(2):
        for job in worker.claim("q"):
            worker.ack(job.id, job.lease)


def a_job_outlives_its_segment(world: World) -> None:
    producer, worker, maintainer = world.session("producer"), world.session("worker"), world.session("maintainer")
    for token in "ab":
        producer.enqueue("q", {"k": token})
    one, two = worker.claim("q", 2)
    worker.extend(one.lease, "1 hour")
    maintainer.rotate()
    maintainer.rotate()
    world.advance(31)
    for _ in range(5):
        maintainer.rotate()
    with refused():
        worker.extend(one.lease, "2 hours")
        worker.ack(one.id, one.lease)
        worker.reject(two.id, two.lease)


def a_producer_sleeps_while_its_segment_is_sealed(world: World) -> None:
    producer, other, maintainer = world.session("producer"), world.session("other"), world.session("maintainer")
    producer.begin()
    producer.enqueue("q", {"k": "a"})
    other.enqueue("q", {"k": "b"})
    for job in other.claim("q", 10):
        other.ack(job.id, job.lease)
    for _ in range(6):
        maintainer.rotate()
    producer.commit()


def a_rotation_is_rolled_back(world: World) -> None:
    producer, worker, maintainer = world.session("producer"), world.session("worker"), world.session("maintainer")
    for token in "ab":
        producer.enqueue("q", {"k": token})
    maintainer.begin()
    maintainer.claim("q", 2)
    for _ in range(4):
        maintainer.rotate()
    maintainer.rollback()
    producer.enqueue("q", {"k": "c"})
    for _ in range(3):
        for job in worker.claim("q"):
            worker.ack(job.id, job.lease)


def a_batch_ends_in_parts(world: World) -> None:
    producer, worker, zombie = world.session("producer"), world.session("worker"), world.session("zombie")
    producer.enqueue_many("q", [{"k": f"{n}"} for n in range(MANY)])
    jobs = worker.claim("q", MANY)
    ids, leases = [job.id for job in jobs], [job.lease for job in jobs]
    worker.ack(ids[3], leases[3], {"by": "one"})
    worker.reject_many(ids[5:8], leases[5:8])
    worker.release(ids[10:12], leases[10:12])
    for session in (worker, zombie):
        session.ack_many(ids, leases, [{"of": id} for id in ids])
    for settle in (zombie.ack, zombie.reject):
        with refused():
            settle(ids[0], leases[0])
    zombie.release(ids, leases)
    with refused():
        zombie.extend(leases[0])


def a_batch_ends_as_a_whole_and_is_settled_again(world: World) -> None:
    producer, worker, zombie = world.session("producer"), world.session("worker"), world.session("zombie")
    producer.enqueue_many("q", [{"k": f"{n}"} for n in range(MANY)])
    jobs = worker.claim("q", MANY)
    ids, leases = [job.id for job in jobs], [job.lease for job in jobs]
    worker.ack_many(ids, leases, [{"of": id} for id in ids])
    zombie.ack_many(ids, leases, [{"by": "a zombie"} for _ in ids])
    zombie.ack_many(ids[:2], leases[:2])
    zombie.reject_many(ids, leases)
    for settle in (zombie.ack, zombie.reject):
        with refused():
            settle(ids[-1], leases[-1])
    world.advance(120)
    zombie.reap()
    zombie.claim("q", MANY)


def a_batch_ends_while_one_of_its_jobs_does(world: World) -> None:
    producer, one, batch = world.session("producer"), world.session("one"), world.session("batch")
    producer.enqueue_many("q", [{"k": f"{n}"} for n in range(2 * MANY)])
    for commits in (True, False):
        jobs = batch.claim("q", MANY)
        ids, leases = [job.id for job in jobs], [job.lease for job in jobs]
        one.begin()
        one.reject(ids[1], leases[1])
        with ThreadPoolExecutor(1) as background:
            acked = background.submit(batch.ack_many, ids, leases)
            world.await_lock(batch, acked)
            (one.commit if commits else one.rollback)()
            acked.result(60)


def a_job_ends_while_its_batch_does(world: World) -> None:
    producer, one, batch = world.session("producer"), world.session("one"), world.session("batch")
    producer.enqueue_many("q", [{"k": f"{n}"} for n in range(2 * MANY)])
    for commits in (True, False):
        jobs = batch.claim("q", MANY)
        ids, leases = [job.id for job in jobs], [job.lease for job in jobs]
        batch.begin()
        batch.ack_many(ids, leases)
        with ThreadPoolExecutor(1) as background:
            acked = background.submit(one.ack_many, ids[1:3], leases[1:3])
            world.await_lock(one, acked)
            (batch.commit if commits else batch.rollback)()
            acked.result(60)


def jobs_are_done(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    for token in "abcd":
        producer.enqueue("q", {"k": token})
    for job in worker.claim("q", 4):
        worker.ack(job.id, job.lease, {"sum": 7})


def a_job_fails(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    producer.enqueue("q", {"k": "a"}, headers={"trace": 1}, task="t")
    (job,) = worker.claim("q")
    worker.reject(job.id, job.lease, error="no")
    for ahead in (0, 300, 1200):
        world.advance(ahead)
        worker.promote()
        worker.claim("q")


def a_job_fails_for_good(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    producer.enqueue("q", {"k": "a"}, max_attempts=2)
    for _ in range(4):
        for job in worker.claim("q"):
            worker.reject(job.id, job.lease, retry_in="0 seconds")
        worker.promote()


def a_job_is_released(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    producer.enqueue("q", {"k": "a"})
    for _ in range(2):
        for job in worker.claim("q"):
            worker.release([job.id], [job.lease])


def a_job_is_scheduled(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    producer.enqueue("q", {"k": "a"}, delay="30 minutes")
    worker.promote()
    worker.claim("q")


def a_queue_is_paused(world: World) -> None:
    producer, worker, admin = world.session("producer"), world.session("worker"), world.session("admin")
    producer.enqueue("q", {"k": "a"})
    admin.pause("q")
    admin.look()
    worker.claim("q")
    admin.resume("q")


def jobs_wait_in_line(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    for token in "abcde":
        producer.enqueue("q", {"k": token})
    for _ in range(5):
        for job in worker.claim("q"):
            worker.ack(job.id, job.lease)


def jobs_have_priorities(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    for token, priority in zip("abc", [5, 0, -5], strict=True):
        producer.enqueue("q", {"k": token}, priority=priority)
    for _ in range(3):
        for job in worker.claim("q"):
            worker.ack(job.id, job.lease)


def a_key_is_enqueued_again_and_again(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    producer.enqueue_unique("q", {"k": "a"}, "key")
    producer.enqueue_unique("q", {"k": "b"}, "key")
    (job,) = worker.claim("q")
    producer.enqueue_unique("q", {"k": "c"}, "key")
    worker.ack(job.id, job.lease)
    worker.look()
    producer.enqueue_unique("q", {"k": "d"}, "key")


def a_key_is_taken_by_two_at_once(world: World) -> None:
    one, two = world.session("one"), world.session("two")
    one.begin()
    one.enqueue_unique("q", {"k": "a"}, "key")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(two.enqueue_unique, "q", {"k": "b"}, "key")
        world.await_lock(two, waiting)
        one.commit()
        waiting.result()
    one.look()
    two.enqueue_unique("q", {"k": "c"}, "key")


def jobs_of_a_group_wait_for_each_other(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    for token in "abc":
        producer.enqueue("q", {"k": token}, group_key="group")
    for _ in range(3):
        jobs = worker.claim("q", 10)
        worker.look()
        worker.claim("q", 10)
        for job in jobs:
            worker.ack(job.id, job.lease)


def a_group_waits_for_its_job_that_failed(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    for token in "ab":
        producer.enqueue("q", {"k": token}, group_key="group")
    (job,) = worker.claim("q")
    worker.reject(job.id, job.lease)
    worker.look()
    worker.claim("q")


def jobs_wait_for_others(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    first = producer.enqueue("q", {"k": "a"})
    second = producer.enqueue("q", {"k": "b"}, after=[first])
    producer.enqueue("q", {"k": "c"}, after=[first, second], on_dead="run")
    for _ in range(3):
        worker.claim("q", 10)
        jobs = worker.claim("q", 10)
        worker.look()
        for job in jobs:
            worker.ack(job.id, job.lease)
        worker.maintain()


def a_job_waits_for_one_that_dies(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    first = producer.enqueue("q", {"k": "a"})
    producer.enqueue("q", {"k": "b"}, after=[first])
    producer.enqueue("q", {"k": "c"}, after=[first], on_dead="run")
    (job,) = worker.claim("q")
    worker.reject(job.id, job.lease, retry=False)
    worker.maintain()
    worker.look()
    for job in worker.claim("q", 10):
        worker.ack(job.id, job.lease)


def a_job_is_cancelled(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    first = producer.enqueue("q", {"k": "a"})
    later = producer.enqueue("q", {"k": "b"}, delay="1 hour")
    for id in (first, later):
        producer.cancel(id)
    producer.look()
    for job in worker.claim("q", 10):
        worker.ack(job.id, job.lease)


def a_running_job_is_cancelled(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    id = producer.enqueue("q", {"k": "a"})
    (job,) = worker.claim("q")
    producer.cancel(id)
    worker.reject(job.id, job.lease, retry_in="0")
    worker.maintain()
    producer.cancel(id)
    producer.look()
    for job in worker.claim("q", 10):
        worker.ack(job.id, job.lease)


def a_job_is_put_off(world: World) -> None:
    producer, worker = world.session("producer"), world.session("worker")
    producer.enqueue("q", {"k": "a"})
    (job,) = worker.claim("q")
    worker.snooze(job.id, job.lease, "1 hour")
    worker.maintain()
    worker.look()
    for job in worker.claim("q", 10):
        worker.ack(job.id, job.lease)


STORIES: tuple[Story, ...] = (
    an_ack_under_the_lease_of_another_job,
    a_batch_under_the_lease_of_another_job,
    a_batch_under_the_lease_of_another_batch,
    two_claimers_at_once,
    a_producer_commits_late,
    a_late_transaction_is_handed_out_in_parts,
    a_zombie_acknowledges_after_the_reaper,
    a_lease_is_extended,
    a_job_is_held,
    an_ended_lease_is_extended,
    jobs_are_carried_to_the_next_segment,
    the_second_to_carry_jobs_forward_began_first,
    what_was_carried_before_is_carried_again,
    a_job_outlives_its_segment,
    a_producer_sleeps_while_its_segment_is_sealed,
    a_rotation_is_rolled_back,
    a_batch_ends_in_parts,
    a_batch_ends_as_a_whole_and_is_settled_again,
    a_batch_ends_while_one_of_its_jobs_does,
    a_job_ends_while_its_batch_does,
    jobs_are_done,
    a_job_fails,
    a_job_fails_for_good,
    a_job_is_released,
    a_job_is_scheduled,
    a_queue_is_paused,
    jobs_wait_in_line,
    jobs_have_priorities,
    a_key_is_enqueued_again_and_again,
    a_key_is_taken_by_two_at_once,
    jobs_of_a_group_wait_for_each_other,
    a_group_waits_for_its_job_that_failed,
    jobs_wait_for_others,
    a_job_waits_for_one_that_dies,
    a_job_is_cancelled,
    a_running_job_is_cancelled,
    a_job_is_put_off,
)
