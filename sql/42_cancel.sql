-- cancel, reschedule, set_priority: taking a job back that has not been handed out, and stopping one that has.
-- Tables: job, scheduled, parked, segment_lane; lease and outcome of what is taken back; cancel_request for what runs.
--
-- A ready job lies in the range of its lane that claims will come by. To take it back is to take its row out of this
-- range: the row goes to its lane | 128, where nobody claims from, and gets there what each attempt has, a lease and an
-- outcome. So claims know nothing of this, nothing has to be looked up when they get there, and what is counted in a
-- segment, its rows and its outcomes, goes on to agree. Next to a repeat that replaces (32_unique) it is the only
-- UPDATE of a job's row; the version that it leaves behind dies with the segment.
--
-- Locks: the lane, as a claim does, until the end of the transaction; under it a job is either handed out or not. The
-- segment is held as by an INSERT, so it cannot be closed, which is when its jobs are counted. Once it is sealed the
-- ring is held as well, for it may be counting at this moment; it waits for a lane a tenth of a second at most.

-- What is ready in segment 0 -----------------------------------------------------------------------------------------

CREATE FUNCTION pgq._lanes_0(job bigint) RETURNS SETOF bigint
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY SELECT DISTINCT j.lane FROM pgq.job_0 j WHERE j.id = job AND j.lane & 128 = 0;
END;
$$;
COMMENT ON FUNCTION pgq._lanes_0(bigint) IS 'The lanes that a job was put into in segment 0, handed out or not';

SELECT pgq._for_each_slot('pgq._lanes_0(bigint)');

-- The rows that the position of the lane has not passed, and those of the transactions that were late.
CREATE FUNCTION pgq._ready_0(line bigint, ids bigint[], named text) RETURNS tid[]
    LANGUAGE plpgsql
AS $$
DECLARE
    v_at record;
BEGIN
    SELECT coalesce(l.cursor_xid, '0') AS xid, coalesce(l.cursor_id, 0) AS id, l.open_xids AS open, l.late_xid, l.late_id
    INTO v_at
    FROM (SELECT) one LEFT JOIN LATERAL (
        SELECT * FROM pgq.lease_0 l WHERE l.lane = line ORDER BY l.id DESC LIMIT 1
    ) l ON true;
    IF ids IS NOT NULL THEN
        RETURN ARRAY(
            SELECT j.ctid FROM pgq.job_0 j
            WHERE j.id = ANY (ids) AND j.lane + 0 = line
                AND ((j.xid, j.id) > (v_at.xid, v_at.id)
                    OR j.xid = ANY (v_at.open) AND (j.xid = v_at.late_xid AND j.id <= v_at.late_id) IS NOT TRUE)
        );
    END IF;
    RETURN ARRAY(
        SELECT j.ctid FROM pgq.job_0 j
        WHERE j.lane = line AND (j.xid, j.id) > (v_at.xid, v_at.id) AND (named IS NULL OR j.task = named)
        UNION ALL
        SELECT j.ctid FROM unnest(v_at.open) o (xid) JOIN pgq.job_0 j ON j.lane = line AND j.xid = o.xid
        WHERE (j.xid = v_at.late_xid AND j.id <= v_at.late_id) IS NOT TRUE AND (named IS NULL OR j.task = named)
    );
END;
$$;
COMMENT ON FUNCTION pgq._ready_0(bigint, bigint[], text) IS
    'Where the jobs of a lane that were not handed out lie in segment 0: those with these ids, or of this task, or all';

SELECT pgq._for_each_slot('pgq._ready_0(bigint,bigint[],text)');

-- The row gets this transaction's id: the newest ids of a segment are at its end (pgq._adopt_alone). The cursor says
-- that everything in this lane was handed out. `split`: see pgq._whole.
CREATE FUNCTION pgq._withdraw_0(places tid[], kind pgq.outcome_kind) RETURNS SETOF pgq.attempt
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    WITH gone AS MATERIALIZED (
        UPDATE pgq.job_0 j SET lane = j.lane | 128, xid = pg_current_xact_id() WHERE j.ctid = ANY (places) RETURNING j.*
    ), fewer AS (
        UPDATE pgq.segment_lane s SET jobs = s.jobs - g.jobs
        FROM (SELECT g.slot, g.lane & ~128::bigint AS lane, count(*) AS jobs FROM gone g GROUP BY g.slot, g.lane) g
        WHERE s.slot = g.slot AND s.lane = g.lane
    ), held AS (
        INSERT INTO pgq.lease_0 AS l (lane, expires_at, cursor_xid, cursor_id, job_ids, attempts)
        SELECT g.lane, pgq._now(), '9223372036854775807', 9223372036854775807, array_agg(g.id ORDER BY g.n),
            array_agg(g.attempt ORDER BY g.n)
        FROM (SELECT g.lane, g.id, g.attempt, row_number() OVER (PARTITION BY g.lane) - 1 AS n FROM gone g) g
        GROUP BY g.lane, g.n / 1000
        RETURNING l.id, l.job_ids
    ), ended AS (
        INSERT INTO pgq.outcome_0 (job_id, lease_id, at, kind)
        SELECT 0, h.id, pgq._now(), 'split' FROM held h WHERE pgq._whole(h.job_ids)
        UNION ALL
        SELECT u.id, h.id, pgq._now(), _withdraw_0.kind FROM held h CROSS JOIN LATERAL unnest(h.job_ids) u (id)
    )
    SELECT g.id, NULL::bigint, g.lane & ~128::bigint, g.enqueued_at, NULL::timestamptz, g.attempt::int,
        g.max_attempts::int, NULL::text, g.task, g.payload, g.headers, g.history, g.group_key
    FROM gone g;
END;
$$;
COMMENT ON FUNCTION pgq._withdraw_0(tid[], pgq.outcome_kind) IS
    'Takes jobs out of their lanes in segment 0 and ends them; the lanes are locked and the segment is held';

SELECT pgq._for_each_slot('pgq._withdraw_0(tid[],pgq.outcome_kind)');

-- What is ready anywhere ---------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._lock_lane(slot int, lane bigint) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    -- Who claims in strict order must not go by while the lane is locked.
    PERFORM pg_advisory_xact_lock(pgq._lane_key(_lock_lane.lane & ~255::bigint))
    FROM pgq.queue q WHERE q.id = _lock_lane.lane >> 16 AND q.lanes = 1;
    PERFORM pg_advisory_xact_lock(pgq._lane_key(lane));
    PERFORM pgq._lock(slot);
    IF pg_sequence_last_value('pgq.epoch') & 15 <> slot THEN
        PERFORM pg_advisory_xact_lock_shared(pgq._task_key(1));
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._lock_lane(int, bigint) IS 'Lets nobody claim from a lane, nor count the jobs of a segment';

CREATE FUNCTION pgq._withdraw_job(job bigint, kind pgq.outcome_kind) RETURNS SETOF pgq.attempt
    LANGUAGE plpgsql
AS $$
DECLARE
    v_slot int;
    v_lane bigint;
BEGIN
    FOR v_slot, v_lane IN SELECT s, l FROM pgq._filled() s, pgq._lanes(s, job) l LOOP
        CONTINUE WHEN pgq._ready(v_slot, v_lane, ARRAY[job], NULL) = '{}';
        PERFORM pgq._lock_lane(v_slot, v_lane);
        RETURN QUERY SELECT * FROM pgq._withdraw(v_slot, pgq._ready(v_slot, v_lane, ARRAY[job], NULL), kind);
        IF FOUND THEN
            RETURN;
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq._withdraw_job(bigint, pgq.outcome_kind) IS
    'Takes a job back that is ready; returns nothing if somebody was faster, or if it is not';

CREATE FUNCTION pgq._withdraw_waiting(job bigint) RETURNS SETOF pgq.attempt
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    DELETE FROM pgq.parked p WHERE p.id = job
    RETURNING p.id, NULL::bigint, p.lane, p.enqueued_at, NULL::timestamptz, p.attempt::int, p.max_attempts::int, NULL::text,
        p.task, p.payload, p.headers, p.history, nullif(p.group_key, '');
    IF NOT FOUND THEN
        RETURN QUERY SELECT * FROM pgq._withdraw_job(job, 'carried');
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._withdraw_waiting(bigint) IS 'Takes a job back that is ready or parked, to put it elsewhere';

-- A scheduled or parked job has neither lease nor outcome, and is to be seen as cancelled like all others. So it
-- becomes ready, in the eyes of this transaction only, and is taken back.
CREATE FUNCTION pgq._cancel_waiting(ids bigint[]) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_slot int := pgq._hold();
    v_lanes bigint[];
    v_count bigint;
BEGIN
    WITH gone AS (
        DELETE FROM pgq.scheduled s WHERE s.id = ANY (ids) RETURNING s.*
    ), unparked AS (
        DELETE FROM pgq.parked p WHERE p.id = ANY (ids) RETURNING p.*
    ), ready AS (
        INSERT INTO pgq.job AS j (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers, history, group_key)
        SELECT g.lane, pg_current_xact_id(), g.id, g.enqueued_at, v_slot, g.attempt, g.max_attempts, g.task, g.payload,
            g.headers, g.history, g.group_key
        FROM gone g
        UNION ALL
        SELECT u.lane, pg_current_xact_id(), u.id, u.enqueued_at, v_slot, u.attempt, u.max_attempts, u.task, u.payload,
            u.headers, u.history, nullif(u.group_key, '')
        FROM unparked u
        RETURNING j.lane, j.id
    )
    SELECT array_agg(r.id), array_agg(r.lane) INTO ids, v_lanes FROM ready r;
    SELECT count(*) INTO v_count
    FROM (
        SELECT array_agg(p) AS places
        FROM (SELECT u.lane, array_agg(u.id) AS ids FROM unnest(ids, v_lanes) u (id, lane) GROUP BY u.lane) l,
            unnest(pgq._ready(v_slot, l.lane, l.ids, NULL)) p
    ) p, pgq._withdraw(v_slot, p.places, 'cancelled');
    PERFORM pgq._hand_back(ids, 'cancelled');
    RETURN v_count;
END;
$$;
COMMENT ON FUNCTION pgq._cancel_waiting(bigint[]) IS 'Cancels scheduled and parked jobs; returns how many';

-- Cancel -------------------------------------------------------------------------------------------------------------

-- A running job is asked to stop. It may come back at the same moment, by a transaction that does not see the request
-- yet; so the request stays until the job has ended for good, and pgq.maintain looks after it.
CREATE FUNCTION pgq._cancel(id bigint) RETURNS text
    LANGUAGE plpgsql
AS $$
DECLARE
    v_answer text;
BEGIN
    WHILE v_answer IS NULL LOOP
        CASE coalesce((SELECT s.state FROM pgq.job_status(_cancel.id) s), 'not found')
            WHEN 'scheduled', 'waiting', 'retrying', 'parked' THEN
                IF pgq._cancel_waiting(ARRAY[id]) > 0 THEN
                    v_answer := 'cancelled';
                END IF;
            WHEN 'ready' THEN
                IF EXISTS (SELECT FROM pgq._withdraw_job(_cancel.id, 'cancelled')) THEN
                    PERFORM pgq._hand_back(ARRAY[id], 'cancelled');
                    v_answer := 'cancelled';
                END IF;
            WHEN 'running' THEN
                INSERT INTO pgq.cancel_request (id, at) VALUES (_cancel.id, pgq._now()) ON CONFLICT DO NOTHING;
                IF (SELECT s.state FROM pgq.job_status(_cancel.id) s) = 'running' THEN
                    RETURN 'requested';
                END IF;
            WHEN 'cancelled' THEN
                v_answer := 'cancelled';
            WHEN 'not found' THEN
                v_answer := 'not found';
            ELSE
                v_answer := 'finished';
        END CASE;
    END LOOP;
    DELETE FROM pgq.cancel_request c WHERE c.id = _cancel.id;
    RETURN v_answer;
END;
$$;
COMMENT ON FUNCTION pgq._cancel(bigint) IS 'What pgq.cancel does';

CREATE FUNCTION pgq.cancel(id bigint) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET plan_cache_mode = force_generic_plan SET jit = off SET lock_timeout = '5s'
AS $$
BEGIN
    PERFORM pgq._read_committed();
    PERFORM pgq._require('id', id IS NOT NULL OR NULL, 'the id of a job');
    RETURN pgq._cancel(id);
END;
$$;
COMMENT ON FUNCTION pgq.cancel(bigint) IS
    'Cancels a job. ''cancelled'': it was waiting, or had been cancelled, and no worker will get it. ''requested'': it is '
    'running; its worker learns from pgq.cancel_requested, and it is not tried again. ''finished'': done or dead. '
    '''not found''. Keep the transaction short: until it ends nobody claims from the job''s lane. Raises PQ003, 22004, 55P03 '
    'if a claiming transaction does not end within five seconds';

CREATE FUNCTION pgq.cancel_many(queue text, task text DEFAULT NULL, running boolean DEFAULT false) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off
    SET plan_cache_mode = force_generic_plan SET jit = off SET lock_timeout = '5s'
AS $$
DECLARE
    v_queue pgq.queue;
    v_lane bigint;
    v_slot int;
    v_places tid[];
    v_gone bigint[];
    v_count bigint;
    v_total bigint;
BEGIN
    PERFORM pgq._read_committed();
    PERFORM pgq._require('running', running IS NOT NULL OR NULL, 'true or false');
    v_queue := pgq._find_queue(queue);
    PERFORM pg_advisory_xact_lock(pgq._gate_key(v_queue.id));
    -- In the order in which jobs go on, so that none slips through.
    v_total := pgq._cancel_waiting(ARRAY(
        SELECT s.id FROM pgq.scheduled s
        WHERE s.lane >> 16 = v_queue.id AND (cancel_many.task IS NULL OR s.task = cancel_many.task)
        UNION ALL
        SELECT p.id FROM pgq.parked p
        WHERE p.queue_id = v_queue.id AND (cancel_many.task IS NULL OR p.task = cancel_many.task)
    ));
    FOR v_lane IN SELECT pgq._lanes_of(v_queue) LOOP
        PERFORM pg_advisory_xact_lock(pgq._lane_key(v_lane));
        FOR v_slot IN SELECT pgq._filled() LOOP
            v_places := pgq._ready(v_slot, v_lane, NULL, task);
            CONTINUE WHEN v_places = '{}';
            PERFORM pgq._lock_lane(v_slot, v_lane);
            IF cardinality(v_places) = cardinality(pgq._ready(v_slot, v_lane, NULL, NULL)) THEN
                -- The lane is taken to its end, as pgq.purge does: nobody has to walk over what has been here. Not if a
                -- job of another task has been committed meanwhile.
                BEGIN
                    v_count := pgq._empty_lane(v_slot, v_lane);
                    IF v_count <> cardinality(v_places) AND task IS NOT NULL THEN
                        RAISE EXCEPTION 'others have come';
                    END IF;
                    v_total := v_total + v_count;
                    v_places := pgq._ready(v_slot, v_lane, NULL, task);
                EXCEPTION WHEN raise_exception THEN
                    NULL;
                END;
            END IF;
            v_gone := ARRAY(SELECT w.id FROM pgq._withdraw(v_slot, v_places, 'cancelled') w);
            PERFORM pgq._hand_back(v_gone, 'cancelled');
            v_total := v_total + cardinality(v_gone);
        END LOOP;
    END LOOP;
    IF running THEN
        INSERT INTO pgq.cancel_request (id, at)
        SELECT a.id, pgq._now()
        FROM (
            SELECT array_agg(r.id) AS ids, array_agg(r.lease) AS leases
            FROM (
                SELECT r.id, r.lease FROM pgq._filled() s, pgq._running(s, v_queue.id) r
                UNION ALL
                SELECT s.id, s.lease FROM pgq.straggler s WHERE s.lane >> 16 = v_queue.id AND s.kind IS NULL
            ) r
        ) r, pgq._attempts(r.ids, r.leases) a
        WHERE cancel_many.task IS NULL OR a.task = cancel_many.task
        ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        v_total := v_total + v_count;
    END IF;
    RETURN v_total;
END;
$$;
COMMENT ON FUNCTION pgq.cancel_many(text, text, boolean) IS
    'Cancels the waiting, scheduled and retrying jobs of a queue, all or those of a task; with running, asks the running ones '
    'to stop, as pgq.cancel does. Returns how many. Nobody claims from the queue until the transaction ends. Raises PQ002, '
    'PQ003, 22004, 55P03 if a claiming transaction does not end within five seconds';

CREATE FUNCTION pgq._asked_0(leases bigint[]) RETURNS SETOF bigint
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    SELECT u.id FROM pgq.unsettled_0 u
    WHERE u.lease = ANY (leases) AND EXISTS (SELECT FROM pgq.cancel_request c WHERE c.id = u.id OFFSET 0);
END;
$$;
COMMENT ON FUNCTION pgq._asked_0(bigint[]) IS 'Running jobs under leases of segment 0 that are asked to stop';

SELECT pgq._for_each_slot('pgq._asked_0(bigint[])');

CREATE FUNCTION pgq.cancel_requested(leases bigint[]) RETURNS SETOF bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off
    SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
BEGIN
    PERFORM pgq._require('leases', leases IS NOT NULL OR NULL, 'an array of leases');
    IF NOT EXISTS (SELECT FROM pgq.cancel_request) THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT a.id
    FROM (SELECT DISTINCT (u.lease & 15)::int AS slot FROM unnest(leases) u (lease) WHERE u.lease IS NOT NULL) s,
        pgq._asked(s.slot, leases) a (id)
    UNION
    SELECT s.id FROM pgq.straggler s
    WHERE s.lease = ANY (leases) AND s.kind IS NULL AND EXISTS (SELECT FROM pgq.cancel_request c WHERE c.id = s.id OFFSET 0);
END;
$$;
COMMENT ON FUNCTION pgq.cancel_requested(bigint[]) IS
    'Which running jobs under these leases are asked to stop (pgq.cancel). Ask when extending them. A job that is stopped '
    'is settled as any other: rejected or released, it ends as cancelled; acknowledged, it is done. Raises 22004';

-- The request that _fail looks for is made here, and gone with it.
CREATE FUNCTION pgq.cancel_claimed(id bigint, lease bigint, reason text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
BEGIN
    INSERT INTO pgq.cancel_request (id, at)
    SELECT a.id, pgq._now() FROM pgq._attempts(ARRAY[id], ARRAY[lease]) a
    ON CONFLICT DO NOTHING;
    PERFORM pgq._fail(ARRAY[id], ARRAY[lease], ARRAY[reason], NULL, false, false);
    IF NOT FOUND THEN
        PERFORM pgq._lost(id, lease);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq.cancel_claimed(bigint, bigint, text) IS
    'Ends a claimed job as cancelled, with this reason as its error: there is neither another attempt nor a dead letter. '
    'Raises PQ001 if the lease is lost';

-- What was acknowledged leaves its request behind, and what came back unseen is cancelled here.
CREATE FUNCTION pgq._pursue() RETURNS void
    LANGUAGE plpgsql SET lock_timeout = '50ms'
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_id bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM pgq.cancel_request)
        OR NOT pg_try_advisory_xact_lock(pgq._task_key(7)) OR NOT pgq._due_again('cancel', '1 second') THEN
        RETURN;
    END IF;
    FOR v_id IN SELECT c.id FROM pgq.cancel_request c ORDER BY random() LIMIT 100 LOOP
        BEGIN
            PERFORM pgq._cancel(v_id);
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            NULL;
        END;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq._pursue() IS 'Looks after jobs that were asked to stop, until they have ended';

-- Another time, another priority -------------------------------------------------------------------------------------

-- A job that waits for others goes on to wait for them.
CREATE FUNCTION pgq._put_off(job bigint, run_at timestamptz) RETURNS SETOF bigint
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    UPDATE pgq.scheduled s
    SET run_at = CASE WHEN s.run_at < 'infinity' THEN greatest(_put_off.run_at, pgq._now()) ELSE s.run_at END
    WHERE s.id = job
    RETURNING s.id;
    UPDATE pgq.dependent t SET not_before = _put_off.run_at
    FROM pgq.scheduled s WHERE t.job_id = job AND s.id = job AND s.run_at = 'infinity';
END;
$$;
COMMENT ON FUNCTION pgq._put_off(bigint, timestamptz) IS 'Gives a scheduled job another time; returns it';

CREATE FUNCTION pgq.reschedule(id bigint, run_at timestamptz) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET plan_cache_mode = force_generic_plan SET jit = off SET lock_timeout = '5s'
AS $$
DECLARE
    v_job record;
BEGIN
    PERFORM pgq._read_committed();
    PERFORM pgq._require('id', id IS NOT NULL OR NULL, 'the id of a job');
    PERFORM pgq._require('run_at', isfinite(run_at), 'a finite time');
    LOOP
        SELECT s.state, s.queue INTO v_job FROM pgq.job_status(reschedule.id) s;
        IF v_job.state IN ('scheduled', 'waiting', 'retrying') THEN
            PERFORM pgq._put_off(id, run_at);
        ELSIF (v_job.state IN ('ready', 'parked')) IS NOT TRUE THEN
            RETURN false;
        ELSIF run_at <= pgq._now() THEN
            RETURN true;
        ELSE
            PERFORM pgq._hold(), pgq._producing(v_job.queue);
            INSERT INTO pgq.scheduled (run_at, id, lane, enqueued_at, attempt, max_attempts, task, payload, headers, history, group_key)
            SELECT reschedule.run_at, w.id, pgq._home(w.lane, w.id, q.shards), w.enqueued_at, w.attempt, w.max_attempts,
                w.task, w.payload, w.headers, w.history, w.group_key
            FROM pgq._withdraw_waiting(reschedule.id) w JOIN pgq.queue q ON q.id = w.lane >> 16;
        END IF;
        IF FOUND THEN
            RETURN true;
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq.reschedule(bigint, timestamptz) IS
    'Lets a job that is scheduled, ready, parked or retrying wait until run_at; what is over by now is due now. One that waits '
    'for others goes on to wait for them, and until run_at at least. Returns false, and '
    'changes nothing, if the job is running, has ended or is unknown. Keep the transaction short, as for pgq.cancel. '
    'Raises PQ003, 22023, 22004, 55P03 if a claiming transaction does not end within five seconds';

CREATE FUNCTION pgq.set_priority(id bigint, priority int) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET plan_cache_mode = force_generic_plan SET jit = off SET lock_timeout = '5s'
AS $$
DECLARE
    v_job record;
    v_queue pgq.queue;
    v_slot int;
    v_lane bigint;
BEGIN
    PERFORM pgq._read_committed();
    PERFORM pgq._require('id', id IS NOT NULL OR NULL, 'the id of a job');
    PERFORM pgq._require('priority', priority BETWEEN -100 AND 100, 'between -100 (runs first) and 100 (runs last)');
    LOOP
        SELECT s.state, s.queue INTO v_job FROM pgq.job_status(set_priority.id) s;
        IF v_job.state IN ('scheduled', 'waiting', 'retrying', 'ready', 'parked') IS NOT TRUE THEN
            RETURN false;
        END IF;
        v_slot := pgq._hold();
        v_queue := pgq._producing(v_job.queue);
        IF v_job.state IN ('ready', 'parked') THEN
            IF EXISTS (
                SELECT FROM pgq.parked p WHERE p.id = set_priority.id AND p.priority = set_priority.priority
                UNION ALL
                SELECT FROM pgq._filled() s, pgq._lanes(s, set_priority.id) l
                WHERE pgq._priority(l) = set_priority.priority AND pgq._ready(s, l, ARRAY[set_priority.id], NULL) <> '{}'
            ) THEN
                RETURN true;
            END IF;
            INSERT INTO pgq.job AS j (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers, history,
                group_key)
            SELECT pgq._new_lane(v_queue.id, v_queue.shards, set_priority.priority, w.id, w.group_key), pg_current_xact_id(), w.id,
                w.enqueued_at, v_slot, w.attempt, w.max_attempts, w.task, w.payload, w.headers, w.history, w.group_key
            FROM pgq._withdraw_waiting(set_priority.id) w
            RETURNING j.lane INTO v_lane;
        ELSE
            UPDATE pgq.scheduled s SET lane = pgq._new_lane(v_queue.id, v_queue.shards, set_priority.priority, s.id, s.group_key)
            WHERE s.id = set_priority.id
            RETURNING s.lane INTO v_lane;
        END IF;
        IF FOUND THEN
            PERFORM pgq._add_line(v_lane);
            PERFORM pgq._wake(v_queue.id, v_queue.name);
            RETURN true;
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq.set_priority(bigint, int) IS
    'Gives a job that is scheduled, ready, parked or retrying another priority; a ready one joins the end of its new line. Returns '
    'false, and changes nothing, if the job is running, has ended or is unknown. Keep the transaction short, as for '
    'pgq.cancel. Raises PQ003, 22023, 22004, 55P03 if a claiming transaction does not end within five seconds';
