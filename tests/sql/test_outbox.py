"""Triggers that turn changes of rows into jobs: they exist if and only if the change does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.sql.support import Connect, Connection, claim, column, create, one, refused

TABLE = "CREATE TABLE t (id int PRIMARY KEY, name text)"
TRIGGER = """
    CREATE TRIGGER outbox AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW
        EXECUTE FUNCTION pgq.enqueue_row('q', 'sync')
"""
EACH_STATEMENT = """
    CREATE TRIGGER ins AFTER INSERT ON t REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT
        EXECUTE FUNCTION pgq.enqueue_rows('q', 'sync');
    CREATE TRIGGER upd AFTER UPDATE ON t REFERENCING OLD TABLE AS "Old one" NEW TABLE AS "New one" FOR EACH STATEMENT
        EXECUTE FUNCTION pgq.enqueue_rows('q', 'sync');
    CREATE TRIGGER del AFTER DELETE ON t REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
        EXECUTE FUNCTION pgq.enqueue_rows('q', 'sync')
"""
both = pytest.mark.parametrize("trigger", [TRIGGER, EACH_STATEMENT], ids=["row", "statement"])


@pytest.fixture
def table(db: Connection) -> None:
    create(db, shards=1)
    db.execute(TABLE)


def changes(db: Connection) -> list[tuple[str, Any, Any]]:
    """What the jobs say: op, old and new."""
    return [(j.payload["op"], j.payload["old"], j.payload["new"]) for j in claim(db, 100)]


def row(id: int, name: str | None) -> dict[str, Any]:
    return {"id": id, "name": name}


def test_each_change_is_a_job(db: Connection, table: None) -> None:
    db.execute(TRIGGER)
    db.execute("INSERT INTO t VALUES (1, 'a'), (2, NULL)")
    db.execute("UPDATE t SET name = 'b' WHERE id = 1")
    db.execute("DELETE FROM t WHERE id = 1")
    jobs = claim(db, 10)
    assert {job.task for job in jobs} == {"sync"}
    assert jobs[0].payload == {"op": "INSERT", "schema": "public", "table": "t", "old": None, "new": row(1, "a")}
    assert [(j.payload["op"], j.payload["old"], j.payload["new"]) for j in jobs[1:]] == [
        ("INSERT", None, row(2, None)),
        ("UPDATE", row(1, "a"), row(1, "b")),
        ("DELETE", row(1, "b"), None),
    ]


def test_each_statement_is_a_batch(db: Connection, table: None) -> None:
    db.execute(EACH_STATEMENT)
    db.execute("INSERT INTO t VALUES (1, 'a'), (2, NULL)")
    db.execute("UPDATE t SET name = 'b' WHERE id = 1")
    db.execute("UPDATE t SET name = 'b' WHERE false")
    db.execute("DELETE FROM t WHERE id = 1")
    jobs = claim(db, 10)
    assert {job.task for job in jobs} == {"sync"}
    new = {"op": "INSERT", "schema": "public", "table": "t", "old": None, "new": row(1, "a")}
    assert jobs[0].payload == new
    assert [(j.payload["op"], j.payload["old"], j.payload["new"]) for j in jobs[1:]] == [
        ("INSERT", None, row(2, None)),
        ("UPDATE", None, row(1, "b")),
        ("DELETE", row(1, "b"), None),
    ]


@both
def test_an_upsert_is_what_it_turns_out_to_be(db: Connection, table: None, trigger: str) -> None:
    db.execute("INSERT INTO t VALUES (1, 'a')")
    db.execute(trigger)
    db.execute("INSERT INTO t VALUES (1, 'x'), (2, 'y') ON CONFLICT (id) DO UPDATE SET name = excluded.name")
    assert sorted((op, new) for op, _, new in changes(db)) == [("INSERT", row(2, "y")), ("UPDATE", row(1, "x"))]


@both
def test_what_is_rolled_back_is_no_job(db: Connection, connect: Connect, table: None, trigger: str) -> None:
    db.execute(trigger)
    writer = connect(autocommit=False)
    writer.execute("INSERT INTO t VALUES (1, 'a')")
    assert claim(db, 10) == []
    writer.execute("SAVEPOINT s")
    writer.execute("INSERT INTO t VALUES (2, 'b')")
    writer.execute("ROLLBACK TO s")
    writer.execute("INSERT INTO t VALUES (3, 'c')")
    writer.commit()
    writer.execute("INSERT INTO t VALUES (4, 'd')")
    writer.rollback()
    assert [new["id"] for _, _, new in changes(db)] == [1, 3]


@both
@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_any_isolation_level_will_do(
    db: Connection, connect: Connect, table: None, trigger: str, isolation: IsolationLevel
) -> None:
    db.execute(trigger)
    writer = connect(autocommit=False)
    writer.isolation_level = isolation
    writer.execute("INSERT INTO t VALUES (1, 'a')")
    writer.commit()
    assert len(changes(db)) == 1


@both
def test_a_copy_of_ten_thousand_rows(db: Connection, table: None, trigger: str) -> None:
    db.execute(trigger)
    with db.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
        for n in range(10_000):
            copy.write_row([n, f"name {n}"])
    assert [j.payload["new"]["id"] for j in claim(db, 20_000)] == list(range(10_000))


@both
def test_a_partition_is_called_by_the_name_of_the_whole(db: Connection, trigger: str) -> None:
    create(db, shards=1)
    db.execute("CREATE SCHEMA s; CREATE TABLE s.t (id int, name text) PARTITION BY LIST (id)")
    db.execute("CREATE TABLE t_1 PARTITION OF s.t FOR VALUES IN (1); CREATE TABLE t_2 (name text, id int)")
    db.execute("ALTER TABLE s.t ATTACH PARTITION t_2 FOR VALUES IN (2)")
    db.execute(trigger.replace("ON t", "ON s.t").encode())
    db.execute("INSERT INTO s.t VALUES (1, 'a'), (2, 'b')")
    db.execute("UPDATE s.t SET name = 'c' WHERE id = 2")
    jobs = claim(db, 10)
    assert [(j.payload["op"], j.payload["schema"], j.payload["table"], j.payload["new"]) for j in jobs] == [
        ("INSERT", "s", "t", row(1, "a")),
        ("INSERT", "s", "t", row(2, "b")),
        ("UPDATE", "s", "t", row(2, "c")),
    ]


def test_a_row_that_moves_to_another_partition_is_reported(db: Connection) -> None:
    create(db, shards=1)
    db.execute("CREATE TABLE t (id int, name text) PARTITION BY LIST (id)")
    db.execute("CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1); CREATE TABLE t_2 PARTITION OF t FOR VALUES IN (2)")
    db.execute("INSERT INTO t VALUES (1, 'a')")
    db.execute(TRIGGER)
    db.execute("UPDATE t SET id = 2")
    assert changes(db) == [("DELETE", row(1, "a"), None), ("INSERT", None, row(2, "a"))]


def test_a_condition_decides(db: Connection, table: None) -> None:
    db.execute("""
        CREATE TRIGGER outbox AFTER UPDATE ON t FOR EACH ROW WHEN (old.name IS DISTINCT FROM new.name)
        EXECUTE FUNCTION pgq.enqueue_row('q')
    """)
    db.execute("INSERT INTO t VALUES (1, 'a')")
    db.execute("UPDATE t SET id = 2")
    db.execute("UPDATE t SET name = 'b'")
    (job,) = claim(db, 10)
    assert (job.task, job.payload["new"]) == (None, row(2, "b"))


def test_a_deferred_trigger_works_at_commit(db: Connection, connect: Connect, table: None) -> None:
    db.execute("""
        CREATE CONSTRAINT TRIGGER outbox AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
        EXECUTE FUNCTION pgq.enqueue_row('q')
    """)
    writer = connect(autocommit=False)
    writer.execute("INSERT INTO t VALUES (1, 'a')")
    assert one(writer, "SELECT count(*) FROM pgq.job") == 0
    writer.commit()
    assert changes(db) == [("INSERT", None, row(1, "a"))]


@both
def test_only_the_columns_that_are_named(db: Connection, table: None, trigger: str) -> None:
    db.execute(trigger.replace("'sync'", "'sync', 'name'").encode())
    db.execute("INSERT INTO t VALUES (1, 'a')")
    db.execute("DELETE FROM t")
    assert changes(db) == [("INSERT", None, {"name": "a"}), ("DELETE", {"name": "a"}, None)]
    db.execute("ALTER TABLE t RENAME COLUMN name TO title")
    with refused("42703") as caught:
        db.execute("INSERT INTO t VALUES (1, 'a')")
    assert '"name"' in str(caught.value)
    assert caught.value.diag.message_hint


@both
def test_columns_may_be_called_anything(db: Connection, trigger: str) -> None:
    create(db)
    names = [
        "old",
        "new",
        "v_old",
        "v_new",
        "v_columns",
        "queue",
        "payload",
        "task",
        "r",
        "s",
        "k",
        "j",
        "op",
        "relation",
    ]
    names += ['a"b', "a'b", "a%b", "a b", "%1$I", "Ü", "v_rows", "tg_op", "c", "num_nulls", "format"]
    db.execute("CREATE TYPE mood AS ENUM ('ok', '%s')")
    columns = ", ".join('"' + name.replace('"', '""') + '" mood' for name in names)
    db.execute(f"CREATE TABLE t ({columns})".encode())
    db.execute(trigger)
    db.execute(f"INSERT INTO t VALUES ({', '.join(['$$%s$$'] * len(names))})".encode())
    assert changes(db) == [("INSERT", None, dict.fromkeys(names, "%s"))]


@both
def test_values_of_all_kinds(db: Connection, trigger: str) -> None:
    create(db)
    db.execute("""
        CREATE TYPE mood AS ENUM ('ok', 'bad');
        CREATE DOMAIN positive AS int CHECK (value > 0);
        CREATE DOMAIN very_positive AS positive CHECK (value > 10);
        CREATE TYPE pair AS (a int, b text);
        CREATE TABLE t (
            gone int, n int, b boolean, x numeric, j jsonb, ns int[], ts timestamptz, m mood, ms mood[], p positive,
            v very_positive, c pair, twice int GENERATED ALWAYS AS (n * 2) STORED, nothing mood, hollow pair
        );
        ALTER TABLE t DROP COLUMN gone;
        ALTER TABLE t ADD COLUMN later text DEFAULT 'x';
    """)
    db.execute(trigger)
    db.execute("""
        INSERT INTO t VALUES (1, true, 1.50, '{"a": [null]}', '{1,2}', '2030-01-01 00:00:00+00', 'ok', '{ok,bad}', 5,
            50, (1, 'x y'), DEFAULT, NULL, (NULL, NULL))
    """)
    ((_, _, new),) = changes(db)
    assert new.pop("ts").startswith("20")
    assert new == {
        "n": 1, "b": True, "x": 1.5, "j": {"a": [None]}, "ns": [1, 2], "m": "ok", "ms": "{ok,bad}", "p": 5, "v": 50,
        "c": '(1,"x y")', "twice": 2, "nothing": None, "hollow": "(,)", "later": "x",
    }  # fmt: skip


def test_a_virtual_column_is_left_out(db: Connection, table: None) -> None:
    if db.info.server_version < 180000:
        pytest.skip("there are none before PostgreSQL 18")
    db.execute("ALTER TABLE t ADD COLUMN twice int GENERATED ALWAYS AS (id * 2) VIRTUAL")
    db.execute(TRIGGER)
    db.execute("INSERT INTO t VALUES (1, 'a')")
    assert changes(db) == [("INSERT", None, row(1, "a"))]


WRONG = {
    "before": "CREATE TRIGGER outbox BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION pgq.enqueue_row('q')",
    "statement": "CREATE TRIGGER outbox AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION pgq.enqueue_row('q')",
    "no queue": "CREATE TRIGGER outbox AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION pgq.enqueue_row()",
    "rows by row": "CREATE TRIGGER outbox AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION pgq.enqueue_rows('q')",
    "rows before": "CREATE TRIGGER outbox BEFORE INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION pgq.enqueue_rows('q')",
    "no table": "CREATE TRIGGER outbox AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION pgq.enqueue_rows('q')",
    "rows, no queue": """CREATE TRIGGER outbox AFTER INSERT ON t REFERENCING NEW TABLE AS n FOR EACH STATEMENT
        EXECUTE FUNCTION pgq.enqueue_rows()""",
}


@pytest.mark.parametrize("trigger", WRONG.values(), ids=WRONG)
def test_triggers_of_the_wrong_kind_are_refused(db: Connection, table: None, trigger: str) -> None:
    db.execute(trigger)
    with refused("39P01") as caught:
        db.execute("INSERT INTO t VALUES (1, 'a')")
    assert caught.value.diag.message_hint
    assert one(db, "SELECT count(*) FROM t") == 0


@pytest.mark.parametrize("function", ["enqueue_row", "enqueue_rows"])
def test_truncate_is_refused(db: Connection, table: None, function: str) -> None:
    db.execute(f"CREATE TRIGGER o AFTER TRUNCATE ON t FOR EACH STATEMENT EXECUTE FUNCTION pgq.{function}('q')".encode())
    with refused("39P01"):
        db.execute("TRUNCATE t")


def test_an_updates_old_rows_alone_are_refused(db: Connection, table: None) -> None:
    db.execute("""CREATE TRIGGER o AFTER UPDATE ON t REFERENCING OLD TABLE AS x FOR EACH STATEMENT
        EXECUTE FUNCTION pgq.enqueue_rows('q')""")
    with refused("39P01"):
        db.execute("UPDATE t SET id = 1")


@both
def test_an_unknown_queue_stops_the_change(db: Connection, trigger: str) -> None:
    db.execute(TABLE)
    db.execute(trigger)
    with refused("PQ002"):
        db.execute("INSERT INTO t VALUES (1, 'a')")
    assert one(db, "SELECT count(*) FROM t") == 0


# Rights ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def role(db: Connection) -> Iterator[str]:
    name = f"{db.info.dbname}_anybody"
    db.execute(f"CREATE ROLE {name} LOGIN; GRANT CREATE ON SCHEMA public TO {name}")
    yield name
    db.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


@both
def test_who_writes_needs_no_right_and_who_makes_the_trigger_does(
    db: Connection, connect: Connect, role: str, trigger: str
) -> None:
    create(db, shards=1)
    anybody = connect(user=role)
    anybody.execute(TABLE)
    with refused("42501"):
        anybody.execute(trigger)
    db.execute(trigger)
    anybody.execute("INSERT INTO t VALUES (1, 'a')")
    anybody.execute("DELETE FROM t")
    assert [op for op, *_ in changes(db)] == ["INSERT", "DELETE"]
    with refused("42501"):
        anybody.execute("SELECT pgq.enqueue('q')")


def test_a_producer_may_make_the_trigger(db: Connection, connect: Connect, role: str) -> None:
    create(db)
    db.execute(f"SELECT pgq.grant_producer('{role}')")
    producer = connect(user=role)
    for statement in [TABLE, TRIGGER, "INSERT INTO t VALUES (1, 'a')"]:
        producer.execute(statement)
    assert len(changes(db)) == 1


@both
@pytest.mark.parametrize("x", ["'ok'::m", "ARRAY['ok'::m]", "ROW('ok')::pair", "ARRAY[ROW('ok')::pair]", "'ok'::d"])
def test_a_cast_to_json_does_not_run_with_the_rights_of_the_owner(
    db: Connection, connect: Connect, role: str, trigger: str, x: str
) -> None:
    create(db)
    db.execute(f"SELECT pgq.grant_producer('{role}')")
    producer = connect(user=role)
    producer.execute("""
        CREATE TABLE seen (who text);
        CREATE TYPE m AS ENUM ('ok');
        CREATE TYPE pair AS (a m);
        CREATE DOMAIN d AS m;
        CREATE FUNCTION steal(m) RETURNS json LANGUAGE plpgsql AS
            'BEGIN INSERT INTO public.seen VALUES (current_user); RETURN ''"stolen"''; END';
        CREATE CAST (m AS json) WITH FUNCTION steal(m);
    """)
    producer.execute(f"SELECT to_jsonb({x})".encode())
    assert column(db, "SELECT who FROM seen") == [role]
    producer.execute(f"CREATE TABLE t AS SELECT 1 AS id, {x} AS x LIMIT 0".encode())
    producer.execute(trigger)
    producer.execute(f"INSERT INTO t VALUES (1, {x})".encode())
    assert column(db, "SELECT who FROM seen") == [role]
    assert "ok" in changes(db)[0][2]["x"]


@pytest.mark.direct("settings of the session")
@both
def test_a_hostile_search_path_changes_nothing(db: Connection, connect: Connect, table: None, trigger: str) -> None:
    db.execute(trigger)
    writer = connect()
    writer.execute("""
        CREATE SCHEMA evil;
        CREATE FUNCTION evil.to_jsonb(anyelement) RETURNS jsonb LANGUAGE sql AS $$ SELECT '"evil"'::jsonb $$;
        CREATE FUNCTION evil.format(text, text) RETURNS text LANGUAGE sql AS $$ SELECT 'evil' $$;
        CREATE FUNCTION evil.ne(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
        CREATE OPERATOR evil.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.ne);
        CREATE TEMP TABLE pg_class (oid oid);
        CREATE TEMP TABLE fresh (id int, name text);
        CREATE TEMP TABLE pg_trigger (oid oid);
        SET search_path = evil, pg_temp, pg_catalog;
    """)
    writer.execute("INSERT INTO public.t VALUES (1, 'a')")
    assert changes(db) == [("INSERT", None, row(1, "a"))]


@both
def test_the_triggers_survive_a_change_of_the_table(db: Connection, table: None, trigger: str) -> None:
    """In one session: the plans are made anew."""
    db.execute(trigger)
    db.execute("INSERT INTO t VALUES (1, 'a')")
    db.execute("CREATE TYPE mood AS ENUM ('ok'); ALTER TABLE t ADD COLUMN m mood DEFAULT 'ok'")
    db.execute("INSERT INTO t VALUES (2, 'b')")
    db.execute("ALTER TABLE t ALTER COLUMN id TYPE text; ALTER TABLE t DROP COLUMN name")
    db.execute("INSERT INTO t VALUES ('3')")
    assert [new for _, _, new in changes(db)] == [row(1, "a"), row(2, "b") | {"m": "ok"}, {"id": "3", "m": "ok"}]


def test_a_trigger_is_no_function_to_call(db: Connection) -> None:
    with pytest.raises(psycopg.Error, match="trigger"):
        db.execute("SELECT pgq.enqueue_row()")
