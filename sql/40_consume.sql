-- claim, and the ways an attempt ends: ack, reject, release, snooze; extend in between.
-- Tables: reads queue, line, ring, job, lease; appends to lease and outcome. A retry or a snoozed job goes to
-- scheduled, a failure for good to dead, a released job to the front of the line. Those fail, release and snooze read
-- cancel_request. What has a permit gives it back (44_groups), and what others wait for tells them (46_after).

-- Claim ---------------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.claimed_job AS (
    id bigint,
    lease bigint,
    queue text,
    task text,
    payload jsonb,
    attempt int,
    max_attempts int,
    priority int,
    enqueued_at timestamptz,
    expires_at timestamptz,
    headers jsonb
);
COMMENT ON TYPE pgq.claimed_job IS 'A job under a lease. Settle it with its id and lease before expires_at, or extend';
COMMENT ON COLUMN pgq.claimed_job.id IS 'Job id';
COMMENT ON COLUMN pgq.claimed_job.lease IS 'Lease id, shared by the jobs that were claimed together from one lane';
COMMENT ON COLUMN pgq.claimed_job.queue IS 'Queue';
COMMENT ON COLUMN pgq.claimed_job.task IS 'What to do, in the words of the application';
COMMENT ON COLUMN pgq.claimed_job.payload IS 'Arguments';
COMMENT ON COLUMN pgq.claimed_job.attempt IS 'Number of this attempt, from 1';
COMMENT ON COLUMN pgq.claimed_job.max_attempts IS 'Attempts before the job goes to the dead letters';
COMMENT ON COLUMN pgq.claimed_job.priority IS 'Priority, lower runs first';
COMMENT ON COLUMN pgq.claimed_job.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.claimed_job.expires_at IS 'When the lease ends';
COMMENT ON COLUMN pgq.claimed_job.headers IS 'Metadata';

-- All lanes are busy, mostly in their commit: wait for one of them instead of coming back with nothing.
CREATE FUNCTION pgq._wait_for_lane(lane bigint) RETURNS boolean
    LANGUAGE plpgsql SET lock_timeout = '100ms'
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(pgq._lane_key(lane));
    RETURN true;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN false;
END;
$$;
COMMENT ON FUNCTION pgq._wait_for_lane(bigint) IS 'Locks a lane; false if that takes longer than a tenth of a second';

-- Takes up to n jobs out of segment 0, from one lane after the other: the front lane of a line (lanes = 0), or its
-- shards, beginning with the given one.
--
-- Where a lane stands is written in its newest lease: the last job handed out in (xid, id) order, and the transactions
-- that were still running behind it. What may be taken now lies in gaps: first the jobs of those transactions that have
-- ended since, then whatever lies between the ones that are running. So nobody is overtaken for good because he commits
-- late, and the rows of a transaction that still runs are not even looked at.
--
-- `horizon` and `running` were taken before the lane was locked, so they may be older than the lease that is read here.
-- That errs on the safe side: a transaction that ended in between stays in open_xids for one claim more.
--
-- Locks: a lane until the end of the transaction. Never waits for one, unless it would return nothing although another
-- claimer is busy in a lane that has more; then a tenth of a second at most.
CREATE FUNCTION pgq._take_0(
    line bigint, lanes int, first int, n int, horizon xid8, running xid8[], expiry timestamptz, who text, named text,
    tries int
) RETURNS SETOF pgq.claimed_job
    LANGUAGE plpgsql
AS $$
DECLARE
    v_wanted CONSTANT int := n;
    v_priority CONSTANT int := pgq._priority(line);
    v_end CONSTANT bigint := 9223372036854775807;
    v_none CONSTANT xid8[] := '{}';
    v_lane bigint;
    v_busy bigint[];
    v_again bigint[];
    v_at record;
    v_late xid8[];
    v_between xid8[];
    v_starts bigint[];
    v_count int;
BEGIN
    FOR v_look IN 0..1 LOOP
        v_busy := '{}';
        FOR v_shard IN 0..CASE WHEN v_look = 0 THEN greatest(lanes, 1) ELSE cardinality(v_again) END - 1 LOOP
            v_lane := CASE
                WHEN v_look > 0 THEN v_again[v_shard + 1]
                WHEN lanes = 0 THEN line
                ELSE line | ((first + v_shard) % lanes + 1)
            END;
            IF pg_try_advisory_xact_lock(pgq._lane_key(v_lane)) THEN
                NULL;
            ELSIF v_look = 0 OR n < v_wanted OR NOT pgq._wait_for_lane(v_lane) THEN
                v_busy := v_busy || v_lane;
                CONTINUE;
            END IF;

            SELECT coalesce(l.cursor_xid, '0') AS xid, coalesce(l.cursor_id, 0) AS id, coalesce(l.taken, 0) AS taken,
                l.open_xids AS open, l.late_xid, l.late_id
            INTO v_at
            FROM (SELECT) one LEFT JOIN LATERAL (
                SELECT * FROM pgq.lease_0 l WHERE l.lane = v_lane ORDER BY l.id DESC LIMIT 1
            ) l ON true;
            v_late := v_none;
            v_between := v_none;
            v_starts := ARRAY[v_at.id];
            IF v_at.open IS NOT NULL THEN
                -- Whose jobs were handed out in part comes first, so that there is never a second one of that kind.
                SELECT coalesce(array_agg(o.x ORDER BY o.x <> v_at.late_xid, o.x) FILTER (WHERE o.ended), '{}'),
                    coalesce(array_agg(o.x) FILTER (WHERE NOT o.ended), '{}')
                INTO v_late, v_at.open
                FROM (
                    SELECT x, x < horizon AND x <> ALL (running)
                        AND (v_at.late_xid < horizon AND v_at.late_xid <> ALL (running)) IS NOT FALSE
                    FROM unnest(v_at.open) x
                ) o (x, ended);
                v_starts := array_fill(0::bigint, ARRAY[cardinality(v_late)]) || v_at.id;
                IF v_at.late_xid = v_late[1] THEN
                    v_starts[1] := v_at.late_id;
                    v_at.late_xid := NULL;
                END IF;
            END IF;
            IF running <> v_none THEN
                v_between := ARRAY(SELECT x FROM unnest(running) x WHERE x > v_at.xid ORDER BY x);
                v_starts := v_starts || array_fill(v_end, ARRAY[cardinality(v_between)]);
            END IF;

            -- The gaps are walked in their order, so the rows come in theirs: a nested loop cannot do otherwise. The
            -- position after them is that of the last one, unless even the late transactions are not exhausted.
            RETURN QUERY
            WITH picked AS MATERIALIZED (
                SELECT j.*, g.gap
                FROM unnest(
                    v_late || v_at.xid || v_between, v_starts, v_late || v_between || horizon,
                    array_fill(v_end, ARRAY[cardinality(v_late)]) || array_fill(0::bigint, ARRAY[cardinality(v_between) + 1])
                ) WITH ORDINALITY AS g (low_xid, low_id, high_xid, high_id, gap)
                CROSS JOIN LATERAL (
                    SELECT j.xid, j.id, j.enqueued_at, j.attempt, j.max_attempts, j.task, j.payload, j.headers
                    FROM pgq.job_0 j
                    WHERE j.lane = v_lane
                        AND (j.xid, j.id) > (g.low_xid, g.low_id) AND (j.xid, j.id) <= (g.high_xid, g.high_id)
                    ORDER BY j.xid, j.id
                    LIMIT n
                ) j
                LIMIT n
            ), last AS (
                SELECT a.*, a.gap > cardinality(v_late) AS fresh, a.xids[a.count] AS xid, a.ids[a.count] AS id
                FROM (
                    SELECT array_agg(p.id) AS ids, array_agg(p.xid) AS xids, max(p.attempt) AS attempt, max(p.gap) AS gap,
                        count(*) AS count
                    FROM picked p
                ) a
                WHERE a.count > 0
            ), claim AS (
                INSERT INTO pgq.lease_0 (lane, claimed_at, expires_at, cursor_xid, cursor_id, taken, late_xid, late_id,
                    worker, job_ids, attempts, open_xids)
                SELECT v_lane, pgq._now(), expiry,
                    CASE WHEN a.fresh THEN a.xid ELSE v_at.xid END, CASE WHEN a.fresh THEN a.id ELSE v_at.id END,
                    v_at.taken + a.count,
                    CASE WHEN a.fresh OR a.count < n THEN v_at.late_xid ELSE v_late[a.gap] END,
                    CASE WHEN NOT a.fresh AND a.count = n THEN a.id WHEN v_at.late_xid IS NOT NULL THEN v_at.late_id END,
                    who, a.ids, CASE WHEN a.attempt > 1 THEN (SELECT array_agg(p.attempt) FROM picked p) END,
                    nullif(CASE
                        WHEN a.fresh AND v_between <> v_none
                            THEN v_at.open || ARRAY(SELECT x FROM unnest(v_between) x WHERE x < a.xid)
                        WHEN NOT a.fresh AND a.count = n THEN v_at.open || v_late[a.gap:]
                        ELSE v_at.open
                    END, v_none)
                FROM last a
                RETURNING lease_0.id
            )
            SELECT p.id, (SELECT c.id FROM claim c), named, p.task, p.payload, p.attempt::int,
                coalesce(p.max_attempts::int, tries), v_priority, p.enqueued_at, expiry, p.headers
            FROM picked p;
            GET DIAGNOSTICS v_count = ROW_COUNT;
            n := n - v_count;
            IF n = 0 THEN
                RETURN;
            END IF;
        END LOOP;

        IF v_look = 1 OR n < v_wanted OR v_busy = '{}' THEN
            RETURN;
        END IF;
        v_again := ARRAY(
            SELECT b.lane
            FROM unnest(v_busy) b (lane)
            LEFT JOIN LATERAL (
                SELECT l.cursor_xid, l.cursor_id FROM pgq.lease_0 l WHERE l.lane = b.lane ORDER BY l.id DESC LIMIT 1
            ) c ON true
            CROSS JOIN LATERAL (
                SELECT FROM pgq.job_0 j
                WHERE j.lane = b.lane
                    AND (j.xid, j.id) > (coalesce(c.cursor_xid, '0'), coalesce(c.cursor_id, 0)) AND j.xid < horizon
                LIMIT 1
            ) j
        );
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq._take_0(bigint, int, int, int, xid8, xid8[], timestamptz, text, text, int) IS
    'Claims up to n jobs of one line from segment 0';

SELECT pgq._for_each_slot('pgq._take_0(bigint,int,int,int,xid8,xid8[],timestamptz,text,text,int)');

-- The common case of one job, on the shortest way: nothing came late, nothing is running below the next job. Id 0: the
-- line is empty. Null: it is not so simple, look properly with pgq._take.
CREATE FUNCTION pgq._take_one_0(
    line bigint, lanes int, first int, horizon xid8, running xid8[], expiry timestamptz, who text, named text, tries int
) RETURNS pgq.claimed_job
    LANGUAGE plpgsql
AS $$
DECLARE
    v_lane bigint := line;
    v_next int;
    v_unsure boolean := false;
    v_busy int := 0;
    v_xid xid8;
    v_id bigint;
    v_taken bigint;
    v_open xid8[];
    v_late_xid xid8;
    v_job record;
    v_lease bigint;
BEGIN
    -- One step more than there are lanes: if all are busy, wait for the first.
    FOR v_shard IN 0..greatest(lanes, 1) LOOP
        EXIT WHEN v_shard = greatest(lanes, 1) AND v_busy < v_shard;
        IF lanes > 0 THEN
            v_lane := line | ((first + v_shard) % lanes + 1);
        END IF;
        IF pg_try_advisory_xact_lock(pgq._lane_key(v_lane)) THEN
            NULL;
        ELSIF v_busy < greatest(lanes, 1) OR NOT pgq._wait_for_lane(v_lane) THEN
            v_busy := v_busy + 1;
            CONTINUE;
        END IF;
        SELECT l.cursor_xid, l.cursor_id, l.taken, l.open_xids, l.late_xid INTO v_xid, v_id, v_taken, v_open, v_late_xid
        FROM pgq.lease_0 l WHERE l.lane = v_lane ORDER BY l.id DESC LIMIT 1;
        IF v_late_xid IS NOT NULL OR NOT v_open <@ running THEN
            RETURN NULL;
        END IF;
        v_next := 1;
        WHILE running[v_next] <= v_xid LOOP
            v_next := v_next + 1;
        END LOOP;
        SELECT j.id, j.xid, j.task, j.payload, j.attempt, j.max_attempts, j.enqueued_at, j.headers INTO v_job
        FROM pgq.job_0 j
        WHERE j.lane = v_lane AND (j.xid, j.id) > (coalesce(v_xid, '0'), coalesce(v_id, 0))
            AND j.xid < coalesce(running[v_next], horizon)
        ORDER BY j.xid, j.id
        LIMIT 1;
        IF v_job.id IS NULL THEN
            v_unsure := v_unsure OR running[v_next] IS NOT NULL;
            CONTINUE;
        END IF;
        INSERT INTO pgq.lease_0 (lane, claimed_at, expires_at, cursor_xid, cursor_id, taken, worker, job_ids, attempts, open_xids)
        VALUES (v_lane, pgq._now(), expiry, v_job.xid, v_job.id, coalesce(v_taken, 0) + 1, who, ARRAY[v_job.id],
            CASE WHEN v_job.attempt > 1 THEN ARRAY[v_job.attempt] END, v_open)
        RETURNING id INTO v_lease;
        RETURN (v_job.id, v_lease, named, v_job.task, v_job.payload, v_job.attempt, coalesce(v_job.max_attempts, tries),
            pgq._priority(v_lane), v_job.enqueued_at, expiry, v_job.headers)::pgq.claimed_job;
    END LOOP;
    IF v_busy = 0 AND NOT v_unsure THEN
        RETURN (0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::pgq.claimed_job;
    END IF;
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION pgq._take_one_0(bigint, int, int, xid8, xid8[], timestamptz, text, text, int) IS
    'Claims one job of one line from segment 0, if that is simple';

SELECT pgq._for_each_slot('pgq._take_one_0(bigint,int,int,xid8,xid8[],timestamptz,text,text,int)');

-- Most lines of a queue have nothing to claim at most times: the front one, and priorities that are seldom used. Lane
-- by lane that takes long to find out, and locks what others want. So all but the last are looked over before, in one
-- statement and without a lock. That may name a line in vain, as what others are claiming is not known yet, but passes
-- none by: a job that was committed when the claim began is seen here, or in a lease. Like a claim it does not look at
-- the rows of transactions that still run, as there may be millions.
CREATE FUNCTION pgq._next_line_0(lines bigint[], low bigint, lanes int, horizon xid8, running xid8[]) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_last CONSTANT bigint := lines[cardinality(lines)];
BEGIN
    IF low = v_last THEN
        RETURN low;
    END IF;
    RETURN coalesce((
        SELECT n.line
        FROM unnest(lines) n (line)
        CROSS JOIN LATERAL generate_series(n.line, n.line + (n.line & 255) * (lanes - 1)) a (lane)
        LEFT JOIN LATERAL (
            SELECT c.cursor_xid, c.cursor_id, c.open_xids, c.late_xid
            FROM pgq.lease_0 c WHERE c.lane = a.lane ORDER BY c.id DESC LIMIT 1
        ) c ON true
        WHERE n.line >= low AND n.line < v_last AND (
            c.late_xid IS NOT NULL
            OR EXISTS (
                SELECT FROM unnest('0'::xid8 || running, running || horizon) g (low_xid, high_xid)
                CROSS JOIN LATERAL (
                    SELECT FROM pgq.job_0 j
                    WHERE j.lane = a.lane AND j.xid > g.low_xid AND j.xid < g.high_xid
                        AND (j.xid, j.id) > (coalesce(c.cursor_xid, '0'), coalesce(c.cursor_id, 0))
                    LIMIT 1
                ) j
                WHERE (g.high_xid > c.cursor_xid) IS NOT FALSE
            )
            OR EXISTS (
                SELECT FROM unnest(c.open_xids) o (xid)
                CROSS JOIN LATERAL (SELECT FROM pgq.job_0 j WHERE j.lane = a.lane AND j.xid = o.xid LIMIT 1) j
                WHERE o.xid < horizon AND o.xid <> ALL (running)
            )
        )
        LIMIT 1
    ), v_last);
END;
$$;
COMMENT ON FUNCTION pgq._next_line_0(bigint[], bigint, int, xid8, xid8[]) IS
    'The first of these lines, from the lowest on, that may have jobs in segment 0 to claim, or the last';

SELECT pgq._for_each_slot('pgq._next_line_0(bigint[],bigint,int,xid8,xid8[])');

-- With one lane to a priority, jobs are handed out strictly in order. So there must be one claimer at a time, who looks
-- at the front lane and then at the other, in all segments, and knows all that was committed before he began. Returns
-- the lines that he may look at.
CREATE FUNCTION pgq._in_order(lines bigint[]) RETURNS bigint[]
    LANGUAGE plpgsql
AS $$
DECLARE
    v_line bigint;
BEGIN
    FOREACH v_line IN ARRAY lines LOOP
        IF NOT (pg_try_advisory_xact_lock(pgq._lane_key(v_line & ~255::bigint)) OR pgq._wait_for_lane(v_line & ~255::bigint))
        THEN
            RETURN ARRAY(SELECT l FROM unnest(lines) l WHERE l < v_line & ~255::bigint);
        END IF;
    END LOOP;
    RETURN lines;
END;
$$;
COMMENT ON FUNCTION pgq._in_order(bigint[]) IS 'Locks the priorities of a queue with one lane each; returns those it got';

CREATE FUNCTION pgq._live_slots() RETURNS int[]
    LANGUAGE plpgsql
AS $$
DECLARE
    v_age bigint := pg_sequence_last_value('pgq.age');
    v_live bigint := pg_sequence_last_value('pgq.live') | (1::bigint << (pg_sequence_last_value('pgq.epoch') & 15)::int);
    v_slot int;
    v_slots int[];
BEGIN
    -- From the youngest on it takes two or three steps, where a query would cost each claim beside a backlog a statement.
    FOR v_place IN REVERSE 15..0 LOOP
        EXIT WHEN v_live = 0;
        v_slot := (v_age >> (4 * v_place)) & 15;
        IF (v_live >> v_slot) & 1 = 1 THEN
            v_slots := v_slot || v_slots;
            v_live := v_live - (1::bigint << v_slot);
        END IF;
    END LOOP;
    RETURN v_slots;
END;
$$;
COMMENT ON FUNCTION pgq._live_slots() IS 'The segments that may have jobs to claim, the oldest first';

-- The settings keep a plan that was made for an empty segment good for ten million rows. One opening statement, because
-- each further one, and each expression outside of it, costs as much again.
CREATE FUNCTION pgq.claim(
    queue text,
    batch int DEFAULT 1,
    lease_for interval DEFAULT NULL,
    worker text DEFAULT NULL
) RETURNS SETOF pgq.claimed_job
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
    SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_epoch bigint;
    v_queue record;
    v_slots int[];
    v_ordered bigint[];
    v_line bigint;
    v_next bigint[];
    v_slot int;
    v_job pgq.claimed_job;
    v_count int;
BEGIN
    LOOP
        v_epoch := pg_sequence_last_value('pgq.epoch');
        SELECT q.id, q.lanes, q.max_attempts, q.paused, pgq._now() + coalesce(lease_for, q.lease) AS expiry,
            pg_snapshot_xmax(pg_current_snapshot()) AS horizon, ARRAY(SELECT pg_snapshot_xip(pg_current_snapshot())) AS running,
            pg_current_xact_id_if_assigned() AS own, floor(random() * q.lanes)::int AS first,
            ARRAY(SELECT l.lane FROM pgq.line l WHERE l.queue_id = q.id ORDER BY l.lane) AS lines,
            pg_sequence_last_value('pgq.live') AS live, pg_sequence_last_value('pgq.restored') AS restored,
            NOT q.paused AND current_setting('transaction_isolation') = 'read committed' AND batch BETWEEN 1 AND 100000
                AND (lease_for BETWEEN '1 millisecond' AND '1 year') IS NOT FALSE
                AND (v_epoch >> 4) & 4294967295 = pgq._boot() AS sound
        INTO v_queue
        FROM pgq.queue q WHERE q.name = claim.queue;
        IF v_queue.sound IS NOT TRUE THEN
            PERFORM pgq._read_committed();
            PERFORM pgq._require('batch', batch BETWEEN 1 AND 100000, 'between 1 and 100000');
            PERFORM pgq._require('lease_for', (lease_for BETWEEN '1 millisecond' AND '1 year') IS NOT FALSE,
                'between 1 ms and 1 year');
            PERFORM pgq._find_queue(queue);
            IF v_queue.paused THEN
                RETURN;
            END IF;
            PERFORM pgq._adopt();
        ELSIF v_queue.lines[1] < 0 THEN
            RETURN QUERY SELECT * FROM pgq._claim_limited(v_queue.id, batch, v_queue.expiry, worker);
            IF NOT FOUND THEN
                PERFORM pgq._look_around();
            END IF;
            RETURN;
        ELSIF v_queue.lanes = 1 AND v_ordered IS NULL THEN
            v_ordered := pgq._in_order(v_queue.lines);
        ELSE
            EXIT;
        END IF;
    END LOOP;
    IF v_ordered IS NOT NULL THEN
        v_queue.lines := v_ordered;
    END IF;
    IF v_queue.own IS NOT NULL THEN
        -- Jobs of this very transaction would be visible, and taken too early: it may still roll back.
        v_queue.running := ARRAY(SELECT x FROM unnest(v_queue.running || v_queue.own) x ORDER BY x);
    END IF;
    v_slot := v_epoch & 15;
    v_slots := CASE WHEN v_queue.live = 1::bigint << v_slot THEN ARRAY[v_slot] ELSE pgq._live_slots() END;

    FOREACH v_line IN ARRAY v_queue.lines LOOP
        FOREACH v_slot IN ARRAY v_slots LOOP
            IF cardinality(v_queue.lines) > 1 AND v_queue.restored = 0 THEN
                IF (v_next[v_slot] >= v_line) IS NOT TRUE THEN
                    v_next[v_slot] := pgq._next_line(v_slot, v_queue.lines, v_line, v_queue.lanes, v_queue.horizon,
                        v_queue.running);
                END IF;
                CONTINUE WHEN v_next[v_slot] > v_line;
            END IF;
            IF batch = 1 AND v_queue.restored = 0 THEN
                -- by slot: v_slot
                v_job := pgq._take_one_0(v_line & ~255::bigint, (v_line & 255)::int * v_queue.lanes, v_queue.first,
                    v_queue.horizon, v_queue.running, v_queue.expiry, worker, queue, v_queue.max_attempts);
                IF v_job.id > 0 THEN
                    RETURN NEXT v_job;
                    RETURN;
                END IF;
                CONTINUE WHEN v_job.id = 0;
            END IF;
            IF (v_queue.restored >> v_slot) & 1 = 1 THEN
                -- From another cluster: all its transactions have ended, and their numbers only give the order.
                RETURN QUERY
                SELECT * FROM pgq._take(v_slot, v_line & ~255::bigint, (v_line & 255)::int * v_queue.lanes, v_queue.first,
                    batch, '9223372036854775807', '{}', v_queue.expiry, worker, queue, v_queue.max_attempts);
            ELSE
                -- by slot: v_slot
                RETURN QUERY
                SELECT * FROM pgq._take_0(v_line & ~255::bigint, (v_line & 255)::int * v_queue.lanes, v_queue.first,
                    batch, v_queue.horizon, v_queue.running, v_queue.expiry, worker, queue, v_queue.max_attempts);
            END IF;
            GET DIAGNOSTICS v_count = ROW_COUNT;
            batch := batch - v_count;
            IF batch = 0 THEN
                RETURN;
            END IF;
        END LOOP;
    END LOOP;
    PERFORM pgq._look_around();
END;
$$;
COMMENT ON FUNCTION pgq.claim(text, int, interval, text) IS
    'Takes up to `batch` ready jobs (1 to 100000) under a lease of lease_for, or as long as the queue says: lowest priority '
    'number first, then oldest first within a shard. Returns none if there are none, or if the queue is paused. Claim in '
    'a short transaction of its own: until it ends, others cannot claim from the same lanes. worker: a name for the '
    'records. Raises PQ002 (no such queue), PQ003 (not READ COMMITTED), 22023';

SELECT pgq._choose_slot('pgq.claim(text,int,interval,text)');

-- Settle --------------------------------------------------------------------------------------------------------------

-- A lease of few jobs gets one outcome for each of them. One of many (pgq._whole tells) is either ended as a whole, by
-- a single row whose job_id is 0, or marked with a row of kind 'split', job_id 0 too, before it gets outcomes for its
-- jobs. The unique index on (lease_id, job_id) lets only one of the two be, and only one outcome of each job; who comes
-- second waits for the end of the first's transaction and then finds its row, or gets 40001 under REPEATABLE READ.
CREATE FUNCTION pgq._whole(job_ids bigint[]) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT cardinality(job_ids) >= 8 $$;
COMMENT ON FUNCTION pgq._whole(bigint[]) IS 'Whether a lease of these jobs may be ended as a whole';

CREATE FUNCTION pgq._awaited(lease bigint) RETURNS boolean
    LANGUAGE sql VOLATILE
AS $$ SELECT lease & 16 = 16 OR pg_sequence_last_value('pgq.awaited') > 0 $$;
COMMENT ON FUNCTION pgq._awaited(bigint) IS
    'Whether somebody may wait for the end of an attempt: it has a permit, or jobs are waited for';

CREATE FUNCTION pgq._split_0(leases bigint[]) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO pgq.outcome_0 (job_id, lease_id, at, kind)
    SELECT 0, l.id, pgq._now(), 'split'
    FROM pgq.lease_0 l
    WHERE l.id = ANY (leases) AND l.job_ids IS NOT NULL AND pgq._whole(l.job_ids)
        AND NOT EXISTS (SELECT FROM pgq.outcome_0 o WHERE o.lease_id = l.id AND o.job_id = 0 OFFSET 0)
    ORDER BY l.id
    ON CONFLICT DO NOTHING;
END;
$$;
COMMENT ON FUNCTION pgq._split_0(bigint[]) IS 'Lets the jobs of these leases in segment 0 end one by one';

SELECT pgq._for_each_slot('pgq._split_0(bigint[])');

-- One attempt of a lease of few, ended. False if the lease does not hold the job, or no longer, or has many.
CREATE FUNCTION pgq._settle_0(job bigint, lease bigint, result jsonb) RETURNS boolean
    LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO pgq.outcome_0 (job_id, lease_id, at, kind, result)
    SELECT job, l.id, pgq._now(), 'done', result
    FROM pgq.lease_0 l
    WHERE l.id = lease AND l.job_ids IS NOT NULL AND job = ANY (l.job_ids) AND NOT pgq._whole(l.job_ids)
    ON CONFLICT DO NOTHING;
    RETURN FOUND;
END;
$$;
COMMENT ON FUNCTION pgq._settle_0(bigint, bigint, jsonb) IS
    'Writes the outcome of one finished job in segment 0, unless its lease may be ended as a whole';

SELECT pgq._for_each_slot('pgq._settle_0(bigint,bigint,jsonb)');

CREATE TYPE pgq.settled AS (id bigint, lease bigint);
COMMENT ON TYPE pgq.settled IS 'An attempt whose outcome was written just now';
COMMENT ON COLUMN pgq.settled.id IS 'Job id';
COMMENT ON COLUMN pgq.settled.lease IS 'The lease that held it';

CREATE FUNCTION pgq._settle_many_0(
    ids bigint[], leases bigint[], kinds pgq.outcome_kind[], results jsonb[], errors text[]
) RETURNS SETOF pgq.settled
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._split_0(leases);
    RETURN QUERY
    INSERT INTO pgq.outcome_0 AS o (job_id, lease_id, at, kind, result, error)
    SELECT u.id, u.lease, pgq._now(), coalesce(u.kind, kinds[1]), u.result, u.error
    FROM unnest(ids, leases, kinds, results, errors) u (id, lease, kind, result, error)
    JOIN (
        SELECT l.id AS lease, unnest(l.job_ids) AS id
        FROM pgq.lease_0 l
        WHERE l.id = ANY (leases) AND l.job_ids IS NOT NULL
            AND NOT EXISTS (SELECT FROM pgq.outcome_0 w WHERE w.lease_id = l.id AND w.job_id = 0 AND w.kind = 'done' OFFSET 0)
    ) held ON held.id = u.id AND held.lease = u.lease
    ORDER BY u.lease, u.id
    ON CONFLICT DO NOTHING
    RETURNING o.job_id, o.lease_id;
END;
$$;
COMMENT ON FUNCTION pgq._settle_many_0(bigint[], bigint[], pgq.outcome_kind[], jsonb[], text[]) IS
    'Writes the outcomes of attempts in segment 0; a single kind is for all';

SELECT pgq._for_each_slot('pgq._settle_many_0(bigint[],bigint[],pgq.outcome_kind[],jsonb[],text[])');

-- A straggler has left its segment; its outcome is written to its row, and pgq.rotate archives it from there.
CREATE FUNCTION pgq._settle_stragglers(
    ids bigint[], leases bigint[], kinds pgq.outcome_kind[], results jsonb[], errors text[]
) RETURNS SETOF pgq.settled
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    UPDATE pgq.straggler s
    SET finished_at = pgq._now(), kind = coalesce(u.kind, kinds[1]), result = u.result, error = u.error
    FROM unnest(ids, leases, kinds, results, errors) u (id, lease, kind, result, error)
    WHERE s.id = u.id AND s.lease = u.lease AND s.kind IS NULL
    RETURNING s.id, s.lease;
END;
$$;
COMMENT ON FUNCTION pgq._settle_stragglers(bigint[], bigint[], pgq.outcome_kind[], jsonb[], text[]) IS
    'Ends attempts whose segment could not wait for them';

CREATE FUNCTION pgq._settle_many(
    ids bigint[], leases bigint[], kinds pgq.outcome_kind[], results jsonb[], errors text[]
) RETURNS SETOF pgq.settled
    LANGUAGE plpgsql
AS $$
DECLARE
    v_slot int;
    v_count int;
    v_total int := 0;
BEGIN
    FOR v_slot IN SELECT DISTINCT (u.lease & 15)::int FROM unnest(leases) u (lease) WHERE u.lease IS NOT NULL LOOP
        RETURN QUERY SELECT * FROM pgq._settle_many(v_slot, ids, leases, kinds, results, errors);
        GET DIAGNOSTICS v_count = ROW_COUNT;
        v_total := v_total + v_count;
    END LOOP;
    IF v_total < cardinality(ids) THEN
        RETURN QUERY SELECT * FROM pgq._settle_stragglers(ids, leases, kinds, results, errors);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._settle_many(bigint[], bigint[], pgq.outcome_kind[], jsonb[], text[]) IS
    'Ends attempts wherever they are kept; returns those that were still held';

CREATE FUNCTION pgq._same_length(ids bigint[], leases bigint[], others int) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._require('ids', ids IS NOT NULL OR NULL, 'an array of job ids');
    PERFORM pgq._require('leases', cardinality(leases) = cardinality(ids), 'an array as long as ids');
    PERFORM pgq._require('the third array', coalesce(others = cardinality(ids), true), 'null or an array as long as ids');
END;
$$;
COMMENT ON FUNCTION pgq._same_length(bigint[], bigint[], int) IS 'Raises 22004 or 22023 unless arrays go together';

CREATE FUNCTION pgq._lost(id bigint, lease bigint) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._require('id', id IS NOT NULL OR NULL, 'the id of a claimed job');
    PERFORM pgq._require('lease', lease IS NOT NULL OR NULL, 'the lease it was claimed under');
    RAISE EXCEPTION USING
        ERRCODE = 'PQ001',
        MESSAGE = format('lease %s does not hold job %s', lease, id),
        DETAIL = 'The attempt has ended already: it was settled before, or its lease expired. Nothing was changed.',
        HINT = 'Drop the result: the job is done, or another worker has it. Extend leases in time, or make them longer.';
END;
$$;
COMMENT ON FUNCTION pgq._lost(bigint, bigint) IS 'Raises PQ001';

CREATE FUNCTION pgq.ack(id bigint, lease bigint, result jsonb DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_slot int := lease & 15;
    v_done boolean;
BEGIN
    -- by slot: v_slot
    v_done := pgq._settle_0(id, lease, result);
    IF NOT v_done THEN
        PERFORM pgq._settle_many(ARRAY[id], ARRAY[lease], '{done}', ARRAY[result], NULL);
        IF NOT FOUND THEN
            PERFORM pgq._lost(id, lease);
        END IF;
    END IF;
    IF pgq._awaited(lease) THEN
        PERFORM pgq._hand_back(ARRAY[id], 'done');
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq.ack(bigint, bigint, jsonb) IS
    'Ends a claimed job as done, with an optional result, in the caller''s transaction. Raises PQ001 if the lease is lost';

SELECT pgq._choose_slot('pgq.ack(bigint,bigint,jsonb)');

-- The common case of a batch: all jobs of a lease, in the order in which they were claimed.
CREATE FUNCTION pgq._done_0(ids bigint[], lease bigint, results jsonb[]) RETURNS boolean
    LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO pgq.outcome_0 (job_id, lease_id, at, kind, results)
    SELECT 0, l.id, pgq._now(), 'done', results
    FROM pgq.lease_0 l
    WHERE l.id = lease AND l.job_ids = ids AND pgq._whole(l.job_ids)
    ON CONFLICT DO NOTHING;
    RETURN FOUND;
END;
$$;
COMMENT ON FUNCTION pgq._done_0(bigint[], bigint, jsonb[]) IS 'Ends all jobs of a lease in segment 0 as done, if there are many';

SELECT pgq._for_each_slot('pgq._done_0(bigint[],bigint,jsonb[])');

CREATE FUNCTION pgq._done_each_0(ids bigint[], leases bigint[], results jsonb[]) RETURNS SETOF bigint
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    INSERT INTO pgq.outcome_0 AS o (job_id, lease_id, at, kind, results)
    SELECT 0, l.id, pgq._now(), 'done', CASE WHEN _done_each_0.results IS NOT NULL THEN g.results END
    FROM (
        SELECT u.lease, array_agg(u.id ORDER BY u.n) AS ids, array_agg(u.result ORDER BY u.n) AS results
        FROM unnest(ids, leases, _done_each_0.results) WITH ORDINALITY u (id, lease, result, n)
        GROUP BY u.lease
    ) g
    CROSS JOIN LATERAL (
        -- OFFSET 0: each by its index. As a join it may read all leases, if they were few when it was planned.
        SELECT l.id FROM pgq.lease_0 l WHERE l.id = g.lease AND l.job_ids = g.ids AND pgq._whole(l.job_ids) OFFSET 0
    ) l
    ORDER BY l.id
    ON CONFLICT DO NOTHING
    RETURNING o.lease_id;
END;
$$;
COMMENT ON FUNCTION pgq._done_each_0(bigint[], bigint[], jsonb[]) IS
    'Ends as done the leases in segment 0 all of whose jobs are here, if there are many; returns those leases';

SELECT pgq._for_each_slot('pgq._done_each_0(bigint[],bigint[],jsonb[])');

CREATE FUNCTION pgq.ack_many(ids bigint[], leases bigint[], results jsonb[] DEFAULT NULL) RETURNS SETOF bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_slot int := leases[1] & 15;
    v_done boolean := false;
    v_whole bigint[];
    v_ids bigint[] := '{}';
BEGIN
    IF array_dims(leases) = array_dims(ids) AND leases[1] = ALL (leases)
        AND (results IS NULL OR array_dims(results) = array_dims(ids))
    THEN
        -- by slot: v_slot
        v_done := pgq._done_0(ids, leases[1], results);
        IF v_done THEN
            IF pgq._awaited(leases[1]) THEN
                PERFORM pgq._hand_back(ids, 'done');
            END IF;
            RETURN QUERY SELECT unnest(ids);
            RETURN;
        END IF;
    ELSE
        PERFORM pgq._same_length(ids, leases, cardinality(results));
        v_whole := ARRAY(
            SELECT d FROM (SELECT DISTINCT (u.lease & 15)::int AS slot FROM unnest(leases) u (lease) WHERE u.lease IS NOT NULL) s,
                pgq._done_each(s.slot, ids, leases, results) d
        );
        v_ids := ARRAY(SELECT u.id FROM unnest(ids, leases) u (id, lease) WHERE u.lease = ANY (v_whole));
    END IF;
    v_ids := v_ids || ARRAY(
        SELECT s.id
        FROM (
            SELECT array_agg(u.id) AS ids, array_agg(u.lease) AS leases, array_agg(u.result) AS results
            FROM unnest(ids, leases, results) u (id, lease, result)
            WHERE (u.lease = ANY (v_whole)) IS NOT TRUE
        ) u, pgq._settle_many(u.ids, u.leases, '{done}', u.results, NULL) s
    );
    IF pg_sequence_last_value('pgq.awaited') > 0 OR EXISTS (SELECT FROM unnest(leases) u (lease) WHERE u.lease & 16 = 16) THEN
        PERFORM pgq._hand_back(v_ids, 'done');
    END IF;
    RETURN QUERY SELECT unnest(v_ids);
END;
$$;
COMMENT ON FUNCTION pgq.ack_many(bigint[], bigint[], jsonb[]) IS
    'Ends claimed jobs as done; ids and leases go in pairs. Returns the ids that took effect: the leases of the others are '
    'lost. Cheapest if all jobs of a claim are given at once, in the order in which it returned them';

SELECT pgq._choose_slot('pgq.ack_many(bigint[],bigint[],jsonb[])');

-- Fail ----------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._backoff(base interval, longest interval, attempt int) RETURNS interval
    LANGUAGE sql VOLATILE
AS $$
    -- Doubles with each attempt; half of it is chance, so that jobs that failed together do not come back together.
    SELECT least(date_part('epoch', longest), date_part('epoch', base) * power(2, least(attempt - 1, 40)))
        * (0.5 + random() / 2) * interval '1 second'
$$;
COMMENT ON FUNCTION pgq._backoff(interval, interval, int) IS 'Delay after a failed attempt';

CREATE FUNCTION pgq._open_front(ids bigint[], leases bigint[]) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._add_line(l.lane), pgq._wake(q.id, q.name)
    FROM (
        SELECT DISTINCT pgq._front(a.lane) AS lane FROM pgq._attempts(ids, leases) a
    ) l JOIN pgq.queue q ON q.id = l.lane >> 16;
END;
$$;
COMMENT ON FUNCTION pgq._open_front(bigint[], bigint[]) IS
    'Makes claims look at the front lanes that these attempts are about to join, and wakes who waits for them';

-- Ends attempts as failed. Each gets its error on record and another attempt, or becomes a dead letter, or is cancelled
-- if that was asked for. `retry_in` null: backoff. `expired`: the worker was lost, so another may begin at once, at the
-- front of the line.
CREATE FUNCTION pgq._fail(
    ids bigint[], leases bigint[], errors text[], retry_in interval, retry boolean, expired boolean
) RETURNS TABLE (id bigint, kind pgq.outcome_kind)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    v_slot int := pgq._hold();
BEGIN
    IF expired THEN
        PERFORM pgq._open_front(ids, leases);
    END IF;
    RETURN QUERY
    WITH failed AS MATERIALIZED (
        SELECT a.*, u.error, q.backoff, q.backoff_max,
            q.id IS NOT NULL AS known, c.stopped,
            coalesce(retry AND NOT c.stopped AND q.id IS NOT NULL
                AND a.attempt < coalesce(a.max_attempts, q.max_attempts), false) AS again,
            pgq._home(a.lane, a.id, q.shards) AS home,
            coalesce(a.history, '[]') || jsonb_build_object('attempt', a.attempt, 'at', pgq._now(),
                'error', left(u.error, 10000), 'worker', a.worker) AS errors
        FROM pgq._attempts(ids, leases) a
        JOIN (
            SELECT DISTINCT ON (u.id, u.lease) * FROM unnest(ids, leases, errors) u (id, lease, error)
        ) u ON u.id = a.id AND u.lease = a.lease
        CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM pgq.cancel_request c WHERE c.id = a.id OFFSET 0)) c (stopped)
        LEFT JOIN pgq.queue q ON q.id = a.lane >> 16
    ), ended AS MATERIALIZED (
        SELECT s.id, s.lease FROM (
            SELECT array_agg(f.id) AS ids, array_agg(f.lease) AS leases, array_agg(f.error) AS errors, array_agg(
                CASE WHEN f.stopped THEN 'cancelled' WHEN expired THEN 'expired' WHEN f.again THEN 'retry' ELSE 'dead'
                END::pgq.outcome_kind
            ) AS kinds
            FROM failed f
        ) f, pgq._settle_many(f.ids, f.leases, f.kinds, NULL, f.errors) s
    ), waiting AS (
        INSERT INTO pgq.scheduled (run_at, id, lane, enqueued_at, attempt, max_attempts, task, payload, headers, history, group_key)
        SELECT pgq._now() + coalesce(retry_in, pgq._backoff(f.backoff, f.backoff_max, f.attempt)), f.id,
            f.home, f.enqueued_at, f.attempt + 1, f.max_attempts, f.task, f.payload, f.headers, f.errors, f.group_key
        FROM failed f JOIN ended e ON e.id = f.id AND e.lease = f.lease
        WHERE f.again AND NOT expired
    ), ready AS (
        INSERT INTO pgq.job (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers, history, group_key)
        SELECT pgq._front(f.lane), pg_current_xact_id(), f.id, f.enqueued_at, v_slot, f.attempt + 1, f.max_attempts,
            f.task, f.payload, f.headers, f.errors, f.group_key
        FROM failed f JOIN ended e ON e.id = f.id AND e.lease = f.lease
        WHERE f.again AND expired
    ), buried AS (
        INSERT INTO pgq.dead (id, lane, enqueued_at, died_at, attempt, max_attempts, task, payload, headers, history, error, group_key)
        SELECT f.id, f.lane, f.enqueued_at, pgq._now(), f.attempt, f.max_attempts, f.task, f.payload, f.headers, f.errors,
            f.error, f.group_key
        FROM failed f JOIN ended e ON e.id = f.id AND e.lease = f.lease
        WHERE NOT f.again AND f.known AND NOT f.stopped
    ), heard AS (
        DELETE FROM pgq.cancel_request c USING failed f JOIN ended e ON e.id = f.id AND e.lease = f.lease
        WHERE f.stopped AND c.id = f.id
    ), handed_back AS (
        SELECT pgq._hand_back(array_agg(f.id),
            CASE WHEN f.stopped THEN 'cancelled' WHEN NOT f.again THEN 'dead' END::pgq.outcome_kind)
        FROM failed f JOIN ended e ON e.id = f.id AND e.lease = f.lease
        WHERE pgq._awaited(f.lease)
        GROUP BY f.stopped, f.again
    )
    SELECT f.id, CASE WHEN f.stopped THEN 'cancelled' WHEN f.again THEN 'retry' ELSE 'dead' END::pgq.outcome_kind
    FROM failed f JOIN ended e ON e.id = f.id AND e.lease = f.lease, (SELECT count(*) FROM handed_back) b;
END;
$$;
COMMENT ON FUNCTION pgq._fail(bigint[], bigint[], text[], interval, boolean, boolean) IS
    'Ends attempts as failed; returns for each that was still held whether it gets another one';

CREATE FUNCTION pgq.reject(
    id bigint, lease bigint, error text DEFAULT NULL, retry_in interval DEFAULT NULL, retry boolean DEFAULT true
) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_kind text;
BEGIN
    PERFORM pgq._require('retry', retry IS NOT NULL OR NULL, 'true or false');
    IF retry_in IS NOT NULL THEN
        PERFORM pgq._require('retry_in', retry_in BETWEEN '0' AND '100 years', 'between 0 and 100 years');
    END IF;
    SELECT f.kind INTO v_kind FROM pgq._fail(ARRAY[id], ARRAY[lease], ARRAY[error], retry_in, retry, false) f;
    IF NOT FOUND THEN
        PERFORM pgq._lost(id, lease);
    END IF;
    RETURN v_kind;
END;
$$;
COMMENT ON FUNCTION pgq.reject(bigint, bigint, text, interval, boolean) IS
    'Ends a claimed job as failed. It is tried again after retry_in, or after the queue''s exponential backoff, and becomes '
    'a dead letter when its attempts are used up or retry is false. Returns ''retry'' or ''dead'', or ''cancelled'' if it was '
    'asked to stop (pgq.cancel). Raises PQ001 if the lease is lost, 22023';

CREATE FUNCTION pgq.reject_many(ids bigint[], leases bigint[], errors text[] DEFAULT NULL) RETURNS SETOF bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
BEGIN
    PERFORM pgq._same_length(ids, leases, cardinality(errors));
    RETURN QUERY SELECT f.id FROM pgq._fail(ids, leases, errors, NULL, true, false) f;
END;
$$;
COMMENT ON FUNCTION pgq.reject_many(bigint[], bigint[], text[]) IS
    'Ends claimed jobs as failed, as pgq.reject does with backoff. Returns the ids that took effect';

-- Ends attempts that do not count. `stopped`: as cancelled, because that was asked for.
CREATE FUNCTION pgq._given_back(ids bigint[], leases bigint[], kind pgq.outcome_kind)
    RETURNS TABLE (
        id bigint, lane bigint, enqueued_at timestamptz, attempt int, max_attempts int, task text, payload jsonb,
        headers jsonb, history jsonb, group_key text, stopped boolean
    )
    LANGUAGE plpgsql
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH held AS MATERIALIZED (
        SELECT a.*, EXISTS (SELECT FROM pgq.cancel_request c WHERE c.id = a.id OFFSET 0) AS stopped
        FROM pgq._attempts(ids, leases) a
    ), ended AS MATERIALIZED (
        SELECT s.id, s.lease
        FROM (
            SELECT array_agg(h.id) AS ids, array_agg(h.lease) AS leases,
                array_agg(CASE WHEN h.stopped THEN 'cancelled' ELSE _given_back.kind END) AS kinds
            FROM held h
        ) h, pgq._settle_many(h.ids, h.leases, h.kinds, NULL, NULL) s
    ), heard AS (
        DELETE FROM pgq.cancel_request c USING held h JOIN ended e ON e.id = h.id AND e.lease = h.lease
        WHERE h.stopped AND c.id = h.id
    ), handed_back AS (
        SELECT pgq._hand_back(array_agg(h.id), CASE WHEN h.stopped THEN 'cancelled' END::pgq.outcome_kind)
        FROM held h JOIN ended e ON e.id = h.id AND e.lease = h.lease
        WHERE pgq._awaited(h.lease)
        GROUP BY h.stopped
    )
    SELECT h.id, h.lane, h.enqueued_at, h.attempt, h.max_attempts, h.task, h.payload, h.headers, h.history, h.group_key,
        h.stopped
    FROM held h JOIN ended e ON e.id = h.id AND e.lease = h.lease, (SELECT count(*) FROM handed_back) b;
END;
$$;
COMMENT ON FUNCTION pgq._given_back(bigint[], bigint[], pgq.outcome_kind) IS
    'Ends attempts that do not count; returns those that were still held, with all that is needed to make the next one';

CREATE FUNCTION pgq.release(ids bigint[], leases bigint[]) RETURNS SETOF bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_slot int := pgq._hold();
BEGIN
    PERFORM pgq._same_length(ids, leases, NULL);
    PERFORM pgq._open_front(ids, leases);
    RETURN QUERY
    WITH held AS MATERIALIZED (
        SELECT * FROM pgq._given_back(ids, leases, 'released')
    ), ready AS (
        INSERT INTO pgq.job AS j (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers, history, group_key)
        SELECT pgq._front(h.lane), pg_current_xact_id(), h.id, h.enqueued_at, v_slot, h.attempt, h.max_attempts,
            h.task, h.payload, h.headers, h.history, h.group_key
        FROM held h
        WHERE NOT h.stopped
    )
    SELECT h.id FROM held h;
END;
$$;
COMMENT ON FUNCTION pgq.release(bigint[], bigint[]) IS
    'Gives claimed jobs back unworked, to the front of the line; the attempt does not count. Returns the ids that took effect';

CREATE FUNCTION pgq.snooze_many(ids bigint[], leases bigint[], delay interval) RETURNS SETOF bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
BEGIN
    PERFORM pgq._same_length(ids, leases, NULL);
    PERFORM pgq._require('delay', delay BETWEEN '0' AND '100 years', 'an interval between 0 and 100 years');
    PERFORM pgq._hold();
    RETURN QUERY
    WITH held AS MATERIALIZED (
        SELECT * FROM pgq._given_back(ids, leases, 'snoozed')
    ), waiting AS (
        INSERT INTO pgq.scheduled (run_at, id, lane, enqueued_at, attempt, max_attempts, task, payload, headers, history, group_key)
        SELECT pgq._now() + delay, h.id, pgq._home(h.lane, h.id, q.shards), h.enqueued_at, h.attempt, h.max_attempts,
            h.task, h.payload, h.headers, h.history, h.group_key
        FROM held h JOIN pgq.queue q ON q.id = h.lane >> 16
        WHERE NOT h.stopped
    )
    SELECT h.id FROM held h;
END;
$$;
COMMENT ON FUNCTION pgq.snooze_many(bigint[], bigint[], interval) IS
    'Puts claimed jobs off, as pgq.snooze does; ids and leases go in pairs. Returns the ids that took effect';

CREATE FUNCTION pgq.snooze(id bigint, lease bigint, delay interval) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq.snooze_many(ARRAY[id], ARRAY[lease], delay);
    IF NOT FOUND THEN
        PERFORM pgq._lost(id, lease);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq.snooze(bigint, bigint, interval) IS
    'Puts a claimed job off: it is ready again after delay, and the attempt does not count. If it was asked to stop '
    '(pgq.cancel) it ends as cancelled instead. Raises PQ001 if the lease is lost, 22023, 22004';

-- Extend --------------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.extended AS (lease bigint, expires_at timestamptz);
COMMENT ON TYPE pgq.extended IS 'A lease and its new expiry';
COMMENT ON COLUMN pgq.extended.lease IS 'Lease id';
COMMENT ON COLUMN pgq.extended.expires_at IS 'When it ends now';

-- OFFSET 0 here and elsewhere: look each one up by its index, never read a whole table to join it, nor max() off the
-- index on expires_at, from its end back to the lease.
CREATE FUNCTION pgq._expiry_0(lease bigint) RETURNS timestamptz
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN (SELECT max(x.expires_at) FROM (SELECT l.expires_at FROM pgq.lease_0 l WHERE l.id = lease OFFSET 0) x);
END;
$$;
COMMENT ON FUNCTION pgq._expiry_0(bigint) IS 'When a lease in segment 0 ends';

SELECT pgq._for_each_slot('pgq._expiry_0(bigint)');

-- The lease is lost once every job in it has an outcome.
CREATE FUNCTION pgq._extend_0(leases bigint[], lease_for interval) RETURNS SETOF pgq.extended
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    INSERT INTO pgq.lease_0 AS e (id, expires_at)
    SELECT l.id, greatest(
        pgq._now() + coalesce(lease_for, q.lease),
        pgq._expiry_0(l.id)
    )
    FROM pgq.lease_0 l
    JOIN pgq.queue q ON q.id = l.lane >> 16
    WHERE l.id = ANY (leases)
        AND l.job_ids IS NOT NULL
        AND EXISTS (SELECT FROM pgq.unsettled_0 u WHERE u.lease = l.id OFFSET 0)
    RETURNING e.id, e.expires_at;
END;
$$;
COMMENT ON FUNCTION pgq._extend_0(bigint[], interval) IS 'Appends a later expiry to leases in segment 0';

SELECT pgq._for_each_slot('pgq._extend_0(bigint[],interval)');

CREATE FUNCTION pgq.extend_many(leases bigint[], lease_for interval DEFAULT NULL)
    RETURNS TABLE (lease bigint, expires_at timestamptz)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_slot int;
BEGIN
    PERFORM pgq._require('leases', leases IS NOT NULL OR NULL, 'an array of leases');
    IF lease_for IS NOT NULL THEN
        PERFORM pgq._require('lease_for', lease_for BETWEEN '1 millisecond' AND '1 year', 'between 1 ms and 1 year');
    END IF;
    FOR v_slot IN SELECT DISTINCT (u.lease & 15)::int FROM unnest(leases) u (lease) WHERE u.lease IS NOT NULL LOOP
        RETURN QUERY SELECT * FROM pgq._extend(v_slot, leases, lease_for);
    END LOOP;
    RETURN QUERY
    WITH extended AS (
        UPDATE pgq.straggler s SET expires_at = greatest(s.expires_at, pgq._now() + coalesce(lease_for, q.lease))
        FROM pgq.queue q
        WHERE s.lease = ANY (leases) AND s.kind IS NULL AND q.id = s.lane >> 16
        RETURNING s.lease, s.expires_at
    )
    SELECT e.lease, min(e.expires_at) FROM extended e GROUP BY e.lease;
END;
$$;
COMMENT ON FUNCTION pgq.extend_many(bigint[], interval) IS
    'Extends leases to lease_for from now, or as long as their queues say; never shortens one. Returns those that are '
    'still held, with their new expiry';

CREATE FUNCTION pgq.extend(lease bigint, lease_for interval DEFAULT NULL) RETURNS timestamptz
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_expires_at timestamptz;
BEGIN
    PERFORM pgq._require('lease', lease IS NOT NULL OR NULL, 'the lease of a claimed job');
    SELECT max(e.expires_at) INTO v_expires_at FROM pgq.extend_many(ARRAY[lease], lease_for) e;
    IF v_expires_at IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PQ001',
            MESSAGE = format('lease %s is lost', lease),
            DETAIL = 'Every job in it has ended: it was settled before, or the lease expired. Nothing was changed.',
            HINT = 'Stop working on its jobs. Extend at a third of the lease, or make leases longer.';
    END IF;
    RETURN v_expires_at;
END;
$$;
COMMENT ON FUNCTION pgq.extend(bigint, interval) IS
    'Extends a lease to lease_for from now, or as long as the queue says, and never shortens it; returns when it ends. '
    'Raises PQ001 if it is lost';
