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

<<<<<<< HEAD
=======
-- Settings ------------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.queue_setting AS (
    queue text,
    paused boolean,
    lease interval,
    max_attempts int,
    backoff interval,
    backoff_max interval,
    retention interval,
    shards int,
    notify boolean,
    unique_until text,
    unique_for interval,
    on_repeat text,
    running_limit int,
    rate int,
    rate_period interval,
    group_limit int,
    group_rate int,
    group_period interval,
    fair boolean,
    keep_place boolean,
    validator text,
    created_at timestamptz
);
COMMENT ON TYPE pgq.queue_setting IS 'The settings of a queue, and its limits';
COMMENT ON COLUMN pgq.queue_setting.queue IS 'Queue';
COMMENT ON COLUMN pgq.queue_setting.paused IS 'Whether claims are stopped';
COMMENT ON COLUMN pgq.queue_setting.lease IS 'How long a claim holds a job unless the claim says otherwise';
COMMENT ON COLUMN pgq.queue_setting.max_attempts IS
    'Attempts before a job is a dead letter, unless the job says otherwise';
COMMENT ON COLUMN pgq.queue_setting.backoff IS 'Delay before the second attempt; doubles with each further one';
COMMENT ON COLUMN pgq.queue_setting.backoff_max IS 'Longest delay between two attempts';
COMMENT ON COLUMN pgq.queue_setting.retention IS
    'How long finished attempts stay in pgq.archive; zero: they are not archived';
COMMENT ON COLUMN pgq.queue_setting.shards IS
    'Lanes per priority that new jobs are spread over; 1 is strict first in, first out';
COMMENT ON COLUMN pgq.queue_setting.notify IS 'Whether enqueue wakes waiting workers with NOTIFY';
COMMENT ON COLUMN pgq.queue_setting.unique_until IS
    'How far a job holds its unique key: finished or claimed; null: see unique_for';
COMMENT ON COLUMN pgq.queue_setting.unique_for IS
    'How long a job holds its unique key after it was enqueued; null: see unique_until';
COMMENT ON COLUMN pgq.queue_setting.on_repeat IS
    'What a repeat does to a job not yet claimed: keep, replace or debounce';
COMMENT ON COLUMN pgq.queue_setting.running_limit IS 'How many jobs of the queue may run at once; null: any number';
COMMENT ON COLUMN pgq.queue_setting.rate IS 'How many jobs of the queue may start in rate_period; null: any number';
COMMENT ON COLUMN pgq.queue_setting.rate_period IS 'The period that rate is about';
COMMENT ON COLUMN pgq.queue_setting.group_limit IS 'How many jobs of one group may run at once; null: any number';
COMMENT ON COLUMN pgq.queue_setting.group_rate IS
    'How many jobs of one group may start in group_period; null: any number';
COMMENT ON COLUMN pgq.queue_setting.group_period IS 'The period that group_rate is about';
COMMENT ON COLUMN pgq.queue_setting.fair IS 'Whether groups take turns';
COMMENT ON COLUMN pgq.queue_setting.keep_place IS 'Whether its group waits for a job that is to be tried again';
COMMENT ON COLUMN pgq.queue_setting.validator IS 'Function that checks payloads; null: all are good';
COMMENT ON COLUMN pgq.queue_setting.created_at IS 'When the queue was created';

CREATE FUNCTION pgq.queues() RETURNS SETOF pgq.queue_setting
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT q.name, q.paused, q.lease, q.max_attempts::int, q.backoff, q.backoff_max, q.retention, q.shards::int,
        q.notify, q.unique_until, q.unique_for, q.on_repeat, q.running_limit, q.rate, q.rate_period, q.group_limit,
        q.group_rate, q.group_period, q.fair, q.keep_place, q.validator, q.created_at
    FROM pgq.queue q
    ORDER BY q.name;
END;
$$;
COMMENT ON FUNCTION pgq.queues() IS 'The settings of each queue, by name; pgq.stats tells what it holds';

-- Live jobs -----------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.live_job AS (
    id bigint,
    queue text,
    task text,
    state text,
    priority int,
    attempt int,
    enqueued_at timestamptz,
    run_at timestamptz,
    started_at timestamptz,
    expires_at timestamptz,
    worker text,
    lease bigint,
    group_key text,
    payload jsonb
);
COMMENT ON TYPE pgq.live_job IS 'A job that has not ended';
COMMENT ON COLUMN pgq.live_job.id IS 'Job id';
COMMENT ON COLUMN pgq.live_job.queue IS 'Queue';
COMMENT ON COLUMN pgq.live_job.task IS 'What to do';
COMMENT ON COLUMN pgq.live_job.state IS 'running, ready, parked, retrying, scheduled or waiting (for other jobs)';
COMMENT ON COLUMN pgq.live_job.priority IS 'Priority, lower runs first';
COMMENT ON COLUMN pgq.live_job.attempt IS 'Number of the attempt: the one running, or the one to come';
COMMENT ON COLUMN pgq.live_job.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.live_job.run_at IS
    'When it is due, if it is scheduled or retrying; at the earliest, if it waits for others';
COMMENT ON COLUMN pgq.live_job.started_at IS 'When the attempt was claimed';
COMMENT ON COLUMN pgq.live_job.expires_at IS 'When its lease ends; in the past: it is about to be taken back';
COMMENT ON COLUMN pgq.live_job.worker IS 'Who claimed it, as the worker calls itself';
COMMENT ON COLUMN pgq.live_job.lease IS 'The lease that holds it';
COMMENT ON COLUMN pgq.live_job.group_key IS 'The group that it belongs to; null: none';
COMMENT ON COLUMN pgq.live_job.payload IS 'Arguments';

CREATE TYPE pgq.held_lease AS (
    lease bigint,
    lane bigint,
    worker text,
    claimed_at timestamptz,
    expires_at timestamptz,
    ids bigint ARRAY
);
COMMENT ON TYPE pgq.held_lease IS 'A lease under which jobs run';
COMMENT ON COLUMN pgq.held_lease.lease IS 'The lease';
COMMENT ON COLUMN pgq.held_lease.lane IS 'Lane that was claimed from';
COMMENT ON COLUMN pgq.held_lease.worker IS 'Who claimed, as the worker calls itself';
COMMENT ON COLUMN pgq.held_lease.claimed_at IS 'When the jobs were claimed';
COMMENT ON COLUMN pgq.held_lease.expires_at IS 'When it ends';
COMMENT ON COLUMN pgq.held_lease.ids IS 'The jobs that have not ended';

-- Whether a lease has ended is not written on it, and nearly all have. So the newest of each lane are looked at, and
-- those that were ever extended, which is what jobs that run for long have in common: their other rows have no lane,
-- and are next to each other in the index.
CREATE FUNCTION pgq._held_0(queue_id int, lanes bigint[], most int) RETURNS SETOF pgq.held_lease
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    WITH RECURSIVE extended (id) AS (
        (SELECT l.id FROM pgq.lease_0 l WHERE l.lane IS NULL ORDER BY l.lane DESC, l.id DESC LIMIT 1)
        UNION ALL
        SELECT (
            SELECT l.id FROM pgq.lease_0 l
            WHERE l.lane IS NULL AND l.id < e.id ORDER BY l.lane DESC, l.id DESC LIMIT 1
        )
        FROM extended e WHERE e.id IS NOT NULL
    )
    SELECT l.id, l.lane, l.worker, l.claimed_at, x.expires_at, ARRAY(
        SELECT j.id FROM unnest(l.job_ids) j (id) WHERE j.id <> ALL (e.ended)
    )
    FROM (
        SELECT c.id FROM unnest(lanes) n (lane) CROSS JOIN LATERAL (
            SELECT c.id FROM pgq.lease_0 c WHERE c.lane = n.lane ORDER BY c.lane DESC, c.id DESC LIMIT most
        ) c
        UNION
        (SELECT e.id FROM extended e WHERE e.id IS NOT NULL LIMIT most)
    ) c
    CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(o.job_id), '{}') AS ended, count(*) FILTER (WHERE o.job_id > 0) AS jobs,
            bool_or(o.job_id = 0 AND o.kind = 'done') IS TRUE AS whole
        FROM pgq.outcome_0 o WHERE o.lease_id = c.id OFFSET 0
    ) e
    CROSS JOIN LATERAL (
        SELECT l.* FROM pgq.lease_0 l WHERE l.id = c.id AND l.job_ids IS NOT NULL OFFSET 0
    ) l
    CROSS JOIN LATERAL (
        SELECT max(x.expires_at) AS expires_at FROM pgq.lease_0 x WHERE x.id = c.id OFFSET 0
    ) x
    WHERE NOT e.whole AND e.jobs < cardinality(l.job_ids) AND (queue_id IS NULL OR l.lane >> 16 = queue_id);
END;
$$;
COMMENT ON FUNCTION pgq._held_0(int, bigint[], int) IS
    'Leases of a queue, or all, in segment 0 under which jobs run: of the newest of each lane, and of those that '
    'were extended, this many';

SELECT pgq._for_each_slot('pgq._held_0(int,bigint[],int)');

-- The rows that the position of the lane has not passed, in the order of claims, and those of the transactions that
-- were late.
CREATE FUNCTION pgq._next_0(lanes bigint[], named text, n int, newest boolean, most int) RETURNS SETOF pgq.attempt
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    SELECT j.id, NULL::bigint, j.lane, j.enqueued_at, NULL::timestamptz, j.attempt::int, j.max_attempts::int,
        NULL::text, j.task, j.payload, j.headers, j.history, j.group_key
    FROM unnest(lanes) n (lane)
    LEFT JOIN LATERAL (
        SELECT c.cursor_xid, c.cursor_id, c.open_xids, c.late_xid, c.late_id
        FROM pgq.lease_0 c WHERE c.lane = n.lane ORDER BY c.lane DESC, c.id DESC LIMIT 1
    ) c ON true
    CROSS JOIN LATERAL (
        SELECT * FROM (
            (
                SELECT * FROM pgq.job_0 j
                WHERE NOT newest AND j.lane = n.lane
                    AND (j.xid, j.id) > (coalesce(c.cursor_xid, '0'), coalesce(c.cursor_id, 0))
                ORDER BY j.lane, j.xid, j.id
                LIMIT most
            )
            UNION ALL
            (
                SELECT * FROM pgq.job_0 j
                WHERE newest AND j.lane = n.lane
                    AND (j.xid, j.id) > (coalesce(c.cursor_xid, '0'), coalesce(c.cursor_id, 0))
                ORDER BY j.lane DESC, j.xid DESC, j.id DESC
                LIMIT most
            )
            UNION ALL
            SELECT late.* FROM unnest(c.open_xids) o (xid) CROSS JOIN LATERAL (
                SELECT * FROM pgq.job_0 j
                WHERE j.lane = n.lane AND j.xid = o.xid AND (j.xid = c.late_xid AND j.id <= c.late_id) IS NOT TRUE
                ORDER BY j.lane, j.xid, j.id
                LIMIT most
            ) late
        ) j
        WHERE named IS NULL OR j.task = named
    ) j;
END;
$$;
COMMENT ON FUNCTION pgq._next_0(bigint[], text, int, boolean, int) IS
    'The jobs of a task, or all, among the first or last of each lane that can be claimed in segment 0';

SELECT pgq._for_each_slot('pgq._next_0(bigint[],text,int,boolean,int)');

CREATE FUNCTION pgq._held(queue_id int, most int) RETURNS SETOF pgq.held_lease
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    -- What goes through the gate is handed out from a lane of its own.
    v_lanes bigint[] := ARRAY(
        SELECT n.lane
        FROM pgq.queue q
        CROSS JOIN LATERAL (
            SELECT l FROM pgq._lanes_of(q) l
            UNION
            SELECT (l & ~255::bigint) | 98 FROM pgq._lanes_of(q) l WHERE l & 96 = 96
        ) n (lane)
        WHERE _held.queue_id IS NULL OR q.id = _held.queue_id
    );
BEGIN
    RETURN QUERY
    SELECT h.* FROM pgq._filled() s CROSS JOIN LATERAL pgq._held(s, _held.queue_id, v_lanes, most) h
    WHERE NOT EXISTS (SELECT FROM pgq.segment g WHERE g.slot = s AND g.state IN ('drained', 'archived'));
    RETURN QUERY
    SELECT s.lease, s.lane, s.worker, s.claimed_at, max(s.expires_at), array_agg(s.id)
    FROM (
        SELECT * FROM pgq.straggler s WHERE s.kind IS NULL ORDER BY s.expires_at DESC LIMIT greatest(most, 10000)
    ) s
    WHERE _held.queue_id IS NULL OR s.lane >> 16 = _held.queue_id
    GROUP BY s.lease, s.lane, s.worker, s.claimed_at;
END;
$$;
COMMENT ON FUNCTION pgq._held(int, int) IS
    'Leases of a queue, or all, under which jobs run, wherever they are; see pgq._held_0';

CREATE FUNCTION pgq._list_running(queue pgq.queue, named text, n int, newest boolean) RETURNS SETOF pgq.live_job
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    WITH held AS MATERIALIZED (
        SELECT u.id, h.lease, h.expires_at
        FROM pgq._held(queue.id, greatest(n, 1000)) h CROSS JOIN LATERAL unnest(h.ids) u (id)
        ORDER BY CASE WHEN newest THEN h.claimed_at END DESC, CASE WHEN newest THEN u.id END DESC, h.claimed_at, u.id
        LIMIT CASE WHEN named IS NULL THEN n ELSE greatest(n, 10000) END
    )
    SELECT a.id, queue.name, a.task, 'running', pgq._priority(a.lane), a.attempt, a.enqueued_at, NULL::timestamptz,
        a.claimed_at, h.expires_at, a.worker, a.lease, a.group_key, a.payload
    FROM (
        SELECT DISTINCT ON (a.id, a.lease) a.*
        FROM (
            SELECT p.*
            FROM (
                SELECT (h.lease & 15)::int AS slot, array_agg(h.id) AS ids, array_agg(h.lease) AS leases
                FROM held h GROUP BY h.lease & 15
            ) g
            CROSS JOIN LATERAL pgq._attempts(g.slot, g.ids, g.leases) p
            UNION ALL
            SELECT s.id, s.lease, s.lane, s.enqueued_at, s.claimed_at, s.attempt::int, s.max_attempts::int, s.worker,
                s.task, s.payload, s.headers, s.history, s.group_key
            FROM held h JOIN pgq.straggler s ON s.id = h.id AND s.lease = h.lease AND s.kind IS NULL
        ) a
    ) a
    JOIN held h ON h.id = a.id AND h.lease = a.lease
    WHERE named IS NULL OR a.task = named
    ORDER BY CASE WHEN newest THEN a.claimed_at END DESC, CASE WHEN newest THEN a.id END DESC, a.claimed_at, a.id
    LIMIT n;
END;
$$;
COMMENT ON FUNCTION pgq._list_running(pgq.queue, text, int, boolean) IS 'What pgq.jobs says about running jobs';

CREATE FUNCTION pgq._list_ready(queue pgq.queue, named text, n int, newest boolean) RETURNS SETOF pgq.live_job
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    SELECT a.id, queue.name, a.task, 'ready', pgq._priority(a.lane), a.attempt, a.enqueued_at, NULL::timestamptz,
        NULL::timestamptz, NULL::timestamptz, NULL::text, NULL::bigint, a.group_key, a.payload
    FROM unnest(pgq._live_slots()) s
    CROSS JOIN LATERAL pgq._next(s, ARRAY(SELECT pgq._lanes_of(queue)), named, n, newest,
        CASE WHEN named IS NULL THEN n ELSE greatest(n, 10000) END) a
    ORDER BY CASE WHEN newest THEN a.id END DESC, a.id
    LIMIT n;
END;
$$;
COMMENT ON FUNCTION pgq._list_ready(pgq.queue, text, int, boolean) IS 'What pgq.jobs says about ready jobs';

CREATE FUNCTION pgq._list_parked(queue pgq.queue, named text, n int, newest boolean) RETURNS SETOF pgq.live_job
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    SELECT p.id, queue.name, p.task, 'parked', p.priority::int, p.attempt::int, p.enqueued_at, NULL::timestamptz,
        NULL::timestamptz, NULL::timestamptz, NULL::text, NULL::bigint, nullif(p.group_key, ''), p.payload
    FROM (
        SELECT * FROM pgq.parked p WHERE p.queue_id = queue.id
        ORDER BY p.queue_id, p.group_key, p.priority, p.id
        LIMIT greatest(n, 10000)
    ) p
    WHERE named IS NULL OR p.task = named
    ORDER BY CASE WHEN newest THEN p.id END DESC, p.id
    LIMIT n;
END;
$$;
COMMENT ON FUNCTION pgq._list_parked(pgq.queue, text, int, boolean) IS 'What pgq.jobs says about parked jobs';

-- What was promoted and not yet vacuumed lies before the mark.
CREATE FUNCTION pgq._list_scheduled(queue pgq.queue, state text, named text, n int, newest boolean)
    RETURNS SETOF pgq.live_job
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_waits CONSTANT boolean := state = 'waiting';
    v_from CONSTANT timestamptz := CASE WHEN v_waits THEN 'infinity' ELSE pgq._marked('promote') END;
BEGIN
    RETURN QUERY
    SELECT s.id, queue.name, s.task, _list_scheduled.state, pgq._priority(s.lane), s.attempt::int, s.enqueued_at,
        CASE WHEN v_waits THEN (SELECT t.not_before FROM pgq.dependent t WHERE t.job_id = s.id) ELSE s.run_at END,
        NULL::timestamptz, NULL::timestamptz, NULL::text, NULL::bigint, s.group_key, s.payload
    FROM (
        (
            SELECT * FROM pgq.scheduled s
            WHERE NOT newest AND s.lane >> 16 = queue.id AND s.run_at >= v_from AND (v_waits OR s.run_at < 'infinity')
            ORDER BY s.lane >> 16, s.run_at
            LIMIT greatest(n, 10000)
        )
        UNION ALL
        (
            SELECT * FROM pgq.scheduled s
            WHERE newest AND s.lane >> 16 = queue.id AND s.run_at >= v_from AND (v_waits OR s.run_at < 'infinity')
            ORDER BY s.lane >> 16 DESC, s.run_at DESC
            LIMIT greatest(n, 10000)
        )
    ) s
    WHERE pgq._state_of(s.run_at, s.attempt) = _list_scheduled.state AND (named IS NULL OR s.task = named)
    ORDER BY CASE WHEN newest THEN s.run_at END DESC, CASE WHEN newest THEN s.id END DESC, s.run_at, s.id
    LIMIT n;
END;
$$;
COMMENT ON FUNCTION pgq._list_scheduled(pgq.queue, text, text, int, boolean) IS
    'What pgq.jobs says about jobs that are scheduled, retrying or waiting';

CREATE FUNCTION pgq.jobs(
    queue text,
    state text DEFAULT NULL,
    task text DEFAULT NULL,
    n int DEFAULT 100,
    newest boolean DEFAULT false
) RETURNS SETOF pgq.live_job
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
    v_states CONSTANT text[] := '{running,ready,parked,retrying,scheduled,waiting}';
    v_state text;
    v_count bigint;
    v_left bigint := n;
BEGIN
    PERFORM pgq._require('state', state IS NULL OR state = ANY (v_states),
        'running, ready, parked, retrying, scheduled or waiting; null: any');
    PERFORM pgq._require('n', n BETWEEN 1 AND 100000, 'between 1 and 100000');
    PERFORM pgq._require('newest', newest IS NOT NULL OR NULL, 'true or false');
    FOREACH v_state IN ARRAY CASE WHEN state IS NULL THEN v_states ELSE ARRAY[state] END LOOP
        CASE v_state
            WHEN 'running' THEN
                RETURN QUERY SELECT * FROM pgq._list_running(v_queue, task, v_left::int, newest);
            WHEN 'ready' THEN
                RETURN QUERY SELECT * FROM pgq._list_ready(v_queue, task, v_left::int, newest);
            WHEN 'parked' THEN
                RETURN QUERY SELECT * FROM pgq._list_parked(v_queue, task, v_left::int, newest);
            ELSE
                RETURN QUERY SELECT * FROM pgq._list_scheduled(v_queue, v_state, task, v_left::int, newest);
        END CASE;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        v_left := v_left - v_count;
        EXIT WHEN v_left <= 0;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq.jobs(text, text, text, int, boolean) IS
    'Up to n live jobs of a queue (1 to 100000), in one state, of one task, or any (null): the running ones from '
    'the one that was claimed first, then ready ones by id, parked ones by id, retrying and scheduled ones by the '
    'time that they are due, and those that wait for others; newest => true turns each of these round. So that it '
    'costs the same with ten million jobs, it looks at no more than n rows of a lane and segment, or 10000 if a '
    'task is asked for, at 10000 parked and scheduled ones, and for running ones at the last n claims of a lane '
    'and segment, 1000 at least, and at those that were extended: what is beyond is left out. Raises PQ002, '
    '22023, 22004';

-- Workers -------------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.worker_stat AS (
    worker text,
    queues text ARRAY,
    leases bigint,
    jobs bigint,
    oldest timestamptz,
    expires_at timestamptz
);
COMMENT ON TYPE pgq.worker_stat IS 'A worker that holds leases';
COMMENT ON COLUMN pgq.worker_stat.worker IS 'As the worker calls itself; null: those that gave no name';
COMMENT ON COLUMN pgq.worker_stat.queues IS 'The queues that its jobs are of';
COMMENT ON COLUMN pgq.worker_stat.leases IS 'Leases under which jobs of it run';
COMMENT ON COLUMN pgq.worker_stat.jobs IS 'Jobs that it holds';
COMMENT ON COLUMN pgq.worker_stat.oldest IS 'When the one was claimed that it has held for the longest time';
COMMENT ON COLUMN pgq.worker_stat.expires_at IS
    'When the first of its leases ends; in the past: it has stopped extending them';

CREATE FUNCTION pgq.workers() RETURNS SETOF pgq.worker_stat
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
BEGIN
    RETURN QUERY
    SELECT h.worker, array_agg(DISTINCT q.name), count(*), sum(cardinality(h.ids))::bigint, min(h.claimed_at),
        min(h.expires_at)
    FROM pgq._held(NULL, 250) h
    JOIN pgq.queue q ON q.id = h.lane >> 16
    GROUP BY h.worker
    ORDER BY h.worker;
END;
$$;
COMMENT ON FUNCTION pgq.workers() IS
    'Who holds leases, by name: those that have none are not known. Looks at the last 250 claims of each lane and '
    'segment, and at those that were extended';

-- What goes on --------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.pace AS (queue_id int, enqueued float8, done float8, failed float8);
COMMENT ON TYPE pgq.pace IS 'How fast a queue goes in a segment';
COMMENT ON COLUMN pgq.pace.queue_id IS 'The queue';
COMMENT ON COLUMN pgq.pace.enqueued IS 'Jobs enqueued per second';
COMMENT ON COLUMN pgq.pace.done IS 'Jobs done per second';
COMMENT ON COLUMN pgq.pace.failed IS 'Attempts failed per second';

-- The tables are only ever appended to, so what is new is at their ends. 64 pages of each are read; if all of them
-- are of this time, they show a part of it, from their oldest row on.
CREATE FUNCTION pgq._pace_0(since timestamptz, until timestamptz) RETURNS SETOF pgq.pace
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_jobs CONSTANT tid := format('(%s,0)',
        greatest(pg_relation_size('pgq.job_0') / current_setting('block_size')::bigint - 64, 0));
    v_outcomes CONSTANT tid := format('(%s,0)',
        greatest(pg_relation_size('pgq.outcome_0') / current_setting('block_size')::bigint - 64, 0));
BEGIN
    RETURN QUERY
    WITH added AS MATERIALIZED (
        SELECT (j.lane >> 16)::int AS queue_id, j.enqueued_at AS at,
            j.enqueued_at >= since AND j.attempt = 1 AND j.lane & 127 NOT IN (0, 96, 98) AS counts
        FROM pgq.job_0 j WHERE j.ctid >= v_jobs
    ), ended AS MATERIALIZED (
        SELECT o.job_id, o.lease_id, o.at, o.kind,
            o.at >= since AND o.kind IN ('done', 'retry', 'dead', 'expired') AS counts
        FROM pgq.outcome_0 o WHERE o.ctid >= v_outcomes
    ), part (added, ended) AS (
        SELECT
            (
                SELECT CASE WHEN v_jobs > '(0,0)' AND count(*) FILTER (WHERE a.at < since) * 2 < count(*)
                    THEN min(a.at) FILTER (WHERE a.counts) END FROM added a
            ), (
                SELECT CASE WHEN v_outcomes > '(0,0)' AND count(*) FILTER (WHERE e.at < since) * 2 < count(*)
                    THEN min(e.at) FILTER (WHERE e.at >= since) END FROM ended e
            )
    ), seconds (added, ended) AS (
        SELECT greatest(date_part('epoch', until - coalesce(p.added, since)), 0.001),
            greatest(date_part('epoch', until - coalesce(p.ended, since)), 0.001)
        FROM part p
    )
    SELECT a.queue_id, count(*) / (SELECT s.added FROM seconds s), 0::float8, 0::float8
    FROM added a WHERE a.counts GROUP BY a.queue_id
    UNION ALL
    SELECT (l.lane >> 16)::int, 0::float8,
        coalesce(sum(CASE WHEN e.job_id = 0 THEN l.jobs ELSE 1 END) FILTER (WHERE e.kind = 'done'), 0)
            / (SELECT s.ended FROM seconds s),
        count(*) FILTER (WHERE e.kind <> 'done') / (SELECT s.ended FROM seconds s)
    FROM ended e CROSS JOIN LATERAL (
        SELECT l.lane, cardinality(l.job_ids) AS jobs FROM pgq.lease_0 l
        WHERE l.id = e.lease_id AND l.job_ids IS NOT NULL OFFSET 0
    ) l
    WHERE e.counts GROUP BY l.lane >> 16;
END;
$$;
COMMENT ON FUNCTION pgq._pace_0(timestamptz, timestamptz) IS
    'How fast each queue went in segment 0, from the ends of its tables';

SELECT pgq._for_each_slot('pgq._pace_0(timestamptz,timestamptz)');

-- Nothing here counts further than it must: a glance at a queue of ten million jobs costs no more than at any other.
CREATE TYPE pgq.backlog AS (queue_id int, jobs bigint, oldest timestamptz, exact boolean);
COMMENT ON TYPE pgq.backlog IS 'What a segment has ready for a queue';
COMMENT ON COLUMN pgq.backlog.queue_id IS 'The queue';
COMMENT ON COLUMN pgq.backlog.jobs IS 'Jobs that can be claimed';
COMMENT ON COLUMN pgq.backlog.oldest IS 'When the oldest of those that were looked at was enqueued';
COMMENT ON COLUMN pgq.backlog.exact IS 'Whether all were counted';

CREATE FUNCTION pgq._backlog_0(most int) RETURNS SETOF pgq.backlog
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    SELECT q.id, sum(r.jobs)::bigint, min(r.oldest), bool_and(r.jobs < most)
    FROM pgq.queue q
    CROSS JOIN LATERAL pgq._lanes_of(q) n (lane)
    LEFT JOIN LATERAL (
        SELECT c.cursor_xid, c.cursor_id, c.open_xids, c.late_xid, c.late_id
        FROM pgq.lease_0 c WHERE c.lane = n.lane ORDER BY c.lane DESC, c.id DESC LIMIT 1
    ) c ON true
    CROSS JOIN LATERAL (
        SELECT count(*) AS jobs, min(j.enqueued_at) AS oldest FROM (
            (
                SELECT j.enqueued_at FROM pgq.job_0 j
                WHERE j.lane = n.lane AND (j.xid, j.id) > (coalesce(c.cursor_xid, '0'), coalesce(c.cursor_id, 0))
                ORDER BY j.lane, j.xid, j.id
                LIMIT most
            )
            UNION ALL
            (
                SELECT j.enqueued_at
                FROM unnest(c.open_xids) o (xid) JOIN pgq.job_0 j ON j.lane = n.lane AND j.xid = o.xid
                WHERE (j.xid = c.late_xid AND j.id <= c.late_id) IS NOT TRUE
                LIMIT most
            )
        ) j
    ) r
    WHERE r.jobs > 0
    GROUP BY q.id;
END;
$$;
COMMENT ON FUNCTION pgq._backlog_0(int) IS 'What segment 0 has ready, per queue, counting this many jobs of a lane';

SELECT pgq._for_each_slot('pgq._backlog_0(int)');

-- What closed segments have ready is known without counting.
CREATE FUNCTION pgq._backlogs(most int) RETURNS SETOF pgq.backlog
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_slot int;
BEGIN
    FOREACH v_slot IN ARRAY pgq._live_slots() LOOP
        IF EXISTS (SELECT FROM pgq.segment g WHERE g.slot = v_slot AND g.state = 'closed') THEN
            RETURN QUERY
            SELECT (w.lane >> 16)::int, sum(w.jobs)::bigint, NULL::timestamptz, true
            FROM pgq._waiting(v_slot) w GROUP BY w.lane >> 16;
            RETURN QUERY SELECT b.queue_id, 0::bigint, b.oldest, true FROM pgq._backlog(v_slot, 10) b;
        ELSE
            RETURN QUERY SELECT * FROM pgq._backlog(v_slot, most);
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq._backlogs(int) IS 'What all segments have ready, per queue and segment';

CREATE TYPE pgq.queue_activity AS (
    queue text,
    paused boolean,
    ready bigint,
    running bigint,
    scheduled bigint,
    retrying bigint,
    parked bigint,
    waiting bigint,
    dead bigint,
    exact boolean,
    oldest_ready interval,
    enqueue_rate float8,
    done_rate float8,
    failure_rate float8
);
COMMENT ON TYPE pgq.queue_activity IS 'What a queue holds, counted no further than is cheap, and how fast it goes';
COMMENT ON COLUMN pgq.queue_activity.queue IS 'Queue';
COMMENT ON COLUMN pgq.queue_activity.paused IS 'Whether claims are stopped';
COMMENT ON COLUMN pgq.queue_activity.ready IS 'Jobs that can be claimed';
COMMENT ON COLUMN pgq.queue_activity.running IS 'Jobs under a lease';
COMMENT ON COLUMN pgq.queue_activity.scheduled IS 'Jobs enqueued for later';
COMMENT ON COLUMN pgq.queue_activity.retrying IS 'Failed jobs that wait for their next attempt';
COMMENT ON COLUMN pgq.queue_activity.parked IS 'Jobs that wait for a limit of their group or queue';
COMMENT ON COLUMN pgq.queue_activity.waiting IS 'Jobs that wait for other jobs to end';
COMMENT ON COLUMN pgq.queue_activity.dead IS 'Dead letters';
COMMENT ON COLUMN pgq.queue_activity.exact IS 'False: numbers of 10000 and more say how many there are at least';
COMMENT ON COLUMN pgq.queue_activity.oldest_ready IS
    'Age of the oldest job at the front of a lane, counted from enqueued_at';
COMMENT ON COLUMN pgq.queue_activity.enqueue_rate IS 'Jobs enqueued per second, but for scheduled ones';
COMMENT ON COLUMN pgq.queue_activity.done_rate IS 'Jobs done per second';
COMMENT ON COLUMN pgq.queue_activity.failure_rate IS 'Attempts that failed or expired per second';

CREATE FUNCTION pgq.activity(period interval DEFAULT '5 seconds') RETURNS SETOF pgq.queue_activity
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_most CONSTANT int := 10000;
    v_now CONSTANT timestamptz := pgq._now();
BEGIN
    PERFORM pgq._require('period', period BETWEEN '1 second' AND '1 hour', 'between 1 second and 1 hour');
    RETURN QUERY
    SELECT q.name, q.paused, coalesce(b.ready, 0), coalesce(h.running, 0), s.scheduled, s.retrying, p.parked, w.waiting,
        d.dead, coalesce(b.exact, true) AND greatest(s.jobs, p.parked, w.waiting, d.dead) < v_most, v_now - b.oldest,
        coalesce(e.enqueued, 0), coalesce(e.done, 0), coalesce(e.failed, 0)
    FROM pgq.queue q
    LEFT JOIN (
        SELECT b.queue_id, sum(b.jobs)::bigint AS ready, min(b.oldest) AS oldest, bool_and(b.exact) AS exact
        FROM pgq._backlogs(v_most) b GROUP BY b.queue_id
    ) b ON b.queue_id = q.id
    LEFT JOIN (
        SELECT (h.lane >> 16)::int AS queue_id, sum(cardinality(h.ids))::bigint AS running
        FROM pgq._held(NULL, 250) h
        GROUP BY h.lane >> 16
    ) h ON h.queue_id = q.id
    LEFT JOIN (
        SELECT e.queue_id, sum(e.enqueued) AS enqueued, sum(e.done) AS done, sum(e.failed) AS failed
        FROM pgq._filled() n CROSS JOIN LATERAL pgq._pace(n, v_now - period, v_now) e
        GROUP BY e.queue_id
    ) e ON e.queue_id = q.id
    CROSS JOIN LATERAL (
        SELECT count(*) AS jobs, count(*) FILTER (WHERE s.attempt = 1) AS scheduled,
            count(*) FILTER (WHERE s.attempt > 1) AS retrying
        FROM (
            SELECT s.attempt FROM pgq.scheduled s
            WHERE s.lane >> 16 = q.id AND s.run_at >= pgq._marked('promote') AND s.run_at < 'infinity'
            LIMIT v_most
        ) s
    ) s
    CROSS JOIN LATERAL (
        SELECT count(*) AS waiting FROM (
            SELECT FROM pgq.scheduled s WHERE s.lane >> 16 = q.id AND s.run_at = 'infinity' LIMIT v_most
        ) s
    ) w
    CROSS JOIN LATERAL (
        SELECT count(*) AS parked FROM (SELECT FROM pgq.parked p WHERE p.queue_id = q.id LIMIT v_most) p
    ) p
    CROSS JOIN LATERAL (
        SELECT count(*) AS dead FROM (SELECT FROM pgq.dead d WHERE d.lane >> 16 = q.id LIMIT v_most) d
    ) d
    ORDER BY q.name;
END;
$$;
COMMENT ON FUNCTION pgq.activity(interval) IS
    'What each queue holds and how fast it went during the last period (1 second to 1 hour), for who looks every '
    'second: as pgq.stats, but it counts no more than 10000 jobs of a lane in a segment that is not closed, 10000 '
    'scheduled, parked and dead ones, and of running ones what pgq.workers finds. Rates come from the last 64 '
    'pages of each segment''s tables. Raises 22023, 22004';

CREATE TYPE pgq.failure AS (
    id bigint,
    queue text,
    task text,
    attempt int,
    kind text,
    at timestamptz,
    worker text,
    error text
);
COMMENT ON TYPE pgq.failure IS 'An attempt that failed';
COMMENT ON COLUMN pgq.failure.id IS 'Job id';
COMMENT ON COLUMN pgq.failure.queue IS 'Queue';
COMMENT ON COLUMN pgq.failure.task IS 'What to do';
COMMENT ON COLUMN pgq.failure.attempt IS 'Number of the attempt';
COMMENT ON COLUMN pgq.failure.kind IS 'retry (there is another), dead (failed for good) or expired (its lease ended)';
COMMENT ON COLUMN pgq.failure.at IS 'When';
COMMENT ON COLUMN pgq.failure.worker IS 'Who had claimed it, as the worker calls itself';
COMMENT ON COLUMN pgq.failure.error IS 'Why it failed';

CREATE FUNCTION pgq._failed_0(n int) RETURNS SETOF pgq.failure
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_outcomes CONSTANT tid := format('(%s,0)',
        greatest(pg_relation_size('pgq.outcome_0') / current_setting('block_size')::bigint - 64, 0));
BEGIN
    RETURN QUERY
    WITH failed AS MATERIALIZED (
        SELECT * FROM pgq.outcome_0 o WHERE o.ctid >= v_outcomes AND o.kind IN ('retry', 'dead', 'expired')
        ORDER BY o.at DESC
        LIMIT n
    )
    SELECT f.job_id, q.name, a.task, a.attempt, f.kind::text, f.at, a.worker, f.error
    FROM pgq._attempts_0(ARRAY(SELECT f.job_id FROM failed f), ARRAY(SELECT f.lease_id FROM failed f)) a
    JOIN failed f ON f.job_id = a.id AND f.lease_id = a.lease
    JOIN pgq.queue q ON q.id = a.lane >> 16;
END;
$$;
COMMENT ON FUNCTION pgq._failed_0(int) IS 'The last failures in segment 0, as far as the end of its table knows them';

SELECT pgq._for_each_slot('pgq._failed_0(int)');

CREATE FUNCTION pgq.failures(n int DEFAULT 10) RETURNS SETOF pgq.failure
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
BEGIN
    PERFORM pgq._require('n', n BETWEEN 1 AND 1000, 'between 1 and 1000');
    RETURN QUERY
    SELECT f.*
    FROM (
        -- A dead letter is known from both.
        SELECT DISTINCT ON (f.id, f.attempt, f.kind) f.*
        FROM (
            SELECT f.* FROM pgq._filled() s CROSS JOIN LATERAL pgq._failed(s, n) f
            UNION ALL
            SELECT d.id, q.name, d.task, d.attempt::int, 'dead', d.died_at, d.history -> -1 ->> 'worker', d.error
            FROM pgq.queue q CROSS JOIN LATERAL (
                SELECT * FROM pgq.dead d WHERE d.lane >> 16 = q.id ORDER BY d.lane >> 16 DESC, d.died_at DESC LIMIT n
            ) d
        ) f
        ORDER BY f.id, f.attempt, f.kind, f.at DESC
    ) f
    ORDER BY f.at DESC, f.id DESC
    LIMIT n;
END;
$$;
COMMENT ON FUNCTION pgq.failures(int) IS
    'The last n attempts that failed or expired (1 to 1000), the newest first: dead letters, and what the last 64 '
    'pages of each segment''s outcomes know. pgq.attempts tells all about one job, pgq.dead_letters about a '
    'queue. Raises 22023, 22004';

>>>>>>> cli
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
