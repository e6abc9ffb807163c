-- One node at a time: try_exclusive, and who holds it.
-- Tables: none. The lock is an advisory lock of the transaction, so it cannot outlive its holder.

-- 37 bits of hash: with a thousand names in use, the chance that any two share a lock, and then exclude each other, is
-- one in 270,000.
CREATE FUNCTION pgq._exclusive_key(name text) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 8099567386857832448 | (hashtextextended(name COLLATE pg_catalog."C", 0) & 137438953471) $$;
COMMENT ON FUNCTION pgq._exclusive_key(text) IS 'Advisory lock of a name, held by the one who is exclusive under it';

CREATE FUNCTION pgq.try_exclusive(name text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._require('name', name IS NOT NULL OR NULL, 'any text that all who exclude each other agree on');
    RETURN pg_try_advisory_xact_lock(pgq._exclusive_key(name));
END;
$$;
COMMENT ON FUNCTION pgq.try_exclusive(text) IS
    'Whether this transaction is, until it ends, the only one under this name in the database. Never waits. True also if it '
    'is so already. Under REPEATABLE READ and SERIALIZABLE the transaction may still not see what the one before it wrote. '
    'Raises 22004';

CREATE TYPE pgq.holder AS (
    pid int,
    username text,
    application_name text,
    client_addr inet,
    since timestamptz
);
COMMENT ON TYPE pgq.holder IS 'Who is exclusive under a name';
COMMENT ON COLUMN pgq.holder.pid IS 'Process id of the session; null: a prepared transaction';
COMMENT ON COLUMN pgq.holder.username IS 'Role';
COMMENT ON COLUMN pgq.holder.application_name IS 'What the session calls itself';
COMMENT ON COLUMN pgq.holder.client_addr IS
    'Where it comes from; null: the same machine, or the owner of pgq may not see it (pg_read_all_stats)';
COMMENT ON COLUMN pgq.holder.since IS 'When its transaction began; null: the owner of pgq may not see it (pg_read_all_stats)';

CREATE FUNCTION pgq.exclusive_holder(name text) RETURNS SETOF pgq.holder
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._require('name', name IS NOT NULL OR NULL, 'the name given to pgq.try_exclusive');
    RETURN QUERY
    SELECT l.pid, a.usename::text, a.application_name, a.client_addr, a.xact_start
    FROM pg_locks l
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
        AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
        AND (l.classid::bigint << 32) | l.objid::bigint = pgq._exclusive_key(name);
END;
$$;
COMMENT ON FUNCTION pgq.exclusive_holder(text) IS
    'Who is exclusive under this name; no row if nobody is. It takes no lock: by the time you read it, it may have changed. '
    'Raises 22004';
