-- promote, reap, rotate, maintain. Each does what is due, in bounded steps; any number may call them at any time.
-- Tables: scheduled to job; expired leases to job or dead; the ring; segments to the archive.

CREATE FUNCTION pgq._marked(kind text) RETURNS timestamptz
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN coalesce(
        (SELECT m.at FROM pgq.mark m WHERE m.kind = _marked.kind ORDER BY m.kind DESC, m.seq DESC LIMIT 1), '-infinity'::timestamptz
    );
END;
$$;
COMMENT ON FUNCTION pgq._marked(text) IS 'How far a maintenance task has come';

CREATE FUNCTION pgq._set_mark(kind text, at timestamptz) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO pgq.mark AS m (kind, at) VALUES (_set_mark.kind, _set_mark.at);
    DELETE FROM pgq.mark m
    WHERE m.kind = _set_mark.kind
        AND m.seq < (SELECT n.seq FROM pgq.mark n WHERE n.kind = _set_mark.kind ORDER BY n.kind DESC, n.seq DESC LIMIT 1);
END;
$$;
COMMENT ON FUNCTION pgq._set_mark(text, timestamptz) IS 'Writes down how far a maintenance task has come';

-- Once in a while a task looks at everything, and not only at what is newer than its mark: a transaction may have
-- committed late.
CREATE FUNCTION pgq._due_again(kind text, pause interval) RETURNS boolean
    LANGUAGE plpgsql
AS $$
BEGIN
    IF pgq._marked(kind) + pause > pgq._now() THEN
        RETURN false;
    END IF;
    PERFORM pgq._set_mark(kind, pgq._now());
    RETURN true;
END;
$$;
COMMENT ON FUNCTION pgq._due_again(text, interval) IS 'True once per pause';

-- Promote -------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq.promote() RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_batch CONSTANT int := 10000;
    v_now CONSTANT timestamptz := pgq._now();
    v_since timestamptz;
    v_slot int;
    v_lanes bigint[];
    v_last timestamptz;
    v_count bigint;
    v_fired bigint;
BEGIN
    PERFORM pgq._read_committed();
    v_fired := pgq._fire();
    IF NOT pg_try_advisory_xact_lock(pgq._task_key(3)) THEN
        RETURN v_fired;
    END IF;
    v_since := CASE WHEN pgq._due_again('promote-all', '1 minute') THEN '-infinity'::timestamptz ELSE pgq._marked('promote') END;
    PERFORM FROM pgq.scheduled s WHERE s.run_at >= v_since AND s.run_at <= v_now ORDER BY s.run_at LIMIT 1;
    IF NOT FOUND THEN
        RETURN v_fired;
    END IF;

    v_slot := pgq._hold();
    WITH due AS MATERIALIZED (
        SELECT s.id FROM pgq.scheduled s
        WHERE s.run_at >= v_since AND s.run_at <= v_now
        ORDER BY s.run_at
        LIMIT v_batch
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM pgq.scheduled s USING due WHERE s.id = due.id RETURNING s.*
    ), ready AS (
        INSERT INTO pgq.job (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers, history, group_key)
        SELECT g.lane, pg_current_xact_id(), g.id, g.enqueued_at, v_slot, g.attempt, g.max_attempts, g.task, g.payload,
            g.headers, g.history, g.group_key
        FROM gone g JOIN pgq.queue q ON q.id = g.lane >> 16
    )
    SELECT array_agg(DISTINCT pgq._line(g.lane)), max(g.run_at), count(*) INTO v_lanes, v_last, v_count FROM gone g;
    IF v_count > 0 THEN
        PERFORM pgq._add_line(l.lane), pgq._wake(q.id, q.name)
        FROM unnest(v_lanes) l (lane) JOIN pgq.queue q ON q.id = l.lane >> 16;
        -- What fails and shall be tried again at once may be committed a moment later.
        PERFORM pgq._set_mark('promote', CASE WHEN v_count < v_batch THEN v_now - interval '5 seconds' ELSE v_last END);
    END IF;
    RETURN v_fired + v_count;
END;
$$;
COMMENT ON FUNCTION pgq.promote() IS
    'Makes jobs ready that are due: scheduled ones and retries, up to 10000 at a time, and those of schedules. Returns how '
    'many. Raises PQ003';

-- Reap ----------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._expired_0(since timestamptz, until timestamptz, n int) RETURNS SETOF pgq.settled
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    SELECT u.id, e.id
    FROM (
        SELECT DISTINCT e.id FROM pgq.lease_0 e
        WHERE e.expires_at > since AND e.expires_at <= until
            AND (SELECT max(x.expires_at) FROM (SELECT x.expires_at FROM pgq.lease_0 x WHERE x.id = e.id OFFSET 0) x) <= until
    ) e
    CROSS JOIN LATERAL (SELECT u.id FROM pgq.unsettled_0 u WHERE u.lease = e.id OFFSET 0) u
    LIMIT n;
END;
$$;
COMMENT ON FUNCTION pgq._expired_0(timestamptz, timestamptz, int) IS
    'Attempts in segment 0 whose lease ended in an interval and that have no outcome';

SELECT pgq._for_each_slot('pgq._expired_0(timestamptz,timestamptz,int)');

-- An ack that is written but not committed makes the reaper wait for the end of its transaction. It gives up after a
-- moment, and tries the others one lease at a time.
CREATE FUNCTION pgq._reap(ids bigint[], leases bigint[]) RETURNS bigint
    LANGUAGE plpgsql SET lock_timeout = '50ms'
AS $$
DECLARE
    v_count bigint;
    v_total bigint := 0;
    v_skipped int := 0;
    v_lease bigint;
BEGIN
    SELECT count(*) INTO v_total
    FROM pgq._fail(ids, leases, array_fill('lease expired'::text, ARRAY[cardinality(ids)]), NULL, true, true);
    RETURN v_total;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    FOR v_lease IN SELECT DISTINCT u.lease FROM unnest(leases) u (lease) LOOP
        BEGIN
            SELECT count(*) INTO v_count
            FROM (
                SELECT array_agg(u.id) AS ids, array_agg(u.lease) AS leases, array_agg('lease expired'::text) AS errors
                FROM unnest(_reap.ids, _reap.leases) u (id, lease) WHERE u.lease = v_lease
            ) o, pgq._fail(o.ids, o.leases, o.errors, NULL, true, true);
            v_total := v_total + v_count;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            v_skipped := v_skipped + 1;
            EXIT WHEN v_skipped = 10;
        END;
    END LOOP;
    RETURN v_total;
END;
$$;
COMMENT ON FUNCTION pgq._reap(bigint[], bigint[]) IS 'Ends expired attempts, those that nobody is ending at this moment';

CREATE FUNCTION pgq.reap() RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off
    SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_batch CONSTANT int := 10000;
    v_now CONSTANT timestamptz := pgq._now();
    v_since timestamptz;
    v_ids bigint[];
    v_leases bigint[];
    v_found boolean := false;
    v_complete boolean := true;
    v_ended bigint;
    v_total bigint := 0;
BEGIN
    PERFORM pgq._read_committed();
    IF NOT pg_try_advisory_xact_lock(pgq._task_key(2)) THEN
        RETURN 0;
    END IF;
    v_since := CASE WHEN pgq._due_again('reap-all', '5 minutes') THEN '-infinity'::timestamptz ELSE pgq._marked('reap') END;
    FOR v_slot IN 0..15 LOOP
        CONTINUE WHEN pg_relation_size(format('pgq.lease_%s', v_slot)::regclass) = 0;
        SELECT array_agg(e.id), array_agg(e.lease) INTO v_ids, v_leases
        FROM pgq._expired(v_slot, v_since, v_now, v_batch) e;
        CONTINUE WHEN v_ids IS NULL;
        v_found := true;
        v_ended := pgq._reap(v_ids, v_leases);
        v_complete := v_complete AND cardinality(v_ids) < v_batch AND v_ended = cardinality(v_ids);
        v_total := v_total + v_ended;
    END LOOP;

    SELECT array_agg(s.id), array_agg(s.lease) INTO v_ids, v_leases
    FROM (
        SELECT s.id, s.lease FROM pgq.straggler s
        WHERE s.expires_at <= v_now AND s.kind IS NULL
            AND coalesce(pgq._expiry((s.lease & 15)::int, s.lease) <= v_now, true)
        LIMIT v_batch
        FOR UPDATE SKIP LOCKED
    ) s;
    IF v_ids IS NOT NULL THEN
        v_total := v_total + pgq._reap(v_ids, v_leases);
    END IF;
    IF v_complete AND (v_found OR pgq._marked('reap') + '1 second' < v_now) THEN
        PERFORM pgq._set_mark('reap', v_now);
    END IF;
    RETURN v_total;
END;
$$;
COMMENT ON FUNCTION pgq.reap() IS
    'Ends attempts whose lease has expired: the job gets another attempt at the front of the line, or becomes a dead '
    'letter. Up to 10000 per segment and call; returns how many. Raises PQ003';

-- Rotate --------------------------------------------------------------------------------------------------------------

-- A partition per day, or per month for what is kept longer than six weeks. It is made apart and then attached, which
-- goes along with readers (a dump); CREATE TABLE ... PARTITION OF would wait for them and hold everybody up.
CREATE FUNCTION pgq._archive_partition(at timestamptz) RETURNS void
    LANGUAGE plpgsql SET timezone = 'UTC' SET datestyle = 'ISO' SET default_tablespace = ''
AS $$
DECLARE
    v_unit text := CASE WHEN date_trunc('month', at) < pgq._now() + '45 days' THEN 'day' ELSE 'month' END;
    v_from timestamptz := date_trunc(v_unit, at);
    v_to timestamptz := v_from + ('1 ' || v_unit)::interval;
    v_name text := 'archive_' || to_char(v_from, 'YYYYMMDD') || '_' || to_char(v_to, 'YYYYMMDD');
BEGIN
    IF EXISTS (
        SELECT FROM pg_class c
        WHERE c.relnamespace = 'pgq'::regnamespace AND c.relname ~ '^archive_[0-9]{8}_[0-9]{8}$'
            AND at >= split_part(c.relname, '_', 2)::timestamptz AND at < split_part(c.relname, '_', 3)::timestamptz
    ) THEN
        RETURN;
    END IF;
    -- What is only added to and then dropped whole needs no vacuum, but for what an administrator deletes.
    EXECUTE format('CREATE TABLE pgq.%I (LIKE pgq.archive INCLUDING COMMENTS) WITH (autovacuum_vacuum_insert_threshold = -1)', v_name);
    EXECUTE format('REVOKE ALL ON TABLE pgq.%I FROM PUBLIC', v_name);  -- whatever the owner's default privileges say
    EXECUTE format('REVOKE ALL ON TYPE pgq.%I FROM PUBLIC', v_name);
    EXECUTE format('COMMENT ON TABLE pgq.%I IS %L', v_name, format('To be dropped after %s', v_to));
    EXECUTE format('CREATE INDEX %I ON pgq.%I (id)', v_name || '_id_idx', v_name);
    EXECUTE format('ALTER TABLE pgq.archive ATTACH PARTITION pgq.%I FOR VALUES FROM (%L) TO (%L)', v_name, v_from, v_to);
END;
$$;
COMMENT ON FUNCTION pgq._archive_partition(timestamptz) IS 'Makes sure that the archive takes rows to be dropped then';

-- One that somebody reads, or that something depends on (a view), stays until the next time, and holds up no other.
CREATE FUNCTION pgq._archive_drop() RETURNS int
    LANGUAGE plpgsql SET timezone = 'UTC' SET datestyle = 'ISO' SET lock_timeout = '20ms'
AS $$
DECLARE
    v_name text;
    v_count int := 0;
BEGIN
    FOR v_name IN
        SELECT c.relname FROM pg_class c
        WHERE c.relnamespace = 'pgq'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^archive_[0-9]{8}_[0-9]{8}$'
            AND split_part(c.relname, '_', 3)::timestamptz < pgq._now()
        ORDER BY c.relname
    LOOP
        BEGIN
            EXECUTE format('DROP TABLE pgq.%I', v_name);
            v_count := v_count + 1;
        EXCEPTION WHEN lock_not_available OR deadlock_detected OR dependent_objects_still_exist THEN
            NULL;
        END;
    END LOOP;
    RETURN v_count;
END;
$$;
COMMENT ON FUNCTION pgq._archive_drop() IS 'Drops archive partitions whose time is over, unless somebody reads them';

-- Copies the next outcomes of a drained segment, and all that belongs to them, to the archive: up to 200 blocks, or
-- some 10,000 jobs. Nothing there changes any more, so it needs no lock. Returns whether the whole segment is copied.
-- From the outcomes to what belongs to them, each by its index: nobody analyses these tables, so a plan that is left
-- its choice may read all leases in each step, or remember each job under the whole array of its lease's jobs.
CREATE FUNCTION pgq._archive_segment(slot int) RETURNS boolean
    LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET enable_memoize = off SET jit = off SET lock_timeout = '50ms'
AS $$
DECLARE
    v_blocks bigint := pg_relation_size(format('pgq.outcome_%s', slot)::regclass) / current_setting('block_size')::int;
    v_after tid := (SELECT coalesce(s.archived_to, '(0,0)') FROM pgq.segment s WHERE s.slot = _archive_segment.slot);
    v_end bigint := split_part(trim('(' FROM v_after::text), ',', 1)::bigint + 200;
    v_last tid;
    v_from timestamptz;
    v_to timestamptz;
    v_complete boolean;
BEGIN
    IF NOT EXISTS (SELECT FROM pgq.queue q WHERE q.retention > '0') AND NOT EXISTS (SELECT FROM pgq.unique_key) THEN
        RETURN true;
    END IF;
    EXECUTE format($sql$
        SELECT max(n.place) FILTER (WHERE n.before < 10000), min(n.at), max(n.at), bool_and(n.before < 10000)
        FROM (
            SELECT o.ctid AS place, o.at, sum(e.jobs) OVER (ORDER BY o.ctid) - e.jobs AS before
            FROM pgq.outcome_%1$s o
            CROSS JOIN LATERAL (
                SELECT CASE WHEN o.job_id > 0 THEN 1 ELSE (
                    SELECT cardinality(l.job_ids) FROM pgq.lease_%1$s l WHERE l.id = o.lease_id AND l.job_ids IS NOT NULL
                ) END
            ) e (jobs)
            WHERE o.ctid > $1 AND o.ctid < $2
        ) n
    $sql$, slot)
    INTO v_last, v_from, v_to, v_complete
    USING v_after, format('(%s,0)', v_end)::tid;
    IF v_last IS NOT NULL THEN
        PERFORM pgq._archive_partition(d)
        FROM (SELECT DISTINCT q.retention FROM pgq.queue q WHERE q.retention > '0') q,
            generate_series(v_from + q.retention, v_to + q.retention + '1 day', '1 day') d;
        EXECUTE format($sql$
            INSERT INTO pgq.archive (id, lease, enqueued_at, started_at, finished_at, drop_after, kind, attempt, priority,
                queue, worker, task, payload, headers, result, error)
            SELECT e.id, l.id, j.enqueued_at, coalesce(l.claimed_at, o.at), o.at, o.at + q.retention, o.kind, j.attempt,
                pgq._priority(l.lane), q.name, l.worker, j.task, j.payload, j.headers, e.result, o.error
            FROM (SELECT * FROM pgq.outcome_%1$s o WHERE o.ctid > $1 AND o.ctid <= $2 OFFSET 0) o
            CROSS JOIN LATERAL (
                SELECT * FROM pgq.lease_%1$s l WHERE l.id = o.lease_id AND l.job_ids IS NOT NULL OFFSET 0
            ) l
            JOIN pgq.queue q ON q.id = l.lane >> 16
            CROSS JOIN LATERAL (
                SELECT o.job_id AS id, l.attempts[array_position(l.job_ids, o.job_id)] AS attempt, o.result WHERE o.job_id > 0
                UNION ALL
                SELECT u.* FROM unnest(l.job_ids, l.attempts, o.results) u (id, attempt, result) WHERE o.job_id = 0
            ) e
            CROSS JOIN LATERAL (
                SELECT * FROM pgq.job_%1$s j
                WHERE j.id = e.id AND j.lane + 0 = l.lane AND j.attempt = coalesce(e.attempt, 1)
                ORDER BY j.xid > l.cursor_xid, j.xid DESC
                LIMIT 1
            ) j
            WHERE q.retention > '0' AND o.kind NOT IN ('released', 'snoozed', 'carried', 'moved', 'split')
        $sql$, slot)
        USING v_after, v_last;
        IF EXISTS (SELECT FROM pgq.unique_key) THEN
            EXECUTE format($sql$
                SELECT pgq._drop_keys(array_agg(e.id))
                FROM pgq.outcome_%1$s o
                CROSS JOIN LATERAL (
                    SELECT o.job_id AS id WHERE o.job_id > 0
                    UNION ALL
                    SELECT unnest(l.job_ids) FROM pgq.lease_%1$s l WHERE o.job_id = 0 AND l.id = o.lease_id
                ) e
                WHERE o.ctid > $1 AND o.ctid <= $2 AND (
                    o.kind IN ('done', 'dead', 'cancelled')
                    OR o.kind = 'expired' AND EXISTS (SELECT FROM pgq.dead d WHERE d.id = o.job_id)
                )
            $sql$, slot)
            USING v_after, v_last;
        END IF;
    END IF;
    UPDATE pgq.segment s SET archived_to = coalesce(v_last, format('(%s,0)', v_end)::tid) WHERE s.slot = _archive_segment.slot;
    RETURN v_complete IS NOT FALSE AND v_end >= v_blocks;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION pgq._archive_segment(int) IS 'Archives a part of a drained segment; returns whether it was the last, null if the archive is locked';

-- Empties a segment, unless somebody still reads its tables: a dump may do so for hours, and must not make claims queue
-- up behind this lock.
CREATE FUNCTION pgq._truncate_segment(slot int) RETURNS boolean
    LANGUAGE plpgsql SET lock_timeout = '20ms'
AS $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_locks l
        WHERE l.locktype = 'relation' AND l.pid IS DISTINCT FROM pg_backend_pid()
            AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
            AND l.relation IN (
                format('pgq.job_%s', slot)::regclass, format('pgq.lease_%s', slot)::regclass,
                format('pgq.outcome_%s', slot)::regclass
            )
    ) THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'LOCK TABLE ONLY pgq.job_%1$s, ONLY pgq.lease_%1$s, ONLY pgq.outcome_%1$s IN ACCESS EXCLUSIVE MODE', slot);
    -- A lease may have been extended here while its job was being moved.
    UPDATE pgq.straggler s SET expires_at = pgq._expiry(_truncate_segment.slot, s.lease)
    WHERE s.kind IS NULL AND s.lease & 15 = _truncate_segment.slot
        AND s.expires_at < pgq._expiry(_truncate_segment.slot, s.lease);
    EXECUTE format('TRUNCATE ONLY pgq.job_%1$s, ONLY pgq.lease_%1$s, ONLY pgq.outcome_%1$s', slot);
    PERFORM setval('pgq.restored', pg_sequence_last_value('pgq.restored') & ~(1::bigint << slot));
    DELETE FROM pgq.segment_lane l WHERE l.slot = _truncate_segment.slot;
    UPDATE pgq.segment s
    SET state = 'free', opened_at = NULL, sealed_at = NULL, claimed_at = NULL, checked_at = NULL, jobs = NULL,
        archived_to = NULL, passed_xid = pg_current_xact_id()
    WHERE s.slot = _truncate_segment.slot;
    RETURN true;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN false;
END;
$$;
COMMENT ON FUNCTION pgq._truncate_segment(int) IS 'Empties an archived segment; false if somebody uses its tables';

-- What has not been handed out of a closed segment, per line.
CREATE FUNCTION pgq._waiting(slot int) RETURNS TABLE (lane bigint, jobs bigint)
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY EXECUTE format($sql$
        SELECT s.lane, s.jobs - coalesce(l.taken, 0)
        FROM pgq.segment_lane s
        LEFT JOIN LATERAL (
            SELECT l.taken FROM pgq.lease_%s l WHERE l.lane = s.lane ORDER BY l.lane DESC, l.id DESC LIMIT 1
        ) l ON true
        WHERE s.slot = %s AND s.jobs > coalesce(l.taken, 0)
    $sql$, slot, slot);
END;
$$;
COMMENT ON FUNCTION pgq._waiting(int) IS 'Jobs of a closed segment that nobody has claimed, per lane';

CREATE FUNCTION pgq._running(known pg_snapshot) RETURNS xid8[]
    LANGUAGE plpgsql
AS $$
DECLARE
    v_own xid8 := pg_current_xact_id_if_assigned();
    v_running xid8[] := '{}';
BEGIN
    IF pg_snapshot_xmin(known) < pg_snapshot_xmax(known) THEN
        v_running := ARRAY(SELECT pg_snapshot_xip(known));
    END IF;
    -- Jobs of the claiming transaction itself would be visible, and taken too early: it may still roll back. If it got its
    -- id after the snapshot, they lie beyond it.
    IF v_own < pg_snapshot_xmax(known) THEN
        v_running := v_running || v_own;
    END IF;
    RETURN v_running;
END;
$$;
COMMENT ON FUNCTION pgq._running(pg_snapshot) IS 'Transactions that a snapshot does not know to have ended, the caller''s own included';

-- Takes the last waiting jobs out of a segment: an administrative claim, an outcome, and the jobs go to the open
-- segment, to the front of their line, where they were. With kind 'cancelled' they go nowhere.
CREATE FUNCTION pgq._clear_lane(
    slot int, lane bigint, n int, kind pgq.outcome_kind
) RETURNS bigint
    LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
    SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_known pg_snapshot;
    v_restored boolean := (pg_sequence_last_value('pgq.restored') >> slot) & 1 = 1;
    v_open int := pgq._hold();
    v_count bigint;
BEGIN
    IF kind = 'carried' THEN
        -- Who claims in strict order holds this lock; while it is held here he would miss what is on its way.
        IF NOT pg_try_advisory_xact_lock(pgq._lane_key(pgq._front(lane))) THEN
            RETURN 0;
        END IF;
        PERFORM pgq._add_line(pgq._front(lane));
    END IF;
    v_known := pg_current_snapshot();
    WITH taken AS MATERIALIZED (
        SELECT t.id, t.lease FROM pgq._take(
            slot, lane, 0, 0, n,
            CASE WHEN v_restored THEN '9223372036854775807' ELSE pg_snapshot_xmax(v_known) END,
            CASE WHEN v_restored THEN '{}' ELSE pgq._running(v_known) END,
            pgq._now() + '1 hour', 'pgq.maintain', '', 1
        ) t
    )
    SELECT count(*) INTO v_count
    FROM (SELECT array_agg(t.id) AS ids, array_agg(t.lease) AS leases FROM taken t) t,
        pgq._carry(t.ids, t.leases, kind, v_open);
    RETURN v_count;
END;
$$;
COMMENT ON FUNCTION pgq._clear_lane(int, bigint, int, pgq.outcome_kind) IS
    'Takes up to n waiting jobs of a lane out of a segment';

CREATE FUNCTION pgq._carry(ids bigint[], leases bigint[], kind pgq.outcome_kind, slot int) RETURNS SETOF bigint
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._settle_many(ids, leases, ARRAY[kind], NULL, NULL);
    IF kind = 'carried' THEN
        INSERT INTO pgq.job (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers, history, group_key)
        SELECT pgq._front(a.lane), pg_current_xact_id(), a.id, a.enqueued_at, _carry.slot, a.attempt, a.max_attempts,
            a.task, a.payload, a.headers, a.history, a.group_key
        FROM pgq._attempts(ids, leases) a;
    ELSE
        PERFORM pgq._hand_back(ids, kind);
    END IF;
    RETURN QUERY SELECT u.id FROM unnest(ids) u (id);
END;
$$;
COMMENT ON FUNCTION pgq._carry(bigint[], bigint[], pgq.outcome_kind, int) IS
    'Ends administrative claims, and puts the jobs into another segment if they are carried';

-- Lets a segment go that only waits for some long-running jobs: their attempts go on in pgq.straggler.
CREATE FUNCTION pgq._unsettled_0(n int) RETURNS SETOF pgq.settled
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY SELECT u.id, u.lease FROM pgq.unsettled_0 u LIMIT n;
END;
$$;
COMMENT ON FUNCTION pgq._unsettled_0(int) IS 'Attempts in segment 0 that have no outcome';

SELECT pgq._for_each_slot('pgq._unsettled_0(int)');

CREATE FUNCTION pgq._move_stragglers(slot int) RETURNS bigint
    LANGUAGE plpgsql SET lock_timeout = '50ms' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_ids bigint[];
    v_leases bigint[];
    v_moved bigint;
BEGIN
    SELECT array_agg(u.id), array_agg(u.lease) INTO v_ids, v_leases FROM pgq._unsettled(slot, 10000) u;
    IF v_ids IS NULL THEN
        RETURN 0;
    END IF;
    WITH held AS MATERIALIZED (
        SELECT * FROM pgq._attempts(v_ids, v_leases)
    ), moved AS MATERIALIZED (
        SELECT s.id, s.lease FROM pgq._settle_many(v_ids, v_leases, '{moved}', NULL, NULL) s
    )
    INSERT INTO pgq.straggler (id, lease, lane, enqueued_at, claimed_at, expires_at, attempt, max_attempts, worker, task,
        payload, headers, history, group_key)
    SELECT h.id, h.lease, h.lane, h.enqueued_at, h.claimed_at, pgq._expiry(slot, h.lease), h.attempt, h.max_attempts,
        h.worker, h.task, h.payload, h.headers, h.history, h.group_key
    FROM held h JOIN moved m ON m.id = h.id AND m.lease = h.lease;
    GET DIAGNOSTICS v_moved = ROW_COUNT;
    RETURN v_moved;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN 0;
END;
$$;
COMMENT ON FUNCTION pgq._move_stragglers(int) IS 'Moves up to 10000 running attempts out of a segment';

CREATE FUNCTION pgq._open_segment(token bigint) RETURNS void
    LANGUAGE plpgsql
AS $$
DECLARE
    v_live bigint;
BEGIN
    UPDATE pgq.segment s SET state = 'sealed', sealed_at = pgq._now() WHERE s.state = 'open' AND s.slot <> token & 15;
    INSERT INTO pgq.segment AS s (slot, generation, state, opened_at) VALUES (token & 15, token >> 4, 'open', pgq._now())
    ON CONFLICT ON CONSTRAINT segment_slot_pkey DO UPDATE
    SET generation = excluded.generation, state = excluded.state, opened_at = excluded.opened_at
    WHERE s.state <> 'open';
    -- Opened by a transaction that was rolled back since, or restored from a dump that saw the epoch too late.
    INSERT INTO pgq.segment AS s (slot, generation, state, sealed_at)
    SELECT n, 0, 'sealed', pgq._now()
    FROM generate_series(0, 15) n
    WHERE n <> token & 15 AND pg_relation_size(format('pgq.job_%s', n)::regclass) > 0
    ON CONFLICT ON CONSTRAINT segment_slot_pkey DO UPDATE
    SET generation = excluded.generation, state = excluded.state, sealed_at = excluded.sealed_at
    WHERE s.state = 'free';
    -- The mask is not undone by a rollback, so what is taken out of it must be committed.
    SELECT (pg_sequence_last_value('pgq.live') | coalesce(bit_or(1::bigint << s.slot) FILTER (WHERE NOT s.passed), 0))
        & ~coalesce(bit_or(1::bigint << s.slot) FILTER (WHERE s.passed AND s.passed_xid IS DISTINCT FROM
            pg_current_xact_id_if_assigned()), 0)
    INTO v_live
    FROM (SELECT s.slot, s.passed_xid, s.state NOT IN ('open', 'sealed', 'closed') AS passed FROM pgq.segment s) s;
    IF v_live <> pg_sequence_last_value('pgq.live') THEN
        PERFORM setval('pgq.live', v_live);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._open_segment(bigint) IS 'Brings pgq.segment in line with the epoch, and the mask of live segments with both';

CREATE FUNCTION pgq._holders(slot int) RETURNS SETOF text
    LANGUAGE sql VOLATILE
AS $$
    SELECT l.virtualtransaction
    FROM pg_locks l
    WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted
        AND l.pid IS DISTINCT FROM pg_backend_pid()
        AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
        AND l.relation = format('pgq.job_%s', slot)::regclass
$$;
COMMENT ON FUNCTION pgq._holders(int) IS 'Transactions that insert into a segment and have not ended';

CREATE FUNCTION pgq._archive_stragglers() RETURNS void
    LANGUAGE plpgsql SET lock_timeout = '50ms'
AS $$
BEGIN
    PERFORM FROM pgq.straggler s WHERE s.kind IS NOT NULL LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM pgq._archive_partition(d)
    FROM (
        SELECT q.retention, min(s.finished_at) AS first, max(s.finished_at) AS last
        FROM pgq.straggler s JOIN pgq.queue q ON q.id = s.lane >> 16
        WHERE s.kind IS NOT NULL AND q.retention > '0'
        GROUP BY q.retention
    ) r, generate_series(r.first + r.retention, r.last + r.retention + '1 day', '1 day') d;
    WITH gone AS (
        DELETE FROM pgq.straggler s WHERE s.kind IS NOT NULL RETURNING s.*
    )
    INSERT INTO pgq.archive (id, lease, enqueued_at, started_at, finished_at, drop_after, kind, attempt, priority,
        queue, worker, task, payload, headers, result, error)
    SELECT g.id, g.lease, g.enqueued_at, g.claimed_at, g.finished_at, g.finished_at + q.retention, g.kind, g.attempt,
        pgq._priority(g.lane), q.name, g.worker, g.task, g.payload, g.headers, g.result, g.error
    FROM gone g JOIN pgq.queue q ON q.id = g.lane >> 16
    WHERE q.retention > '0' AND g.kind NOT IN ('released', 'snoozed');
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN;
END;
$$;
COMMENT ON FUNCTION pgq._archive_stragglers() IS 'Archives stragglers that have ended';

-- How many attempts have ended in a segment.
CREATE FUNCTION pgq._ended(slot int) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_count bigint;
BEGIN
    EXECUTE format($sql$
        SELECT (SELECT count(*) FROM pgq.outcome_%1$s o WHERE o.job_id > 0) + (
            SELECT coalesce(sum(cardinality(l.job_ids)), 0)
            FROM pgq.outcome_%1$s o JOIN pgq.lease_%1$s l ON l.id = o.lease_id AND l.job_ids IS NOT NULL
            WHERE o.job_id = 0 AND o.kind = 'done'
        )
    $sql$, slot) INTO v_count;
    RETURN v_count;
END;
$$;
COMMENT ON FUNCTION pgq._ended(int) IS 'How many attempts have ended in a segment';

-- Takes what little waits in these closed segments forward, so that they can go. Nothing may overtake: the front lane
-- of a priority goes first, whole, and together with the same lane of all younger segments; other lanes when no front
-- lane has anything, those of the oldest segment first. Each lane is a lock, so not all at once.
CREATE FUNCTION pgq._carry_forward(slots int[]) RETURNS bigint
    LANGUAGE sql VOLATILE
AS $$
    WITH waiting AS MATERIALIZED (
        SELECT l.slot, l.lane, pgq._front(l.lane) AS front, array_position(pgq._by_age(), l.slot::int) AS age
        FROM pgq.segment_lane l JOIN pgq.segment s ON s.slot = l.slot AND s.state = 'closed'
    ), line AS (
        SELECT w.front, min(w.age) AS oldest, min(w.age) FILTER (WHERE w.lane = w.front) AS oldest_front
        FROM waiting w GROUP BY w.front
    )
    SELECT coalesce(sum(pgq._clear_lane(c.slot, c.lane, CASE WHEN c.lane = c.front THEN 1000000 ELSE 1000 END,
        CASE WHEN q.id IS NULL THEN 'cancelled' ELSE 'carried' END::pgq.outcome_kind)), 0)
    FROM (
        SELECT w.* FROM waiting w JOIN line l ON l.front = w.front
        WHERE (pgq._by_age())[coalesce(l.oldest_front, l.oldest)] = ANY (slots)
            AND CASE WHEN l.oldest_front IS NULL THEN w.age = l.oldest ELSE w.lane = w.front END
        ORDER BY w.front, w.age
        LIMIT 300
    ) c LEFT JOIN pgq.queue q ON q.id = c.lane >> 16
$$;
COMMENT ON FUNCTION pgq._carry_forward(int[]) IS 'Moves waiting jobs of segments to the front of the open one; returns how many';

-- One turn of the crank. Steps of a segment's life, each safe to be undone or repeated:
--   open      the epoch says so, at once and for everybody; the tables follow
--   sealed    a younger segment is open
--   closed    nobody holds it any more; its jobs are counted
--   claimed   all of them were handed out: claims need not look here, once that is committed
--   drained   each has an outcome
--   archived  copied, block by block
--   free      truncated, in a call of its own, so that the lock is short
CREATE FUNCTION pgq.rotate(seal boolean DEFAULT false) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_done jsonb := '{}';
    v_more boolean := false;
    v_token bigint;
    v_slot int;
    v_size bigint;
    v_next int;
    v_live bigint;
    v_segment pgq.segment;
    v_count bigint;
    v_ended bigint;
    v_free int;
    v_last boolean;
    v_look boolean;
    -- What is carried sorts by the transaction's id, so it must have been drawn while others could not carry.
    v_early boolean := pg_current_xact_id_if_assigned() IS NOT NULL;
    v_lanes bigint[];
    v_carry int[] := '{}';
    v_unclosed boolean := false;
BEGIN
    PERFORM pgq._read_committed();
    PERFORM pgq._require('seal', seal IS NOT NULL OR NULL, 'true or false');
    IF NOT pg_try_advisory_xact_lock(pgq._task_key(1)) THEN
        RETURN v_done;
    END IF;

    -- The epoch leads, the tables follow.
    v_live := pg_sequence_last_value('pgq.live');
    v_token := pgq._open_token(pgq._adopt());
    v_slot := v_token & 15;
    PERFORM pgq._open_segment(v_token);

    -- Truncate, and do nothing else then. Claims must have been told before not to look there, or they would wait.
    FOR v_segment IN
        SELECT * FROM pgq.segment s WHERE s.state = 'archived' AND (v_live >> s.slot) & 1 = 0
        ORDER BY array_position(pgq._by_age(), s.slot::int)
    LOOP
        IF pgq._truncate_segment(v_segment.slot) THEN
            RETURN jsonb_build_object('truncated', v_segment.slot, 'more', true);
        END IF;
    END LOOP;

    v_size := pg_relation_size(format('pgq.job_%s', v_slot)::regclass);
    IF v_size > 0 AND (
            seal OR v_size >= 268435456
            OR (SELECT s.opened_at FROM pgq.segment s WHERE s.slot = v_slot) < pgq._now() - interval '5 minutes'
        )
    THEN
        SELECT n INTO v_next
        FROM generate_series(0, 15) n LEFT JOIN pgq.segment s ON s.slot = n
        WHERE coalesce(s.state, 'free') = 'free'
            -- Not one that this transaction has truncated: others would wait for it, and it may yet be rolled back.
            AND NOT EXISTS (
                SELECT FROM pg_locks l
                WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock'
                    AND l.relation = format('pgq.job_%s', n)::regclass
            )
        ORDER BY (n - v_slot + 16) % 16
        LIMIT 1;
        IF FOUND THEN
            v_token := (((v_token >> 4) + 1) << 4) | v_next;
            PERFORM pgq._set_open(v_token);
            PERFORM pgq._open_segment(v_token);
            v_done := v_done || jsonb_build_object('sealed', v_slot, 'opened', v_next);
        END IF;
    END IF;

    SELECT count(*) INTO v_free FROM generate_series(0, 15) n
    WHERE NOT EXISTS (SELECT FROM pgq.segment s WHERE s.slot = n AND s.state <> 'free');
    -- Counting takes a while where there are many lanes or jobs, so not each time.
    v_look := seal OR EXISTS (
        SELECT FROM pgq.segment s
        WHERE s.state IN ('closed', 'claimed')
            AND coalesce(s.checked_at, '-infinity') < pgq._now() - interval '2 seconds'
    );
    FOR v_segment IN
        SELECT * FROM pgq.segment s WHERE s.state IN ('sealed', 'closed', 'claimed', 'drained')
        ORDER BY array_position(pgq._by_age(), s.slot::int)
    LOOP
        IF v_segment.state = 'sealed' AND NOT EXISTS (SELECT FROM pgq._holders(v_segment.slot)) THEN
            EXECUTE format(
                'INSERT INTO pgq.segment_lane (slot, lane, jobs) SELECT %s, j.lane, count(*) FROM pgq.job_%1$s j GROUP BY j.lane',
                v_segment.slot);
            UPDATE pgq.segment s
            SET state = 'closed', jobs = (SELECT coalesce(sum(l.jobs), 0) FROM pgq.segment_lane l WHERE l.slot = s.slot)
            WHERE s.slot = v_segment.slot
            RETURNING s.* INTO v_segment;
            -- Nobody claims what was taken back, and it has ended.
            DELETE FROM pgq.segment_lane l WHERE l.slot = v_segment.slot AND l.lane & 128 = 128;
        END IF;

        v_unclosed := v_unclosed OR v_segment.state = 'sealed';
        IF v_segment.state = 'closed' AND v_look THEN
            SELECT array_agg(w.lane), coalesce(sum(w.jobs), 0) INTO v_lanes, v_count FROM pgq._waiting(v_segment.slot) w;
            DELETE FROM pgq.segment_lane l
            WHERE l.slot = v_segment.slot AND NOT EXISTS (SELECT FROM unnest(v_lanes) w (lane) WHERE w.lane = l.lane);
            UPDATE pgq.segment s SET checked_at = pgq._now() WHERE s.slot = v_segment.slot;
            IF v_count = 0 THEN
                UPDATE pgq.segment s SET state = 'claimed', claimed_at = pgq._now(), passed_xid = pg_current_xact_id()
                WHERE s.slot = v_segment.slot
                RETURNING s.* INTO v_segment;
            ELSIF v_segment.sealed_at < pgq._now() - interval '1 minute'
                AND (v_count <= 10000 OR v_count <= v_segment.jobs / 10)
            THEN
                v_carry := v_carry || v_segment.slot::int;
            END IF;
        END IF;

        IF v_segment.state = 'claimed' AND v_look THEN
            v_ended := pgq._ended(v_segment.slot);
            IF v_ended < v_segment.jobs AND (
                v_free < 4 OR v_segment.jobs - v_ended <= 10000 AND v_segment.claimed_at < pgq._now() - interval '30 seconds'
            ) THEN
                v_count := pgq._move_stragglers(v_segment.slot);
                v_done := v_done || jsonb_build_object('moved', v_count);
                v_more := v_more OR v_count > 0;
                v_ended := v_ended + v_count;
            END IF;
            UPDATE pgq.segment s
            SET checked_at = pgq._now(), state = CASE WHEN v_ended >= s.jobs THEN 'drained' ELSE s.state END
            WHERE s.slot = v_segment.slot
            RETURNING s.* INTO v_segment;
        END IF;

        IF v_segment.state = 'drained' AND NOT v_done ? 'archived' THEN
            v_last := pgq._archive_segment(v_segment.slot);
            IF v_last THEN
                UPDATE pgq.segment s SET state = 'archived' WHERE s.slot = v_segment.slot;
            END IF;
            v_done := v_done || jsonb_build_object('archived', v_segment.slot);
            v_more := v_more OR v_last IS NOT NULL;
        END IF;
    END LOOP;

    IF v_carry <> '{}' AND NOT v_unclosed AND NOT v_early THEN
        v_count := pgq._carry_forward(v_carry);
        v_done := v_done || jsonb_build_object('carried', v_count);
        IF v_count > 0 THEN
            v_more := true;
            UPDATE pgq.segment s SET checked_at = NULL WHERE s.slot = ANY (v_carry);
        END IF;
    END IF;

    PERFORM pgq._archive_stragglers();
    IF pgq._due_again('tidy', '1 minute') THEN
        PERFORM pgq._archive_drop(), pgq._tidy_keys(), pgq._tidy_limits(), pgq._tidy_dependents(), pgq._forget_progress();
        DELETE FROM pgq.line l WHERE l.until < (SELECT min(s.generation) FROM pgq.segment s WHERE s.state <> 'free');
        DELETE FROM pgq.line l USING pgq.line d
        WHERE d.queue_id = l.queue_id AND d.lane = l.lane AND (d.until, d.ctid) > (l.until, l.ctid);
    END IF;
    RETURN v_done || jsonb_build_object('more', v_more);
END;
$$;
COMMENT ON FUNCTION pgq.rotate(boolean) IS
    'Turns the ring: seals the open segment if it is large or old enough (or, with seal, if it holds anything), opens the '
    'next, and takes the older ones one step further: closed, claimed, drained, archived, truncated. Returns what was done; '
    '"more": true if there is more to do at once. Raises PQ003, 22004';

CREATE FUNCTION pgq.maintain() RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_done jsonb := pgq.rotate();  -- first, see there
    v_fired bigint := pgq._fire();
    v_resolved bigint := pgq._resolve(100);
    v_promoted bigint := pgq.promote();
    v_reaped bigint := pgq.reap();
    v_now timestamptz := pgq._now();
BEGIN
    PERFORM pgq._pursue();
    RETURN v_done || jsonb_build_object('fired', v_fired, 'promoted', v_promoted, 'reaped', v_reaped, 'more',
        greatest(v_resolved, v_promoted, v_reaped) >= 10000 OR coalesce((v_done -> 'more')::boolean, false)
        OR v_fired > 0 AND EXISTS (SELECT FROM pgq.schedule s WHERE coalesce(s.retry_at, s.next_at) <= v_now));
END;
$$;
COMMENT ON FUNCTION pgq.maintain() IS
    'Does what is due: pgq.promote, pgq.reap, pgq.rotate, the jobs of pgq.schedule, and those that waited for others. Call '
    'it about once a second, from anywhere; workers do. Returns what was done; "more": true if it is worth calling again at '
    'once. Raises PQ003';
