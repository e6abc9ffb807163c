"""What an attacker can put in the way: objects that look like those of PostgreSQL and of pgq, and raise when used."""

from __future__ import annotations

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

# Also in schema evil: functions and operators that fit better than PostgreSQL's own, which take anything. They are
# chosen even if pg_catalog comes first.
OVERLOADS = """
DO $do$
DECLARE
    v_raise CONSTANT text := 'LANGUAGE plpgsql AS $x$ BEGIN RAISE EXCEPTION $$hijacked$$; END $x$';
    v_type text;
    v_operator text;
BEGIN
    FOREACH v_type IN ARRAY
        '{text,int4,int8,bool,regclass,regrole,regprocedure,oid,jsonb,timestamptz,xid8,name}'::text[]
    LOOP
        EXECUTE format('CREATE FUNCTION evil.format(text, %s) RETURNS text %s', v_type, v_raise);
        EXECUTE format('CREATE FUNCTION evil.format(text, %s, text) RETURNS text %s', v_type, v_raise);
        EXECUTE format('CREATE FUNCTION evil.cardinality(%s[]) RETURNS int %s', v_type, v_raise);
        EXECUTE format('CREATE FUNCTION evil.unnest(%s[]) RETURNS SETOF %1$s %s', v_type, v_raise);
        EXECUTE format('CREATE FUNCTION evil.step(%s[], %1$s) RETURNS %1$s[] %s', v_type, v_raise);
        EXECUTE format('CREATE AGGREGATE evil.array_agg(%s) (SFUNC = evil.step, STYPE = %1$s[], INITCOND = ''{}'')',
            v_type);
        FOREACH v_operator IN ARRAY '{=,<>,&&,@>,<@}'::text[] LOOP
            EXECUTE format('CREATE FUNCTION evil.%I(%s[], %2$s[]) RETURNS bool %s', v_operator, v_type, v_raise);
            EXECUTE format('CREATE OPERATOR evil.%s (LEFTARG = %s[], RIGHTARG = %2$s[], FUNCTION = evil.%1$I)',
                v_operator, v_type);
        END LOOP;
    END LOOP;
END;
$do$;
"""
