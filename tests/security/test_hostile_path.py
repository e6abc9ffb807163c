"""Functions run with the rights of their owner: nothing that a caller puts in the way may be called or read instead."""

from __future__ import annotations

import pytest

from tests.conftest import Clock
from tests.security.conftest import MakeRole
from tests.sql.support import Connect, Connection, call, claim, column, ids, leases, one, rows

# In schema evil: for each function and operator of PostgreSQL that pgq could call by its bare name one with the same
# arguments. It raises.
SHADOWS = """
DO $do$
DECLARE
    v record;
BEGIN
    FOR v IN
        SELECT p.proname, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result
        FROM pg_proc p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f'
            AND p.proname IN (
                SELECT w[1] FROM pg_proc q, regexp_matches(q.prosrc, '\\m([a-z_0-9]+)\\(', 'g') w
                WHERE q.pronamespace = 'pgq'::regnamespace
            )
    LOOP
        BEGIN
            EXECUTE format(
                'CREATE FUNCTION evil.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L',
                v.proname, v.arguments, v.result, 'BEGIN RAISE EXCEPTION $$hijacked$$; END');
        EXCEPTION WHEN OTHERS THEN NULL;  -- pseudo-types
        END;
    END LOOP;
    FOR v IN
        SELECT o.oprname, o.oprleft::regtype AS l, o.oprright::regtype AS r, o.oprresult::regtype AS result, o.oid
        FROM pg_operator o
        WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprleft <> 0
            AND o.oprleft = ANY ('{int2,int4,int8,text,bool,xid8,timestamptz,interval,jsonb,name,oid,"char",numeric,tid,
                float8,anyarray,anyenum,anycompatiblearray}'::regtype[])
    LOOP
        BEGIN
            EXECUTE format(
                'CREATE FUNCTION evil.%I(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L',
                'op_' || v.oid, v.l, v.r, v.result, 'BEGIN RAISE EXCEPTION $$hijacked$$; END');
            EXECUTE format(
                'CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.%I)', v.oprname, v.l, v.r,
                'op_' || v.oid);
        EXCEPTION WHEN OTHERS THEN NULL;
        END;
    END LOOP;
END;
$do$;
"""

# In pg_temp: tables, views and types with the names of ours and of those of PostgreSQL that we read. Empty.
TEMPORARY = """
DO $do$
DECLARE
    v_name text;
BEGIN
    FOR v_name IN
        SELECT DISTINCT c.relname FROM pg_class c
        WHERE c.relkind IN ('r', 'p', 'v', 'S') AND (
            c.relnamespace = 'pgq'::regnamespace
            OR c.relname IN ('pg_class', 'pg_locks', 'pg_proc', 'pg_stat_activity', 'pg_database', 'pg_namespace')
        )
    LOOP
        EXECUTE format('CREATE TEMPORARY TABLE %I (name text, id int, queue text)', v_name);
    END LOOP;
    FOREACH v_name IN ARRAY '{text,int2,int4,int8,bool,jsonb,interval,timestamptz,xid8,record,regclass}'::text[] LOOP
        EXECUTE format('CREATE DOMAIN pg_temp.%I AS pg_catalog.text CHECK (false)', v_name);
    END LOOP;
END;
$do$;
"""

PATHS = ["evil, pg_temp, pg_catalog", "pg_temp, evil, public, pgq", "pgq, evil", "''"]


def live(db: Connection, clock: Clock) -> list[object]:
    """Call every public function that does something, and say what came back."""
    seen: list[object] = []
    call(db, "create_queue", "q", lease="1 hour", shards=1, max_attempts=3)
    call(db, "alter_queue", "q", backoff="1 second")
    made = [call(db, "enqueue", "q", {"n": n}, priority=n % 2) for n in range(3)]
    made += rows(db, "enqueue_many", "q", ["1", "2", "3", "4"], headers={"a": 1})
    made += [call(db, "enqueue", "q", delay="1 hour")]
    call(db, "watch", ["q"])
    call(db, "unwatch", ["q"])
    call(db, "pause", "q")
    seen.append(len(claim(db)))
    call(db, "resume", "q")
    first = claim(db)
    jobs = first + claim(db, 10, lease_for="2 hours", worker="w")
    seen.append(sorted(ids(jobs)) == made[:7])
    call(db, "ack", jobs[0].id, jobs[0].lease, {"ok": True})
    seen.append(len(rows(db, "ack_many", ids(jobs[:2]), leases(jobs[:2]))))
    seen.append(call(db, "reject", jobs[2].id, jobs[2].lease, "e"))
    seen.append(call(db, "reject", jobs[3].id, jobs[3].lease, "e", retry=False))
    seen.append(len(rows(db, "reject_many", [jobs[4].id], [jobs[4].lease], ["e"])))
    seen.append(len(rows(db, "release", [jobs[5].id], [jobs[5].lease])))
    call(db, "extend", jobs[6].lease, "3 hours")
    seen.append(len(rows(db, "extend_many", [jobs[6].lease])))
    seen.append(call(db, "redrive", "q"))
    clock.advance(7200)
    seen.append(call(db, "promote"))
    seen.append(call(db, "reap"))
    for _ in range(4):
        call(db, "rotate", seal=True)
    clock.advance(7200)
    maintained = call(db, "maintain")
    seen.append((maintained["promoted"], maintained["reaped"]))
    seen.append(len(rows(db, "job_status", jobs[0].id)))
    seen.append([row[:7] for row in db.execute("SELECT * FROM pgq.stats()")])
    seen.append(len(rows(db, "doctor")))
    seen.append(call(db, "purge", "q"))
    seen.append(call(db, "version"))
    call(db, "drop_queue", "q", force=True)
    return seen


@pytest.fixture
def expected(db: Connection, connect: Connect, make_role: MakeRole, clock: Clock) -> list[object]:
    return live(connect(user=make_role("admin", f"{db.info.dbname}_plain")), clock)


@pytest.mark.parametrize("path", PATHS)
def test_what_lies_in_the_search_path_changes_nothing(
    db: Connection, connect: Connect, make_role: MakeRole, clock: Clock, expected: list[object], path: str
) -> None:
    role = make_role("admin")
    db.execute(f"CREATE SCHEMA evil; GRANT ALL ON SCHEMA evil TO {role}")
    attacker = connect(user=role)
    db.execute(SHADOWS)
    db.execute(f"GRANT ALL ON ALL FUNCTIONS IN SCHEMA evil TO {role}")
    assert one(db, "SELECT count(*) FROM pg_operator WHERE oprnamespace = 'evil'::regnamespace") > 100
    assert one(db, "SELECT count(*) FROM pg_proc WHERE pronamespace = 'evil'::regnamespace AND proname !~ '^op_'") > 50
    attacker.execute(TEMPORARY)
    attacker.execute(f"SET search_path = {path}")
    assert live(attacker, clock) == expected


def test_the_shadows_are_real(db: Connection) -> None:
    db.execute("CREATE SCHEMA evil")
    db.execute(SHADOWS)
    db.execute("SET search_path = evil, pg_catalog")
    for trap in ["1::bigint + 1::bigint", "length('x')", "clock_timestamp()", "pg_notify('a', 'b')"]:
        with pytest.raises(Exception, match="hijacked"):
            db.execute(f"SELECT {trap}")


def test_every_function_that_does_something_was_called(
    db: Connection, connect: Connect, make_role: MakeRole, clock: Clock
) -> None:
    db.execute("SET track_functions = 'all'; ALTER ROLE postgres SET track_functions = 'all'")
    session = connect()
    live(session, clock)
    session.execute("SELECT pg_stat_force_next_flush()" if session.info.server_version >= 150000 else "SELECT 1")
    db.execute("ALTER ROLE postgres RESET track_functions")
    session.close()
    called = set(
        column(db, "SELECT funcname FROM pg_stat_user_functions WHERE schemaname = 'pgq' AND funcname !~ '^_'")
    )
    public = column(db, "SELECT proname FROM pg_proc WHERE pronamespace = 'pgq'::regnamespace AND proname !~ '^_'")
    reserved = {"snooze", "cancel", "schedule", "unschedule", "try_exclusive"}
    grants = {"grant_producer", "grant_consumer", "grant_admin"}
    assert set(public) - reserved - grants - {"version"} <= called
