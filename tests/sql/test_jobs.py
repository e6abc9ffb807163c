"""Lists of live jobs, workers, activity and failures: right, and at the same cost at any size."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from psycopg import IsolationLevel
from psycopg.rows import dict_row

from tests.conftest import Clock
from tests.sql.support import (
    Connect,
    Connection,
    Passage,
    ack,
    across,
    call,
    claim,
    claim_one,
    column,
    create,
    enqueue,
    flush_counts,
    ids,
    one,
    refused,
    retire_all,
    rotate,
    rows,
)

Row = dict[str, Any]


def listed(db: Connection, function: str = "jobs('q')", *values: Any) -> list[Row]:
    """What a function returns, by the names of its columns."""
    with db.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(f"SELECT * FROM pgq.{function}".encode(), values).fetchall()


def found(db: Connection, function: str = "jobs('q')") -> list[tuple[int, str]]:
    return [(row["id"], row["state"]) for row in listed(db, function)]


# Live jobs ------------------------------------------------------------------------------------------------------------


def test_a_queue_without_jobs_has_none(db: Connection) -> None:
    create(db)
    for call_ in ("jobs('q')", "jobs('q', 'running')", "workers()", "failures()"):
        assert listed(db, call_) == []
    (activity,) = listed(db, "activity()")
    assert [value for value in activity.values() if value] == ["q", True]


def test_each_state_is_listed_in_its_turn(db: Connection) -> None:
    create(db, shards=1, backoff="1 hour")
    call(db, "set_limits", "q", group_limit=1)
    retrying, running, *ready = enqueue(db, 4, task="t")
    job = claim_one(db)
    call(db, "reject", job.id, job.lease, "broken")
    claim_one(db, worker="w")
    later = call(db, "enqueue", "q", delay="2 hours")
    waiting = call(db, "enqueue_after", [later], "q")
    assert found(db) == [
        (running, "running"),
        *[(id, "ready") for id in ready],
        (retrying, "retrying"),
        (later, "scheduled"),
        (waiting, "waiting"),
    ]
    for state in ("running", "ready", "retrying", "scheduled", "waiting"):
        assert {state} == {state for _, state in found(db, f"jobs('q', '{state}')")}
    assert found(db, "jobs('q', n => 2)") == [(running, "running"), (ready[0], "ready")]
    assert found(db, "jobs('q', 'ready', newest => true)") == [(ready[1], "ready"), (ready[0], "ready")]
    assert [id for id, _ in found(db, "jobs('q', task => 't')")] == [running, *ready, retrying]
    assert found(db, "jobs('q', task => 'other')") == []


def test_a_job_is_listed_with_what_is_known_about_it(db: Connection, clock: Clock) -> None:
    create(db, lease="1 hour")
    id = call(db, "enqueue", "q", {"a": [1, "ü"]}, task="t", priority=-7, group_key="g")
    (ready,) = listed(db)
    assert (ready["queue"], ready["task"], ready["priority"], ready["attempt"]) == ("q", "t", -7, 1)
    assert (ready["group_key"], ready["payload"]) == ("g", {"a": [1, "ü"]})
    assert {ready[name] for name in ("run_at", "started_at", "expires_at", "worker", "lease")} == {None}
    job = claim_one(db, worker="w")
    (running,) = listed(db)
    assert (running["id"], running["state"], running["worker"], running["lease"]) == (id, "running", "w", job.lease)
    assert (running["expires_at"], running["payload"]) == (job.expires_at, {"a": [1, "ü"]})
    clock.advance(600)
    extended = call(db, "extend", job.lease)
    assert listed(db)[0]["expires_at"] == extended
    call(db, "ack", id, job.lease)
    assert listed(db) == []


def test_a_parked_job_is_listed(db: Connection) -> None:
    create(db)
    first, second, third = [call(db, "enqueue", "q", group_key="g") for _ in range(3)]
    assert [job.id for job in claim(db, 10)] == [first]
    assert found(db) == [(first, "running"), (second, "parked"), (third, "parked")]
    assert found(db, "jobs('q', 'parked', newest => true, n => 1)") == [(third, "parked")]
    assert {row["group_key"] for row in listed(db)} == {"g"}


@across
def test_a_running_job_is_found_wherever_it_is(db: Connection, clock: Clock, passage: Passage) -> None:
    create(db, lease="1 hour", shards=1)
    enqueue(db, 3)
    jobs = claim(db, 3, worker="w")
    ack(db, jobs[:1])
    passage(db, clock)
    assert sorted(found(db)) == [(jobs[1].id, "running"), (jobs[2].id, "running")]
    assert {(row["worker"], row["lease"]) for row in listed(db)} == {("w", jobs[0].lease)}
    (worker,) = listed(db, "workers()")
    assert (worker["worker"], worker["jobs"], worker["leases"], worker["queues"]) == ("w", 2, 1, ["q"])
    assert listed(db, "activity()")[0]["running"] == 2


def test_a_job_of_a_transaction_that_ended_late_is_ready(db: Connection, connect: Connect) -> None:
    create(db, shards=1)
    late = connect(autocommit=False)
    (first,) = enqueue(late)
    (second,) = enqueue(db)
    assert found(db) == [(second, "ready")]
    assert claim_one(db).id == second
    late.commit()
    assert found(db) == [(second, "running"), (first, "ready")]
    assert listed(db, "activity()")[0]["ready"] == 1


def test_ready_jobs_of_all_segments_and_lanes_are_listed_by_id(db: Connection) -> None:
    create(db, shards=4)
    made = enqueue(db, 20)
    rotate(db, 2)
    made += enqueue(db, 20, priority=5)
    assert [id for id, _ in found(db)] == made
    assert [id for id, _ in found(db, "jobs('q', n => 7)")] == made[:7]
    assert [id for id, _ in found(db, "jobs('q', n => 7, newest => true)")] == made[:-8:-1]


def test_released_and_cancelled_jobs(db: Connection) -> None:
    create(db)
    made = enqueue(db, 3)
    jobs = claim(db, 1)
    rows(db, "release", ids(jobs), [jobs[0].lease])
    call(db, "cancel", made[1])
    assert sorted(found(db)) == [(made[0], "ready"), (made[2], "ready")]


def test_an_expired_lease_is_listed_until_the_reaper_comes(db: Connection, clock: Clock) -> None:
    create(db, lease="1 minute")
    enqueue(db)
    claim(db, worker="gone")
    clock.advance(120)
    (job,) = listed(db)
    assert (job["state"], job["expires_at"] < clock.now()) == ("running", True)
    assert listed(db, "workers()")[0]["expires_at"] < clock.now()
    call(db, "reap")
    assert listed(db, "workers()") == []
    (failure,) = listed(db, "failures()")
    assert (failure["kind"], failure["worker"], failure["attempt"]) == ("expired", "gone", 1)


def test_the_due_ones_come_first(db: Connection) -> None:
    create(db)
    second, first = [call(db, "enqueue", "q", delay=f"{hours} hours") for hours in (2, 1)]
    assert [id for id, _ in found(db)] == [first, second]
    assert [id for id, _ in found(db, "jobs('q', newest => true)")] == [second, first]
    assert all(isinstance(row["run_at"], datetime.datetime) for row in listed(db))


def test_other_queues_are_left_out(db: Connection) -> None:
    for queue in ("q", "other", "Q"):
        create(db, queue)
        enqueue(db, 3, queue)
        call(db, "enqueue", queue, delay="1 hour")
        for job in claim(db, 2, queue, worker=queue):
            call(db, "extend", job.lease)
    for queue in ("q", "other", "Q"):
        jobs = listed(db, "jobs(%s)", queue)
        assert ({row["queue"] for row in jobs}, len(jobs)) == ({queue}, 4)
    assert {(row["worker"], *row["queues"]) for row in listed(db, "workers()")} == {(q, q) for q in ("q", "other", "Q")}


def test_unknown_states_and_bad_numbers_are_refused(db: Connection) -> None:
    create(db)
    for arguments in ("'q', 'dead'", "'q', ''", "'q', n => 0", "'q', n => 100001"):
        with refused("22023"):
            listed(db, f"jobs({arguments})")
    with refused("PQ002"):
        listed(db, "jobs('nowhere')")


def test_they_read_and_do_no_more(db: Connection) -> None:
    """Also in a transaction that may only read, under a snapshot."""
    create(db)
    enqueue(db, 3)
    claim(db)
    db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    assert len(listed(db)) == 3
    for function in ("queues()", "workers()", "activity()", "failures()"):
        listed(db, function)
    db.execute("COMMIT")


# Queues and workers ---------------------------------------------------------------------------------------------------


def test_queues_are_listed_with_their_settings(db: Connection) -> None:
    create(db, "z")
    create(db, "a", lease="30 seconds", max_attempts=3, shards=2, retention="0", notify=False)
    call(db, "set_limits", "a", group_limit=None, running_limit=7, rate=5, rate_period="1 s", fair=True)
    call(db, "set_unique", "a", unique_for="1 hour", on_repeat="replace")
    call(db, "pause", "a")
    first, second = listed(db, "queues()")
    assert (first["queue"], second["queue"]) == ("a", "z")
    assert (first["paused"], second["paused"]) == (True, False)
    assert first["lease"].total_seconds() == 30
    assert (first["max_attempts"], first["shards"], first["notify"]) == (3, 2, False)
    assert (first["running_limit"], first["group_limit"], first["rate"], first["fair"]) == (7, None, 5, True)
    assert (first["unique_until"], first["unique_for"].total_seconds(), first["on_repeat"]) == (None, 3600, "replace")
    assert (second["group_limit"], second["unique_until"], second["rate"]) == (1, "finished", None)


def test_workers_are_told_apart_by_their_names(db: Connection, clock: Clock) -> None:
    create(db, lease="1 hour")
    create(db, "other", lease="2 hours")
    enqueue(db, 10)
    enqueue(db, 10, "other")
    since = clock.now()
    a = claim(db, 3, worker="a") + claim(db, 2, "other", worker="a")
    claim(db, 1)
    clock.advance(60)
    claim(db, 4, worker="b")
    first, second, nameless = listed(db, "workers()")
    assert [row["worker"] for row in (first, second, nameless)] == ["a", "b", None]
    assert (first["jobs"], first["queues"]) == (5, ["other", "q"])
    assert since <= first["oldest"] <= clock.now()
    assert first["expires_at"] == min(job.expires_at for job in a)
    assert (second["jobs"], nameless["jobs"]) == (4, 1)
    ack(db, a)
    assert [row["worker"] for row in listed(db, "workers()")] == ["b", None]


# Activity and failures ------------------------------------------------------------------------------------------------


def test_activity_says_what_stats_says(db: Connection, clock: Clock) -> None:
    create(db, backoff="1 hour")
    create(db, "empty")
    enqueue(db, 30)
    rotate(db, 3)
    made = enqueue(db, 10)
    call(db, "enqueue", "q", delay="1 hour")
    call(db, "enqueue_after", made[:1], "q")
    for retry in (True, False, False):
        job = claim_one(db)
        call(db, "reject", job.id, job.lease, "broken", retry=retry)
    claim(db, 5)
    for _ in range(3):
        call(db, "enqueue", "q", group_key="g")
    claim(db, 40)
    names = ["queue", "paused", "ready", "running", "scheduled", "retrying", "parked", "waiting", "dead"]
    wanted = [{name: row[name] for name in names} for row in listed(db, "stats()")]
    assert [{name: row[name] for name in names} for row in listed(db, "activity()")] == wanted
    assert wanted[1]["dead"] == 2
    clock.advance(90)
    call(db, "enqueue", "q")
    assert [row["oldest_ready"] and row["oldest_ready"].total_seconds() < 90 for row in listed(db, "activity()")] == [
        None,
        True,
    ]
    assert all(row["exact"] for row in listed(db, "activity()"))


def test_rates_are_those_of_the_period(db: Connection, clock: Clock) -> None:
    create(db)
    create(db, "other")
    enqueue(db, 100)
    clock.advance(60)
    enqueue(db, 50)
    enqueue(db, 10, "other")
    ack(db, claim(db, 20))
    for job in claim(db, 5):
        call(db, "reject", job.id, job.lease, "broken")
    other, q = listed(db, "activity('10 seconds')")
    assert (q["enqueue_rate"], q["done_rate"], q["failure_rate"]) == (5.0, 2.0, 0.5)
    assert (other["enqueue_rate"], other["done_rate"], other["failure_rate"]) == (1.0, 0, 0)
    clock.advance(60)
    assert {row["enqueue_rate"] + row["done_rate"] + row["failure_rate"] for row in listed(db, "activity()")} == {0}
    assert listed(db, "activity('5 minutes')")[1]["enqueue_rate"] == 0.5


def test_a_batch_that_ends_as_a_whole_counts_as_its_jobs(db: Connection) -> None:
    create(db, shards=1)
    enqueue(db, 1000)
    assert len(ack(db, claim(db, 1000))) == 1000
    assert listed(db, "activity('10 seconds')")[0]["done_rate"] == 100


def test_a_rate_beyond_the_pages_that_are_read_is_that_of_the_part(db: Connection, clock: Clock) -> None:
    """Jobs of more than a kilobyte, six to a page, a hundred each second."""
    create(db)
    for _ in range(10):
        db.execute(
            """
            SELECT count(*) FROM pgq.enqueue_many('q', array_fill(to_jsonb(
                (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 40) n)
            ), ARRAY[100]))
            """
        )
        clock.advance(1)
    (activity,) = listed(db, "activity('10 seconds')")
    assert 60 < activity["enqueue_rate"] < 140


def test_failures_are_listed_the_newest_first(db: Connection, clock: Clock) -> None:
    create(db, max_attempts=2, backoff="0")
    create(db, "other")
    enqueue(db, 1, task="t")
    enqueue(db, 1, "other")
    job = claim_one(db, worker="w")
    call(db, "reject", job.id, job.lease, "first\nline")
    clock.advance(1)
    call(db, "maintain")
    again = claim_one(db, worker="w")
    call(db, "reject", again.id, again.lease, "second")
    clock.advance(1)
    other = claim_one(db, "other")
    call(db, "reject", other.id, other.lease, retry=False)
    told = [(row["id"], row["queue"], row["attempt"], row["kind"], row["error"]) for row in listed(db, "failures()")]
    assert told == [
        (other.id, "other", 1, "dead", None),
        (job.id, "q", 2, "dead", "second"),
        (job.id, "q", 1, "retry", "first\nline"),
    ]
    assert [row["task"] for row in listed(db, "failures(2)")] == [None, "t"]
    assert [row["worker"] for row in listed(db, "failures(2)")] == [None, "w"]
    retire_all(db)
    assert [row["kind"] for row in listed(db, "failures()")] == ["dead", "dead"]


# What they read -------------------------------------------------------------------------------------------------------


def entries(db: Connection) -> int:
    """Index entries that were read so far; sequential scans of segments are not allowed."""
    flush_counts(db)
    scans = "SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE relname ~ '^(job|lease|outcome)_\\d+$'"
    read = "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE schemaname = 'pgq'"
    return int(one(db, read)) + 10**9 * int(one(db, scans))


def cost(db: Connection, function: str) -> int:
    """Index entries that a call reads; a billion for each sequential scan."""
    before = entries(db)
    db.execute(f"SELECT count(*) FROM pgq.{function}".encode())
    return entries(db) - before


def fill(db: Connection, count: int, arguments: str = "") -> None:
    payloads = f"array_fill('{{}}'::jsonb, ARRAY[{count}])"
    db.execute(f"SELECT count(*) FROM pgq.enqueue_many('q', {payloads}{arguments})".encode())


@pytest.mark.parametrize("analysed", [False, True])
def test_what_a_list_of_ready_jobs_reads_is_bounded(db: Connection, analysed: bool) -> None:
    create(db, shards=1)
    for _ in range(7):  # plans are made while there is little
        listed(db, "jobs('q')")
    fill(db, 30_000, ", task => 'much'")
    fill(db, 1, ", task => 'rare'")
    if analysed:
        db.execute("ANALYZE")
    for arguments in ("n => 10", "'ready', n => 10", "'ready', n => 10, newest => true"):
        assert cost(db, f"jobs('q', {arguments})") < 200
    assert cost(db, "jobs('q', 'ready', 'rare')") < 11_000
    assert found(db, "jobs('q', 'ready', 'rare')") == []
    assert len(found(db, "jobs('q', 'ready', 'rare', newest => true)")) == 1


def test_what_is_read_about_running_jobs_is_bounded(db: Connection) -> None:
    create(db, lease="1 hour", shards=1)
    fill(db, 8000)
    long = claim_one(db, worker="long")
    call(db, "extend", long.lease, "2 hours")
    db.execute(
        """
        DO $$
        BEGIN
            FOR v_turn IN 1..6000 LOOP
                PERFORM pgq.ack(c.id, c.lease) FROM pgq.claim('q') c;
            END LOOP;
        END;
        $$
        """
    )
    short = claim_one(db, worker="short")
    db.execute("ANALYZE")
    assert [row["id"] for row in listed(db, "jobs('q', 'running')")] == [long.id, short.id]
    assert [row["worker"] for row in listed(db, "workers()")] == ["long", "short"]
    assert cost(db, "jobs('q', 'running', n => 10)") < 8000
    assert cost(db, "workers()") < 2500
    assert cost(db, "failures()") < 200


def test_what_is_read_about_scheduled_jobs_is_bounded(db: Connection, connect: Connect, clock: Clock) -> None:
    """Also when those that were promoted cannot be vacuumed, for somebody's snapshot is old."""
    create(db)
    reader = connect(autocommit=False)
    reader.isolation_level = IsolationLevel.REPEATABLE_READ
    reader.execute("SELECT pg_current_xact_id(), count(*) FROM pgq.queue")
    fill(db, 5000, ", delay => '1 second'")
    for count in (5000, 1):
        clock.advance(20)
        assert call(db, "promote") == count
        fill(db, 1, ", delay => '1 second'")
    clock.advance(20)
    call(db, "promote")
    assert column(db, "SELECT count(*) FROM pgq.scheduled") == [0]
    call(db, "purge", "q")
    fill(db, 1, ", delay => '1 hour'")
    assert cost(db, "jobs('q', 'scheduled')") < 500
    fill(db, 30_000, ", delay => '2 hours'")
    assert cost(db, "jobs('q', 'retrying')") < 22_000
    assert len(listed(db, "jobs('q', 'scheduled', n => 5)")) == 5


def test_activity_counts_no_further_than_is_cheap(db: Connection) -> None:
    create(db, shards=1)
    for _ in range(7):
        listed(db, "activity()")
    fill(db, 30_000)
    (activity,) = listed(db, "activity()")
    assert (activity["ready"], activity["exact"]) == (10_000, False)
    assert cost(db, "activity()") < 12_000
    rotate(db, 3)
    assert column(db, "SELECT state FROM pgq.segment WHERE slot = 0") == ["closed"]
    (activity,) = listed(db, "activity()")
    assert (activity["ready"], activity["exact"]) == (30_000, True)
    assert activity["oldest_ready"] is not None
    assert cost(db, "activity()") < 500
    fill(db, 12_000, ", delay => '1 hour'")
    (activity,) = listed(db, "activity()")
    assert (activity["scheduled"], activity["exact"]) == (10_000, False)
