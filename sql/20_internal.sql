-- The clock, the locks, the ring and the reading of single leases.

-- The clock and the locks ---------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._now() RETURNS timestamptz
    LANGUAGE sql VOLATILE
AS $$ SELECT pg_catalog.clock_timestamp() $$;
COMMENT ON FUNCTION pgq._now() IS 'The one clock. Tests replace it';

-- Advisory locks are keyed by 'pgq' in the upper 24 bits; the lower 40 are a lane, or a queue or a purpose above them.
CREATE FUNCTION pgq._lane_key(lane bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 8099566699663065088 | lane $$;
COMMENT ON FUNCTION pgq._lane_key(bigint) IS 'Advisory lock of a lane, held while claiming from it';

CREATE FUNCTION pgq._watch_key(queue_id int) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 8099567249418878976 | queue_id $$;
COMMENT ON FUNCTION pgq._watch_key(int) IS 'Advisory lock of a queue, held in shared mode by sessions that wait for work';

CREATE FUNCTION pgq._task_key(purpose int) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 8099567524296785920 | purpose $$;
COMMENT ON FUNCTION pgq._task_key(int) IS
    'Advisory lock of a task that one session does at a time: 1 the ring, 2 reap, 3 promote, 4 drop a queue, 5 resolve; '
    '6, shared: let a job wait for others; 7 pursue what is to stop';

CREATE FUNCTION pgq._queue_key(queue_id int) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 8099567799174692864 | queue_id $$;
COMMENT ON FUNCTION pgq._queue_key(int) IS 'Advisory lock of a queue that is being dropped';

CREATE FUNCTION pgq._wait_key(job bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 8099567318138355712 | (job & 4294967295) $$;
COMMENT ON FUNCTION pgq._wait_key(bigint) IS 'Advisory lock of a job, held in shared mode by sessions that wait for its end';

CREATE FUNCTION pgq._lane(queue_id int, priority int, shard int) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT (queue_id::bigint << 16) | ((priority + 128) << 8) | shard $$;
COMMENT ON FUNCTION pgq._lane(int, int, int) IS 'The id of a lane; shard 0 is the front of the line';

CREATE FUNCTION pgq._home(lane bigint, job bigint, shards int) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE WHEN lane & 96 = 96 THEN (lane & ~255::bigint) | 96 WHEN lane & 255 = 0 THEN lane | (job % shards + 1) ELSE lane END
$$;
COMMENT ON FUNCTION pgq._home(bigint, bigint, int) IS
    'The lane of a job that comes back later: its own, or a shard instead of the front of the line';

CREATE FUNCTION pgq._front(lane bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT (lane & ~255::bigint) | CASE WHEN lane & 96 = 96 THEN 96 ELSE 0 END $$;
COMMENT ON FUNCTION pgq._front(bigint) IS 'The front of the line that a lane belongs to';

CREATE FUNCTION pgq._line(lane bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT CASE WHEN lane & 96 = 96 OR lane & 255 = 0 THEN lane ELSE (lane & ~255::bigint) | 1 END $$;
COMMENT ON FUNCTION pgq._line(bigint) IS 'What pgq.line calls a lane: itself, or the first of the shards';

CREATE FUNCTION pgq._gate_key(queue_id int) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT pgq._lane_key(queue_id::bigint << 16) $$;
COMMENT ON FUNCTION pgq._gate_key(int) IS 'Advisory lock of a queue''s gate, held while claiming by its limits';

CREATE FUNCTION pgq._priority(lane bigint) RETURNS int
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT ((lane >> 8) & 255)::int - 128 $$;
COMMENT ON FUNCTION pgq._priority(bigint) IS 'The priority of a lane';

CREATE FUNCTION pgq._state_of(run_at timestamptz, attempt smallint) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT CASE WHEN run_at = 'infinity' THEN 'waiting' WHEN attempt = 1 THEN 'scheduled' ELSE 'retrying' END $$;
COMMENT ON FUNCTION pgq._state_of(timestamptz, smallint) IS 'The state of a job in pgq.scheduled';

-- Arguments -----------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._require(argument text, valid boolean, rule text) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    IF valid IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'null_value_not_allowed',
            MESSAGE = format('%s must not be null', argument),
            HINT = format('%s must be %s.', argument, rule);
    ELSIF NOT valid THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('%s is out of range', argument),
            HINT = format('%s must be %s.', argument, rule);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._require(text, boolean, text) IS 'Raises 22004 or 22023 unless an argument is valid';

CREATE FUNCTION pgq._find_queue(queue text) RETURNS pgq.queue
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_queue pgq.queue;
BEGIN
    IF queue IS NULL THEN
        PERFORM pgq._require('queue', NULL, 'the name of a queue');
    END IF;
    SELECT * INTO v_queue FROM pgq.queue q WHERE q.name = _find_queue.queue;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PQ002',
            MESSAGE = format('queue "%s" does not exist', left(queue, 128)),
            HINT = 'Create it with SELECT pgq.create_queue(...), or look for the right name in pgq.stats().';
    END IF;
    RETURN v_queue;
END;
$$;
COMMENT ON FUNCTION pgq._find_queue(text) IS 'The settings of a queue; raises PQ002 if there is none';

CREATE FUNCTION pgq._read_committed() RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PQ003',
            MESSAGE = 'this needs a READ COMMITTED transaction',
            DETAIL = format('The transaction is %s: it cannot see what others have claimed since it began.',
                upper(current_setting('transaction_isolation'))),
            HINT = 'Claim and maintain in short READ COMMITTED transactions of their own.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._read_committed() IS 'Raises PQ003 unless each statement sees the newest committed state';

-- The ring ------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._boot() RETURNS bigint
    LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT (date_part('epoch', pg_postmaster_start_time()) * 1000000)::bigint & 4294967295 $$;
COMMENT ON FUNCTION pgq._boot() IS
    'When this server started, the lowest 32 bits in microseconds. It tells a restored database from the original';

CREATE FUNCTION pgq._open_token(epoch bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT ((epoch >> 36) << 4) | (epoch & 15) $$;
COMMENT ON FUNCTION pgq._open_token(bigint) IS 'generation << 4 | slot of the segment that an epoch says is open';

CREATE FUNCTION pgq._filled() RETURNS SETOF int
    LANGUAGE sql STABLE
AS $$ SELECT n FROM generate_series(0, 15) n WHERE pg_relation_size(format('pgq.job_%s', n)::regclass) > 0 $$;
COMMENT ON FUNCTION pgq._filled() IS 'The segments that hold jobs';

CREATE FUNCTION pgq._by_age() RETURNS int[]
    LANGUAGE sql VOLATILE
AS $$
    SELECT array_agg(((a >> (4 * i)) & 15)::int ORDER BY i)
    FROM pg_sequence_last_value('pgq.age') a CROSS JOIN generate_series(0, 15) i
$$;
COMMENT ON FUNCTION pgq._by_age() IS 'The sixteen segments in the order in which they were last opened';

CREATE FUNCTION pgq._set_open(token bigint) RETURNS bigint
    LANGUAGE sql VOLATILE
AS $$
    SELECT setval('pgq.live', pg_sequence_last_value('pgq.live') | (1::bigint << (token & 15)::int));
    SELECT setval('pgq.age', bit_or(a.slot::bigint << (4 * (a.n - 1))::int))
    FROM unnest(array_remove(pgq._by_age(), (token & 15)::int) || (token & 15)::int) WITH ORDINALITY a (slot, n);
    SELECT setval('pgq.epoch', ((token >> 4) << 36) | (pgq._boot() << 4) | (token & 15));
$$;
COMMENT ON FUNCTION pgq._set_open(bigint) IS
    'Opens a segment, for everybody and at once, whatever becomes of this transaction; returns the epoch';

-- After each start of the server the first caller looks whether the transaction ids still mean what they meant. After
-- a restore into another cluster they do not: new jobs could sort before cursors that have passed. Then a fresh segment
-- is opened, and the old ones are claimed by their own order, all their transactions taken as ended.
CREATE FUNCTION pgq._adopt_alone() RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_epoch bigint := pg_sequence_last_value('pgq.epoch');
    v_here bigint := (SELECT c.system_identifier FROM pg_control_system() c);
    v_filled bigint := 0;
    v_slot int;
    v_free int;
    v_newest xid8;
    v_future boolean := false;
BEGIN
    IF (v_epoch >> 4) & 4294967295 = pgq._boot() THEN
        RETURN v_epoch;
    END IF;
    -- Lease numbers that were drawn and not yet on disk when the server crashed must not be drawn again, and this leap may
    -- not be on disk when it crashes next. So it goes to a number that no leap went to before: microseconds since 2026.
    PERFORM setval('pgq.lease_id', CASE WHEN n.clock > n.last THEN n.clock ELSE n.last + 1048576 END)
    FROM (
        SELECT ((date_part('epoch', clock_timestamp()) - 1767225600) * 1000000)::bigint AS clock,
            coalesce(pg_sequence_last_value('pgq.lease_id'), 0) AS last
    ) n;
    FOR v_turn IN REVERSE 16..1 LOOP  -- so that the free one next in the ring is the last one found
        v_slot := (v_epoch + v_turn) & 15;
        IF pg_relation_size(format('pgq.job_%s', v_slot)::regclass) = 0 THEN
            v_free := v_slot;
            CONTINUE;
        END IF;
        v_filled := v_filled | (1::bigint << v_slot);
        -- The newest rows are at the end of the heap.
        EXECUTE format(
            'SELECT j.xid FROM pgq.job_%s j WHERE j.ctid >= format(''(%%s,0)'', $1)::tid ORDER BY j.xid DESC LIMIT 1',
            v_slot)
        INTO v_newest
        USING greatest(pg_relation_size(format('pgq.job_%s', v_slot)::regclass) / 8192 - 4, 0);
        v_future := v_future OR coalesce(v_newest >= pg_snapshot_xmax(pg_current_snapshot()), false);
    END LOOP;
    -- A dump reads sequences a little later than tables: what has been claimed since is to be claimed again.
    PERFORM setval('pgq.live', pg_sequence_last_value('pgq.live') | v_filled);
    IF v_here = pg_sequence_last_value('pgq.system_identifier') AND NOT v_future THEN
        RETURN pgq._set_open(pgq._open_token(v_epoch));
    ELSIF v_free IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'this database was restored from another cluster and has no free segment for new jobs',
            DETAIL = 'All sixteen segments hold jobs whose transaction ids come from the other cluster.',
            HINT = 'Restore from a dump taken when fewer jobs were waiting.';
    END IF;
    PERFORM setval('pgq.restored', v_filled), setval('pgq.system_identifier', v_here);
    RETURN pgq._set_open((((v_epoch >> 36) + 1) << 4) | v_free);
END;
$$;
COMMENT ON FUNCTION pgq._adopt_alone() IS 'What pgq._adopt does while the ring stands still';

-- What _adopt_alone changes are sequences, which stay changed when it is undone; the lock is given back, at once and
-- not at the end of a transaction that may be a producer's and long.
CREATE FUNCTION pgq._adopt() RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_epoch bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(pgq._task_key(1));
    v_epoch := pgq._adopt_alone();
    RAISE SQLSTATE 'PQ000';
EXCEPTION WHEN SQLSTATE 'PQ000' THEN
    RETURN v_epoch;
END;
$$;
COMMENT ON FUNCTION pgq._adopt() IS 'Confirms or changes the open segment after a server start; returns the epoch';

-- The functions whose names end in _0 read the tables of segment 0 by name: a plan over the partitioned parent would
-- lock all sixteen segments each time and wait for the truncation of one that it does not need. _for_each_slot makes
-- the other fifteen from them, and one that chooses (EXECUTE would cost 10 to 20 us more).
--
-- A binary tree of IFs: PL/pgSQL prepares every expression that it meets anew in each transaction.
CREATE FUNCTION pgq._by_slot(slot text, statement text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_tree text[] := ARRAY(
        SELECT regexp_replace(statement, E'\\m([a-z_]+)_0\\M', E'\\1_' || n, 'g') FROM generate_series(0, 15) n
    );
    v_step int := 1;
BEGIN
    WHILE cardinality(v_tree) > 1 LOOP
        SELECT array_agg(format(E'IF %s < %s THEN\n%s\nELSE\n%s\nEND IF;', slot, (2 * i - 1) * v_step, v_tree[2 * i - 1],
            v_tree[2 * i]) ORDER BY i)
        INTO v_tree FROM generate_series(1, cardinality(v_tree) / 2) i;
        v_step := v_step * 2;
    END LOOP;
    RETURN v_tree[1];
END;
$$;
COMMENT ON FUNCTION pgq._by_slot(text, text) IS 'From a statement about segment 0 makes one that does it in the segment of a slot';

CREATE FUNCTION pgq._for_each_slot(function regprocedure) RETURNS void
    LANGUAGE plpgsql
AS $$
DECLARE
    v_code text := pg_get_functiondef(function);
    v_comment text := obj_description(function, 'pg_proc');
    v_types text := pg_get_function_identity_arguments(function);
    v_name text;
    v_call text;
    v_volatility text;
BEGIN
    SELECT regexp_replace(p.proname, '_0$', ''),
        format(CASE WHEN p.proretset THEN 'RETURN QUERY SELECT * FROM pgq.%I(%s);'
            WHEN p.prorettype = 'void'::regtype THEN 'PERFORM pgq.%I(%s);' ELSE 'RETURN pgq.%I(%s);' END,
            p.proname, array_to_string(p.proargnames, ', ')),
        CASE p.provolatile WHEN 's' THEN 'STABLE' ELSE 'VOLATILE' END
    INTO v_name, v_call, v_volatility FROM pg_proc p WHERE p.oid = function;
    FOR v_slot IN 1..15 LOOP
        EXECUTE regexp_replace(v_code, E'\\m([a-z_]+)_0\\M', E'\\1_' || v_slot, 'g');
        EXECUTE format('COMMENT ON FUNCTION pgq.%I(%s) IS %L', v_name || '_' || v_slot, v_types,
            replace(v_comment, 'segment 0', 'segment ' || v_slot));
    END LOOP;
    EXECUTE format('CREATE FUNCTION pgq.%I(%s) RETURNS %s LANGUAGE plpgsql %s AS %L', v_name,
        concat_ws(', ', 'slot int', nullif(v_types, '')), pg_get_function_result(function), v_volatility,
        format(E'BEGIN\n%s\nEND;', pgq._by_slot('slot', v_call)));
    EXECUTE format('COMMENT ON FUNCTION pgq.%I(%s) IS %L', v_name, concat_ws(', ', 'slot int', nullif(v_types, '')),
        replace(v_comment, 'segment 0', 'the segment in a slot'));
END;
$$;
COMMENT ON FUNCTION pgq._for_each_slot(regprocedure) IS
    'From a function for segment 0 makes those for 1 to 15, and the one that takes the slot as its first argument';

-- The hottest functions choose for themselves, which saves a call and a copy of the result: a statement below a line
-- "-- by slot: <expression>" becomes such a tree.
CREATE FUNCTION pgq._choose_slot(function regprocedure) RETURNS void
    LANGUAGE plpgsql
AS $$
DECLARE
    v_code text := pg_get_functiondef(function);
    v_match text[];
BEGIN
    LOOP
        v_match := regexp_match(v_code, E'(-- by slot: ([^\n]*)\n([^;]*;))');
        EXIT WHEN v_match IS NULL;
        v_code := replace(v_code, v_match[1], pgq._by_slot(v_match[2], v_match[3]));
    END LOOP;
    EXECUTE v_code;
END;
$$;
COMMENT ON FUNCTION pgq._choose_slot(regprocedure) IS
    'Makes a function that was written for segment 0 do the marked statements in the segment of a slot';

-- To insert jobs, hold the open segment: lock its job table as an INSERT does, then look whether it is still open.
-- Either the look shows that it was sealed meanwhile, or who seals it finds the lock and waits for its end.
CREATE FUNCTION pgq._lock_0() RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    LOCK TABLE pgq.job_0 IN ROW EXCLUSIVE MODE;
END;
$$;
COMMENT ON FUNCTION pgq._lock_0() IS 'Locks the job table of segment 0 as an INSERT does';

SELECT pgq._for_each_slot('pgq._lock_0()');

CREATE FUNCTION pgq._hold() RETURNS int
    LANGUAGE plpgsql
AS $$
DECLARE
    v_epoch bigint;
BEGIN
    LOOP
        v_epoch := pg_sequence_last_value('pgq.epoch');
        IF (v_epoch >> 4) & 4294967295 <> pgq._boot() THEN
            v_epoch := pgq._adopt();
        END IF;
        PERFORM pgq._lock((v_epoch & 15)::int);
        IF pg_sequence_last_value('pgq.epoch') = v_epoch THEN
            RETURN v_epoch & 15;
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq._hold() IS 'The slot of the open segment, held so that what is inserted into it will be found';

-- One lease, read from the tables of its segment ----------------------------------------------------------------------

CREATE TYPE pgq.attempt AS (
    id bigint,
    lease bigint,
    lane bigint,
    enqueued_at timestamptz,
    claimed_at timestamptz,
    attempt int,
    max_attempts int,
    worker text,
    task text,
    payload jsonb,
    headers jsonb,
    history jsonb,
    group_key text
);
COMMENT ON TYPE pgq.attempt IS 'A claimed attempt with all that is needed to make the next one';
COMMENT ON COLUMN pgq.attempt.id IS 'Job id';
COMMENT ON COLUMN pgq.attempt.lease IS 'The lease that holds it';
COMMENT ON COLUMN pgq.attempt.lane IS 'Lane that it was claimed from';
COMMENT ON COLUMN pgq.attempt.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.attempt.claimed_at IS 'When it was claimed';
COMMENT ON COLUMN pgq.attempt.attempt IS 'Number of this attempt, from 1';
COMMENT ON COLUMN pgq.attempt.max_attempts IS 'Attempts allowed; null: what the queue says';
COMMENT ON COLUMN pgq.attempt.worker IS 'Who claimed it';
COMMENT ON COLUMN pgq.attempt.task IS 'What to do';
COMMENT ON COLUMN pgq.attempt.payload IS 'Arguments';
COMMENT ON COLUMN pgq.attempt.headers IS 'Metadata';
COMMENT ON COLUMN pgq.attempt.history IS 'Errors of earlier attempts';
COMMENT ON COLUMN pgq.attempt.group_key IS 'The group that it belongs to';

CREATE FUNCTION pgq._attempts_0(ids bigint[], leases bigint[]) RETURNS SETOF pgq.attempt
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    SELECT a.id, l.id, l.lane, j.enqueued_at, l.claimed_at, j.attempt::int, j.max_attempts::int, l.worker,
        j.task, j.payload, j.headers, j.history, j.group_key
    FROM (SELECT DISTINCT u.id, u.lease FROM unnest(ids, leases) u (id, lease)) a
    JOIN (
        SELECT * FROM pgq.lease_0 l WHERE l.id = ANY (leases) AND l.job_ids IS NOT NULL
    ) l ON l.id = a.lease AND a.id = ANY (l.job_ids)
    CROSS JOIN LATERAL (
        -- lane + 0: by id, not by walking the lane
        SELECT * FROM pgq.job_0 j
        WHERE j.id = a.id AND j.lane + 0 = l.lane AND j.attempt = coalesce(l.attempts[array_position(l.job_ids, a.id)], 1)
        -- A redriven job begins again with attempt 1, and a longer history.
        ORDER BY jsonb_array_length(j.history) DESC NULLS LAST
        LIMIT 1
    ) j;
END;
$$;
COMMENT ON FUNCTION pgq._attempts_0(bigint[], bigint[]) IS 'The attempts that these leases of segment 0 hold or held';

SELECT pgq._for_each_slot('pgq._attempts_0(bigint[],bigint[])');

CREATE FUNCTION pgq._attempts(ids bigint[], leases bigint[]) RETURNS SETOF pgq.attempt
    LANGUAGE plpgsql
AS $$
BEGIN
    -- A straggler is found twice until its segment is truncated.
    RETURN QUERY
    SELECT DISTINCT ON (a.id, a.lease) a.*
    FROM (
        SELECT p.*
        FROM (SELECT DISTINCT (u.lease & 15)::int AS slot FROM unnest(leases) u (lease) WHERE u.lease IS NOT NULL) n,
            pgq._attempts(n.slot, ids, leases) p
        UNION ALL
        SELECT s.id, s.lease, s.lane, s.enqueued_at, s.claimed_at, s.attempt::int, s.max_attempts::int, s.worker,
            s.task, s.payload, s.headers, s.history, s.group_key
        FROM unnest(ids, leases) u (id, lease)
        JOIN pgq.straggler s ON s.id = u.id AND s.lease = u.lease AND s.kind IS NULL
    ) a;
END;
$$;
COMMENT ON FUNCTION pgq._attempts(bigint[], bigint[]) IS 'The attempts that these leases hold or held, stragglers too';
