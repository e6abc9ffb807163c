"""Dead letters: listed page by page, sent back to work or thrown away by condition, a million of them, too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.rows import dict_row

from tests.conftest import Clock
from tests.sql.support import (
    Connect,
    Connection,
    call,
    claim,
    claim_one,
    column,
    create,
    enqueue,
    eventually,
    flush_counts,
    heard,
    ids,
    in_background,
    listen,
    one,
    refused,
    retire_all,
    rows,
    stats,
    status,
    until_blocked,
)

HOUR = timedelta(hours=1)


def letters(db: Connection, queue: str = "q", **named: Any) -> list[dict[str, Any]]:
    names = "".join(f", {name} => %s" for name in named)
    with db.cursor(row_factory=dict_row) as cursor:
        query = f"SELECT * FROM pgq.dead_letters(%s{names})"
        return cursor.execute(query.encode(), [queue, *named.values()]).fetchall()


def listed(db: Connection, **named: Any) -> list[int]:
    return [letter["id"] for letter in letters(db, **named)]


def bury(db: Connection, count: int = 1, queue: str = "q", error: str | None = "broken", **named: Any) -> list[int]:
    """Jobs that failed for good."""
    made = enqueue(db, count, queue, **named)
    jobs = claim(db, count, queue)
    assert sorted(ids(jobs)) == made
    for job in jobs:
        call(db, "reject", job.id, job.lease, error, retry=False)
    return made


@pytest.fixture
def buried(db: Connection, clock: Clock) -> dict[str, list[int]]:
    """Dead letters of two tasks with three errors, an hour apart; and those of another queue."""
    create(db, max_attempts=1)
    create(db, "other")
    bury(db, 2, "other", task="mail")
    made = {}
    for name, task, error in [
        ("early", "mail", "timeout after 100%"),
        ("middle", "mail", "no such user"),
        ("late", "sms", "Timeout after 9 s"),
        ("silent", None, None),
    ]:
        made[name] = bury(db, 2, error=error, task=task)
        clock.advance(HOUR)
    return made


# The list -------------------------------------------------------------------------------------------------------------


def test_a_letter_says_all_that_is_known(db: Connection, clock: Clock) -> None:
    create(db, max_attempts=2, backoff="0", backoff_max="0")
    id = call(db, "enqueue", "q", {"a": 1}, task="t", priority=-3, headers={"b": 2}, max_attempts=2)
    first = claim_one(db, worker="v")
    call(db, "reject", id, first.lease, "e1")
    clock.advance(1)
    call(db, "promote")
    before = clock.now()
    call(db, "reject", id, claim_one(db, worker="w").lease, "e2")
    (letter,) = letters(db)
    died_at, history = letter.pop("died_at"), letter.pop("history")
    assert before < died_at < clock.now()
    assert [(h["attempt"], h["error"], h["worker"]) for h in history] == [(1, "e1", "v"), (2, "e2", "w")]
    assert letter == {
        "id": id,
        "queue": "q",
        "task": "t",
        "payload": {"a": 1},
        "priority": -3,
        "attempt": 2,
        "max_attempts": 2,
        "enqueued_at": first.enqueued_at,
        "error": "e2",
        "headers": {"b": 2},
    }


@pytest.mark.parametrize(
    ("condition", "groups"),
    [
        ({}, ["early", "middle", "late", "silent"]),
        ({"task": "mail"}, ["early", "middle"]),
        ({"task": "Mail"}, []),
        ({"task": ""}, []),
        ({"error": "imeout"}, ["early", "late"]),
        ({"error": "timeout"}, ["early"]),
        ({"error": "%"}, ["early"]),
        ({"error": "_"}, []),
        ({"error": ""}, ["early", "middle", "late"]),
        ({"task": "sms", "error": "Timeout after 9 s"}, ["late"]),
        ({"task": "sms", "error": "no such user"}, []),
    ],
    ids=str,
)
def test_conditions_mean_the_same_everywhere(
    db: Connection, buried: dict[str, list[int]], condition: dict[str, str], groups: list[str]
) -> None:
    expected = [id for group in groups for id in buried[group]]
    assert listed(db, **condition) == expected
    everything = listed(db)
    with db.transaction(force_rollback=True):
        assert call(db, "redrive_where", "q", **condition) == len(expected)
        assert column(db, "SELECT id FROM pgq.job WHERE history IS NOT NULL ORDER BY id") == expected
        assert listed(db) == [id for id in everything if id not in expected]
    with db.transaction(force_rollback=True):
        assert call(db, "discard_where", "q", **condition) == len(expected)
        assert listed(db) == [id for id in everything if id not in expected]
        assert stats(db).get("ready") is None
    assert len(listed(db, queue="other")) == 2


def test_since_and_before_divide_the_time(db: Connection, buried: dict[str, list[int]]) -> None:
    died = {letter["id"]: letter["died_at"] for letter in letters(db)}
    at: datetime = min(died[id] for id in buried["late"])
    assert listed(db, since=at) == [*buried["late"], *buried["silent"]]
    assert listed(db, before=at) == [*buried["early"], *buried["middle"]]
    assert listed(db, since=min(died[id] for id in buried["middle"]), before=at) == buried["middle"]
    assert listed(db, since=at, before=at) == listed(db, since="infinity") == []
    assert listed(db, since="-infinity", before="infinity") == sorted(died)
    assert call(db, "redrive_where", "q", before=at) == 4
    assert call(db, "discard_where", "q", since=at) == 4
    assert listed(db) == []


def test_pages_follow_each_other_though_letters_come_and_go(db: Connection) -> None:
    create(db)
    made = bury(db, 10)
    first = listed(db, n=4)
    assert first == made[:4]
    call(db, "discard", "q", [first[-1], made[5]])
    second = listed(db, n=4, after_id=first[-1])
    assert second == [made[4], *made[6:9]]
    assert listed(db, n=4, after_id=second[-1]) == made[9:]
    assert listed(db, after_id=made[9]) == []
    more = bury(db, 2)
    assert listed(db, after_id=made[9]) == more
    assert listed(db, after_id=-1, n=100000) == [*made[:3], made[4], *made[6:], *more]


# Redrive --------------------------------------------------------------------------------------------------------------


def test_redrive_where_takes_the_oldest_and_no_more_than_it_was_told(db: Connection) -> None:
    create(db, shards=1)
    made = bury(db, 5)
    assert call(db, "redrive_where", "q", n=2) == 2
    assert ids(claim(db, 10)) == made[:2]
    assert call(db, "redrive_where", "q", n=2**31 - 1) == 3
    assert call(db, "redrive_where", "q", n=1) == 0
    assert ids(claim(db, 10)) == made[2:]


def test_a_rate_spreads_the_jobs_over_time(db: Connection, clock: Clock) -> None:
    create(db, shards=1, max_attempts=1)
    made = bury(db, 10, task="t")
    assert call(db, "redrive_where", "q", per_second=2) == 10
    assert stats(db) == {"scheduled": 10}
    assert status(db, made[0]).state == "scheduled"
    due = [run_at for id in made if (run_at := status(db, id).run_at)]
    assert [due[n + 1] - due[n] for n in range(9)] == [timedelta(seconds=0.5)] * 9
    assert due[0] <= clock.now()
    taken: list[int] = []
    for _ in range(7):
        call(db, "promote")
        jobs = claim(db, 100)
        assert len(jobs) <= 3
        assert {job.attempt for job in jobs} <= {1}
        taken += ids(jobs)
        clock.advance(1)
    assert taken == made
    # It has kept what it was, and its history.
    errors = "SELECT history -> 0 ->> 'error' FROM pgq.job WHERE id = ANY (%s) AND history IS NOT NULL"
    assert column(db, errors, made) == ["broken"] * 10


@pytest.mark.parametrize("rate", [0.001, 0.5, 3, 1000000])
def test_every_rate_is_evenly_spread(db: Connection, rate: float) -> None:
    create(db)
    bury(db, 4)
    assert call(db, "redrive_where", "q", per_second=rate) == 4
    (span,) = column(db, "SELECT extract(epoch FROM max(run_at) - min(run_at))::float8 FROM pgq.scheduled")
    assert span == pytest.approx(3 / rate, abs=2e-6)


def test_a_redriven_letter_joins_the_lanes_of_today(db: Connection, clock: Clock) -> None:
    create(db, shards=64)
    made = bury(db, 20, priority=7)
    call(db, "alter_queue", "q", shards=1)
    call(db, "redrive_where", "q", n=10)
    call(db, "redrive_where", "q", per_second=1000000)
    clock.advance(1)
    call(db, "promote")
    jobs = claim(db, 100)
    assert sorted(ids(jobs)) == made
    assert {job.priority for job in jobs} == {7}
    assert one(db, "SELECT count(DISTINCT lane) FROM pgq.lease WHERE claimed_at > now() - interval '1 hour'") > 0


@pytest.mark.direct("LISTEN and watch belong to a session")
def test_redriving_wakes_who_waits(db: Connection, connect: Connect) -> None:
    create(db)
    bury(db, 2)
    listener = listen(connect, "q")
    assert call(db, "redrive_where", "q", task="other") == 0
    assert heard(db, listener) == []
    assert call(db, "redrive_where", "q", n=1) == 1
    assert heard(db, listener) == ["q"]


# Discard --------------------------------------------------------------------------------------------------------------


def test_discard_takes_only_the_ids_it_was_given(db: Connection) -> None:
    create(db)
    create(db, "other")
    first, second, third = bury(db, 3)
    bury(db, 1, "other")
    assert call(db, "discard", "q", [third, first, first, 10**12]) == 2
    assert call(db, "discard", "q", [third]) == call(db, "discard", "q", []) == 0
    assert listed(db) == [second]
    assert call(db, "discard", "other", [second]) == 0
    assert call(db, "discard_where", "q", n=1) == 1
    assert stats(db) == {}
    assert stats(db, "other") == {"dead": 1}


def test_a_discarded_letter_is_known_by_its_attempts_only(db: Connection) -> None:
    create(db)
    (id,) = bury(db)
    call(db, "discard", "q", [id])
    for _ in range(2):
        assert rows(db, "job_status", id) == []
        assert column(db, "SELECT state FROM pgq.attempts(%s)", id) == ["dead"]
        retire_all(db)


# At the same time -----------------------------------------------------------------------------------------------------

TAKE: dict[str, Callable[[Connection], Any]] = {
    "redrive": lambda db: call(db, "redrive", "q"),
    "redrive ids": lambda db: call(db, "redrive", "q", [3, 2, 1]),
    "redrive_where": lambda db: call(db, "redrive_where", "q", task="t"),
    "redrive_where at a rate": lambda db: call(db, "redrive_where", "q", per_second=1),
    "discard": lambda db: call(db, "discard", "q", [2, 1, 3]),
    "discard_where": lambda db: call(db, "discard_where", "q"),
    "purge_state": lambda db: call(db, "purge_state", "q", "dead"),
}
take_first = pytest.mark.parametrize("first", [TAKE["redrive"], TAKE["redrive_where"], TAKE["discard"]])
take_second = pytest.mark.parametrize("second", TAKE.values(), ids=TAKE)


@take_first
@take_second
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_each_letter_is_taken_once(
    db: Connection,
    connect: Connect,
    first: Callable[[Connection], Any],
    second: Callable[[Connection], Any],
    end: str,
) -> None:
    create(db)
    bury(db, 3, task="t")
    one_session, other_session = connect(autocommit=False), connect()
    assert first(one_session) == 3
    racer = in_background(second, other_session)
    until_blocked(db, other_session)
    getattr(one_session, end)()
    assert racer.result() == (0 if end == "commit" else 3)
    assert listed(db) == []
    assert sum(stats(db).values()) in (0, 3)
    assert one(db, "SELECT (SELECT count(*) FROM pgq.scheduled) + (SELECT ready FROM pgq.stats())") in (0, 3)


def test_takers_in_any_order_never_deadlock(db: Connection, connect: Connect) -> None:
    create(db)
    create(db, "fast", shards=1)
    made = bury(db, 300, task="t")
    taken = []

    def take(session: Connection, step: int) -> int:
        count = 0
        for n in range(0, 300, 20):
            part = made[n : n + 20][::step]
            with session.transaction():
                count += call(session, "redrive", "q", part)
            count += call(session, "discard_where", "q", n=3)
            count += call(session, "redrive_where", "q", n=3, per_second=1000)
        return count

    racers = [in_background(take, connect(), step) for step in (1, -1, 1, -1)]
    taken = [racer.result() for racer in racers]
    assert sum(taken) == 300
    assert listed(db) == []


def test_under_repeatable_read_what_others_have_taken_is_a_conflict(db: Connection, connect: Connect) -> None:
    create(db)
    made = bury(db, 2)
    old = connect(autocommit=False)
    for name in ["redrive_where", "discard_where"]:
        old.isolation_level = IsolationLevel.REPEATABLE_READ
        old.execute("SELECT 1 FROM pgq.queue")
        call(db, "discard", "q", made[:1])
        made = made[1:] or made
        with pytest.raises(psycopg.errors.SerializationFailure):
            call(old, name, "q")
        old.rollback()
        made = bury(db, 2)
    old.isolation_level = IsolationLevel.REPEATABLE_READ
    assert call(old, "redrive_where", "q") == 4
    old.commit()
    assert stats(db) == {"ready": 4}


@pytest.mark.direct("terminates a session")
@pytest.mark.parametrize("named", [{}, {"per_second": 1}], ids=["at once", "at a rate"])
@pytest.mark.parametrize("undo", ["ROLLBACK TO SAVEPOINT s", "the session is killed"])
def test_what_is_undone_leaves_the_letters_where_they_were(
    db: Connection, connect: Connect, undo: str, named: dict[str, Any]
) -> None:
    create(db)
    made = bury(db, 3)
    session = connect(autocommit=False)
    session.execute("SAVEPOINT s")
    assert call(session, "redrive_where", "q", **named) == 3
    if undo.startswith("ROLLBACK"):
        session.execute(undo.encode())
        session.commit()
    else:
        db.execute("SELECT pg_terminate_backend(%s, 20000)", [session.info.backend_pid])
        session.close()
    eventually(lambda: call(db, "redrive_where", "q", n=1) == 1)
    assert listed(db) == made[1:]
    assert stats(db) == {"ready": 1, "dead": 2}


@pytest.mark.parametrize("named", [{}, {"per_second": 1}], ids=["at once", "at a rate"])
def test_a_queue_that_is_dropped_meanwhile_takes_nothing(
    db: Connection, connect: Connect, named: dict[str, Any]
) -> None:
    create(db)
    bury(db, 3)
    dropper, driver = connect(autocommit=False), connect()
    call(dropper, "drop_queue", "q", force=True)
    racer = in_background(call, driver, "redrive_where", "q", **named)
    until_blocked(db, driver)
    dropper.commit()
    with refused("PQ002"):
        racer.result()
    assert one(db, "SELECT (SELECT count(*) FROM pgq.scheduled) + (SELECT count(*) FROM pgq.dead)") == 0


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_drop_queue_waits_for_a_redrive_and_counts_its_jobs(db: Connection, connect: Connect, end: str) -> None:
    create(db)
    bury(db, 2)
    driver, dropper = connect(autocommit=False), connect()
    call(driver, "redrive_where", "q", per_second=1)
    racer = in_background(call, dropper, "drop_queue", "q")
    eventually(lambda: one(db, "SELECT last_value > 0 FROM pgq.dropping"), "the drop has begun")
    getattr(driver, end)()
    with refused("PQ005"):
        racer.result()
    assert stats(db) == ({"scheduled": 2} if end == "commit" else {"dead": 2})


# Arguments and rights -------------------------------------------------------------------------------------------------


def test_bad_arguments_are_refused_and_change_nothing(db: Connection) -> None:
    create(db)
    made = bury(db, 2)
    for sqlstate, bad in [
        ("22004", "dead_letters(NULL)"),
        ("22004", "dead_letters('q', n => NULL)"),
        ("22004", "redrive_where(NULL)"),
        ("22004", "discard(NULL, '{1}')"),
        ("22004", "discard('q', NULL)"),
        ("22004", "discard_where(NULL)"),
        ("PQ002", "dead_letters('')"),
        ("PQ002", "dead_letters('Q')"),
        ("PQ002", "redrive_where('nowhere')"),
        ("PQ002", "discard('nowhere', '{1}')"),
        ("PQ002", "discard_where('nowhere')"),
        ("22023", "dead_letters('q', n => 0)"),
        ("22023", "dead_letters('q', n => -1)"),
        ("22023", "dead_letters('q', n => 100001)"),
        *[
            ("22023", f"redrive_where('q', {argument})")
            for argument in [
                "n => 0",
                "n => -1",
                "per_second => 0",
                "per_second => -1",
                "per_second => 0.0009",
                "per_second => 1000001",
                "per_second => 'NaN'",
                "per_second => 'infinity'",
            ]
        ],
        ("22023", "discard_where('q', n => 0)"),
        ("42883", "discard('q')"),
    ]:
        with pytest.raises(psycopg.Error) as caught:
            db.execute(f"SELECT * FROM pgq.{bad}".encode())
        assert (caught.value.sqlstate, bad) == (sqlstate, bad)
        assert caught.value.diag.message_hint
    assert listed(db) == made


@pytest.mark.direct("logs in as other roles")
@pytest.mark.parametrize("grant", [None, "producer", "consumer", "admin"])
def test_only_admins_touch_dead_letters(db: Connection, connect: Connect, grant: str | None) -> None:
    create(db)
    bury(db, 2)
    db.execute("DROP ROLE IF EXISTS toucher; CREATE ROLE toucher LOGIN")
    if grant:
        db.execute(f"SELECT pgq.grant_{grant}('toucher')".encode())
    toucher = connect(user="toucher")
    calls = ["dead_letters('q')", "redrive_where('q')", "discard('q', '{}')", "discard_where('q')"]
    for granted in [*calls, "purge_state('q', 'dead')"]:
        if grant == "admin":
            toucher.execute(f"SELECT pgq.{granted}".encode())
        else:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                toucher.execute(f"SELECT pgq.{granted}".encode())
    toucher.close()
    db.execute("DROP OWNED BY toucher; DROP ROLE toucher")


# Many -----------------------------------------------------------------------------------------------------------------

MANY = 200_000
FILL = """
    INSERT INTO pgq.dead (id, lane, enqueued_at, died_at, attempt, task, payload, error)
    SELECT n + 1000, pgq._lane(q.id, 0, 1), now(), timestamptz '2026-01-01' + n * interval '1 second', 3,
        CASE WHEN n %% 1000 = 0 THEN 'rare' ELSE 'common' END, '{}', 'error ' || n %% 7
    FROM generate_series(1, %s) n, pgq.queue q WHERE q.name = 'q'
"""


@pytest.mark.direct("counts what a session reads")
@pytest.mark.parametrize("analysed", [True, False], ids=["analysed", "never analysed"])
def test_many_letters_of_one_queue_are_found_through_indexes(db: Connection, connect: Connect, analysed: bool) -> None:
    create(db)
    create(db, "small")
    small = bury(db, 3, "small")
    db.execute("ALTER TABLE pgq.dead SET (autovacuum_enabled = off)")
    db.execute(FILL.encode(), [MANY])
    if analysed:
        db.execute("ANALYZE pgq.dead")
    reader = connect()

    def read() -> tuple[int, int]:
        """Sequential scans and index entries read, so far."""
        flush_counts(reader)
        query = """
            SELECT t.seq_scan, sum(i.idx_tup_read)::bigint
            FROM pg_stat_user_tables t JOIN pg_stat_user_indexes i ON i.relid = t.relid
            WHERE t.relid = 'pgq.dead'::regclass GROUP BY t.relid, t.seq_scan
        """
        (scans, entries) = reader.execute(query).fetchall()[0]
        return scans, entries

    at = one(db, "SELECT timestamptz '2026-01-01' + interval '1 hour'")
    far = 1000 + MANY - 50
    for query, values, most in [
        ("dead_letters('q')", [], 100),
        ("dead_letters('q', after_id => %s)", [far], 100),
        ("dead_letters('q', 'rare')", [], 100),
        ("dead_letters('q', 'rare', after_id => %s, n => 5)", [far - 60_000], 10),
        ("dead_letters('q', 'none')", [], 0),
        ("dead_letters('q', error => 'error 3')", [], 1000),
        ("dead_letters('q', since => %s, before => %s, n => 10)", [at, at + HOUR], 8000),
        ("dead_letters('small', error => 'nothing')", [], 3),
        ("redrive_where('q', 'rare', n => 3)", [], 10),
        ("redrive_where('q', n => 5, per_second => 1)", [], 20),
        ("redrive_where('q', 'none')", [], 0),
        ("redrive('q', ARRAY[%s::bigint, 17, 1111])", [far], 10),
        ("discard('q', ARRAY[%s::bigint, 17, 1112])", [far + 1], 10),
        ("discard_where('q', before => %s, n => 10)", [at], 8000),
        ("discard('small', %s)", [small], 20),
    ]:
        scans, entries = read()
        reader.execute(f"SELECT * FROM pgq.{query}".encode(), values)
        now = read()
        assert now[0] == scans, f"{query} reads the whole table"
        # The planner reads some, too, at the ends of the indexes.
        assert now[1] - entries <= most + 20, f"{query} reads {now[1] - entries} entries"


def test_a_hundred_thousand_letters_go_in_one_call(db: Connection) -> None:
    create(db)
    db.execute(FILL.encode(), [100_000])
    assert call(db, "redrive_where", "q", n=50_000, per_second=100) == 50_000
    assert call(db, "redrive", "q") == 50_000
    assert stats(db) == {"ready": 50_000, "scheduled": 50_000}
    db.execute(FILL.encode(), [100_000])
    assert call(db, "discard_where", "q", error="error 0") == 14285
    assert call(db, "purge_state", "q", "dead") == 100_000 - 14285


def test_a_redriven_job_of_a_group_is_claimed(db: Connection) -> None:
    create(db)
    (id,) = rows(db, "enqueue_many", "q", ["1"], group_keys=["a"])
    job = claim_one(db)
    call(db, "reject", job.id, job.lease, retry=False)
    assert call(db, "redrive", "q") == 1
    assert ids(claim(db)) == [id]
