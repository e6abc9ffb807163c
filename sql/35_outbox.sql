-- Triggers that turn changes of rows into jobs, in the same transaction.
-- Tables: those of pgq.enqueue; reads the catalog of the table that changes.

-- to_jsonb() calls casts to json, which the owner of a type may define: called from here, they would run with our
-- owner's rights. So it is only given what came with PostgreSQL. A value of any other type becomes text by its output
-- function, which only a superuser can make. A virtual column has no value in a trigger.
CREATE FUNCTION pgq._is_plain(relation oid) RETURNS boolean
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN NOT EXISTS (
        SELECT FROM pg_attribute a
        WHERE a.attrelid = relation AND a.attnum > 0 AND (a.atttypid >= 16384 OR a.attgenerated = 'v') AND NOT a.attisdropped
    );
END;
$$;
COMMENT ON FUNCTION pgq._is_plain(oid) IS 'Whether to_jsonb() of a row of this table calls nothing but PostgreSQL';

CREATE FUNCTION pgq._safe_columns(relation oid) RETURNS text
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN (
        WITH RECURSIVE base (attnum, attname, type, basetype) AS (
            SELECT a.attnum, a.attname, a.atttypid, t.typbasetype
            FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
            WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'
            UNION ALL
            SELECT b.attnum, b.attname, t.oid, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.basetype
        )
        SELECT string_agg(
            format(
                CASE WHEN b.type < 16384 THEN 'r.%1$I' ELSE 'CASE WHEN num_nulls(r.%1$I) = 0 THEN format(''%%s'', r.%1$I) END AS %1$I' END,
                b.attname
            ),
            ', ' ORDER BY b.attnum
        )
        FROM base b WHERE b.basetype = 0
    );
END;
$$;
COMMENT ON FUNCTION pgq._safe_columns(oid) IS 'The columns of row r of this table, as a list of what to_jsonb() may be given';

-- The table's name, for a partition that of the partitioned table: who reads the job should not know how it is split.
CREATE FUNCTION pgq._change(relation oid, op text, old jsonb, new jsonb) RETURNS jsonb
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN (
        SELECT jsonb_build_object('op', op, 'schema', n.nspname, 'table', c.relname, 'old', old, 'new', new)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = coalesce(pg_partition_root(relation), relation)
    );
END;
$$;
COMMENT ON FUNCTION pgq._change(oid, text, jsonb, jsonb) IS 'The payload of a job for a change of a row';

CREATE FUNCTION pgq._keep(change jsonb, columns text[]) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF change IS NULL OR columns IS NULL THEN
        RETURN change;
    ELSIF NOT change ?& columns THEN
        RAISE EXCEPTION USING
            ERRCODE = 'undefined_column',
            MESSAGE = format('column "%s" does not exist', (SELECT c FROM unnest(columns) c WHERE NOT change ? c LIMIT 1)),
            DETAIL = 'It is named in the arguments of a trigger that enqueues changes.',
            HINT = 'Create the trigger again. Its arguments are the queue, the task, and the columns that jobs shall contain.';
    END IF;
    RETURN (SELECT jsonb_object_agg(c, change -> c) FROM unnest(columns) c);
END;
$$;
COMMENT ON FUNCTION pgq._keep(jsonb, text[]) IS 'A row reduced to some of its columns; null: all';

CREATE FUNCTION pgq._refuse_trigger(wanted text) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'trigger_protocol_violated',
        MESSAGE = format('this trigger cannot enqueue: it must be %s', wanted),
        DETAIL = 'Nothing was changed.',
        HINT = 'pgq.enqueue_row(queue, task, columns ...) is for triggers AFTER INSERT OR UPDATE OR DELETE FOR EACH ROW, '
            'pgq.enqueue_rows for those FOR EACH STATEMENT with REFERENCING NEW TABLE or OLD TABLE.';
END;
$$;
COMMENT ON FUNCTION pgq._refuse_trigger(text) IS 'Raises 39P01';

CREATE FUNCTION pgq.enqueue_row() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_columns CONSTANT text[] := nullif(TG_ARGV[2:], '{}');
    v_safe text;
    v_old jsonb;
    v_new jsonb;
BEGIN
    IF TG_WHEN <> 'AFTER' OR TG_LEVEL <> 'ROW' THEN
        PERFORM pgq._refuse_trigger('AFTER and FOR EACH ROW');
    ELSIF TG_NARGS = 0 THEN
        PERFORM pgq._refuse_trigger('given the name of a queue');
    ELSIF pgq._is_plain(TG_RELID) THEN
        v_old := to_jsonb(OLD);
        v_new := to_jsonb(NEW);
    ELSE
        v_safe := format('SELECT to_jsonb(s.*) FROM (SELECT %s FROM (SELECT ($1).*) r) s', pgq._safe_columns(TG_RELID));
        IF TG_OP <> 'INSERT' THEN
            EXECUTE v_safe INTO v_old USING OLD;
        END IF;
        IF TG_OP <> 'DELETE' THEN
            EXECUTE v_safe INTO v_new USING NEW;
        END IF;
    END IF;
    PERFORM pgq.enqueue(
        TG_ARGV[0], pgq._change(TG_RELID, TG_OP, pgq._keep(v_old, v_columns), pgq._keep(v_new, v_columns)), TG_ARGV[1]
    );
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION pgq.enqueue_row() IS
    'For triggers AFTER INSERT OR UPDATE OR DELETE FOR EACH ROW: enqueue_row(queue, task, columns ...) adds a job for each '
    'changed row in the transaction that changes it, with payload {"op", "schema", "table", "old", "new"}. Who creates the '
    'trigger needs EXECUTE, who writes to the table nothing. Raises 39P01 (not such a trigger), 42703 (no such column), PQ002';

-- An update's old rows are left out: nothing says which old row became which new one.
CREATE FUNCTION pgq.enqueue_rows() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_columns CONSTANT text[] := nullif(TG_ARGV[2:], '{}');
    v_rows name;
    v_payload jsonb;
    v_payloads jsonb[] := '{}';
BEGIN
    SELECT CASE TG_OP WHEN 'DELETE' THEN t.tgoldtable ELSE t.tgnewtable END INTO v_rows
    FROM pg_trigger t WHERE t.tgrelid = TG_RELID AND t.tgname = TG_NAME;
    IF TG_LEVEL <> 'STATEMENT' OR v_rows IS NULL THEN
        PERFORM pgq._refuse_trigger(
            format('FOR EACH STATEMENT and REFERENCING %s TABLE', CASE TG_OP WHEN 'DELETE' THEN 'OLD' ELSE 'NEW' END)
        );
    ELSIF TG_NARGS = 0 THEN
        PERFORM pgq._refuse_trigger('given the name of a queue');
    END IF;
    -- In portions: an array of millions of rows has no room in memory.
    FOR v_payload IN EXECUTE format(
        'SELECT $1 || jsonb_build_object($2, pgq._keep(to_jsonb(s.*), $3)) FROM (SELECT %s FROM %I r) s',
        CASE WHEN pgq._is_plain(TG_RELID) THEN 'r.*' ELSE pgq._safe_columns(TG_RELID) END, v_rows
    )
    USING pgq._change(TG_RELID, TG_OP, NULL, NULL), CASE TG_OP WHEN 'DELETE' THEN 'old' ELSE 'new' END, v_columns
    LOOP
        v_payloads := array_append(v_payloads, v_payload);
        IF cardinality(v_payloads) = 4096 THEN
            PERFORM pgq.enqueue_many(TG_ARGV[0], v_payloads, TG_ARGV[1]);
            v_payloads := '{}';
        END IF;
    END LOOP;
    PERFORM pgq.enqueue_many(TG_ARGV[0], v_payloads, TG_ARGV[1]);
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION pgq.enqueue_rows() IS
    'For triggers AFTER INSERT, UPDATE or DELETE with REFERENCING NEW TABLE (DELETE: OLD TABLE) FOR EACH STATEMENT: as '
    'pgq.enqueue_row, but all rows of a statement at once, several times as fast. Payloads of updates have no "old"';
