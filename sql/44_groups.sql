-- Limits: how many jobs of a group or of a queue run at once or start in a time, and groups that take turns.
-- Tables: parked, parked_group, permit, start; job, lease and outcome of what is claimed; reads queue and line.
--
-- Jobs with a group lie in lanes of their own, where ordinary claims do not look: 97, or 96 if they come back. Claims
-- of a queue that has such lanes, or limits, go through a gate, one at a time. There jobs leave their lanes in order
-- and are parked; the gate picks those that may run, and puts them into the open segment once more, as handed out
-- (lane 98). So a group that is busy costs the others nothing once it is parked, and limits are counted under one lock.
--
-- A job that counts against a limit has a permit. Whatever ends its attempt gives it back in the same transaction: the
-- fifth bit of the lease says that there is one, so those who settle other jobs never ask. The next claim removes what
-- was given back, and looks at those groups again. While a job waits for its next attempt it keeps its permit, so that
-- nobody of its group overtakes it.

CREATE FUNCTION pgq._check_rate(argument text, rate int, period interval) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._require(argument, coalesce(rate BETWEEN 1 AND 1000000000, true), 'null or between 1 and 1000000000');
    PERFORM pgq._require('the period of ' || argument, (rate IS NULL) = (period IS NULL), 'given if there is a rate, and only then');
    PERFORM pgq._require('the period of ' || argument, coalesce(period BETWEEN '1 millisecond' AND '1 year', true),
        'between 1 ms and 1 year');
END;
$$;
COMMENT ON FUNCTION pgq._check_rate(text, int, interval) IS 'Raises 22023';

CREATE FUNCTION pgq.set_limits(
    queue text,
    group_limit int DEFAULT 1,
    running_limit int DEFAULT NULL,
    rate int DEFAULT NULL,
    rate_period interval DEFAULT NULL,
    group_rate int DEFAULT NULL,
    group_period interval DEFAULT NULL,
    fair boolean DEFAULT false,
    keep_place boolean DEFAULT true
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s'
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
    v_fair boolean;
BEGIN
    PERFORM pgq._require('group_limit', coalesce(group_limit BETWEEN 1 AND 1000000, true), 'null or between 1 and 1000000');
    PERFORM pgq._require('running_limit', coalesce(running_limit BETWEEN 1 AND 1000000, true), 'null or between 1 and 1000000');
    PERFORM pgq._check_rate('rate', rate, rate_period);
    PERFORM pgq._check_rate('group_rate', group_rate, group_period);
    PERFORM pgq._require('fair', fair IS NOT NULL OR NULL, 'true or false');
    PERFORM pgq._require('keep_place', keep_place IS NOT NULL OR NULL, 'true or false');
    PERFORM pg_advisory_xact_lock(pgq._gate_key(v_queue.id));
    SELECT q.fair INTO v_fair FROM pgq.queue q WHERE q.id = v_queue.id;
    UPDATE pgq.queue q
    SET group_limit = set_limits.group_limit, running_limit = set_limits.running_limit,
        rate = set_limits.rate, rate_period = set_limits.rate_period,
        group_rate = set_limits.group_rate, group_period = set_limits.group_period,
        fair = set_limits.fair, keep_place = set_limits.keep_place
    WHERE q.id = v_queue.id;
    IF num_nonnulls(running_limit, rate) > 0 OR fair THEN
        PERFORM pgq._add_line(pgq._lane(v_queue.id, 0, 97));
    END IF;
    UPDATE pgq.parked_group g SET ready = true, ready_at = NULL WHERE g.queue_id = v_queue.id AND NOT g.ready;
    -- Turns and ids do not compare: a group that has had its turn would come before all that have none yet.
    IF v_fair <> fair THEN
        UPDATE pgq.parked_group g
        SET turn = CASE
            WHEN set_limits.fair THEN nextval('pgq.turn')
            ELSE coalesce((
                SELECT p.id FROM pgq.parked p WHERE p.queue_id = g.queue_id AND p.group_key = g.group_key
                ORDER BY p.queue_id, p.group_key, p.priority, p.id LIMIT 1
            ), g.turn)
        END
        WHERE g.queue_id = v_queue.id;
    END IF;
    PERFORM pgq._wake(v_queue.id, v_queue.name);
END;
$$;
COMMENT ON FUNCTION pgq.set_limits(text, int, int, int, interval, int, interval, boolean, boolean) IS
    'Sets all limits of a queue, for jobs claimed from now on. group_limit: how many jobs with the same group_key run at once; '
    'null: any number. running_limit: how many of the whole queue. rate and rate_period: how many start in a period; '
    'group_rate and group_period: how many with the same group_key. fair: groups take turns, one job each, whatever they have '
    'waiting. keep_place: a group waits for its job that failed and is to be tried again. Raises PQ002, 22023, 22004, 55P03 '
    'if a claiming transaction does not end within five seconds';

-- Permits ------------------------------------------------------------------------------------------------------------

-- Each row says how many there were by then, so a period is the difference of two. Under the gate.
CREATE FUNCTION pgq._started(queue_id int, group_key text, jobs bigint) RETURNS void
    LANGUAGE plpgsql
AS $$
DECLARE
    v_last pgq.start;
BEGIN
    IF jobs = 0 THEN
        RETURN;
    END IF;
    SELECT * INTO v_last FROM pgq.start s
    WHERE s.queue_id = _started.queue_id AND s.group_key = _started.group_key
    ORDER BY s.queue_id DESC, s.group_key DESC, s.at DESC, s.total DESC LIMIT 1;
    INSERT INTO pgq.start (queue_id, group_key, at, jobs, total)
    VALUES (queue_id, group_key, greatest(pgq._now(), v_last.at), jobs, coalesce(v_last.total, 0) + jobs);
END;
$$;
COMMENT ON FUNCTION pgq._started(int, text, bigint) IS 'Notes that jobs of a queue or a group were claimed';

CREATE FUNCTION pgq._room(queue_id int, group_key text, rate int, period interval) RETURNS int
    LANGUAGE plpgsql
AS $$
DECLARE
    v_since CONSTANT timestamptz := pgq._now() - period;
    v_last bigint;
    v_before bigint;
BEGIN
    IF rate IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT s.total - s.jobs INTO v_before FROM pgq.start s
    WHERE s.queue_id = _room.queue_id AND s.group_key = _room.group_key AND s.at > v_since
    ORDER BY s.queue_id, s.group_key, s.at, s.total LIMIT 1;
    SELECT s.total INTO v_last FROM pgq.start s
    WHERE s.queue_id = _room.queue_id AND s.group_key = _room.group_key
    ORDER BY s.queue_id DESC, s.group_key DESC, s.at DESC, s.total DESC LIMIT 1;
    RETURN greatest(rate - coalesce(v_last - v_before, 0), 0);
END;
$$;
COMMENT ON FUNCTION pgq._room(int, text, int, interval) IS 'How many more may start within a rate; null: any number';

CREATE FUNCTION pgq._room_at(queue_id int, group_key text, rate int, period interval) RETURNS timestamptz
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_since CONSTANT timestamptz := pgq._now() - period;
BEGIN
    RETURN (
        SELECT s.at + period FROM pgq.start s
        WHERE s.queue_id = _room_at.queue_id AND s.group_key = _room_at.group_key AND s.at > v_since
            AND s.total > (
                SELECT l.total - rate FROM pgq.start l
                WHERE l.queue_id = _room_at.queue_id AND l.group_key = _room_at.group_key
                ORDER BY l.queue_id DESC, l.group_key DESC, l.at DESC, l.total DESC LIMIT 1
            )
        ORDER BY s.queue_id, s.group_key, s.at, s.total LIMIT 1
    );
END;
$$;
COMMENT ON FUNCTION pgq._room_at(int, text, int, interval) IS 'When the next one may start within a rate that is used up';

-- `again`: these jobs get another attempt.
CREATE FUNCTION pgq._end_permits(ids bigint[], again boolean) RETURNS SETOF int
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    UPDATE pgq.permit m
    SET state = CASE WHEN again AND q.keep_place AND m.group_key <> '' THEN 'waiting' ELSE 'ended' END
    FROM pgq.queue q
    WHERE m.job_id = ANY (ids) AND m.state <> 'ended' AND q.id = m.queue_id
    RETURNING m.queue_id;
END;
$$;
COMMENT ON FUNCTION pgq._end_permits(bigint[], boolean) IS 'Gives back the permits of jobs; returns their queues';

-- Whoever ends jobs for good says how; `kind` null: they get another attempt.
CREATE FUNCTION pgq._hand_back(ids bigint[], kind pgq.outcome_kind) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._wake(q.id, q.name)
    FROM pgq.queue q
    WHERE q.id IN (SELECT pgq._end_permits(ids, kind IS NULL))
        AND (q.running_limit IS NOT NULL OR EXISTS (SELECT FROM pgq.parked_group g WHERE g.queue_id = q.id));
    IF kind IS NOT NULL AND pg_sequence_last_value('pgq.awaited') > 0 THEN
        PERFORM pgq._tell(ids, kind);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._hand_back(bigint[], pgq.outcome_kind) IS
    'Gives back the permits of jobs whose attempt has ended, and tells those who wait for a permit or for these jobs';

CREATE FUNCTION pgq._look_again(queue_id int) RETURNS void
    LANGUAGE plpgsql
AS $$
DECLARE
    v_now CONSTANT timestamptz := pgq._now();
BEGIN
    WITH ended AS (
        DELETE FROM pgq.permit m WHERE m.queue_id = _look_again.queue_id AND m.state = 'ended' RETURNING m.group_key
    )
    UPDATE pgq.parked_group g SET ready = true, ready_at = NULL
    FROM (SELECT DISTINCT e.group_key FROM ended e) e
    WHERE g.queue_id = _look_again.queue_id AND g.group_key = e.group_key AND NOT g.ready;
    UPDATE pgq.parked_group g SET ready = true, ready_at = NULL
    WHERE g.queue_id = _look_again.queue_id AND NOT g.ready AND g.ready_at <= v_now;
END;
$$;
COMMENT ON FUNCTION pgq._look_again(int) IS 'Removes permits that were given back, and makes groups ready that may run something now';

-- The gate -----------------------------------------------------------------------------------------------------------

-- Takes up to n jobs out of a line's lanes, in order. Their rows end there as carried elsewhere.
CREATE FUNCTION pgq._park(queue pgq.queue, line bigint, n int, slots int[], known pg_snapshot) RETURNS int
    LANGUAGE plpgsql
AS $$
DECLARE
    v_slot int;
    v_ids bigint[];
    v_leases bigint[];
    v_total int := 0;
BEGIN
    FOREACH v_slot IN ARRAY slots LOOP
        SELECT array_agg(t.id), array_agg(t.lease) INTO v_ids, v_leases
        FROM pgq._take_known(queue, v_slot, line, n - v_total, known, pgq._now() + '1 hour', 'pgq.claim') t;
        CONTINUE WHEN v_ids IS NULL;
        PERFORM pgq._settle_many(v_ids, v_leases, '{carried}', NULL, NULL);
        WITH parked AS (
            INSERT INTO pgq.parked AS p (id, queue_id, group_key, priority, lane, enqueued_at, attempt, max_attempts, task,
                payload, headers, history)
            SELECT a.id, queue.id, coalesce(a.group_key, ''), pgq._priority(a.lane), a.lane, a.enqueued_at, a.attempt,
                a.max_attempts, a.task, a.payload, a.headers, a.history
            FROM pgq._attempts(v_ids, v_leases) a
            RETURNING p.group_key, p.priority, p.id
        )
        INSERT INTO pgq.parked_group AS g (queue_id, group_key, priority, turn, ready)
        SELECT queue.id, f.group_key, f.priority, CASE WHEN queue.fair THEN nextval('pgq.turn') ELSE f.id END, true
        FROM (SELECT DISTINCT ON (p.group_key) p.* FROM parked p ORDER BY p.group_key, p.priority, p.id) f
        ON CONFLICT ON CONSTRAINT parked_group_queue_id_group_key_pkey DO UPDATE
        SET priority = excluded.priority, turn = CASE WHEN queue.fair THEN g.turn ELSE excluded.turn END
        WHERE excluded.priority < g.priority
            OR NOT queue.fair AND excluded.priority = g.priority AND excluded.turn < g.turn;
        -- Those whose group has been waiting for them.
        UPDATE pgq.parked_group g SET ready = true, ready_at = NULL
        FROM pgq.permit m
        WHERE m.job_id = ANY (v_ids) AND m.state = 'waiting'
            AND g.queue_id = m.queue_id AND g.group_key = m.group_key AND NOT g.ready;
        v_total := v_total + cardinality(v_ids);
        EXIT WHEN v_total = n;
    END LOOP;
    RETURN v_total;
END;
$$;
COMMENT ON FUNCTION pgq._park(pgq.queue, bigint, int, int[], pg_snapshot) IS 'Parks jobs of a line; returns how many';

CREATE FUNCTION pgq._take_known(
    queue pgq.queue, slot int, line bigint, n int, known pg_snapshot, expiry timestamptz, who text
) RETURNS SETOF pgq.claimed_job
    LANGUAGE plpgsql
AS $$
DECLARE
    v_restored CONSTANT boolean := (pg_sequence_last_value('pgq.restored') >> slot) & 1 = 1;
    v_sharded CONSTANT boolean := line & 255 = 1;
BEGIN
    RETURN QUERY
    SELECT * FROM pgq._take(
        slot, CASE WHEN v_sharded THEN line & ~255::bigint ELSE line END, CASE WHEN v_sharded THEN queue.lanes::int ELSE 0 END,
        floor(random() * queue.lanes)::int, n,
        CASE WHEN v_restored THEN '9223372036854775807' ELSE pg_snapshot_xmax(known) END,
        CASE WHEN v_restored THEN '{}' ELSE pgq._running(known) END,
        expiry, who, queue.name, queue.max_attempts
    );
END;
$$;
COMMENT ON FUNCTION pgq._take_known(pgq.queue, int, bigint, int, pg_snapshot, timestamptz, text) IS
    'Claims up to n jobs of one line from a segment, as far as a snapshot knows them';

-- The jobs of a group that may run now, up to n of them, with their permits: those that have kept theirs, then as many
-- as there is room for. One that somebody is changing at this moment is left alone, and its group looked at again soon.
CREATE FUNCTION pgq._pick_of(queue pgq.queue, group_key text, priority int, n int) RETURNS pgq.parked[]
    LANGUAGE plpgsql
AS $$
DECLARE
    v_limit CONSTANT int := CASE WHEN group_key <> '' THEN queue.group_limit END;
    v_rate CONSTANT int := CASE WHEN group_key <> '' THEN queue.group_rate END;
    v_room CONSTANT int := pgq._room(queue.id, group_key, v_rate, queue.group_period);
    v_most CONSTANT int := least(n, v_room, CASE WHEN queue.fair THEN 1 END);
    v_held int := 0;
    v_waited int;
    v_ids bigint[] := '{}';
    v_picked pgq.parked[];
    v_first record;
    v_ready boolean := false;
    v_ready_at timestamptz;
BEGIN
    IF v_limit IS NOT NULL THEN
        SELECT count(*) INTO v_held FROM pgq.permit m
        WHERE m.queue_id = queue.id AND m.group_key = _pick_of.group_key AND m.state <> 'ended';
    END IF;
    IF v_held > 0 THEN
        v_ids := ARRAY(
            SELECT p.id FROM pgq.permit m JOIN pgq.parked p ON p.id = m.job_id
            WHERE m.queue_id = queue.id AND m.group_key = _pick_of.group_key AND m.state = 'waiting'
            ORDER BY p.id LIMIT v_most
        );
    END IF;
    v_waited := cardinality(v_ids);
    v_ids := v_ids || ARRAY(
        SELECT p.id FROM pgq.parked p
        WHERE p.queue_id = queue.id AND p.group_key = _pick_of.group_key AND p.priority <= _pick_of.priority
            AND p.id <> ALL (v_ids)
        ORDER BY p.queue_id, p.group_key, p.priority, p.id
        LIMIT greatest(least(v_most - v_waited, v_limit - v_held), 0)
    );
    WITH free AS MATERIALIZED (
        SELECT p.id FROM pgq.parked p WHERE p.id = ANY (v_ids) FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM pgq.parked p USING free f WHERE p.id = f.id RETURNING p.*
    )
    SELECT coalesce(array_agg(ROW(g.*)::pgq.parked ORDER BY g.priority, g.id), '{}') INTO v_picked FROM gone g;
    IF num_nonnulls(v_limit, queue.running_limit) > 0 THEN
        INSERT INTO pgq.permit (job_id, queue_id, group_key, state)
        SELECT p.id, queue.id, p.group_key, 'running' FROM unnest(v_picked) p
        ON CONFLICT ON CONSTRAINT permit_job_id_pkey DO UPDATE SET group_key = excluded.group_key, state = 'running';
    ELSIF group_key <> '' THEN
        -- Kept from when there was a limit: nobody would give them back.
        DELETE FROM pgq.permit m WHERE m.job_id = ANY (ARRAY(SELECT p.id FROM unnest(v_picked) p));
    END IF;
    IF v_rate IS NOT NULL THEN
        PERFORM pgq._started(queue.id, group_key, cardinality(v_picked));
    END IF;

    SELECT p.priority, p.id INTO v_first FROM pgq.parked p
    WHERE p.queue_id = queue.id AND p.group_key = _pick_of.group_key
    ORDER BY p.queue_id, p.group_key, p.priority, p.id LIMIT 1;
    IF NOT FOUND THEN
        DELETE FROM pgq.parked_group g WHERE g.queue_id = queue.id AND g.group_key = _pick_of.group_key;
        RETURN v_picked;
    ELSIF cardinality(v_picked) < cardinality(v_ids) THEN
        v_ready_at := pgq._now() + interval '50 milliseconds';
    ELSIF v_room = cardinality(v_picked) THEN
        v_ready_at := pgq._room_at(queue.id, group_key, v_rate, queue.group_period);
    ELSE
        v_ready := v_waited = v_most OR (v_held + cardinality(v_ids) - v_waited < v_limit) IS NOT FALSE;
    END IF;
    UPDATE pgq.parked_group g
    SET priority = v_first.priority, turn = CASE WHEN queue.fair THEN nextval('pgq.turn') ELSE v_first.id END,
        ready = v_ready, ready_at = v_ready_at
    WHERE g.queue_id = queue.id AND g.group_key = _pick_of.group_key;
    RETURN v_picked;
END;
$$;
COMMENT ON FUNCTION pgq._pick_of(pgq.queue, text, int, int) IS 'Takes up to n parked jobs of a group that may run now, down to a priority';

CREATE FUNCTION pgq._pick(queue pgq.queue, n int, least_urgent int) RETURNS pgq.parked[]
    LANGUAGE plpgsql
AS $$
DECLARE
    v_group record;
    v_priority int;
    v_picked pgq.parked[] := '{}';
BEGIN
    WHILE cardinality(v_picked) < n LOOP
        v_priority := NULL;
        FOR v_group IN
            SELECT g.group_key, g.priority FROM pgq.parked_group g
            WHERE g.queue_id = queue.id AND g.ready AND g.priority <= least_urgent
            ORDER BY g.queue_id, g.priority, g.turn
            LIMIT n - cardinality(v_picked)
        LOOP
            -- Then look again: the first ones may have more that is as urgent.
            EXIT WHEN v_group.priority > v_priority OR cardinality(v_picked) = n;
            v_priority := v_group.priority;
            v_picked := v_picked || pgq._pick_of(queue, v_group.group_key, v_priority, n - cardinality(v_picked));
        END LOOP;
        EXIT WHEN v_priority IS NULL;
    END LOOP;
    RETURN v_picked;
END;
$$;
COMMENT ON FUNCTION pgq._pick(pgq.queue, int, int) IS 'Takes up to n parked jobs of a queue that may run now, down to a priority';

-- Puts jobs into segment 0, under a lease. Their lane is nobody else's: its position only shows what was handed out.
CREATE FUNCTION pgq._hand_out_0(
    queue pgq.queue, jobs pgq.parked[], expiry timestamptz, who text, lease_slot int
) RETURNS SETOF pgq.claimed_job
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    WITH given AS MATERIALIZED (
        SELECT j.*, pgq._lane(j.queue_id, j.priority, 98) AS gate FROM unnest(jobs) WITH ORDINALITY j
    ), job AS (
        INSERT INTO pgq.job_0 (lane, xid, id, enqueued_at, attempt, max_attempts, task, payload, headers, history, group_key)
        SELECT g.gate, pg_current_xact_id(), g.id, g.enqueued_at, g.attempt, g.max_attempts, g.task, g.payload, g.headers,
            g.history, nullif(g.group_key, '')
        FROM given g
    ), lease AS (
        INSERT INTO pgq.lease_0 (id, lane, claimed_at, expires_at, cursor_xid, cursor_id, taken, worker, job_ids, attempts)
        SELECT pgq._new_lease(lease_slot), b.gate, pgq._now(), expiry,
            CASE WHEN l.ahead THEN l.cursor_xid ELSE pg_current_xact_id() END,
            CASE WHEN l.ahead THEN l.cursor_id ELSE b.last END,
            coalesce(l.taken, 0) + cardinality(b.ids), who, b.ids, CASE WHEN b.latest > 1 THEN b.attempts END
        FROM (
            SELECT g.gate, array_agg(g.id ORDER BY g.ordinality) AS ids, array_agg(g.attempt ORDER BY g.ordinality) AS attempts,
                max(g.attempt) AS latest, max(g.id) AS last
            FROM given g GROUP BY g.gate
        ) b
        LEFT JOIN LATERAL (
            SELECT l.*, (l.cursor_xid, l.cursor_id) > (pg_current_xact_id(), b.last) AS ahead FROM pgq.lease_0 l
            WHERE l.lane = b.gate ORDER BY l.lane DESC, l.id DESC LIMIT 1
        ) l ON true
        RETURNING lease_0.id, lease_0.lane
    )
    SELECT g.id, l.id, queue.name, g.task, g.payload, g.attempt::int, coalesce(g.max_attempts, queue.max_attempts)::int,
        g.priority::int, g.enqueued_at, expiry, g.headers
    FROM given g JOIN lease l ON l.lane = g.gate
    ORDER BY g.ordinality;
END;
$$;
COMMENT ON FUNCTION pgq._hand_out_0(pgq.queue, pgq.parked[], timestamptz, text, int) IS
    'Claims jobs that were parked, by way of segment 0';

SELECT pgq._for_each_slot('pgq._hand_out_0(pgq.queue,pgq.parked[],timestamptz,text,int)');

CREATE FUNCTION pgq._admit(queue pgq.queue, jobs pgq.parked[], expiry timestamptz, who text)
    RETURNS SETOF pgq.claimed_job
    LANGUAGE plpgsql
AS $$
DECLARE
    v_slot CONSTANT int := pgq._hold();
BEGIN
    IF queue.rate IS NOT NULL THEN
        PERFORM pgq._started(queue.id, '', cardinality(jobs));
    END IF;
    RETURN QUERY
    SELECT * FROM pgq._hand_out(v_slot, queue, jobs, expiry, who, v_slot | CASE WHEN
        num_nonnulls(queue.running_limit, queue.group_limit) > 0 THEN 16 ELSE 0 END);
END;
$$;
COMMENT ON FUNCTION pgq._admit(pgq.queue, pgq.parked[], timestamptz, text) IS 'Claims jobs that were parked and have their permits';

-- What pgq.claim does if the queue has a gate. Jobs that nothing limits are taken as everywhere, before or after the
-- groups of their priority, as chance has it. So that a claim ends soon, it parks no more than 2,000 jobs if it has
-- something to return, or if groups take turns, and 20,000 to find anything at all.
CREATE FUNCTION pgq._claim_limited(queue_id int, batch int, expiry timestamptz, who text) RETURNS SETOF pgq.claimed_job
    LANGUAGE plpgsql
AS $$
DECLARE
    v_queue pgq.queue;
    v_slots int[];
    v_known pg_snapshot;
    v_jobs pgq.parked[];
    v_line bigint;
    v_slot int;
    v_wanted int;
    v_left int;
    v_count int;
    v_parked int := 0;
    v_first CONSTANT boolean := random() < 0.5;
BEGIN
    IF NOT (pg_try_advisory_xact_lock(pgq._gate_key(queue_id)) OR pgq._wait_for_lane(queue_id::bigint << 16)) THEN
        RETURN;
    END IF;
    SELECT * INTO v_queue FROM pgq.queue q WHERE q.id = queue_id;
    v_wanted := least(batch, pgq._room(queue_id, '', v_queue.rate, v_queue.rate_period), v_queue.running_limit - CASE
        WHEN v_queue.running_limit IS NOT NULL
            THEN (SELECT count(*) FROM pgq.permit m WHERE m.queue_id = v_queue.id AND m.state = 'running')
    END);
    IF v_wanted <= 0 OR v_queue.id IS NULL THEN
        RETURN;
    END IF;
    v_left := v_wanted;
    PERFORM pgq._look_again(queue_id);
    v_slots := pgq._live_slots();
    v_known := pg_current_snapshot();
    FOR v_line IN
        SELECT l.lane
        FROM (SELECT DISTINCT l.lane FROM pgq.line l WHERE l.queue_id = v_queue.id AND l.lane > 0) l
        ORDER BY l.lane >> 8, (l.lane & 96 = 96) <> v_first, l.lane
    LOOP
        -- Whoever is about to put something at the front of the line must not be passed by.
        EXIT WHEN NOT (
            pg_try_advisory_xact_lock(pgq._lane_key(pgq._front(v_line))) OR pgq._wait_for_lane(pgq._front(v_line))
        );
        IF v_line & 96 <> 96 AND v_queue.running_limit IS NULL AND v_queue.rate IS NULL AND NOT v_queue.fair THEN
            FOREACH v_slot IN ARRAY v_slots LOOP
                RETURN QUERY SELECT * FROM pgq._take_known(v_queue, v_slot, v_line, v_left, v_known, expiry, who);
                GET DIAGNOSTICS v_count = ROW_COUNT;
                v_left := v_left - v_count;
                IF v_left = 0 THEN
                    RETURN;
                END IF;
            END LOOP;
            CONTINUE;
        END IF;
        LOOP
            -- What is at the front of a line must be known before anything is picked, and everything if groups take turns.
            IF v_line & 31 = 1 AND NOT v_queue.fair THEN
                v_jobs := pgq._pick(v_queue, v_left, pgq._priority(v_line));
                IF v_jobs <> '{}' THEN
                    RETURN QUERY SELECT * FROM pgq._admit(v_queue, v_jobs, expiry, who);
                    v_left := v_left - cardinality(v_jobs);
                END IF;
            END IF;
            EXIT WHEN v_left = 0 OR v_parked >= CASE WHEN v_queue.fair OR v_left < v_wanted THEN 2000 ELSE 20000 END;
            v_count := pgq._park(v_queue, v_line, least(greatest(v_left, v_parked, 100), 5000), v_slots, v_known);
            v_parked := v_parked + v_count;
            EXIT WHEN v_count = 0;
        END LOOP;
        IF v_left = 0 THEN
            RETURN;
        END IF;
    END LOOP;
    v_jobs := pgq._pick(v_queue, v_left, 127);
    IF v_jobs <> '{}' THEN
        RETURN QUERY SELECT * FROM pgq._admit(v_queue, v_jobs, expiry, who);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._claim_limited(int, int, timestamptz, text) IS 'Claims by the limits of a queue';

-- Those who wait for work ask this before they sleep. What has been over for long waits for something else as well.
CREATE FUNCTION pgq._limited_until(queue pgq.queue) RETURNS timestamptz
    LANGUAGE plpgsql
AS $$
DECLARE
    v_over CONSTANT timestamptz := pgq._now() - interval '100 milliseconds';
BEGIN
    RETURN least(
        (
            SELECT g.ready_at FROM pgq.parked_group g
            WHERE g.queue_id = queue.id AND NOT g.ready AND g.ready_at > v_over
            ORDER BY g.queue_id, g.ready_at LIMIT 1
        ),
        CASE WHEN pgq._room(queue.id, '', queue.rate, queue.rate_period) = 0
            THEN pgq._room_at(queue.id, '', queue.rate, queue.rate_period) END
    );
END;
$$;
COMMENT ON FUNCTION pgq._limited_until(pgq.queue) IS 'When a rate that is used up lets the next job of a queue start; null: none is';

-- A permit whose job has ended without giving it back would stop its group; there is no way known to get there.
CREATE FUNCTION pgq._tidy_limits() RETURNS void
    LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_from bigint;
BEGIN
    DELETE FROM pgq.start s USING pgq.queue q
    WHERE q.id = s.queue_id
        AND s.at < pgq._now() - greatest(q.rate_period, q.group_period, '0') - interval '1 minute';
    SELECT b.first + floor(random() * (b.last - b.first + 1))::bigint INTO v_from
    FROM (SELECT min(m.job_id), max(m.job_id) FROM pgq.permit m) b (first, last);
    PERFORM pgq._hand_back(ARRAY(
        SELECT m.job_id
        FROM (SELECT m.job_id FROM pgq.permit m WHERE m.job_id >= v_from AND m.state <> 'ended' ORDER BY m.job_id LIMIT 100) m
        WHERE NOT pgq._lives(m.job_id, false)
    ), 'cancelled');
END;
$$;
COMMENT ON FUNCTION pgq._tidy_limits() IS 'Removes what rates need no longer, and permits that nobody has';
