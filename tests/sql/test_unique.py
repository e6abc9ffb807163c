"""Unique keys: of the jobs with one key, one is live."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from tests.conftest import Clock
from tests.sql.support import (
    PASSAGES,
    Connect,
    Connection,
    ack,
    call,
    claim,
    claim_one,
    column,
    create,
    enqueue,
    in_background,
    one,
    refused,
    retire_all,
    rotate,
    stats,
    status,
    until_blocked,
)


@pytest.fixture
def db(db: Connection) -> Connection:
    create(db)
    return db


def unique(db: Connection, key: str = "k", payload: Any = None, queue: str = "q", **named: Any) -> tuple[int, bool]:
    names = "".join(f", {name} => %s" for name in named)
    query = f"SELECT * FROM pgq.enqueue_unique(%s, %s, unique_key => %s{names})"
    (row,) = db.execute(query, [queue, json.dumps(payload), key, *named.values()]).fetchall()
    return row


def many(db: Connection, keys: list[str | None], queue: str = "q", **named: Any) -> list[tuple[int, bool]]:
    names = "".join(f", {name} => %s" for name in named)
    payloads = [json.dumps(n) for n in range(len(keys))]
    query = f"SELECT * FROM pgq.enqueue_unique_many(%s, %s::jsonb[], %s{names})"
    return db.execute(query, [queue, payloads, keys, *named.values()]).fetchall()


def keys(db: Connection) -> int:
    return len(column(db, "SELECT key FROM pgq.unique_key"))


# Until finished -------------------------------------------------------------------------------------------------------


def test_a_key_is_held_through_the_whole_life_of_a_job(db: Connection, clock: Clock) -> None:
    first, inserted = unique(db, delay=timedelta(minutes=1))
    assert inserted
    again = (first, False)
    assert unique(db) == again  # scheduled
    clock.advance(61)
    assert call(db, "promote") == 1
    assert unique(db) == again  # ready
    job = claim_one(db)
    assert unique(db) == again  # running
    call(db, "reject", job.id, job.lease)
    assert unique(db) == again  # retrying
    clock.advance(5)
    call(db, "promote")
    job = claim_one(db)
    db.execute("SELECT pgq.release(%s, %s)", [[job.id], [job.lease]])
    assert unique(db) == again  # released
    job = claim_one(db)
    clock.advance(61)
    call(db, "reap")
    assert unique(db) == again  # expired
    job = claim_one(db)
    assert job.id == first
    assert job.attempt == 3
    assert stats(db) == {"running": 1}
    call(db, "ack", job.id, job.lease)
    second, inserted = unique(db)
    assert inserted
    assert second != first
    assert stats(db) == {"ready": 1}


def test_enqueue_returns_the_id_of_the_job_that_holds_the_key(db: Connection) -> None:
    first = call(db, "enqueue", "q", unique_key="k")
    assert call(db, "enqueue", "q", unique_key="k") == first
    assert call(db, "enqueue", "q", unique_key="other") != first
    assert call(db, "enqueue", "q") not in (first, None)
    assert stats(db) == {"ready": 3}


def test_keys_of_different_queues_have_nothing_to_do_with_each_other(db: Connection) -> None:
    create(db, "other")
    assert unique(db)[1]
    assert unique(db, queue="other")[1]
    assert not unique(db)[1]
    assert not unique(db, queue="other")[1]


@pytest.mark.parametrize("passage", PASSAGES.values(), ids=PASSAGES)
def test_a_running_job_holds_its_key_wherever_it_is_kept(db: Connection, clock: Clock, passage: Any) -> None:
    first, _ = unique(db)
    job = claim_one(db, lease_for=timedelta(hours=1))
    passage(db, clock)
    assert unique(db) == (first, False)
    call(db, "ack", job.id, job.lease)
    assert unique(db)[1]


def test_a_job_that_was_carried_into_another_segment_holds_its_key(db: Connection, clock: Clock) -> None:
    first, _ = unique(db)
    rotate(db, 2)
    clock.advance(120)
    rotate(db, 6)
    assert one(db, "SELECT state FROM pgq.segment WHERE slot = 0") == "free"
    assert unique(db) == (first, False)
    assert claim_one(db).id == first


def test_a_batch_that_was_acked_as_a_whole_gives_up_its_keys(db: Connection) -> None:
    names: list[str | None] = [f"k{n}" for n in range(20)]
    assert all(inserted for _, inserted in many(db, names))
    jobs = [job for _ in range(8) for job in claim(db, 20)]
    assert not any(inserted for _, inserted in many(db, names))
    ack(db, jobs)
    assert all(inserted for _, inserted in many(db, names))


def test_a_dead_letter_has_given_up_its_key(db: Connection) -> None:
    unique(db)
    job = claim_one(db)
    call(db, "reject", job.id, job.lease, retry=False)
    second, inserted = unique(db)
    assert inserted
    call(db, "redrive", "q")  # does not ask
    assert stats(db) == {"ready": 2}
    assert unique(db) == (second, False)


def test_purging_a_queue_gives_up_all_its_keys(db: Connection) -> None:
    unique(db, "ready")
    unique(db, "scheduled", delay=timedelta(hours=1))
    assert call(db, "purge", "q") == 2
    assert unique(db, "ready")[1]
    assert unique(db, "scheduled")[1]


def test_dropping_a_queue_takes_its_keys_along(db: Connection) -> None:
    unique(db)
    call(db, "drop_queue", "q", force=True)
    assert keys(db) == 0
    create(db)
    assert unique(db)[1]


# Until claimed, and for a time ----------------------------------------------------------------------------------------


def test_a_key_can_be_held_until_its_job_is_claimed(db: Connection, clock: Clock) -> None:
    first, _ = unique(db, unique_until="claimed")
    assert unique(db, unique_until="claimed") == (first, False)
    job = claim_one(db)
    second, inserted = unique(db, unique_until="claimed")
    assert inserted
    call(db, "reject", job.id, job.lease)  # a retry of the first does not take the key back
    assert unique(db, unique_until="claimed") == (second, False)
    assert stats(db) == {"ready": 1, "retrying": 1}


def test_what_holds_a_key_until_it_is_claimed_holds_it_again_once_it_is_released(db: Connection) -> None:
    first, _ = unique(db, unique_until="claimed")
    job = claim_one(db)
    db.execute("SELECT pgq.release(%s, %s)", [[job.id], [job.lease]])
    assert unique(db, unique_until="claimed") == (first, False)


def test_how_long_a_key_is_held_was_said_by_who_enqueued_the_job(db: Connection) -> None:
    first, _ = unique(db)
    claim_one(db)
    assert unique(db, unique_until="claimed") == (first, False)


def test_a_key_can_be_held_for_a_time_whatever_becomes_of_its_job(db: Connection, clock: Clock) -> None:
    minute = timedelta(minutes=1)
    first, _ = unique(db, unique_for=minute)
    job = claim_one(db)
    call(db, "ack", job.id, job.lease)
    clock.advance(59)
    assert unique(db, unique_for=minute) == (first, False)
    clock.advance(2)
    second, inserted = unique(db, unique_for=minute)
    assert inserted
    clock.advance(61)
    assert unique(db, unique_for=minute)[1]  # although the second has not run
    assert stats(db) == {"ready": 2}
    assert second != first


def test_a_queue_says_how_its_keys_work(db: Connection, clock: Clock) -> None:
    call(db, "set_unique", "q", unique_until="claimed")
    unique(db)
    claim_one(db)
    assert unique(db)[1]
    call(db, "set_unique", "q", unique_for=timedelta(seconds=10))
    claim_one(db)
    assert unique(db)[1]
    clock.advance(11)
    assert unique(db)[1]
    call(db, "set_unique", "q", on_repeat="replace")
    first, _ = unique(db, "another", 1, delay=timedelta(minutes=1))
    assert unique(db, "another", 2) == (first, False)
    assert one(db, "SELECT payload FROM pgq.scheduled WHERE id = %s", first) == 2


# Repeats --------------------------------------------------------------------------------------------------------------


def test_a_repeat_can_replace_the_payload(db: Connection, clock: Clock) -> None:
    first, _ = unique(db, payload=1, delay=timedelta(minutes=1))
    due = status(db, first).run_at
    for n in range(2, 5):
        assert unique(db, payload=n, on_repeat="replace", task="t", delay=timedelta(hours=1)) == (first, False)
    assert status(db, first).run_at == due
    clock.advance(61)
    call(db, "promote")
    job = claim_one(db)
    assert (job.id, job.payload, job.task) == (first, 4, "t")


def test_a_repeat_can_put_the_job_off(db: Connection, clock: Clock) -> None:
    first, _ = unique(db, payload=1, delay=timedelta(minutes=1), on_repeat="debounce")
    clock.advance(50)
    assert unique(db, payload=2, delay=timedelta(minutes=1), on_repeat="debounce") == (first, False)
    clock.advance(50)
    assert call(db, "promote") == 0
    clock.advance(11)
    assert call(db, "promote") == 1
    assert claim_one(db).payload == 2


def test_a_ready_job_is_replaced_in_its_place(db: Connection, clock: Clock) -> None:
    create(db, "line", shards=1)
    first, _ = unique(db, payload=1, queue="line")
    enqueue(db, 3, "line")
    rotate(db, 2)
    assert unique(db, payload=2, queue="line", on_repeat="replace", task="t") == (first, False)
    job = claim_one(db, "line")
    assert (job.id, job.payload, job.task) == (first, 2, "t")
    ack(db, [job, *claim(db, 10, "line")])
    retire_all(db)
    assert one(db, "SELECT payload FROM pgq.archive WHERE id = %s", first) == 2


def test_a_ready_job_can_be_put_off(db: Connection, clock: Clock) -> None:
    first, _ = unique(db, payload=1)
    assert unique(db, payload=2, delay=timedelta(minutes=1), on_repeat="debounce") == (first, False)
    assert stats(db) == {"scheduled": 1}
    assert unique(db) == (first, False)
    clock.advance(61)
    call(db, "promote")
    assert claim_one(db).payload == 2


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_repeat_waits_for_who_is_claiming_the_job(db: Connection, connect: Connect, end: str) -> None:
    first, _ = unique(db, payload=1)
    claiming, repeating = connect(autocommit=False), connect()
    claim_one(claiming)
    waiting = in_background(unique, repeating, "k", 2, on_repeat="replace")
    until_blocked(db, repeating)
    getattr(claiming, end)()
    assert waiting.result() == (first, False)
    assert status(db, first).state == ("running" if end == "commit" else "ready")
    if end == "rollback":
        assert claim_one(db).payload == 2


def test_a_claim_waits_for_who_is_replacing_the_job(db: Connection, connect: Connect) -> None:
    unique(db, payload=1)
    with connect(autocommit=False) as repeating:
        unique(repeating, payload=2, on_repeat="replace")
        assert claim(db) == []
    assert claim_one(db).payload == 2


def test_a_repeat_that_is_rolled_back_has_changed_nothing(db: Connection, connect: Connect) -> None:
    unique(db, payload=1)
    with connect(autocommit=False) as repeating:
        unique(repeating, payload=2, on_repeat="replace")
        repeating.rollback()
    assert claim_one(db).payload == 1


def test_a_cancelled_job_gives_up_its_key(db: Connection) -> None:
    first, _ = unique(db)
    assert call(db, "cancel", first) == "cancelled"
    second, inserted = unique(db, delay=timedelta(hours=1))
    assert inserted
    assert call(db, "cancel", second) == "cancelled"
    assert unique(db)[1]


def test_a_repeat_does_not_change_a_job_that_has_been_claimed(db: Connection, clock: Clock) -> None:
    first, _ = unique(db, payload=1)
    job = claim_one(db)
    assert unique(db, payload=2, on_repeat="replace") == (first, False)
    call(db, "reject", job.id, job.lease)
    assert unique(db, payload=2, on_repeat="replace") == (first, False)
    clock.advance(5)
    call(db, "promote")
    assert claim_one(db).payload == 1


# Many at once ---------------------------------------------------------------------------------------------------------


def test_many_says_of_each_whether_it_was_added(db: Connection) -> None:
    held, _ = unique(db, "held")
    found = many(db, ["a", "held", None, "b", "a", None])
    assert [inserted for _, inserted in found] == [True, False, True, True, False, True]
    assert found[1][0] == held
    assert found[4][0] == found[0][0]
    assert len({id for id, _ in found}) == 5
    payloads = {job.id: job.payload for _ in range(8) for job in claim(db, 10)}
    assert [payloads[id] for id, inserted in found if inserted] == [0, 2, 3, 5]


def test_none_is_added_if_all_keys_are_held(db: Connection) -> None:
    first = many(db, ["a", "b"])
    assert many(db, ["b", "a"]) == [(first[1][0], False), (first[0][0], False)]
    assert many(db, []) == []
    assert stats(db) == {"ready": 2}


# Races ----------------------------------------------------------------------------------------------------------------


def test_who_comes_second_gets_the_first_job_once_it_is_committed(db: Connection, connect: Connect) -> None:
    first, second = connect(autocommit=False), connect()
    job = unique(first)
    waiting = in_background(unique, second)
    until_blocked(db, second)
    first.commit()
    assert waiting.result() == (job[0], False)


def test_who_comes_second_inserts_if_the_first_rolls_back(db: Connection, connect: Connect) -> None:
    first, second = connect(autocommit=False), connect()
    job = unique(first)
    waiting = in_background(unique, second)
    until_blocked(db, second)
    first.rollback()
    id, inserted = waiting.result()
    assert inserted
    assert id != job[0]
    assert stats(db) == {"ready": 1}


@pytest.mark.direct("terminates a session")
def test_who_comes_second_inserts_if_the_first_is_killed(db: Connection, connect: Connect) -> None:
    first, second = connect(autocommit=False), connect()
    unique(first)
    waiting = in_background(unique, second)
    until_blocked(db, second)
    db.execute("SELECT pg_terminate_backend(%s, 20000)", [first.info.backend_pid])
    assert waiting.result()[1]
    assert stats(db) == {"ready": 1}


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_who_find_an_old_key_free_do_not_both_take_it(db: Connection, connect: Connect, end: str) -> None:
    unique(db)
    job = claim_one(db)
    call(db, "ack", job.id, job.lease)
    first, second = connect(autocommit=False), connect()
    taken = unique(first)
    assert taken[1]
    waiting = in_background(unique, second)
    until_blocked(db, second)
    getattr(first, end)()
    id, inserted = waiting.result()
    assert inserted == (end == "rollback")
    assert (id == taken[0]) == (end == "commit")
    assert stats(db) == {"ready": 1}


def test_a_savepoint_that_is_rolled_back_gives_the_key_back(db: Connection, connect: Connect) -> None:
    with connect(autocommit=False) as session:
        with session.transaction(force_rollback=True):
            unique(session)
        id, inserted = unique(session)
        assert inserted
        assert unique(session) == (id, False)
    assert stats(db) == {"ready": 1}


def test_an_ack_that_is_not_committed_has_not_ended_the_job(db: Connection, connect: Connect) -> None:
    first, _ = unique(db)
    job = claim_one(db)
    with connect(autocommit=False) as acking:
        call(acking, "ack", job.id, job.lease)
        assert unique(db) == (first, False)
        assert unique(acking)[1]  # its own transaction knows better
    assert stats(db) == {"ready": 1}


def test_batches_in_different_orders_do_not_wait_for_each_other_in_a_circle(db: Connection, connect: Connect) -> None:
    names: list[str | None] = [f"k{n}" for n in range(50)]
    sessions = [connect() for _ in range(4)]

    def work(n: int) -> int:
        added = 0
        for turn in range(20):
            order = names[::-1] if n % 2 else names
            added += sum(inserted for _, inserted in many(sessions[n], [f"{turn} {name}" for name in order]))
        return added

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 20 * 50


def test_many_producers_and_workers_never_make_two_live_jobs_of_a_key(db: Connection, connect: Connect) -> None:
    """Each job, while it lives, is the only one; the workers prove it by looking at who else is at work."""
    db.execute("CREATE TABLE at_work (key text PRIMARY KEY)")  # refuses a second one
    names = ["a", "b", "c"]
    produced = threading.Event()

    def produce(session: Connection) -> int:
        added = 0
        for n in range(150):
            with session.transaction(force_rollback=n % 7 == 0):
                added += unique(session, names[n % 3], names[n % 3])[1] and n % 7 > 0
        return added

    def work(session: Connection) -> int:
        done = 0
        while not produced.is_set() or stats(session):
            for job in claim(session, 1):
                session.execute("INSERT INTO at_work VALUES (%s)", [job.payload])
                session.execute("DELETE FROM at_work WHERE key = %s", [job.payload])
                call(session, "ack", job.id, job.lease)
                done += 1
        return done

    def turn(session: Connection) -> int:
        for _ in range(40):
            rotate(session)
        return 0

    with ThreadPoolExecutor(8) as pool:
        producing = [pool.submit(produce, connect()) for _ in range(4)]
        working = [pool.submit(work, connect()) for _ in range(3)]
        turning = pool.submit(turn, connect())
        added = sum(future.result(60) for future in producing)
        produced.set()
        done = sum(future.result(60) for future in working)
        turning.result(60)
    assert done == added >= 3
    assert stats(db) == {}


# What is left behind --------------------------------------------------------------------------------------------------


def test_keys_of_ended_jobs_go_when_their_segment_is_retired(db: Connection, clock: Clock) -> None:
    many(db, [f"k{n}" for n in range(30)])
    call(db, "enqueue", "q", unique_key="dead", max_attempts=1)
    alive, _ = unique(db, "alive", delay=timedelta(days=1))
    jobs = [job for _ in range(8) for job in claim(db, 100)]
    ack(db, jobs[:-1])
    call(db, "reject", jobs[-1].id, jobs[-1].lease, retry=False)
    assert keys(db) == 32
    retire_all(db)
    assert keys(db) == 1
    assert unique(db, "alive") == (alive, False)


def test_they_go_where_there_is_no_archive(db: Connection) -> None:
    call(db, "alter_queue", "q", retention=timedelta(0))
    unique(db)
    ack(db, claim(db))
    retire_all(db)
    assert keys(db) == 0


def test_keys_held_for_a_time_go_when_it_is_over(db: Connection, clock: Clock) -> None:
    unique(db, unique_for=timedelta(hours=1))
    ack(db, claim(db))
    retire_all(db)
    assert keys(db) == 1
    clock.advance(timedelta(hours=2))
    call(db, "maintain")
    assert keys(db) == 0


def test_what_was_left_behind_is_found_in_time(db: Connection, clock: Clock) -> None:
    unique(db, delay=timedelta(hours=1))
    db.execute("DELETE FROM pgq.scheduled")
    clock.advance(120)
    call(db, "maintain")
    assert keys(db) == 0


def test_retiring_does_not_wait_for_who_is_taking_a_key_over(db: Connection, connect: Connect) -> None:
    unique(db)
    ack(db, claim(db))
    with connect(autocommit=False) as session:
        assert unique(session)[1]
        retire = in_background(rotate, connect(), 8)
        retire.result()
    assert not unique(db)[1]
    assert stats(db) == {"ready": 1}


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_keys_need_read_committed(db: Connection, isolation: str) -> None:
    with db.transaction():
        db.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        with refused("PQ003"):
            unique(db)
