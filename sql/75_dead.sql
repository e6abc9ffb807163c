-- Dead letters: listed, sent back to work, thrown away.
-- Tables: reads and deletes from dead; reads dependency; appends to job, or to scheduled.

CREATE TYPE pgq.dead_letter AS (
    id bigint,
    queue text,
    task text,
    payload jsonb,
    priority int,
    attempt int,
    max_attempts int,
    enqueued_at timestamptz,
    died_at timestamptz,
    error text,
    headers jsonb,
    history jsonb
);
COMMENT ON TYPE pgq.dead_letter IS 'A job that failed for good';
COMMENT ON COLUMN pgq.dead_letter.id IS 'Job id';
COMMENT ON COLUMN pgq.dead_letter.queue IS 'Queue';
COMMENT ON COLUMN pgq.dead_letter.task IS 'What to do';
COMMENT ON COLUMN pgq.dead_letter.payload IS 'Arguments';
COMMENT ON COLUMN pgq.dead_letter.priority IS 'Priority, lower runs first';
COMMENT ON COLUMN pgq.dead_letter.attempt IS 'Attempts made';
COMMENT ON COLUMN pgq.dead_letter.max_attempts IS 'Attempts allowed; null: what the queue says';
COMMENT ON COLUMN pgq.dead_letter.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.dead_letter.died_at IS 'When its last attempt failed';
COMMENT ON COLUMN pgq.dead_letter.error IS 'The last error';
COMMENT ON COLUMN pgq.dead_letter.headers IS 'Metadata';
COMMENT ON COLUMN pgq.dead_letter.history IS 'Errors of all attempts: array of {attempt, at, error, worker}';

-- Folded into the queries that ask it, so that they find the right index.
CREATE FUNCTION pgq._is_chosen(letter pgq.dead, task text, error text, since timestamptz, before timestamptz)
    RETURNS boolean
    LANGUAGE sql IMMUTABLE
AS $$
    SELECT (_is_chosen.task IS NULL OR letter.task = _is_chosen.task)
        AND (_is_chosen.error IS NULL OR strpos(letter.error, _is_chosen.error) > 0)
        AND (since IS NULL OR letter.died_at >= since)
        AND (before IS NULL OR letter.died_at < before)
$$;
COMMENT ON FUNCTION pgq._is_chosen(pgq.dead, text, text, timestamptz, timestamptz) IS
    'Whether a dead letter is of a task, with this text in its last error, and died since or before a time; null: any';

-- Planned for each call: which index is the right one depends on what is asked for.
CREATE FUNCTION pgq.dead_letters(
    queue text,
    task text DEFAULT NULL,
    error text DEFAULT NULL,
    since timestamptz DEFAULT NULL,
    before timestamptz DEFAULT NULL,
    after_id bigint DEFAULT NULL,
    n int DEFAULT 100
) RETURNS SETOF pgq.dead_letter
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_custom_plan SET jit = off
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
BEGIN
    PERFORM pgq._require('n', n BETWEEN 1 AND 100000, 'between 1 and 100000');
    RETURN QUERY
    SELECT d.id, v_queue.name, d.task, d.payload, pgq._priority(d.lane), d.attempt::int, d.max_attempts::int,
        d.enqueued_at, d.died_at, d.error, d.headers, d.history
    FROM pgq.dead d
    WHERE d.lane >> 16 = v_queue.id
        AND (after_id IS NULL OR d.id > after_id)
        AND pgq._is_chosen(d, dead_letters.task, dead_letters.error, since, before)
    ORDER BY d.id
    LIMIT n;
END;
$$;
COMMENT ON FUNCTION pgq.dead_letters(text, text, text, timestamptz, timestamptz, bigint, int) IS
    'Up to n dead letters of a queue (1 to 100000) in the order of their ids: of a task, with this text in their last error, '
    'that died since or before a time; null: any. The next page: after_id => the last id of this one. Raises PQ002, 22023';

-- All lock in the order of ids, so that those who redrive and discard at once wait for each other, and no more.
CREATE FUNCTION pgq._take_dead(
    queue_id int, ids bigint[], task text, error text, since timestamptz, before timestamptz, n int
) RETURNS SETOF pgq.dead
    LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_custom_plan SET jit = off
AS $$
BEGIN
    IF n IS NOT NULL THEN
        PERFORM pgq._require('n', n > 0, 'null (all) or at least 1');
    END IF;
    RETURN QUERY
    WITH picked AS MATERIALIZED (
        SELECT d.id FROM pgq.dead d
        WHERE d.lane >> 16 = queue_id
            AND (ids IS NULL OR d.id = ANY (ids))
            AND pgq._is_chosen(d, _take_dead.task, _take_dead.error, since, before)
        ORDER BY d.id
        LIMIT n
        FOR UPDATE
    )
    -- Not joined: how many are picked by their error's text is anybody's guess, and a guess too low makes it quadratic.
    DELETE FROM pgq.dead d WHERE d.id = ANY (ARRAY(SELECT p.id FROM picked p)) RETURNING d.*;
END;
$$;
COMMENT ON FUNCTION pgq._take_dead(int, bigint[], text, text, timestamptz, timestamptz, int) IS
    'Deletes dead letters of a queue and returns them';

CREATE FUNCTION pgq._redrive(
    queue text, ids bigint[], task text, error text, since timestamptz, before timestamptz, n int, per_second float8
) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_slot int := pgq._hold();
    v_queue pgq.queue := pgq._producing(queue);
    v_now CONSTANT timestamptz := pgq._now();
    v_count bigint;
    v_waits boolean;
    v_lanes bigint[];
BEGIN
    PERFORM pg_advisory_xact_lock_shared(pgq._task_key(6));  -- see pgq._make_wait
    WITH gone AS MATERIALIZED (
        SELECT d.*, pgq._home(pgq._front(d.lane), d.id, v_queue.shards) AS home,
            EXISTS (SELECT FROM pgq.dependency n WHERE n.job_id = d.id OFFSET 0) AS waits
        FROM pgq._take_dead(v_queue.id, ids, task, error, since, before, n) d
    ), ready AS (
        INSERT INTO pgq.job (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers, history, group_key)
        SELECT g.home, pg_current_xact_id(), g.id, g.enqueued_at, v_slot, 1, g.max_attempts, g.task, g.payload,
            g.headers, g.history, g.group_key
        FROM gone g WHERE per_second IS NULL AND NOT g.waits
    ), later AS (
        INSERT INTO pgq.scheduled (run_at, id, lane, enqueued_at, attempt, max_attempts, task, payload, headers, history, group_key)
        SELECT CASE WHEN g.waits THEN 'infinity'
                ELSE v_now + (row_number() OVER (ORDER BY g.id) - 1) / per_second * interval '1 second' END,
            g.id, g.home, g.enqueued_at, 1, g.max_attempts, g.task, g.payload, g.headers, g.history, g.group_key
        FROM gone g WHERE per_second IS NOT NULL OR g.waits
    ), again AS (
        UPDATE pgq.dependent t SET given_up = false
        WHERE t.job_id = ANY (ARRAY(SELECT g.id FROM gone g WHERE g.waits))
    )
    SELECT count(*), bool_or(g.waits), array_agg(DISTINCT g.home) INTO v_count, v_waits, v_lanes FROM gone g;
    IF v_waits THEN
        PERFORM setval('pgq.first_waiting', 0);
    END IF;
    IF v_count > 0 AND per_second IS NULL THEN
        PERFORM pgq._add_line(l) FROM unnest(v_lanes) l;
        PERFORM pgq._wake(v_queue.id, queue);
    END IF;
    RETURN v_count;
END;
$$;
COMMENT ON FUNCTION pgq._redrive(text, bigint[], text, text, timestamptz, timestamptz, int, float8) IS
    'Sends dead letters back to work, at once or one after the other';

CREATE FUNCTION pgq.redrive(queue text, ids bigint[] DEFAULT NULL) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN pgq._redrive(queue, ids, NULL, NULL, NULL, NULL, NULL, NULL);
END;
$$;
COMMENT ON FUNCTION pgq.redrive(text, bigint[]) IS
    'Sends dead letters of a queue back to work, all or those with these ids, with all their attempts before them; their '
    'history stays. Those that died because others did, which they waited for, wait for them again. Returns how many. '
    'Raises PQ002';

CREATE FUNCTION pgq.redrive_where(
    queue text,
    task text DEFAULT NULL,
    error text DEFAULT NULL,
    since timestamptz DEFAULT NULL,
    before timestamptz DEFAULT NULL,
    n int DEFAULT NULL,
    per_second float8 DEFAULT NULL
) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF per_second IS NOT NULL THEN
        PERFORM pgq._require('per_second', per_second BETWEEN 0.001 AND 1000000,
            'null (all at once) or between 0.001 and 1000000');
    END IF;
    RETURN pgq._redrive(queue, NULL, task, error, since, before, n, per_second);
END;
$$;
COMMENT ON FUNCTION pgq.redrive_where(text, text, text, timestamptz, timestamptz, int, float8) IS
    'Sends dead letters back to work as pgq.redrive does, those that pgq.dead_letters would list, of the lowest ids n at '
    'most. per_second: not all at once, but so many each second, as scheduled jobs from now on, so that what has just '
    'recovered is not flooded. Returns how many. Raises PQ002, 22023';

CREATE FUNCTION pgq.discard(queue text, ids bigint[]) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
BEGIN
    PERFORM pgq._require('ids', ids IS NOT NULL OR NULL, 'an array of job ids');
    RETURN (SELECT count(*) FROM pgq._take_dead(v_queue.id, ids, NULL, NULL, NULL, NULL, NULL));
END;
$$;
COMMENT ON FUNCTION pgq.discard(text, bigint[]) IS
    'Throws dead letters of a queue away, those with these ids; their attempts stay in the archive as long as it keeps them. '
    'Returns how many. Raises PQ002, 22004';

CREATE FUNCTION pgq.discard_where(
    queue text,
    task text DEFAULT NULL,
    error text DEFAULT NULL,
    since timestamptz DEFAULT NULL,
    before timestamptz DEFAULT NULL,
    n int DEFAULT NULL
) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
BEGIN
    RETURN (SELECT count(*) FROM pgq._take_dead(v_queue.id, NULL, task, error, since, before, n));
END;
$$;
COMMENT ON FUNCTION pgq.discard_where(text, text, text, timestamptz, timestamptz, int) IS
    'Throws dead letters of a queue away as pgq.discard does, those that pgq.dead_letters would list, of the lowest ids n at '
    'most; without conditions all of them. Returns how many. Raises PQ002, 22023';
