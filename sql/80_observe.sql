-- job_status, stats, the doctor.

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
COMMENT ON COLUMN pgq.job_state.state IS 'scheduled, ready, running, retrying, parked, done, dead or cancelled';
COMMENT ON COLUMN pgq.job_state.attempt IS 'Number of the attempt: the one running, the last one, or the one to come';
COMMENT ON COLUMN pgq.job_state.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.job_state.run_at IS 'When it is due, if it is scheduled or retrying';
COMMENT ON COLUMN pgq.job_state.started_at IS 'When the attempt was claimed';
COMMENT ON COLUMN pgq.job_state.finished_at IS 'When the job ended';
COMMENT ON COLUMN pgq.job_state.result IS 'What the handler returned';
COMMENT ON COLUMN pgq.job_state.error IS 'The last error';

-- The rows of a job in segment 0. One has been taken if its lane's position has passed it. Then the lease is looked for
-- from the newest back.
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
        j.attempt::int, j.enqueued_at, NULL::timestamptz, l.claimed_at, o.at, coalesce(o.result, o.results[l.position]),
        coalesce(o.error, j.history -> -1 ->> 'error')
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
    LEFT JOIN LATERAL (
        SELECT l.id, l.claimed_at, array_position(l.job_ids, job) AS position
        FROM pgq.lease_0 l
        WHERE l.lane = j.lane AND job = ANY (l.job_ids)
            AND coalesce(l.attempts[array_position(l.job_ids, job)], 1) = j.attempt
            AND (j.xid, j.id) <= (c.cursor_xid, c.cursor_id)
            AND (j.xid <> ALL (coalesce(c.open_xids, '{}')) OR j.xid = c.late_xid AND j.id <= c.late_id)
        ORDER BY l.lane DESC, l.id DESC
        LIMIT 1
    ) l ON true
    LEFT JOIN pgq.outcome_0 o ON o.lease_id = l.id AND o.job_id IN (0, j.id) AND o.kind <> 'split';
END;
$$;
COMMENT ON FUNCTION pgq._find_0(bigint) IS 'What segment 0 knows of a job';

SELECT pgq._for_each_slot('pgq._find_0(bigint)');

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
    SELECT s.id, q.name, s.task, CASE WHEN s.attempt = 1 THEN 'scheduled' ELSE 'retrying' END, s.attempt::int,
        s.enqueued_at, s.run_at, NULL::timestamptz, NULL::timestamptz, NULL::jsonb, s.history -> -1 ->> 'error'
    FROM pgq.scheduled s JOIN pgq.queue q ON q.id = s.lane >> 16
    WHERE s.id = job_status.id;
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
    SELECT a.id, a.queue, a.task, a.kind::text, a.attempt::int, a.enqueued_at, NULL::timestamptz, a.started_at,
        a.finished_at, a.result, a.error
    FROM pgq.archive a
    WHERE a.id = job_status.id AND a.kind IN ('done', 'cancelled')
    ORDER BY a.finished_at DESC
    LIMIT 1;
END;
$$;
COMMENT ON FUNCTION pgq.job_status(bigint) IS
    'Where a job stands: one row, or none if it is unknown or its archive was dropped';

-- Queues --------------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.queue_stat AS (
    queue text,
    paused boolean,
    ready bigint,
    running bigint,
    scheduled bigint,
    retrying bigint,
    dead bigint,
    oldest_ready interval
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
    JOIN (SELECT DISTINCT l.queue_id, l.lane FROM pgq.line l) l ON l.queue_id = q.id
    CROSS JOIN LATERAL generate_series(l.lane, l.lane + (l.lane & 255) * (q.lanes - 1)) n (lane)
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
        coalesce(s.retrying, 0), coalesce(d.dead, 0), pgq._now() - c.oldest
    FROM pgq.queue q
    LEFT JOIN (
        SELECT c.queue_id, sum(c.ready)::bigint AS ready, sum(c.running)::bigint AS running, min(c.oldest) AS oldest
        FROM pgq._counts() c GROUP BY c.queue_id
    ) c ON c.queue_id = q.id
    LEFT JOIN (
        SELECT s.lane >> 16 AS queue_id, count(*) FILTER (WHERE s.attempt = 1) AS scheduled,
            count(*) FILTER (WHERE s.attempt > 1) AS retrying
        FROM pgq.scheduled s GROUP BY s.lane >> 16
    ) s ON s.queue_id = q.id
    LEFT JOIN (
        SELECT d.lane >> 16 AS queue_id, count(*) AS dead FROM pgq.dead d GROUP BY d.lane >> 16
    ) d ON d.queue_id = q.id
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

CREATE FUNCTION pgq.version() RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT '0.1.0'::pg_catalog.text $$;
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
