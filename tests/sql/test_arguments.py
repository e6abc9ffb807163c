"""Every bad argument of every function is refused with a SQLSTATE to rely on and a hint, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.cluster import Cluster
from tests.conftest import fresh_database
from tests.sql.support import Connection, column, create, fingerprint, refused

# One million characters; 128 is the longest name.
LONG = "repeat('x', 1048576)"
UNKNOWN = ["'nowhere'", "''", "' q'", "'Q'", LONG]

# PostgreSQL 17 has infinite intervals, older ones refuse the literal itself.
INFINITE = ["'infinity'", "'-infinity'"]

CASES: dict[str, list[str]] = {
    "22004": [
        "enqueue(NULL)",
        "enqueue('q', NULL)",
        "enqueue('q', priority => NULL)",
        "enqueue_many(NULL, '{1}')",
        "enqueue_many(NULL, '{1}', delay => '1 hour')",
        "enqueue_many('q', NULL)",
        "enqueue_many('q', '{1,NULL}')",
        "enqueue_many('q', '{1}', priority => NULL)",
        "claim(NULL)",
        "claim('q', NULL)",
        "ack(NULL, 1)",
        "ack(1, NULL)",
        "ack(NULL, NULL)",
        "ack_many(NULL, '{1}')",
        "ack_many('{1}', NULL)",
        "reject(NULL, 1)",
        "reject(1, NULL)",
        "reject(1, 1, retry => NULL)",
        "reject_many(NULL, '{1}')",
        "reject_many('{1}', NULL)",
        "release(NULL, '{1}')",
        "release('{1}', NULL)",
        "extend(NULL)",
        "extend_many(NULL)",
        "job_status(NULL)",
        "create_queue(NULL)",
        *[
            f"create_queue('n', {name} => NULL)"
            for name in ["lease", "max_attempts", "backoff", "backoff_max", "retention", "shards", "notify"]
        ],
        "create_queue('n', if_not_exists => NULL)",
        "alter_queue(NULL)",
        "drop_queue(NULL)",
        "pause(NULL)",
        "resume(NULL)",
        "purge(NULL)",
        "purge_state('q', NULL)",
        "redrive(NULL)",
        "redrive_where(NULL)",
        "dead_letters(NULL)",
        "discard('q', NULL)",
        "discard_where(NULL)",
        "enqueue_unique('q')",
        "enqueue_unique('q', NULL, unique_key => 'k')",
        "enqueue_unique_many('q', NULL, '{}')",
        "enqueue_unique_many('q', '{}', NULL)",
        "enqueue_after(NULL, 'q')",
        "enqueue_after('{NULL}', 'q')",
        "enqueue_after('{}', 'q', NULL)",
        "enqueue_after('{}', 'q', on_dead => NULL)",
        "enqueue_many_after(NULL, 'q', '{1}')",
        "enqueue_many_after('{}', 'q', NULL)",
        "batch(NULL, 'q')",
        "add_to_batch(NULL, '{}')",
        "add_to_batch(1, NULL)",
        "batch_status(NULL)",
        "waits_for(NULL)",
        "watch_job(NULL)",
        "unwatch_job(NULL)",
        "set_unique('q', NULL)",
        "set_limits('q', fair => NULL)",
        "set_unique('q', on_repeat => NULL)",
        "snooze(NULL, 1, '1 hour')",
        "snooze(1, 1, NULL)",
        "snooze_many(NULL, '{1}', '1 hour')",
        "cancel(NULL)",
        "cancel_many(NULL)",
        "cancel_many('q', running => NULL)",
        "cancel_requested(NULL)",
        "cancel_claimed(NULL, 1)",
        "cancel_claimed(1, NULL)",
        "reschedule(NULL, 'now')",
        "reschedule(1, NULL)",
        "set_priority(NULL, 1)",
        "set_priority(1, NULL)",
        "attempts(NULL)",
        "progress(1, 1, NULL)",
        "job_progress(NULL)",
        "jobs(NULL)",
        "jobs('q', n => NULL)",
        "jobs('q', newest => NULL)",
        "activity(NULL)",
        "failures(NULL)",
        "schedule(NULL, '* * * * *', 'q')",
        "schedule('s', NULL, 'q')",
        "unschedule(NULL)",
        "next_runs(NULL)",
        "try_exclusive(NULL)",
        "exclusive_holder(NULL)",
        "watch(NULL)",
        "watch('{q,NULL}')",
        "unwatch(NULL)",
        "grant_producer(NULL)",
        "grant_consumer(NULL)",
        "grant_admin(NULL)",
    ],
    "PQ002": [
        f"{function}({queue}{rest})"
        for queue in UNKNOWN
        for function, rest in [
            ("enqueue", ""),
            ("enqueue", ", priority => 1"),
            ("enqueue", ", delay => '1 hour'"),
            ("enqueue_many", ", '{1}'"),
            ("claim", ""),
            ("alter_queue", ""),
            ("drop_queue", ""),
            ("drop_queue", ", true"),
            ("pause", ""),
            ("resume", ""),
            ("purge", ""),
            ("redrive", ""),
            ("redrive_where", ""),
            ("dead_letters", ""),
            ("discard", ", '{1}'"),
            ("discard_where", ""),
            ("purge_state", ", 'ready'"),
            ("cancel_many", ""),
            ("jobs", ""),
            ("set_unique", ""),
            ("set_limits", ""),
            ("set_validator", ", NULL"),
            ("enqueue", ", unique_key => 'k'"),
            ("enqueue_unique", ", unique_key => 'k'"),
            ("enqueue_unique_many", ", '{1}', '{k}'"),
        ]
    ]
    + [f"{function}('{{}}', {queue})" for function in ("enqueue_after", "batch") for queue in UNKNOWN]
    + [f"enqueue_many_after('{{}}', {queue}, '{{1}}')" for queue in UNKNOWN]
    + [f"watch(ARRAY['q', {queue}])" for queue in UNKNOWN],
    "PQ001": [
        "ack(1, 1)",
        "reject(1, 1)",
        "extend(1)",
        "snooze(1, 1, '1 hour')",
        "progress(1, 1, '1')",
        "cancel_claimed(1, 1)",
    ],
    "PQ006": ["add_to_batch(1, '{}')"],
    "42710": ["create_queue('q')"],
    "22023": [
        *[
            f"{function}, {argument})"
            for function in ["enqueue('q'", "enqueue_many('q', '{1}'"]
            for argument in [
                "priority => 101",
                "priority => -101",
                "priority => 2147483647",
                "priority => -2147483648",
                "run_at => 'infinity'",
                "run_at => '-infinity'",
                "delay => '-1 microsecond'",
                "delay => '101 years'",
                "run_at => 'now', delay => '0'",
                "max_attempts => 0",
                "max_attempts => -1",
                "max_attempts => 32768",
                "headers => '[]'",
                "headers => '\"text\"'",
                "headers => 'null'",
            ]
        ],
        *[f"claim('q', {batch})" for batch in [0, -1, 100001, 2147483647, -2147483648]],
        *[
            f"{function} {lease_for})"
            for function in ["claim('q', lease_for =>", "extend(1,", "extend_many('{1}',"]
            for lease_for in ["'0'", "'-1 hour'", "'999 microseconds'", "'367 days'"]
        ],
        "ack_many('{1,2}', '{1}')",
        "ack_many('{}', '{1}')",
        "ack_many('{1}', '{1}', '{1,2}')",
        "ack_many('{1}', '{1}', '{}')",
        "reject(1, 1, retry_in => '-1 second')",
        "reject(1, 1, retry_in => '101 years')",
        "reject_many('{1,2}', '{1}')",
        "reject_many('{1}', '{1}', '{a,b}')",
        "release('{1,2}', '{1}')",
        "release('{1}', '{}')",
        "snooze(1, 1, '-1 second')",
        "snooze_many('{1,2}', '{1}', '1 hour')",
        "reschedule(1, 'infinity')",
        "set_priority(1, 101)",
        "purge_state('q', 'running')",
        "enqueue_unique('q', unique_key => '')",
        "enqueue_unique('q', unique_key => repeat('x', 1001))",
        "enqueue_unique('q', unique_key => 'k', unique_until => 'sunrise')",
        "enqueue_unique('q', unique_key => 'k', unique_for => '0')",
        "enqueue_unique('q', unique_key => 'k', unique_for => '1 day', unique_until => 'claimed')",
        "enqueue_unique('q', unique_key => 'k', on_repeat => 'shout')",
        "enqueue_unique('q', unique_key => 'k', on_repeat => 'debounce')",
        "enqueue_unique_many('q', '{1,2}', '{k}')",
        "enqueue_unique_many('q', '{1}', '{k}', priority => 101)",
        "enqueue_after('{0}', 'q')",
        "enqueue_after('{9223372036854775807}', 'q')",
        "enqueue_after('{}', 'q', on_dead => 'shout')",
        "enqueue_after('{}', 'q', priority => 101)",
        "enqueue_many_after('{-1}', 'q', '{1}')",
        "batch('{0}', 'q')",
        "add_to_batch(1, '{0}')",
        "waits_for(1, 0)",
        "jobs('q', 'dead')",
        "jobs('q', n => 0)",
        "activity('0')",
        "activity('2 hours')",
        "failures(0)",
        "failures(1001)",
        "set_unique('q', 'never')",
        "set_limits('q', group_limit => 0)",
        "enqueue('q', group_key => '')",
        "enqueue_many('q', '{1}', group_keys => '{}')",
        "enqueue_unique('q', unique_key => 'k', group_key => '')",
        "enqueue_unique_many('q', '{1}', '{k}', group_keys => '{a,b}')",
        "set_validator('q', 'pg_catalog.length(text)')",
        "schedule('s', '* * * *', 'q')",
        "next_runs('60 * * * *')",
        "create_queue('')",
        "create_queue(repeat('x', 129))",
        f"create_queue({LONG})",
        *[
            f"{function}, {setting})"
            for function in ["create_queue('n'", "alter_queue('q'"]
            for setting in [
                "lease => '0'",
                "lease => '-1 second'",
                "lease => '367 days'",
                "max_attempts => 0",
                "max_attempts => -1",
                "max_attempts => 32768",
                "max_attempts => 2147483647",
                "backoff => '-1 second'",
                "backoff => '2 hours'",
                "backoff_max => '0'",
                "backoff_max => '-1 second'",
                "backoff_max => '367 days'",
                "retention => '-1 second'",
                "retention => '101 years'",
                "shards => 0",
                "shards => -1",
                "shards => 65",
                "shards => 2147483647",
            ]
        ],
    ],
    # What PostgreSQL itself refuses.
    "22P05": [r"""enqueue('q', '"\u0000"')""", r"""enqueue_many('q', ARRAY['"a\u0000b"']::jsonb[])"""],
    "22P02": ["enqueue('q', '{')", "enqueue('q', 'text')", "claim('q', 'many')"],
    "54000": ["enqueue(chr(0))", "create_queue(chr(0))", "claim(chr(0))"],
    "42704": [
        "unschedule('s')",
        "grant_producer('nobody_at_all')",
        "grant_consumer('nobody_at_all')",
        "grant_admin('nobody_at_all')",
    ],
    "22008": ["enqueue('q', run_at => '2020-13-01')"],
    "42883": ["set_validator('q', 'nothing(jsonb)')"],
}

ENDLESS = [
    "enqueue('q', delay => {})",
    "enqueue_many('q', '{{1}}', delay => {})",
    "claim('q', lease_for => {})",
    "reject(1, 1, retry_in => {})",
    "snooze(1, 1, {})",
    "enqueue_unique('q', unique_key => 'k', unique_for => {})",
    "extend(1, {})",
    "activity({})",
    "extend_many('{{1}}', {})",
    *[f"create_queue('n', {name} => {{}})" for name in ["lease", "backoff", "backoff_max", "retention"]],
    *[f"alter_queue('q', {name} => {{}})" for name in ["lease", "backoff", "backoff_max", "retention"]],
]


@pytest.fixture(scope="module")
def shared(cluster: Cluster, template: str) -> Iterator[Connection]:
    """One database for all: what is refused changes nothing, and that is looked at, too."""
    for dsn in fresh_database(cluster, template):
        with psycopg.connect(dsn, autocommit=True) as connection:
            create(connection)
            before = fingerprint(connection)
            yield connection
            assert fingerprint(connection) == before
            assert column(connection, "SELECT queue FROM pgq.stats()") == ["q"]


@pytest.mark.parametrize(
    ("sqlstate", "call"), [(sqlstate, call) for sqlstate, calls in CASES.items() for call in calls]
)
def test_bad_arguments_are_refused(shared: Connection, sqlstate: str, call: str) -> None:
    with refused(sqlstate):
        shared.execute(f"SELECT * FROM pgq.{call}")


def test_endless_intervals_are_refused(shared: Connection) -> None:
    sqlstate = "22023" if shared.info.server_version >= 170000 else "22007"
    for call in ENDLESS:
        for interval in INFINITE:
            with refused(sqlstate):
                shared.execute(f"SELECT * FROM pgq.{call.format(interval)}")


def test_a_message_does_not_repeat_a_megabyte(shared: Connection) -> None:
    with refused("PQ002") as caught:
        shared.execute(f"SELECT pgq.enqueue({LONG})")
    assert len(caught.value.diag.message_primary or "") < 200


def test_every_function_with_arguments_has_a_bad_one(shared: Connection) -> None:
    functions = column(
        shared,
        r"SELECT proname FROM pg_proc WHERE pronamespace = 'pgq'::regnamespace AND proname !~ '^_' AND pronargs > 0"
        " AND prokind = 'f'",
    )
    tested = {call.partition("(")[0] for calls in CASES.values() for call in calls}
    assert set(functions) - {"rotate"} == tested  # rotate takes a boolean, and null is false
