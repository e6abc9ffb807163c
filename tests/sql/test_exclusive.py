"""One node at a time: a lock that lives as long as the transaction, and who holds it."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.sql.support import Connect, Connection, call, create, enqueue, eventually, one, refused

NAMES = ["nightly", "", " ", "x" * 100_000, "Ünïcödé ☃", "a'b\"c;--", "a\nb", "NIGHTLY"]


def holders(db: Connection, name: str) -> list[tuple[object, ...]]:
    return db.execute("SELECT * FROM pgq.exclusive_holder(%s)", [name]).fetchall()


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_one_transaction_at_a_time_under_any_name(db: Connection, connect: Connect, name: str) -> None:
    first, second = connect(autocommit=False), connect(autocommit=False)
    assert call(first, "try_exclusive", name)
    assert call(first, "try_exclusive", name)
    assert not call(second, "try_exclusive", name)
    assert call(second, "try_exclusive", name + "x")
    second.rollback()
    first.commit()
    assert call(second, "try_exclusive", name)


def test_names_do_not_meet(db: Connection) -> None:
    keys = "SELECT count(DISTINCT pgq._exclusive_key('name ' || n)) FROM generate_series(1, 100000) n"
    assert one(db, keys) == 100000


def test_no_other_lock_of_pgq_is_met(db: Connection) -> None:
    others = """
        SELECT min(k) > 8099567249418878976 + 8388607 AND max(k) < 8099567524296785920
        FROM (SELECT pgq._exclusive_key(n::text) FROM generate_series(1, 10000) n) e (k)
    """
    assert one(db, others)
    assert one(db, "SELECT pgq._lane_key((8388607::bigint << 16) | 65535) < pgq._watch_key(0)")
    assert one(db, "SELECT pgq._watch_key(8388607)") == 8099567249418878976 + 8388607
    assert one(db, "SELECT pgq._task_key(0)") == 8099567524296785920


def test_a_savepoint_that_is_rolled_back_gives_it_up(db: Connection, connect: Connect) -> None:
    first = connect(autocommit=False)
    first.execute("SAVEPOINT a")
    assert call(first, "try_exclusive", "n")
    first.execute("ROLLBACK TO a")
    assert call(db, "try_exclusive", "n")


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_any_isolation_level_will_do(db: Connection, connect: Connect, isolation: IsolationLevel) -> None:
    first, second = connect(autocommit=False), connect(autocommit=False)
    first.isolation_level = second.isolation_level = isolation
    one(second, "SELECT 1")
    assert call(first, "try_exclusive", "n")
    assert not call(second, "try_exclusive", "n")
    first.commit()
    assert call(second, "try_exclusive", "n")


def test_the_holder_is_named_and_not_disturbed(db: Connection, connect: Connect) -> None:
    assert holders(db, "n") == []
    first = connect(autocommit=False, application_name="node 1")
    assert call(first, "try_exclusive", "n")
    before = one(first, "SELECT now()")
    for _ in range(2):
        assert holders(db, "n") == [(one(first, "SELECT pg_backend_pid()"), "postgres", "node 1", None, before)]
    assert holders(db, "m") == []
    first.commit()
    assert holders(db, "n") == []
    assert call(db, "try_exclusive", "n")


def test_the_same_name_in_another_database_is_another_one(db: Connection, connect: Connect, bare_dsn: str) -> None:
    first = connect(autocommit=False)
    assert call(first, "try_exclusive", "n")
    key = one(db, "SELECT pgq._exclusive_key('n')")
    with psycopg.connect(bare_dsn) as elsewhere:
        assert one(elsewhere, "SELECT pg_try_advisory_xact_lock(%s)", key)
        assert len(holders(db, "n")) == 1


@pytest.mark.direct("ends a session")
def test_a_holder_that_is_killed_gives_it_up(db: Connection, connect: Connect) -> None:
    first = connect(autocommit=False)
    assert call(first, "try_exclusive", "n")
    one(db, "SELECT pg_terminate_backend(%s, 20000)", first.info.backend_pid)
    eventually(lambda: call(db, "try_exclusive", "n"))


@pytest.mark.direct("looks at one session from another")
def test_a_holder_that_only_waits_pins_nothing(db: Connection, connect: Connect) -> None:
    """But after a statement with parameters only once the next one has taken its place."""
    first = connect(autocommit=False)
    assert call(first, "try_exclusive", "n")
    first.execute("SELECT 1")
    state = "SELECT state, backend_xmin::text, backend_xid::text FROM pg_stat_activity WHERE pid = %s"
    assert db.execute(state, [first.info.backend_pid]).fetchall() == [("idle in transaction", None, None)]
    first.execute("SELECT pgq.try_exclusive('m')")
    assert db.execute(state, [first.info.backend_pid]).fetchall() == [("idle in transaction", None, None)]


@pytest.mark.direct("a setting of the session")
def test_a_limit_on_idle_transactions_ends_it(db: Connection, connect: Connect) -> None:
    first = connect(autocommit=False)
    first.execute("SET LOCAL idle_in_transaction_session_timeout = '10ms'")
    assert call(first, "try_exclusive", "n")
    eventually(lambda: call(db, "try_exclusive", "n"))


def test_null_is_refused(db: Connection) -> None:
    for function in ["try_exclusive", "exclusive_holder"]:
        with refused("22004"):
            call(db, function, None)


def test_consumers_may_and_producers_may_not(db: Connection, connect: Connect) -> None:
    kinds = ["producer", "consumer"]
    roles = {kind: f"{db.info.dbname}_{kind}" for kind in kinds}
    for kind, role in roles.items():
        db.execute(f"CREATE ROLE {role} LOGIN; SELECT pgq.grant_{kind}('{role}')")
    try:
        node = connect(user=roles["consumer"], autocommit=False)
        assert call(node, "try_exclusive", "n")
        (row,) = node.execute("SELECT username FROM pgq.exclusive_holder('n')")
        assert row == (roles["consumer"],)
        node.close()
        for function in ["try_exclusive", "exclusive_holder"]:
            with refused("42501"):
                call(connect(user=roles["producer"]), function, "n")
    finally:
        for role in roles.values():
            db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_it_does_not_stop_the_queue(db: Connection, connect: Connect) -> None:
    create(db)
    first = connect(autocommit=False)
    for n in range(200):
        assert call(first, "try_exclusive", f"n{n}")
    assert len(enqueue(db, 10)) == 10
    assert call(db, "maintain") is not None
