"""Recurring jobs: each tick becomes one job, whoever maintains, and whatever is killed, undone, missed or broken."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

from pgqueue import App, Worker
from tests.cluster import Cluster
from tests.conftest import PLAIN_SQL, Clock, fresh_database
from tests.sql.support import (
    Connect,
    Connection,
    ack,
    call,
    claim,
    column,
    create,
    eventually,
    findings,
    heard,
    in_background,
    listen,
    one,
    refused,
    rows,
    stats,
    until_blocked,
)

UTC = timezone.utc
At = Callable[[datetime], None]
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOON = datetime(2031, 5, 1, 12, tzinfo=UTC)  # a Thursday


@pytest.fixture
def at(clock: Clock, db: Connection) -> At:
    """Set the clock, which begins ten seconds before noon, and goes on from there."""

    def at(time: datetime) -> None:
        clock.advance(time - clock.now())

    at(NOON - 10 * SECOND)
    create(db, shards=1)
    return at


def schedule(db: Connection, cron: str = "* * * * *", name: str = "s", queue: str = "q", **named: Any) -> None:
    call(db, "schedule", name, cron, queue, **named)


def next_at(db: Connection, name: str = "s") -> datetime:
    time: datetime = one(db, "SELECT next_at FROM pgq.schedule WHERE name = %s", name)
    return time


def ticks(db: Connection, queue: str = "q", name: str = "s") -> list[datetime]:
    """The ticks of a schedule that became jobs since the last call, in the order of these."""
    jobs = claim(db, 1000, queue)
    ack(db, jobs)
    return [datetime.fromisoformat(j.headers["scheduled_at"]) for j in jobs if j.headers["schedule"] == name]


def test_a_tick_becomes_a_job_that_knows_its_schedule(db: Connection, at: At) -> None:
    schedule(db, name="noon's", payload={"n": 1}, task="report")
    assert next_at(db, "noon's") == NOON
    assert call(db, "maintain")["fired"] == 0
    at(NOON)
    assert call(db, "maintain")["fired"] == 1
    (job,) = claim(db, 10)
    assert (job.task, job.payload, job.priority, job.attempt) == ("report", {"n": 1}, 0, 1)
    assert job.headers == {"schedule": "noon's", "scheduled_at": "2031-05-01T12:00:00Z"}
    query = "SELECT last_at, last_job, next_at, retry_at, error FROM pgq.schedule"
    assert db.execute(query).fetchall() == [(NOON, job.id, NOON + MINUTE, None, None)]


def test_a_tick_is_fired_once_and_by_promote_too(db: Connection, at: At) -> None:
    schedule(db)
    for minute in range(5):
        at(NOON + minute * MINUTE)
        assert call(db, "promote" if minute % 2 else "maintain")
        assert call(db, "promote") == 0
        assert call(db, "maintain")["fired"] == 0
    assert ticks(db) == [NOON + minute * MINUTE for minute in range(5)]


def test_a_schedule_keeps_to_the_clock_of_its_time_zone(db: Connection, at: At) -> None:
    schedule(db, "30 2 * * *", timezone="europe/berlin")
    assert one(db, "SELECT timezone FROM pgq.schedule") == "Europe/Berlin"
    assert next_at(db) == datetime(2031, 5, 2, 0, 30, tzinfo=UTC)
    schedule(db, "30 2 * * *", timezone="Asia/Kathmandu")
    assert next_at(db) == datetime(2031, 5, 1, 20, 45, tzinfo=UTC)


def test_the_session_has_no_influence_on_what_a_tick_is(db: Connection, at: At) -> None:
    db.execute("SET timezone = 'Asia/Kathmandu'; SET datestyle = 'SQL, DMY'; SET intervalstyle = 'sql_standard'")
    schedule(db, "0 12 * * *", timezone="UTC", catch_up="one")
    at(NOON + 100 * DAY + SECOND)
    call(db, "maintain")
    db.execute("RESET datestyle")  # psycopg reads no other
    (job,) = claim(db, 10)
    assert job.headers["scheduled_at"] == "2031-08-09T12:00:00Z"


# Missed ticks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [("skip", []), ("one", [2]), ("all", [0, 1, 2])],
)
def test_missed_ticks(db: Connection, at: At, catch_up: str, expected: list[int]) -> None:
    schedule(db, "0 * * * *", catch_up=catch_up)
    at(NOON + 2 * HOUR + 30 * MINUTE)
    turn = call(db, "maintain")
    assert (turn["fired"], turn["more"]) == (len(expected), False)
    assert ticks(db) == [NOON + hours * HOUR for hours in expected]
    assert next_at(db) == NOON + 3 * HOUR
    at(NOON + 3 * HOUR)
    assert call(db, "maintain")["fired"] == 1
    assert ticks(db) == [NOON + 3 * HOUR]


def test_a_tick_that_is_less_than_a_minute_late_is_not_missed(db: Connection, at: At) -> None:
    schedule(db, "0 * * * *", "late", catch_up="skip")
    at(NOON + 59 * SECOND)
    assert call(db, "maintain")["fired"] == 1
    at(NOON + HOUR + 61 * SECOND)
    assert call(db, "maintain")["fired"] == 0
    assert next_at(db, "late") == NOON + 2 * HOUR


@pytest.mark.parametrize("catch_up", ["skip", "one"])
def test_ticks_closer_to_each_other_than_calls_of_maintain_become_one_job(
    db: Connection, at: At, catch_up: str
) -> None:
    schedule(db, "* * * * * *", catch_up=catch_up)
    at(NOON + SECOND / 2)
    assert call(db, "maintain")["fired"] == 1
    assert ticks(db) == [NOON]
    assert next_at(db) == NOON + SECOND


def test_all_missed_ticks_are_caught_up_a_hundred_at_a_time_in_order(db: Connection, at: At) -> None:
    schedule(db, catch_up="all")
    schedule(db, "0 0 1 1 *", "rare", catch_up="all")
    db.execute("UPDATE pgq.schedule SET next_at = %s WHERE name = 'rare'", [NOON + 100 * MINUTE])
    at(NOON + 249 * MINUTE)
    turns = [call(db, "maintain") for _ in range(4)]
    # promote, which maintain calls, fires as well.
    assert [turn["fired"] + turn["promoted"] for turn in turns] == [201, 50, 0, 0]
    assert [turn["more"] for turn in turns] == [True, False, False, False]
    assert ticks(db) == [NOON + minute * MINUTE for minute in range(250)]


def test_one_of_a_hundred_million_missed_ticks_is_found_at_once(db: Connection, at: At) -> None:
    schedule(db, "* * * * * *", timezone="America/New_York")
    schedule(db, "*/5 9-17 * * MON-FRI", "office", timezone="America/New_York")
    at(NOON + 3 * 365 * DAY + SECOND / 2)  # a Saturday
    db.execute("SET statement_timeout = '5s'")
    assert call(db, "maintain")["fired"] == 2
    scheduled = {job.headers["schedule"]: job.headers["scheduled_at"] for job in claim(db, 10)}
    assert scheduled == {"s": "2034-04-30T12:00:00Z", "office": "2034-04-28T21:55:00Z"}


def test_a_clock_that_is_put_back_repeats_no_tick(db: Connection, at: At) -> None:
    schedule(db)
    at(NOON + 10 * MINUTE)
    assert call(db, "maintain")["fired"] == 1
    for minutes in [0, 5, 10]:
        at(NOON + minutes * MINUTE)
        assert call(db, "maintain")["fired"] == 0
    at(NOON + 11 * MINUTE)
    assert call(db, "maintain")["fired"] == 1
    assert ticks(db) == [NOON + 10 * MINUTE, NOON + 11 * MINUTE]


# Replacing and ending -------------------------------------------------------------------------------------------------


def test_the_same_line_keeps_the_next_tick_whatever_else_changes(db: Connection, at: At) -> None:
    create(db, "other")
    schedule(db, "0 * * * *")
    at(NOON + 90 * MINUTE)  # a tick is overdue
    schedule(db, "0 * * * *", queue="other", payload={"n": 2}, task="t", catch_up="all")
    assert next_at(db) == NOON
    call(db, "maintain")
    (first, second) = claim(db, 10, "other")
    assert (first.payload, second.task) == ({"n": 2}, "t")
    assert claim(db) == []


@pytest.mark.parametrize("change", [{"cron": "1 * * * *"}, {"timezone": "Asia/Kathmandu"}])
def test_another_line_or_time_zone_begins_anew(db: Connection, at: At, change: dict[str, str]) -> None:
    schedule(db, "0 * * * *")
    at(NOON + 90 * MINUTE)
    schedule(db, **{"cron": "0 * * * *", **change})
    assert next_at(db) == NOON + (121 if "cron" in change else 135) * MINUTE
    assert call(db, "maintain")["fired"] == 0


def test_to_schedule_the_same_again_writes_nothing(db: Connection, at: At) -> None:
    schedule(db, payload={"n": 1})
    before = one(db, "SELECT ctid::text FROM pgq.schedule")
    schedule(db, payload={"n": 1})
    assert one(db, "SELECT ctid::text FROM pgq.schedule") == before


def test_unschedule_ends_it_and_leaves_what_is_in_the_queue(db: Connection, at: At) -> None:
    schedule(db)
    at(NOON)
    call(db, "maintain")
    call(db, "unschedule", "s")
    at(NOON + HOUR)
    assert call(db, "maintain")["fired"] == 0
    assert ticks(db) == [NOON]
    with refused("42704") as caught:
        call(db, "unschedule", "s")
    assert caught.value.diag.message_hint


def test_what_is_scheduled_in_a_transaction_that_is_undone_is_not_scheduled(
    db: Connection, connect: Connect, at: At
) -> None:
    schedule(db, name="kept")
    session = connect(autocommit=False)
    with session.transaction():
        with session.transaction(force_rollback=True):
            schedule(session, name="undone")
            call(session, "unschedule", "kept")
        schedule(session, name="committed")
    assert column(db, "SELECT name FROM pgq.schedule ORDER BY name") == ["committed", "kept"]


def test_many_programs_that_start_at_once_make_one_schedule(db: Connection, connect: Connect, at: At) -> None:
    sessions = [connect() for _ in range(8)]
    ready = threading.Barrier(len(sessions))

    def start(session: Connection) -> None:
        ready.wait(20)
        for n in range(5):
            schedule(session, name=f"s{n}")

    for future in [in_background(start, session) for session in sessions]:
        future.result(30)
    assert column(db, "SELECT name FROM pgq.schedule ORDER BY name") == [f"s{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("sqlstate", "arguments"),
    [
        *[("22004", f"'s', '* * * * *', 'q', {name} => NULL") for name in ["payload", "timezone", "catch_up"]],
        ("22004", "NULL, '* * * * *', 'q'"),
        ("22004", "'s', NULL, 'q'"),
        ("22004", "'s', '* * * * *', NULL"),
        ("22023", "'', '* * * * *', 'q'"),
        ("22023", "repeat('x', 129), '* * * * *', 'q'"),
        ("22023", "'s', 'x', 'q'"),
        ("22023", "'s', '* * * * *', 'q', timezone => 'PST'"),
        ("22023", "'s', '* * * * *', 'q', catch_up => 'ALL'"),
        ("PQ002", "'s', '* * * * *', 'nowhere'"),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(db: Connection, at: At, sqlstate: str, arguments: str) -> None:
    schedule(db, "0 0 1 1 *")
    before = column(db, "SELECT s::text FROM pgq.schedule s")
    with refused(sqlstate):
        db.execute(f"SELECT pgq.schedule({arguments})")
    with refused("22004"):
        call(db, "unschedule", None)
    assert column(db, "SELECT s::text FROM pgq.schedule s") == before


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_a_snapshot_is_no_hindrance_to_schedule_but_to_fire(
    db: Connection, connect: Connect, at: At, isolation: IsolationLevel
) -> None:
    session = connect(autocommit=False)
    session.isolation_level = isolation
    schedule(session)
    session.commit()
    one(session, "SELECT count(*) FROM pgq.schedule")
    schedule(db, "0 * * * *")
    with refused("40001"):
        schedule(session, "1 * * * *")
    session.rollback()
    one(session, "SELECT count(*) FROM pgq.queue")
    call(db, "drop_queue", "q")
    with refused("40001"):
        schedule(session, name="late")
    session.rollback()
    with refused("PQ003"):
        call(session, "promote")


# Exactly once ---------------------------------------------------------------------------------------------------------


def test_many_sessions_fire_each_tick_once(db: Connection, connect: Connect, at: At) -> None:
    names = [f"s{n}" for n in range(20)]
    for name in names:
        schedule(db, "* * * * * *" if name == "s0" else "* * * * *", name, catch_up="all")
    schedule(db, "* * * * *", "one")
    sessions = [connect() for _ in range(8)]
    for minute in range(5):
        at(NOON + minute * MINUTE)
        ready = threading.Barrier(len(sessions))

        def maintain(session: Connection, ready: threading.Barrier = ready) -> int:
            ready.wait(20)
            fired: int = sum(call(session, "maintain")["fired"] for _ in range(3))
            return fired

        for future in [in_background(maintain, session) for session in sessions]:
            future.result(30)
    at(NOON + 4 * MINUTE + 58 * SECOND)
    while call(db, "maintain")["more"]:
        pass
    jobs = [(job.headers["schedule"], job.headers["scheduled_at"]) for job in claim(db, 1000)]
    assert len(jobs) == len(set(jobs))
    for name in [*names[1:], "one"]:
        assert sum(1 for schedule, _ in jobs if schedule == name) == 5
    assert sum(1 for schedule, _ in jobs if schedule == "s0") >= 4 * 60 + 58


@pytest.mark.direct("terminates a session")
@pytest.mark.parametrize("end", ["commit", "rollback", "savepoint", "kill"])
def test_a_tick_that_is_being_fired_is_left_alone_until_it_is_known_what_became_of_it(
    db: Connection, connect: Connect, at: At, end: str
) -> None:
    schedule(db)
    schedule(db, name="other")
    at(NOON)
    firing = connect(autocommit=False)
    firing.execute("SAVEPOINT here")
    assert call(firing, "maintain")["fired"] == 2
    schedule(db, name="new")
    at(NOON + MINUTE)
    db.execute("SET statement_timeout = '5s'")
    assert call(db, "maintain")["fired"] == 1  # the new one, and it does not wait for the others
    if end == "kill":
        pid = firing.info.backend_pid
        db.execute("SELECT pg_terminate_backend(%s, 20000)", [pid])
        eventually(lambda: not one(db, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", pid))
    elif end == "savepoint":
        firing.execute("ROLLBACK TO here")
        firing.commit()
    else:
        getattr(firing, end)()
    assert call(db, "maintain")["fired"] == 2
    expected = [NOON, NOON + MINUTE] if end == "commit" else [NOON + MINUTE]  # one job for both
    assert ticks(db) == expected


@pytest.mark.direct("the server crashes")
def test_a_crash_neither_loses_nor_repeats_a_tick(cluster: Cluster, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as db:
        clock = Clock(db)
        create(db, shards=1)
        schedule(db, catch_up="all")
        first = next_at(db)
        clock.advance(first - clock.now())
        assert call(db, "maintain")["fired"] == 1
        clock.advance(MINUTE)
        with psycopg.connect(dsn) as firing:
            assert call(firing, "maintain")["fired"] == 1
            cluster.kill()
            firing.close()
        db.close()
    cluster.start()
    with psycopg.connect(dsn, autocommit=True) as db:
        assert call(db, "maintain")["fired"] == 1
        assert call(db, "maintain")["fired"] == 0
        assert ticks(db) == [first, first + MINUTE]


def test_who_replaces_or_ends_a_schedule_waits_for_the_tick_that_is_being_fired(
    db: Connection, connect: Connect, at: At
) -> None:
    for name in ["replaced", "ended"]:
        schedule(db, name=name)
    at(NOON)
    firing = connect(autocommit=False)
    assert call(firing, "maintain")["fired"] == 2
    replacing, ending = connect(), connect()
    replaced = in_background(schedule, replacing, "* * * * *", "replaced", payload={"n": 2})
    ended = in_background(call, ending, "unschedule", "ended")
    until_blocked(db, replacing)
    until_blocked(db, ending)
    firing.commit()
    replaced.result(20)
    ended.result(20)
    assert next_at(db, "replaced") == NOON + MINUTE
    at(NOON + MINUTE)
    assert call(db, "maintain")["fired"] == 1
    jobs = [(job.headers["schedule"], job.payload) for job in claim(db, 10)]
    assert jobs == [("ended", {}), ("replaced", {}), ("replaced", {"n": 2})]


@pytest.mark.parametrize("step", ["schedule", "unschedule"])
def test_who_fires_does_not_wait_for_a_schedule_that_is_being_changed(
    db: Connection, connect: Connect, at: At, step: str
) -> None:
    schedule(db, payload={"n": 1})
    at(NOON)
    changing = connect(autocommit=False)
    if step == "schedule":
        schedule(changing, payload={"n": 2})
    else:
        call(changing, "unschedule", "s")
    db.execute("SET statement_timeout = '5s'")
    assert call(db, "maintain")["fired"] == 0
    changing.commit()
    assert call(db, "maintain")["fired"] == (1 if step == "schedule" else 0)
    assert [job.payload for job in claim(db, 10)] == ([{"n": 2}] if step == "schedule" else [])


def test_a_tick_costs_one_update(db: Connection, connect: Connect, at: At) -> None:
    schedule(db, catch_up="all")
    schedule(db, name="once")
    at(NOON + 50 * MINUTE)
    firing = connect(autocommit=False)
    assert call(firing, "maintain")["fired"] == 52
    assert one(firing, "SELECT pg_stat_get_xact_tuples_updated('pgq.schedule'::regclass)") == 2
    assert call(firing, "maintain")["fired"] == 0
    assert one(firing, "SELECT pg_stat_get_xact_tuples_updated('pgq.schedule'::regclass)") == 2


# Queues that go -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
def test_the_schedules_of_a_queue_go_with_it(db: Connection, at: At, force: bool) -> None:
    create(db, "other")
    schedule(db)
    schedule(db, name="other's", queue="other")
    call(db, "drop_queue", "q", force=force)
    assert column(db, "SELECT name FROM pgq.schedule") == ["other's"]
    at(NOON)
    assert call(db, "maintain")["fired"] == 1
    assert findings(db) == {}


def test_a_queue_is_dropped_while_its_tick_is_being_fired(db: Connection, connect: Connect, at: At) -> None:
    schedule(db)
    at(NOON)
    firing, dropping = connect(autocommit=False), connect()
    call(firing, "maintain")
    dropped = in_background(call, dropping, "drop_queue", "q", force=True)
    until_blocked(db, dropping)
    firing.commit()
    dropped.result(20)
    assert column(db, "SELECT name FROM pgq.schedule") == []
    assert call(db, "maintain")["fired"] == 0


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_who_fires_does_not_wait_for_a_queue_that_is_being_dropped(
    db: Connection, connect: Connect, at: At, end: str
) -> None:
    create(db, "other")
    schedule(db)
    schedule(db, name="other's", queue="other")
    at(NOON)
    dropping = connect(autocommit=False)
    call(dropping, "drop_queue", "q")
    db.execute("SET statement_timeout = '5s'")
    assert call(db, "maintain")["fired"] == 1
    getattr(dropping, end)()
    assert call(db, "maintain")["fired"] == (end == "rollback")


def test_many_queues_are_dropped_while_many_sessions_fire(db: Connection, connect: Connect, at: At) -> None:
    for n in range(10):
        create(db, f"q{n}")
        schedule(db, name=f"s{n}", queue=f"q{n}")
    stop = threading.Event()

    def maintain(session: Connection) -> None:
        while not stop.is_set():
            at_next = one(session, "SELECT coalesce(max(next_at), pgq._now()) FROM pgq.schedule")
            session.execute("UPDATE test_clock.ahead SET by = %s - clock_timestamp()", [at_next])
            call(session, "maintain")

    def drop(session: Connection) -> None:
        for n in range(10):
            call(session, "drop_queue", f"q{n}", force=True)

    firing = [in_background(maintain, connect()) for _ in range(3)]
    try:
        in_background(drop, connect()).result(60)
    finally:
        stop.set()
    for future in firing:
        future.result(20)
    assert one(db, "SELECT count(*) FROM pgq.schedule") == 0
    assert one(db, "SELECT count(*) FROM pg_stat_database WHERE datname = current_database() AND deadlocks > 0") == 0


def test_to_schedule_for_a_queue_that_is_being_dropped_waits_and_is_refused(
    db: Connection, connect: Connect, at: At
) -> None:
    dropping, scheduling = connect(autocommit=False), connect()
    call(dropping, "drop_queue", "q")
    scheduled = in_background(schedule, scheduling)
    until_blocked(db, scheduling)
    dropping.commit()
    with refused("PQ002"):
        scheduled.result(20)


def test_who_has_scheduled_for_a_queue_may_enqueue_although_somebody_waits_to_drop_it(
    db: Connection, connect: Connect, at: At
) -> None:
    session, dropping = connect(autocommit=False), connect()
    schedule(session)
    dropped = in_background(call, dropping, "drop_queue", "q", force=True)
    until_blocked(db, dropping)
    call(session, "enqueue", "q")
    session.commit()
    dropped.result(20)
    assert one(db, "SELECT count(*) FROM pgq.schedule") == 0


# Schedules that are broken --------------------------------------------------------------------------------------------


def test_a_broken_schedule_does_not_stop_the_others_and_is_tried_again(db: Connection, at: At) -> None:
    for name in ["a", "broken", "z"]:
        schedule(db, name=name)
    # The server has forgotten a time zone.
    db.execute("UPDATE pgq.schedule SET timezone = 'Nowhere/Gone' WHERE name = 'broken'")
    at(NOON)
    turn = call(db, "maintain")
    assert (turn["fired"], turn["more"]) == (2, False)
    severity, subject, detail, hint = findings(db)["schedule_failed"]
    assert (severity, subject) == ("error", "schedule broken")
    assert '22023: time zone "Nowhere/Gone" not recognized' in detail
    assert "pgq.unschedule('broken')" in hint
    assert call(db, "maintain")["fired"] == 0
    # It knows it again.
    db.execute("UPDATE pgq.schedule SET timezone = 'UTC' WHERE name = 'broken'")
    assert call(db, "maintain")["fired"] == 0
    at(NOON + 61 * SECOND)
    assert call(db, "maintain")["fired"] == 3
    assert "schedule_failed" not in findings(db)
    assert next_at(db, "broken") == NOON + 2 * MINUTE


def test_to_schedule_it_anew_repairs_a_broken_schedule(db: Connection, at: At) -> None:
    schedule(db, "0 * * * *")
    db.execute("UPDATE pgq.schedule SET cron = 'nonsense'")
    at(NOON)
    assert call(db, "maintain")["fired"] == 0
    assert "schedule_failed" in findings(db)
    schedule(db, "0 * * * *")
    assert findings(db) == {}
    at(NOON + HOUR)
    assert call(db, "maintain")["fired"] == 1


def test_what_is_enqueued_before_it_breaks_is_undone(db: Connection, at: At) -> None:
    schedule(db, catch_up="all")
    # Fails at the third job.
    db.execute(
        """
        CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF new.id = 3 THEN RAISE EXCEPTION 'no third job'; END IF;
            RETURN new;
        END;
        $$;
        CREATE TRIGGER fail BEFORE INSERT ON pgq.job_0 FOR EACH ROW EXECUTE FUNCTION public.fail();
        """
    )
    at(NOON + 4 * MINUTE)
    assert call(db, "maintain")["fired"] == 0
    assert stats(db) == {}
    at(NOON + 5 * MINUTE + SECOND)
    assert call(db, "maintain")["fired"] == 6
    assert ticks(db) == [NOON + minute * MINUTE for minute in range(6)]


def test_a_paused_queue_gets_its_jobs_all_the_same(db: Connection, at: At) -> None:
    schedule(db)
    call(db, "pause", "q")
    at(NOON)
    assert call(db, "maintain")["fired"] == 1
    assert stats(db) == {"ready": 1}


# Wake-ups -------------------------------------------------------------------------------------------------------------


@pytest.mark.direct("LISTEN and watch belong to a session")
def test_watch_says_when_the_next_tick_is(db: Connection, connect: Connect, at: At) -> None:
    create(db, "other")
    schedule(db, "0 * * * *")
    schedule(db, "30 * * * *", "later")
    schedule(db, "* * * * *", "other's", queue="other")
    assert call(db, "watch", ["q"]) == NOON
    call(db, "enqueue", "q", run_at=NOON - SECOND)
    assert call(db, "watch", ["q"]) == NOON - SECOND
    at(NOON)
    assert call(db, "promote") == 3
    assert call(db, "watch", ["q"]) == NOON + 30 * MINUTE
    call(db, "unschedule", "later")
    assert call(db, "watch", ["q", "other"]) == NOON + MINUTE
    assert call(db, "watch", []) is None


@pytest.mark.direct("LISTEN and watch belong to a session")
def test_who_waits_is_told_of_a_tick(db: Connection, connect: Connect, at: At) -> None:
    schedule(db)
    at(NOON)
    worker = listen(connect, "q")
    call(db, "maintain")
    assert heard(db, worker) == ["q"]
    call(db, "maintain")
    assert heard(db, worker) == []


@pytest.mark.direct("watch belongs to a session")
def test_a_worker_that_sleeps_wakes_for_a_tick(db: Connection, dsn: str) -> None:
    """And not a poll later, or when somebody maintains: it sleeps for 50 seconds, and nobody does."""
    create(db)
    schedule(db, "* * * * * *", task="note")
    app = App(dsn)
    app.task("note", queue="q")(lambda: None)
    worker = Worker(app, ["q"], poll=50.0, maintain=False)
    work = in_background(lambda: asyncio.run(worker.run()))
    try:
        eventually(lambda: one(db, "SELECT count(*) FROM pgq.outcome WHERE kind = 'done'") >= 2)
    finally:
        worker.stop()
        work.result(20)
        app.close()


@pytest.mark.direct("watch belongs to a session")
def test_a_tick_that_another_session_is_about_to_fire_keeps_nobody_awake(
    db: Connection, connect: Connect, at: At
) -> None:
    schedule(db)
    changing = connect(autocommit=False)
    schedule(changing, payload={"n": 2})
    at(NOON + 5 * SECOND)
    turn = call(db, "maintain")
    assert (turn["fired"], turn["more"], call(db, "watch", ["q"])) == (0, False, None)
    changing.commit()
    assert call(db, "promote") == 1


# Rights ---------------------------------------------------------------------------------------------------------------


@pytest.mark.direct("roles that log in")
@pytest.mark.parametrize("role", ["nobody", "producer", "consumer", "admin"])
def test_only_admins_schedule_but_whoever_maintains_fires(db: Connection, connect: Connect, at: At, role: str) -> None:
    user = f"cron_{role}"
    db.execute(f"CREATE ROLE {user} LOGIN")
    try:
        if role != "nobody":
            db.execute(f"SELECT pgq.grant_{role}('{user}')")
        schedule(db)
        session = connect(user=user)
        for query in [
            "SELECT pgq.schedule('s', '* * * * *', 'q')",
            "SELECT pgq.next_runs('* * * * *')",
            "SELECT name, next_at, error FROM pgq.schedule",
        ]:
            if role == "admin":
                assert len(session.execute(query).fetchall()) in (1, 5)
            else:
                with refused("42501"):
                    session.execute(query)
        for query in ["DELETE FROM pgq.schedule", "SELECT pgq._fire()", "SELECT pgq._read_cron('* * * * *')"]:
            with refused("42501"):
                session.execute(query)
        at(NOON)
        if role in ("consumer", "admin"):
            assert call(session, "maintain")["fired"] == 1
        else:
            with refused("42501"):
                call(session, "maintain")
        if role == "admin":
            call(session, "unschedule", "s")
        else:
            with refused("42501"):
                call(session, "unschedule", "s")
        session.close()
    finally:
        db.execute(f"DROP OWNED BY {user}")
        db.execute(f"DROP ROLE {user}")


# Dumps ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "extension"])
def installed(request: pytest.FixtureRequest, cluster: Cluster) -> tuple[Cluster, bytes]:
    """A server, and what installs pgq there."""
    if request.param == "plain":
        return cluster, PLAIN_SQL.read_bytes()
    return request.getfixturevalue("extended"), b"CREATE EXTENSION pgqueue"


@pytest.fixture
def two_databases(installed: tuple[Cluster, bytes]) -> Iterator[tuple[str, str]]:
    for one_dsn in fresh_database(installed[0], None):
        for other_dsn in fresh_database(installed[0], None):
            yield one_dsn, other_dsn


@pytest.mark.direct("dumps go past a pooler")
def test_schedules_survive_a_dump(
    installed: tuple[Cluster, bytes], two_databases: tuple[str, str], tmp_path: Path
) -> None:
    server, script = installed
    here, there = two_databases
    with psycopg.connect(here, autocommit=True) as db:
        db.execute(script)
        create(db)
        schedule(db, "* * * * *", payload={"n": 1}, timezone="Asia/Kathmandu", catch_up="all")
        db.execute("UPDATE pgq.schedule SET next_at = next_at - interval '3 minutes'")
        fired = call(db, "maintain")["fired"]
        assert fired >= 3
        before = column(db, "SELECT s::text FROM pgq.schedule s")
    commands: list[list[str | Path]] = [
        [server.program("pg_dump"), "--format=custom", "-f", tmp_path / "dump", here],
        [server.program("pg_restore"), "--exit-on-error", "-d", there, tmp_path / "dump"],
    ]
    for command in commands:
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
    with psycopg.connect(there, autocommit=True) as db:
        assert column(db, "SELECT s::text FROM pgq.schedule s") == before
        assert len(claim(db, 10)) == fired
        clock = Clock(db)
        clock.advance(next_at(db) - clock.now() + SECOND)  # whatever the dump took
        assert call(db, "maintain")["fired"] == 1
        assert rows(db, "next_runs", "* * * * *", n=1)
