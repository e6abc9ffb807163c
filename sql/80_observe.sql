-- job_status, attempts and progress, stats, the doctor.

-- One job -------------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.job_state AS (
    id bigint,
    queue text,
    task text,
    state text,
    attempt int,
    enqueued_at timestamptz,
    run_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    result jsonb,
    error text
);
COMMENT ON TYPE pgq.job_state IS 'Where a job stands';
COMMENT ON COLUMN pgq.job_state.id IS 'Job id';
COMMENT ON COLUMN pgq.job_state.queue IS 'Queue';
COMMENT ON COLUMN pgq.job_state.task IS 'What to do';
COMMENT ON COLUMN pgq.job_state.state IS 'scheduled, waiting (for other jobs), ready, running, retrying, parked, done, dead or cancelled';
COMMENT ON COLUMN pgq.job_state.attempt IS 'Number of the attempt: the one running, the last one, or the one to come';
COMMENT ON COLUMN pgq.job_state.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.job_state.run_at IS 'When it is due, if it is scheduled or retrying; at the earliest, if it waits for others';
COMMENT ON COLUMN pgq.job_state.started_at IS 'When the attempt was claimed';
COMMENT ON COLUMN pgq.job_state.finished_at IS 'When the job ended';
COMMENT ON COLUMN pgq.job_state.result IS 'What the handler returned';
COMMENT ON COLUMN pgq.job_state.error IS 'The last error';

-- The lease under which a job's row was taken that its lane's position has passed: the first one whose position is not
-- before the row's. Positions grow with the lease ids, so it is found by halving; walking there would take a step for
-- each claim since. But a row whose transaction ended late was taken by some later lease; that one is walked to. So is
-- the last one of a job that was taken back (pgq._withdraw): positions say nothing there.
CREATE FUNCTION pgq._lease_of_0(lane bigint, xid xid8, job bigint, attempt int) RETURNS bigint
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN (
        WITH RECURSIVE search (low, high, found) AS (
            SELECT b.first - 1, b.last, b.last
            FROM (
                SELECT
                    (SELECT l.id FROM pgq.lease_0 l WHERE l.lane = _lease_of_0.lane ORDER BY l.lane, l.id LIMIT 1),
                    (SELECT l.id FROM pgq.lease_0 l WHERE l.lane = _lease_of_0.lane ORDER BY l.lane DESC, l.id DESC LIMIT 1)
            ) b (first, last)
            UNION ALL
            SELECT CASE WHEN n.before THEN n.id ELSE s.low END,
                CASE WHEN n.before THEN s.high ELSE s.low + (s.high - s.low) / 2 END,
                CASE WHEN n.before OR n.id > s.high THEN s.found ELSE n.id END
            FROM search s
            CROSS JOIN LATERAL (
                SELECT l.id, (l.cursor_xid, l.cursor_id) < (_lease_of_0.xid, job) AS before FROM pgq.lease_0 l
                WHERE l.lane = _lease_of_0.lane AND l.id > s.low + (s.high - s.low) / 2
                ORDER BY l.lane, l.id LIMIT 1
            ) n
            WHERE s.low < s.high
        )
        SELECT coalesce(
            (
                SELECT l.id FROM pgq.lease_0 l
                WHERE l.id = (SELECT min(s.found) FROM search s) AND job = ANY (l.job_ids)
                    AND xid <> ALL (coalesce(l.open_xids, '{}')) AND _lease_of_0.lane & 128 = 0
            ), (
                SELECT l.id FROM pgq.lease_0 l
                WHERE l.lane = _lease_of_0.lane AND job = ANY (l.job_ids)
                    AND coalesce(l.attempts[array_position(l.job_ids, job)], 1) = attempt
                ORDER BY l.lane DESC, l.id DESC
                LIMIT 1
            )
        )
    );
END;
$$;
COMMENT ON FUNCTION pgq._lease_of_0(bigint, xid8, bigint, int) IS 'The lease in segment 0 under which a job was taken; null: none';

SELECT pgq._for_each_slot('pgq._lease_of_0(bigint,xid8,bigint,int)');

-- The rows of a job in segment 0. One has been taken if its lane's position has passed it.
CREATE FUNCTION pgq._find_0(job bigint) RETURNS SETOF pgq.job_state
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    SELECT j.id, q.name, j.task,
        CASE
            WHEN l.id IS NULL THEN 'ready'
            WHEN o.kind IS NULL THEN 'running'
            WHEN o.kind IN ('done', 'cancelled') THEN o.kind::text
            ELSE 'gone'
        END,
        j.attempt::int, j.enqueued_at, NULL::timestamptz, l.claimed_at, o.at,
        coalesce(o.result, o.results[array_position(l.job_ids, job)]), coalesce(o.error, j.history -> -1 ->> 'error')
    FROM (
        -- A redriven job begins again with attempt 1, and a longer history; one that was released twice is there twice.
        SELECT DISTINCT ON (j.lane, j.attempt) * FROM pgq.job_0 j WHERE j.id = job
        ORDER BY j.lane, j.attempt, jsonb_array_length(j.history) DESC NULLS LAST, j.xid DESC
    ) j
    JOIN pgq.queue q ON q.id = j.lane >> 16
    LEFT JOIN LATERAL (
        SELECT l.cursor_xid, l.cursor_id, l.open_xids, l.late_xid, l.late_id
        FROM pgq.lease_0 l WHERE l.lane = j.lane ORDER BY l.lane DESC, l.id DESC LIMIT 1
    ) c ON true
    LEFT JOIN pgq.lease_0 l ON (j.xid, j.id) <= (c.cursor_xid, c.cursor_id)
        AND (j.xid <> ALL (coalesce(c.open_xids, '{}')) OR j.xid = c.late_xid AND j.id <= c.late_id)
        AND l.id = pgq._lease_of_0(j.lane, j.xid, j.id, j.attempt::int) AND l.job_ids IS NOT NULL
    LEFT JOIN pgq.outcome_0 o ON o.lease_id = l.id AND o.job_id IN (0, j.id) AND o.kind <> 'split';
END;
$$;
COMMENT ON FUNCTION pgq._find_0(bigint) IS 'What segment 0 knows of a job';

SELECT pgq._for_each_slot('pgq._find_0(bigint)');

CREATE FUNCTION pgq._started_at(kind pgq.outcome_kind, started_at timestamptz, finished_at timestamptz, worker text)
    RETURNS timestamptz
    LANGUAGE sql IMMUTABLE
AS $$ SELECT CASE WHEN kind <> 'cancelled' OR started_at < finished_at OR worker IS NOT NULL THEN started_at END $$;
COMMENT ON FUNCTION pgq._started_at(pgq.outcome_kind, timestamptz, timestamptz, text) IS
    'When an archived attempt began; null: it never did, as the job was cancelled before';

CREATE FUNCTION pgq.job_status(id bigint) RETURNS SETOF pgq.job_state
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_best pgq.job_state;
    v_next pgq.job_state;
BEGIN
    PERFORM pgq._require('id', id IS NOT NULL OR NULL, 'the id of a job');
    RETURN QUERY
    SELECT s.id, q.name, s.task,
        pgq._state_of(s.run_at, s.attempt), s.attempt::int,
        s.enqueued_at, CASE WHEN s.run_at = 'infinity' THEN (
            SELECT t.not_before FROM pgq.dependent t WHERE t.job_id = s.id
        ) ELSE s.run_at END, NULL::timestamptz, NULL::timestamptz, NULL::jsonb, s.history -> -1 ->> 'error'
    FROM pgq.scheduled s JOIN pgq.queue q ON q.id = s.lane >> 16
    WHERE s.id = job_status.id
    UNION ALL
    SELECT p.id, q.name, p.task, 'parked', p.attempt::int, p.enqueued_at, NULL, NULL, NULL, NULL, p.history -> -1 ->> 'error'
    FROM pgq.parked p JOIN pgq.queue q ON q.id = p.queue_id
    WHERE p.id = job_status.id;
    IF FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT d.id, q.name, d.task, 'dead', d.attempt::int, d.enqueued_at, NULL::timestamptz, NULL::timestamptz, d.died_at,
        NULL::jsonb, d.error
    FROM pgq.dead d JOIN pgq.queue q ON q.id = d.lane >> 16
    WHERE d.id = job_status.id;
    IF FOUND THEN
        RETURN;
    END IF;
    FOR v_slot IN 0..15 LOOP
        CONTINUE WHEN pg_relation_size(format('pgq.job_%s', v_slot)::regclass) = 0;
        SELECT * INTO v_next FROM pgq._find(v_slot, id) f
        ORDER BY f.state = 'gone', f.state IN ('done', 'cancelled') LIMIT 1;
        IF v_next.state IN ('ready', 'running') OR v_next.state IN ('done', 'cancelled') AND v_best.id IS NULL THEN
            v_best := v_next;
        END IF;
    END LOOP;
    IF v_best.state IN ('ready', 'running') THEN
        RETURN NEXT v_best;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT s.id, q.name, s.task, CASE WHEN s.kind IS NULL THEN 'running' ELSE s.kind::text END, s.attempt::int,
        s.enqueued_at, NULL::timestamptz, s.claimed_at, s.finished_at, s.result,
        coalesce(s.error, s.history -> -1 ->> 'error')
    FROM pgq.straggler s JOIN pgq.queue q ON q.id = s.lane >> 16
    WHERE s.id = job_status.id AND (s.kind IS NULL OR s.kind IN ('done', 'cancelled'))
    ORDER BY s.finished_at DESC NULLS FIRST
    LIMIT 1;
    IF FOUND THEN
        RETURN;
    ELSIF v_best.id IS NOT NULL THEN
        RETURN NEXT v_best;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT a.id, a.queue, a.task, a.kind::text, a.attempt::int, a.enqueued_at, NULL::timestamptz,
        pgq._started_at(a.kind, a.started_at, a.finished_at, a.worker), a.finished_at, a.result, a.error
    FROM pgq.archive a
    WHERE a.id = job_status.id AND a.kind IN ('done', 'cancelled')
    ORDER BY a.finished_at DESC
    LIMIT 1;
END;
$$;
COMMENT ON FUNCTION pgq.job_status(bigint) IS
    'Where a job stands: one row, or none if it is unknown or its archive was dropped';

-- All attempts --------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.job_attempt AS (
    attempt int,
    state text,
    lease bigint,
    worker text,
    started_at timestamptz,
    finished_at timestamptz,
    expires_at timestamptz,
    result jsonb,
    error text,
    progress jsonb
);
COMMENT ON TYPE pgq.job_attempt IS 'One attempt of a job';
COMMENT ON COLUMN pgq.job_attempt.attempt IS 'Number of the attempt, from 1; a redriven job begins again';
COMMENT ON COLUMN pgq.job_attempt.state IS
    'running, or how it ended: done, retry (failed, there is another), dead (failed for good), expired (its lease ended), '
    'released, cancelled';
COMMENT ON COLUMN pgq.job_attempt.lease IS 'The lease that holds or held it; null if only the job''s history knows of it';
COMMENT ON COLUMN pgq.job_attempt.worker IS 'Who claimed it, as the worker calls itself';
COMMENT ON COLUMN pgq.job_attempt.started_at IS 'When it was claimed; null if only the job''s history knows of it';
COMMENT ON COLUMN pgq.job_attempt.finished_at IS 'When it ended; null: it is running';
COMMENT ON COLUMN pgq.job_attempt.expires_at IS 'When the lease ends, if it is running';
COMMENT ON COLUMN pgq.job_attempt.result IS 'What the handler returned';
COMMENT ON COLUMN pgq.job_attempt.error IS 'Why it failed';
COMMENT ON COLUMN pgq.job_attempt.progress IS 'What it told last with pgq.progress, if it is running';

-- All leases of the job's lanes are looked through: one that was released has several, with the same number.
-- OFFSET 0: each by its index, never a whole table to join it.
CREATE FUNCTION pgq._tried(slot int, job bigint) RETURNS SETOF pgq.job_attempt
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY EXECUTE format($sql$
        SELECT coalesce(l.attempts[l.position], 1)::int, coalesce(o.kind::text, 'running'), l.id, l.worker, l.claimed_at,
            o.at, CASE WHEN o.kind IS NULL THEN x.expires_at END, coalesce(o.result, o.results[l.position]), o.error,
            NULL::jsonb
        FROM (SELECT DISTINCT j.lane FROM pgq.job_%1$s j WHERE j.id = $1) j
        CROSS JOIN LATERAL (
            SELECT l.*, array_position(l.job_ids, $1) AS position
            FROM pgq.lease_%1$s l WHERE l.lane = j.lane AND $1 = ANY (l.job_ids) OFFSET 0
        ) l
        CROSS JOIN LATERAL (
            SELECT max(x.expires_at) AS expires_at
            FROM (SELECT x.expires_at FROM pgq.lease_%1$s x WHERE x.id = l.id OFFSET 0) x
        ) x
        LEFT JOIN LATERAL (
            SELECT * FROM pgq.outcome_%1$s o
            WHERE o.lease_id = l.id AND o.job_id IN (0, $1) AND o.kind <> 'split' OFFSET 0
        ) o ON true
        WHERE (o.kind IN ('carried', 'moved')) IS NOT TRUE
    $sql$, slot) USING job;
END;
$$;
COMMENT ON FUNCTION pgq._tried(int, bigint) IS 'The attempts of a job that a segment knows of';

-- The longest history is the newest. How its attempts ended is told by what came next.
CREATE FUNCTION pgq._failures(job bigint) RETURNS SETOF pgq.job_attempt
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_query text := (
        SELECT string_agg(format('SELECT j.attempt, j.history FROM pgq.%I j WHERE j.id = $1', n.name), ' UNION ALL ')
        FROM (
            SELECT 'job_' || s FROM pgq._filled() s
            UNION ALL
            SELECT unnest('{scheduled,parked,dead,straggler}'::text[])
        ) n (name)
    );
BEGIN
    RETURN QUERY EXECUTE format($sql$
        SELECT h.attempt,
            CASE WHEN h.error = 'lease expired' THEN 'expired' WHEN h.next = h.attempt + 1 THEN 'retry' ELSE 'dead' END,
            NULL::bigint, h.worker, NULL::timestamptz, h.at, NULL::timestamptz, NULL::jsonb, h.error, NULL::jsonb
        FROM (
            SELECT (e.entry ->> 'attempt')::int AS attempt, (e.entry ->> 'at')::timestamptz AS at,
                e.entry ->> 'error' AS error, e.entry ->> 'worker' AS worker,
                lead((e.entry ->> 'attempt')::int, 1, j.attempt::int) OVER (ORDER BY e.n) AS next
            FROM (
                SELECT * FROM (%s) j WHERE j.history IS NOT NULL ORDER BY jsonb_array_length(j.history) DESC LIMIT 1
            ) j
            CROSS JOIN LATERAL jsonb_array_elements(j.history) WITH ORDINALITY e (entry, n)
        ) h
    $sql$, v_query) USING job;
END;
$$;
COMMENT ON FUNCTION pgq._failures(bigint) IS 'The attempts in the history of a job that has not ended well';

CREATE FUNCTION pgq.attempts(id bigint) RETURNS SETOF pgq.job_attempt
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
BEGIN
    PERFORM pgq._require('id', id IS NOT NULL OR NULL, 'the id of a job');
    RETURN QUERY
    WITH known AS MATERIALIZED (
        -- What is being archived is there twice.
        SELECT DISTINCT ON (k.lease) k.*
        FROM (
            SELECT t.* FROM pgq._filled() s CROSS JOIN LATERAL pgq._tried(s, attempts.id) t
            UNION ALL
            SELECT s.attempt::int, coalesce(s.kind::text, 'running'), s.lease, s.worker, s.claimed_at, s.finished_at,
                CASE WHEN s.kind IS NULL THEN s.expires_at END, s.result, s.error, NULL
            FROM pgq.straggler s WHERE s.id = attempts.id
            UNION ALL
            SELECT a.attempt::int, a.kind::text, a.lease, a.worker,
                pgq._started_at(a.kind, a.started_at, a.finished_at, a.worker), a.finished_at, NULL, a.result, a.error,
                NULL
            FROM pgq.archive a WHERE a.id = attempts.id
        ) k
        ORDER BY k.lease
    ), failed AS MATERIALIZED (
        SELECT * FROM pgq._failures(attempts.id)
    )
    SELECT k.attempt, k.state, k.lease, k.worker, k.started_at, k.finished_at, k.expires_at, k.result, k.error,
        CASE WHEN k.state = 'running' THEN (
            SELECT p.value FROM pgq.progress p WHERE p.id = attempts.id AND p.lease = k.lease
        ) END
    FROM known k
    UNION ALL
    -- The archive may have been without them, or have dropped them. The history is written just before the outcome.
    SELECT f.* FROM failed f
    WHERE NOT EXISTS (
        SELECT FROM known k
        WHERE k.attempt = f.attempt AND k.state IN ('retry', 'dead', 'expired') AND k.finished_at >= f.finished_at
            AND NOT EXISTS (
                SELECT FROM failed n
                WHERE n.attempt = f.attempt AND n.finished_at > f.finished_at AND n.finished_at <= k.finished_at
            )
    )
    ORDER BY finished_at NULLS LAST, lease;
END;
$$;
COMMENT ON FUNCTION pgq.attempts(bigint) IS
    'Every attempt of a job in the order of time: from the segments, the archive and, as far as those know no more, the '
    'history of a job that failed. Released attempts are known until their segment is retired. No rows: it was never '
    'claimed, or its archive was dropped';

-- Progress ------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._running_since_0(job bigint, lease bigint) RETURNS timestamptz
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN (
        SELECT l.claimed_at FROM pgq.lease_0 l
        WHERE l.id = lease AND job = ANY (l.job_ids)
            AND NOT EXISTS (
                SELECT FROM pgq.outcome_0 o
                WHERE o.lease_id = l.id AND o.job_id IN (0, job) AND o.kind <> 'split' OFFSET 0
            )
    );
END;
$$;
COMMENT ON FUNCTION pgq._running_since_0(bigint, bigint) IS
    'When an attempt in segment 0 was claimed; null: it has ended, or was moved';

SELECT pgq._for_each_slot('pgq._running_since_0(bigint,bigint)');

CREATE FUNCTION pgq._running_since(id bigint, lease bigint) RETURNS timestamptz
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN coalesce(
        pgq._running_since((lease & 15)::int, id, lease),
        (
            SELECT s.claimed_at FROM pgq.straggler s
            WHERE s.id = _running_since.id AND s.lease = _running_since.lease AND s.kind IS NULL
        )
    );
END;
$$;
COMMENT ON FUNCTION pgq._running_since(bigint, bigint) IS 'When an attempt was claimed; null: it has ended';

-- Each report leaves a dead row, which a pinned snapshot keeps. So one per second or, if that is longer, per hundredth
-- of the time so far: what is shown is at most a percent behind, and an attempt that reports all the time leaves some
-- 500 of them in an hour, 800 in a day.
CREATE FUNCTION pgq.progress(id bigint, lease bigint, value jsonb) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_now CONSTANT timestamptz := pgq._now();
    v_since timestamptz;
BEGIN
    PERFORM pgq._require('value', octet_length(value::text) <= 1000, 'JSON of at most 1000 bytes');
    v_since := pgq._running_since(id, lease);
    IF v_since IS NULL THEN
        PERFORM pgq._lost(id, lease);
    END IF;
    PERFORM FROM pgq.progress p
    WHERE p.id = progress.id AND p.lease = progress.lease AND p.at <= v_now
        AND p.at > v_now - greatest(interval '1 second', (v_now - v_since) / 100);
    IF FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO pgq.progress AS p (id, lease, at, value)
    VALUES (progress.id, progress.lease, v_now, progress.value)
    ON CONFLICT ON CONSTRAINT progress_id_lease_pkey DO UPDATE SET at = excluded.at, value = excluded.value;
    RETURN true;
END;
$$;
COMMENT ON FUNCTION pgq.progress(bigint, bigint, jsonb) IS
    'Tells how far a claimed job is: a number, an object, whatever its readers understand, up to 1000 bytes as text. '
    'pgq.job_progress and pgq.attempts show it when the transaction is committed, until the attempt ends. False: left out, '
    'because the last report is less than a second old, or less than a hundredth of the time that the attempt has run. '
    'Raises PQ001 if the lease is lost, 22023';

CREATE FUNCTION pgq.job_progress(id bigint) RETURNS jsonb
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
BEGIN
    PERFORM pgq._require('id', id IS NOT NULL OR NULL, 'the id of a job');
    RETURN (
        SELECT p.value FROM pgq.progress p
        WHERE p.id = job_progress.id AND pgq._running_since(p.id, p.lease) IS NOT NULL
        ORDER BY p.at DESC
        LIMIT 1
    );
END;
$$;
COMMENT ON FUNCTION pgq.job_progress(bigint) IS
    'What a running job told last with pgq.progress; null: nothing, or it is not running. Cheap enough to be asked often';

CREATE FUNCTION pgq._forget_progress() RETURNS void
    LANGUAGE plpgsql SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
BEGIN
    DELETE FROM pgq.progress p
    USING (
        SELECT p.id, p.lease FROM pgq.progress p WHERE pgq._running_since(p.id, p.lease) IS NULL FOR UPDATE SKIP LOCKED
    ) ended
    WHERE p.id = ended.id AND p.lease = ended.lease;
END;
$$;
COMMENT ON FUNCTION pgq._forget_progress() IS 'Removes the progress of attempts that have ended';

-- Queues --------------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.queue_stat AS (
    queue text,
    paused boolean,
    ready bigint,
    running bigint,
    scheduled bigint,
    retrying bigint,
    dead bigint,
    oldest_ready interval,
    parked bigint,
    waiting bigint
);
COMMENT ON TYPE pgq.queue_stat IS 'What a queue holds';
COMMENT ON COLUMN pgq.queue_stat.queue IS 'Queue';
COMMENT ON COLUMN pgq.queue_stat.paused IS 'Whether claims are stopped';
COMMENT ON COLUMN pgq.queue_stat.ready IS 'Jobs that can be claimed';
COMMENT ON COLUMN pgq.queue_stat.running IS 'Jobs under a lease';
COMMENT ON COLUMN pgq.queue_stat.scheduled IS 'Jobs enqueued for later';
COMMENT ON COLUMN pgq.queue_stat.retrying IS 'Failed jobs that wait for their next attempt';
COMMENT ON COLUMN pgq.queue_stat.dead IS 'Dead letters';
COMMENT ON COLUMN pgq.queue_stat.oldest_ready IS 'Age of the oldest job that can be claimed, counted from enqueued_at';
COMMENT ON COLUMN pgq.queue_stat.parked IS 'Jobs that wait for a limit of their group or queue';
COMMENT ON COLUMN pgq.queue_stat.waiting IS 'Jobs that wait for other jobs to end';

CREATE TYPE pgq.lane_stat AS (queue_id int, ready bigint, running bigint, oldest timestamptz);
COMMENT ON TYPE pgq.lane_stat IS 'What a segment holds for a queue';
COMMENT ON COLUMN pgq.lane_stat.queue_id IS 'The queue';
COMMENT ON COLUMN pgq.lane_stat.ready IS 'Jobs that can be claimed';
COMMENT ON COLUMN pgq.lane_stat.running IS 'Jobs under a lease';
COMMENT ON COLUMN pgq.lane_stat.oldest IS 'When the oldest of the ready ones was enqueued';

-- Ready: what lies behind the position of the lane, and the transactions that were late.
CREATE FUNCTION pgq._count_0(live boolean) RETURNS SETOF pgq.lane_stat
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    SELECT q.id, sum(r.jobs)::bigint, 0::bigint, min(r.oldest)
    FROM pgq.queue q
    JOIN (SELECT DISTINCT l.queue_id, l.lane FROM pgq.line l WHERE l.lane > 0) l ON l.queue_id = q.id
    CROSS JOIN LATERAL generate_series(l.lane, l.lane + CASE WHEN l.lane & 255 = 1 THEN q.lanes - 1 ELSE 0 END) n (lane)
    LEFT JOIN LATERAL (
        SELECT c.cursor_xid, c.cursor_id, c.open_xids, c.late_xid, c.late_id
        FROM pgq.lease_0 c WHERE c.lane = n.lane ORDER BY c.lane DESC, c.id DESC LIMIT 1
    ) c ON true
    CROSS JOIN LATERAL (
        SELECT count(*) AS jobs, min(j.enqueued_at) AS oldest FROM (
            SELECT j.enqueued_at FROM pgq.job_0 j
            WHERE j.lane = n.lane AND (j.xid, j.id) > (coalesce(c.cursor_xid, '0'), coalesce(c.cursor_id, 0))
            UNION ALL
            SELECT j.enqueued_at FROM unnest(c.open_xids) o (xid) JOIN pgq.job_0 j ON j.lane = n.lane AND j.xid = o.xid
            WHERE NOT (j.xid = c.late_xid AND j.id <= c.late_id) IS TRUE
        ) j
    ) r
    WHERE live AND r.jobs > 0
    GROUP BY q.id
    UNION ALL
    SELECT (l.lane >> 16)::int, 0::bigint, sum(l.jobs - e.jobs)::bigint, NULL::timestamptz
    FROM (SELECT DISTINCT x.id FROM pgq.lease_0 x WHERE x.expires_at > pgq._marked('reap')) x
    CROSS JOIN LATERAL (
        SELECT l.id, l.lane, cardinality(l.job_ids) AS jobs FROM pgq.lease_0 l
        WHERE l.id = x.id AND l.job_ids IS NOT NULL OFFSET 0
    ) l
    CROSS JOIN LATERAL (
        SELECT CASE WHEN bool_or(o.job_id = 0 AND o.kind = 'done') THEN l.jobs
            ELSE count(*) FILTER (WHERE o.job_id > 0) END AS jobs
        FROM pgq.outcome_0 o WHERE o.lease_id = l.id OFFSET 0
    ) e
    GROUP BY l.lane >> 16;
END;
$$;
COMMENT ON FUNCTION pgq._count_0(boolean) IS 'What segment 0 holds, per queue; live: it may have jobs to claim';

SELECT pgq._for_each_slot('pgq._count_0(boolean)');

CREATE FUNCTION pgq._counts() RETURNS SETOF pgq.lane_stat
    LANGUAGE plpgsql STABLE
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
BEGIN
    FOR v_slot IN 0..15 LOOP
        CONTINUE WHEN pg_relation_size(format('pgq.job_%s', v_slot)::regclass) = 0;
        RETURN QUERY SELECT * FROM pgq._count(v_slot, v_slot = ANY (pgq._live_slots()));
    END LOOP;
    RETURN QUERY
    SELECT (s.lane >> 16)::int, 0::bigint, count(*), NULL::timestamptz
    FROM pgq.straggler s WHERE s.kind IS NULL GROUP BY s.lane >> 16;
END;
$$;
COMMENT ON FUNCTION pgq._counts() IS 'What all segments hold, per queue and segment';

-- Stable, as job_status is, and all that they call: what they say is true of one moment.
CREATE FUNCTION pgq.stats() RETURNS SETOF pgq.queue_stat
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT q.name, q.paused, coalesce(c.ready, 0), coalesce(c.running, 0), coalesce(s.scheduled, 0),
        coalesce(s.retrying, 0), coalesce(d.dead, 0), pgq._now() - c.oldest, coalesce(p.parked, 0),
        coalesce(s.waiting, 0)
    FROM pgq.queue q
    LEFT JOIN (
        SELECT c.queue_id, sum(c.ready)::bigint AS ready, sum(c.running)::bigint AS running, min(c.oldest) AS oldest
        FROM pgq._counts() c GROUP BY c.queue_id
    ) c ON c.queue_id = q.id
    LEFT JOIN (
        SELECT s.lane >> 16 AS queue_id, count(*) FILTER (WHERE s.attempt = 1 AND s.run_at < 'infinity') AS scheduled,
            count(*) FILTER (WHERE s.attempt > 1) AS retrying, count(*) FILTER (WHERE s.run_at = 'infinity') AS waiting
        FROM pgq.scheduled s GROUP BY s.lane >> 16
    ) s ON s.queue_id = q.id
    LEFT JOIN (
        SELECT d.lane >> 16 AS queue_id, count(*) AS dead FROM pgq.dead d GROUP BY d.lane >> 16
    ) d ON d.queue_id = q.id
    LEFT JOIN (
        SELECT p.queue_id, count(*) AS parked FROM pgq.parked p GROUP BY p.queue_id
    ) p ON p.queue_id = q.id
    ORDER BY q.name;
END;
$$;
COMMENT ON FUNCTION pgq.stats() IS 'What each queue holds, counted now';

CREATE VIEW pgq.queue_stats AS SELECT * FROM pgq.stats();
COMMENT ON VIEW pgq.queue_stats IS 'pgq.stats() as a view';
COMMENT ON COLUMN pgq.queue_stats.queue IS 'Queue';
COMMENT ON COLUMN pgq.queue_stats.paused IS 'Whether claims are stopped';
COMMENT ON COLUMN pgq.queue_stats.ready IS 'Jobs that can be claimed';
COMMENT ON COLUMN pgq.queue_stats.running IS 'Jobs under a lease';
COMMENT ON COLUMN pgq.queue_stats.scheduled IS 'Jobs enqueued for later';
COMMENT ON COLUMN pgq.queue_stats.retrying IS 'Failed jobs that wait for their next attempt';
COMMENT ON COLUMN pgq.queue_stats.dead IS 'Dead letters';
COMMENT ON COLUMN pgq.queue_stats.oldest_ready IS 'Age of the oldest job that can be claimed';
COMMENT ON COLUMN pgq.queue_stats.parked IS 'Jobs that wait for a limit of their group or queue';
COMMENT ON COLUMN pgq.queue_stats.waiting IS 'Jobs that wait for other jobs to end';

CREATE FUNCTION pgq.version() RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT '0.2.0'::pg_catalog.text $$;
COMMENT ON FUNCTION pgq.version() IS 'Version of pgqueue that is installed';

-- The doctor ----------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.finding AS (severity text, code text, subject text, detail text, hint text);
COMMENT ON TYPE pgq.finding IS 'Something that the doctor found';
COMMENT ON COLUMN pgq.finding.severity IS 'error, warning or info';
COMMENT ON COLUMN pgq.finding.code IS 'What kind of finding, a stable word';
COMMENT ON COLUMN pgq.finding.subject IS 'The queue, segment or session that it is about';
COMMENT ON COLUMN pgq.finding.detail IS 'What was found';
COMMENT ON COLUMN pgq.finding.hint IS 'What to do';

CREATE FUNCTION pgq.doctor() RETURNS SETOF pgq.finding
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_database oid := (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
BEGIN
    -- Lanes that a claimer has held for long: its transaction is still open.
    RETURN QUERY
    SELECT 'error', 'stuck_lane', format('queue %s', coalesce(q.name, '?')),
        format('session %s has held %s of its lanes since %s', l.pid, count(*), min(a.xact_start)),
        format('Claim in short transactions. To free the lanes: SELECT pg_terminate_backend(%s).', l.pid)
    FROM (
        SELECT l.pid, (l.classid::bigint << 32) | l.objid::bigint AS key
        FROM pg_locks l
        WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.database = v_database
            AND l.mode = 'ExclusiveLock'
    ) l
    JOIN pg_stat_activity a ON a.pid = l.pid  -- whose xact_start only members of pg_read_all_stats see of others
    LEFT JOIN pgq.queue q ON q.id = (l.key - pgq._lane_key(0)) >> 16
    WHERE l.key > pgq._lane_key(0) AND l.key < pgq._watch_key(0) AND l.pid <> pg_backend_pid()
        AND a.xact_start < pgq._now() - interval '5 seconds'
    GROUP BY l.pid, q.name;

    -- Segments that cannot go on, and who is in the way.
    RETURN QUERY
    SELECT 'warning', 'segment_held', format('segment %s', s.slot),
        format('sealed at %s, but session %s may still insert into it', s.sealed_at, coalesce(l.pid::text, '(prepared transaction)')),
        'End that transaction. Until then the segment cannot be retired; claims go on.'
    FROM pgq.segment s
    JOIN pg_locks l ON l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted
        AND l.database = v_database AND l.relation = format('pgq.job_%s', s.slot)::regclass
    WHERE s.state = 'sealed' AND s.sealed_at < pgq._now() - interval '1 minute';
    RETURN QUERY
    SELECT 'warning', 'segment_waiting', format('segment %s', s.slot),
        format('%s jobs of queue %s have not been claimed since it was sealed at %s', sum(w.jobs), q.name, s.sealed_at),
        'Start workers for the queue, or pgq.purge it.'
    FROM pgq.segment s CROSS JOIN LATERAL pgq._waiting(s.slot) w JOIN pgq.queue q ON q.id = w.lane >> 16
    WHERE s.state = 'closed' AND s.sealed_at < pgq._now() - interval '10 minutes'
    GROUP BY s.slot, s.sealed_at, q.name;
    RETURN QUERY
    SELECT 'warning', 'segment_running', format('segment %s', s.slot),
        format('all its jobs were claimed by %s, but some are still running', s.claimed_at),
        'Nothing, if the jobs are long. pgq.maintain moves them out of the way.'
    FROM pgq.segment s
    WHERE s.state = 'claimed' AND s.claimed_at < pgq._now() - interval '10 minutes';
    RETURN QUERY
    SELECT 'warning', 'segment_locked', format('segment %s', s.slot),
        format('session %s holds %s, so the segment cannot be truncated', coalesce(l.pid::text, '(prepared transaction)'),
            l.relation::regclass),
        'Wait for the end of that transaction (a dump?), or terminate it.'
    FROM pgq.segment s
    JOIN pg_locks l ON l.locktype = 'relation' AND l.database = v_database AND l.pid IS DISTINCT FROM pg_backend_pid()
        AND l.relation IN (
            format('pgq.job_%s', s.slot)::regclass, format('pgq.lease_%s', s.slot)::regclass,
            format('pgq.outcome_%s', s.slot)::regclass
        )
    WHERE s.state = 'archived';
    RETURN QUERY
    SELECT CASE WHEN count(*) = 0 THEN 'error' ELSE 'warning' END, 'ring_full', 'the ring',
        format('%s of 16 segments are free', count(*)),
        'Look at what the other findings say about segments. When none is free, the open segment grows.'
    FROM generate_series(0, 15) n
    WHERE NOT EXISTS (SELECT FROM pgq.segment s WHERE s.slot = n AND s.state <> 'free')
    HAVING count(*) <= 2;

    -- Recurring jobs that cannot be enqueued.
    RETURN QUERY
    SELECT 'error', 'schedule_failed', format('schedule %s', s.name),
        format('the tick of %s could not be enqueued: %s', s.next_at, s.error),
        format('It is tried again every minute. Correct it with pgq.schedule, or SELECT pgq.unschedule(%L).', s.name)
    FROM pgq.schedule s WHERE s.retry_at IS NOT NULL;

    -- Jobs, and nobody takes them.
    RETURN QUERY
    SELECT 'warning', 'no_claims', format('queue %s', s.queue),
        format('%s jobs are ready, the oldest since %s, and no lease is running', s.ready, s.oldest_ready),
        CASE WHEN s.paused THEN format('The queue is paused: SELECT pgq.resume(%L).', s.queue)
            ELSE 'Start a worker for it.' END
    FROM pgq.stats() s
    WHERE s.ready > 0 AND s.running = 0 AND s.oldest_ready > interval '1 minute';
    RETURN QUERY
    SELECT 'warning', 'not_maintained', 'pgq.maintain',
        format('last run: %s', CASE WHEN isfinite(pgq._marked('tidy')) THEN pgq._marked('tidy')::text ELSE 'never' END),
        'Run a worker, or call SELECT pgq.maintain() about once a second.'
    WHERE pgq._marked('tidy') < pgq._now() - interval '3 minutes' AND EXISTS (SELECT FROM pgq.queue);
END;
$$;
COMMENT ON FUNCTION pgq.doctor() IS 'What is wrong with the queues, and what to do about it; no rows: nothing';
