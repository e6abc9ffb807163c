-- Queues, waiting workers.

-- Queues --------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._check_queue(
    lease interval, max_attempts int, backoff interval, backoff_max interval, retention interval, shards int
) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._require('lease', lease BETWEEN '1 millisecond' AND '1 year', 'between 1 ms and 1 year');
    PERFORM pgq._require('max_attempts', max_attempts BETWEEN 1 AND 32767, 'between 1 and 32767');
    PERFORM pgq._require('backoff_max', backoff_max BETWEEN '0' AND '1 year', 'between 0 and 1 year');
    PERFORM pgq._require('backoff', backoff BETWEEN '0' AND backoff_max, 'between 0 and backoff_max');
    PERFORM pgq._require('retention', retention BETWEEN '0' AND '100 years', 'between 0 (no archive) and 100 years');
    PERFORM pgq._require('shards', shards BETWEEN 1 AND 64, 'between 1 (first in, first out) and 64');
END;
$$;
COMMENT ON FUNCTION pgq._check_queue(interval, int, interval, interval, interval, int) IS 'Raises 22004 or 22023';

CREATE FUNCTION pgq.create_queue(
    queue text,
    lease interval DEFAULT '1 minute',
    max_attempts int DEFAULT 20,
    backoff interval DEFAULT '1 second',
    backoff_max interval DEFAULT '1 hour',
    retention interval DEFAULT '7 days',
    shards int DEFAULT 8,
    notify boolean DEFAULT true,
    if_not_exists boolean DEFAULT false
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_id int;
BEGIN
    PERFORM pgq._require('queue', length(queue) BETWEEN 1 AND 128, 'a name of 1 to 128 characters');
    PERFORM pgq._check_queue(lease, max_attempts, backoff, backoff_max, retention, shards);
    PERFORM pgq._require('notify', notify IS NOT NULL OR NULL, 'true or false');
    PERFORM pgq._require('if_not_exists', if_not_exists IS NOT NULL OR NULL, 'true or false');
    INSERT INTO pgq.queue AS q
        (name, lease, max_attempts, backoff, backoff_max, retention, shards, lanes, notify, created_at)
    VALUES (queue, create_queue.lease, create_queue.max_attempts, create_queue.backoff, create_queue.backoff_max,
        create_queue.retention, create_queue.shards, create_queue.shards, create_queue.notify, pgq._now())
    ON CONFLICT ON CONSTRAINT queue_name_key DO NOTHING
    RETURNING q.id INTO v_id;
    IF NOT FOUND THEN
        IF if_not_exists THEN
            RETURN;
        END IF;
        RAISE EXCEPTION USING
            ERRCODE = 'duplicate_object',
            MESSAGE = format('queue "%s" exists already', queue),
            HINT = 'Use pgq.alter_queue to change it, or if_not_exists => true to leave it as it is.';
    END IF;
    PERFORM pgq._add_line(pgq._lane(v_id, 0, 1));
END;
$$;
COMMENT ON FUNCTION pgq.create_queue(text, interval, int, interval, interval, interval, int, boolean, boolean) IS
    'Creates a queue. lease: how long a claim holds a job. max_attempts, backoff (doubles each time, half of it chance), '
    'backoff_max: retries. retention: how long finished jobs stay in the archive; 0: no archive. shards: lanes to spread jobs '
    'over, 1 for strict first in, first out. notify: wake workers with NOTIFY; false if jobs are enqueued under two-phase '
    'commit. Raises 42710 if it exists, 22023';

CREATE FUNCTION pgq.alter_queue(
    queue text,
    lease interval DEFAULT NULL,
    max_attempts int DEFAULT NULL,
    backoff interval DEFAULT NULL,
    backoff_max interval DEFAULT NULL,
    retention interval DEFAULT NULL,
    shards int DEFAULT NULL,
    notify boolean DEFAULT NULL
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
BEGIN
    v_queue.lease := coalesce(lease, v_queue.lease);
    v_queue.backoff := coalesce(backoff, v_queue.backoff);
    v_queue.backoff_max := coalesce(backoff_max, v_queue.backoff_max);
    v_queue.retention := coalesce(retention, v_queue.retention);
    PERFORM pgq._check_queue(v_queue.lease, coalesce(max_attempts, v_queue.max_attempts), v_queue.backoff,
        v_queue.backoff_max, v_queue.retention, coalesce(shards, v_queue.shards));
    UPDATE pgq.queue q
    SET lease = v_queue.lease,
        max_attempts = coalesce(alter_queue.max_attempts, q.max_attempts),
        backoff = v_queue.backoff,
        backoff_max = v_queue.backoff_max,
        retention = v_queue.retention,
        shards = coalesce(alter_queue.shards, q.shards),
        lanes = greatest(alter_queue.shards, q.lanes),
        notify = coalesce(alter_queue.notify, q.notify)
    WHERE q.id = v_queue.id;
END;
$$;
COMMENT ON FUNCTION pgq.alter_queue(text, interval, int, interval, interval, interval, int, boolean) IS
    'Changes settings of a queue; null leaves one as it is. Raises PQ002, 22023';

CREATE FUNCTION pgq.pause(queue text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
BEGIN
    UPDATE pgq.queue q SET paused = true WHERE q.id = v_queue.id;
END;
$$;
COMMENT ON FUNCTION pgq.pause(text) IS 'Stops claims from a queue; running jobs go on, new ones are taken. Raises PQ002';

CREATE FUNCTION pgq.resume(queue text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
BEGIN
    UPDATE pgq.queue q SET paused = false WHERE q.id = v_queue.id;
    PERFORM pgq._wake(v_queue.id, queue);
END;
$$;
COMMENT ON FUNCTION pgq.resume(text) IS 'Ends pgq.pause. Raises PQ002';

CREATE FUNCTION pgq._lanes_of(queue pgq.queue) RETURNS SETOF bigint
    LANGUAGE sql VOLATILE
AS $$
    SELECT DISTINCT (l.lane & ~255::bigint) | s
    FROM pgq.line l
    CROSS JOIN LATERAL (
        SELECT generate_series(0, queue.lanes) UNION ALL SELECT generate_series(96, 97) WHERE l.lane & 96 = 96
    ) n (s)
    WHERE l.queue_id = queue.id AND l.lane > 0
    ORDER BY 1
$$;
COMMENT ON FUNCTION pgq._lanes_of(pgq.queue) IS 'The lanes that a queue has, in the order in which they are locked';

-- The lane is locked. What is left are jobs of this transaction, which may yet be rolled back.
CREATE FUNCTION pgq._empty_lane(slot int, lane bigint) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_count bigint;
    v_total bigint := 0;
BEGIN
    LOOP
        v_count := pgq._clear_lane(slot, lane, 10000, 'cancelled');
        v_total := v_total + v_count;
        EXIT WHEN v_count < 10000;
    END LOOP;
    RETURN v_total;
END;
$$;
COMMENT ON FUNCTION pgq._empty_lane(int, bigint) IS 'Cancels all jobs that can be claimed from a lane of a segment';

-- Waits for those who are claiming, so that nothing is left.
CREATE FUNCTION pgq._clear_ready(queue pgq.queue) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_live bigint := pg_sequence_last_value('pgq.live');
    v_lane bigint;
    v_total bigint := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(pgq._gate_key(queue.id));
    FOR v_lane IN SELECT pgq._lanes_of(queue) LOOP
        PERFORM pg_advisory_xact_lock(pgq._lane_key(v_lane));
        FOR v_slot IN 0..15 LOOP
            CONTINUE WHEN (v_live >> v_slot) & 1 = 0;
            v_total := v_total + pgq._empty_lane(v_slot, v_lane);
        END LOOP;
    END LOOP;
    RETURN v_total;
END;
$$;
COMMENT ON FUNCTION pgq._clear_ready(pgq.queue) IS 'Cancels all jobs of a queue that can be claimed';

CREATE FUNCTION pgq._clear_scheduled(queue_id int, state text) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_ids bigint[];
    v_count bigint;
BEGIN
    WITH gone AS (
        DELETE FROM pgq.scheduled s
        WHERE s.lane >> 16 = _clear_scheduled.queue_id AND (state IS NULL OR pgq._state_of(s.run_at, s.attempt) = state)
        RETURNING s.id
    ), freed AS (
        DELETE FROM pgq.unique_key k USING gone g WHERE k.job_id = g.id AND k.held_until IS NULL
    )
    SELECT array_agg(g.id), count(*) INTO v_ids, v_count FROM gone g;
    PERFORM pgq._hand_back(v_ids, 'cancelled');
    RETURN v_count;
END;
$$;
COMMENT ON FUNCTION pgq._clear_scheduled(int, text) IS 'Throws away the scheduled jobs of a queue: those in one state, or all';

CREATE FUNCTION pgq._clear_parked(queue_id int) RETURNS bigint
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(pgq._gate_key(queue_id));
    RETURN pgq._cancel_waiting(ARRAY(SELECT p.id FROM pgq.parked p WHERE p.queue_id = _clear_parked.queue_id));
END;
$$;
COMMENT ON FUNCTION pgq._clear_parked(int) IS 'Cancels the parked jobs of a queue';

CREATE FUNCTION pgq._clear_queue(queue pgq.queue) RETURNS bigint
    LANGUAGE plpgsql SET lock_timeout = '5s'
AS $$
BEGIN
    RETURN pgq._clear_ready(queue) + pgq._clear_parked(queue.id) + pgq._clear_scheduled(queue.id, NULL);
END;
$$;
COMMENT ON FUNCTION pgq._clear_queue(pgq.queue) IS 'Cancels all waiting jobs of a queue';

CREATE FUNCTION pgq.purge(queue text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._read_committed();
    RETURN pgq._clear_queue(pgq._find_queue(queue));
END;
$$;
COMMENT ON FUNCTION pgq.purge(text) IS
    'Cancels every ready, parked, scheduled, waiting and retrying job of a queue and returns how many; running ones and dead '
    'letters stay. Raises PQ002, PQ003, 55P03 if a claiming transaction does not end within five seconds';

-- A function of its own: another argument of pgq.purge would be another function, and what was granted would be lost.
CREATE FUNCTION pgq.purge_state(queue text, state text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '5s'
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
    v_count bigint;
BEGIN
    PERFORM pgq._read_committed();
    PERFORM pgq._require('state', state IN ('ready', 'parked', 'scheduled', 'waiting', 'retrying', 'dead', 'archived'),
        'ready, parked, scheduled, waiting, retrying, dead or archived');
    CASE state
        WHEN 'ready' THEN
            RETURN pgq._clear_ready(v_queue);
        WHEN 'parked' THEN
            RETURN pgq._clear_parked(v_queue.id);
        WHEN 'dead' THEN
            RETURN pgq.discard_where(queue);
        WHEN 'archived' THEN
            DELETE FROM pgq.archive a WHERE a.queue = v_queue.name;
            GET DIAGNOSTICS v_count = ROW_COUNT;
            RETURN v_count;
        ELSE
            RETURN pgq._clear_scheduled(v_queue.id, state);
    END CASE;
END;
$$;
COMMENT ON FUNCTION pgq.purge_state(text, text) IS
    'Of a queue throws away what is in one state and returns how many: ready, parked, scheduled, waiting or retrying jobs are '
    'cancelled, as by pgq.purge; dead: its dead letters, as by pgq.discard_where; archived: the ended attempts that are in '
    'the archive by now. Raises PQ002, PQ003, 22023, 55P03 if another transaction does not end within five seconds';

-- Running attempts of a queue, wherever they are.
CREATE FUNCTION pgq._running_0(queue_id int) RETURNS SETOF pgq.settled
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    SELECT u.id, u.lease FROM pgq.unsettled_0 u WHERE u.lane >> 16 = queue_id;
END;
$$;
COMMENT ON FUNCTION pgq._running_0(int) IS 'Attempts of a queue in segment 0 that have no outcome';

SELECT pgq._for_each_slot('pgq._running_0(int)');

CREATE FUNCTION pgq.drop_queue(queue text, force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '5s'
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
    v_started timestamptz := clock_timestamp();
    v_holders text[];
    v_count bigint;
    v_ids bigint[];
    v_leases bigint[];
BEGIN
    PERFORM pgq._read_committed();
    -- Who has begun to insert jobs ends first, whichever queue they are for; who begins now and means this queue waits for
    -- the lock, and finds the queue gone. So do claimers.
    PERFORM pg_advisory_xact_lock(pgq._task_key(4)), pg_advisory_xact_lock(pgq._queue_key(v_queue.id));
    PERFORM setval('pgq.dropping', (((pg_sequence_last_value('pgq.dropping') >> 23) + 1) << 23) | v_queue.id);
    v_holders := ARRAY(SELECT DISTINCT h FROM generate_series(0, 15) s, pgq._holders(s) h);
    WHILE v_holders && ARRAY(
        SELECT h FROM generate_series(0, 15) s, pgq._holders(s) h
        EXCEPT
        SELECT l.virtualtransaction FROM pg_locks l
        WHERE NOT l.granted AND l.locktype = 'advisory'
            AND (l.classid::bigint << 32) | l.objid::bigint = pgq._queue_key(v_queue.id)
    ) LOOP
        IF clock_timestamp() > v_started + current_setting('lock_timeout')::interval THEN
            RAISE EXCEPTION USING
                ERRCODE = 'lock_not_available',
                MESSAGE = 'a transaction that inserts jobs has not ended within five seconds',
                DETAIL = format('Transactions that were running: %s.', array_to_string(v_holders, ', ')),
                HINT = 'Try again when it has ended; pg_locks.virtualtransaction tells whose it is.';
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
    PERFORM pg_advisory_xact_lock(pgq._gate_key(v_queue.id));
    PERFORM pg_advisory_xact_lock(pgq._lane_key(l)) FROM pgq._lanes_of(v_queue) l;
    SELECT coalesce(sum(s.ready + s.parked + s.scheduled + s.waiting + s.retrying + s.dead), 0)
        + (SELECT count(*) FROM generate_series(0, 15) n, pgq._running(n, v_queue.id))
        + (SELECT count(*) FROM pgq.straggler t WHERE t.lane >> 16 = v_queue.id AND t.kind IS NULL)
    INTO v_count
    FROM pgq.stats() s WHERE s.queue = drop_queue.queue;
    IF v_count > 0 AND force IS NOT TRUE THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PQ005',
            MESSAGE = format('queue "%s" is not empty', queue),
            DETAIL = format('It has %s jobs; pgq.stats() shows in which states.', v_count),
            HINT = 'Let its workers finish, or drop it with force => true: its jobs are cancelled and its dead letters deleted.';
    END IF;
    PERFORM pgq._clear_queue(v_queue);
    -- What this transaction has enqueued or promoted itself; no claim of its own would take that.
    PERFORM w.id
    FROM pgq._filled() s, pgq._lanes_of(v_queue) l, pgq._withdraw(s, pgq._ready(s, l, NULL, NULL), 'cancelled') w;
    FOR v_slot IN 0..15 LOOP
        CONTINUE WHEN pg_relation_size(format('pgq.lease_%s', v_slot)::regclass) = 0;
        SELECT array_agg(r.id), array_agg(r.lease) INTO v_ids, v_leases FROM pgq._running(v_slot, v_queue.id) r;
        PERFORM pgq._settle_many(v_ids, v_leases, '{cancelled}', NULL, NULL);
    END LOOP;
    UPDATE pgq.straggler s SET kind = 'cancelled', finished_at = pgq._now() WHERE s.lane >> 16 = v_queue.id AND s.kind IS NULL;
    PERFORM pgq.discard_where(queue);
    DELETE FROM pgq.line l WHERE l.queue_id = v_queue.id;
    DELETE FROM pgq.unique_key k WHERE k.queue_id = v_queue.id;
    DELETE FROM pgq.parked_group g WHERE g.queue_id = v_queue.id;
    DELETE FROM pgq.permit m WHERE m.queue_id = v_queue.id;
    DELETE FROM pgq.start s WHERE s.queue_id = v_queue.id;
    DELETE FROM pgq.schedule s WHERE s.queue = v_queue.name;
    DELETE FROM pgq.queue q WHERE q.id = v_queue.id;
END;
$$;
COMMENT ON FUNCTION pgq.drop_queue(text, boolean) IS
    'Drops a queue and its schedules. With force also if it has jobs: they are cancelled, running ones too, and its dead '
    'letters deleted. Raises PQ005 if it is not empty, PQ002, PQ003, 55P03 if a transaction that enqueues does not end within '
    'five seconds';

-- Waiting workers -----------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq.watch(queues text[]) RETURNS timestamptz
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off
AS $$
DECLARE
    v_ids int[];
    -- A tick that is overdue is somebody's who is about to fire it: nothing to stay awake for.
    v_overdue CONSTANT timestamptz := pgq._now() - interval '1 second';
BEGIN
    PERFORM pgq._require('queues', queues IS NOT NULL OR NULL, 'an array of names of queues');
    PERFORM pgq._find_queue(u.name) FROM unnest(queues) u (name);
    PERFORM pg_advisory_lock_shared(pgq._watch_key(q.id)) FROM pgq.queue q WHERE q.name = ANY (queues) AND q.notify;
    IF pg_sequence_last_value('pgq.watched') < date_part('epoch', pgq._now()) - 5 THEN
        PERFORM setval('pgq.watched', date_part('epoch', pgq._now())::bigint);
    END IF;
    v_ids := ARRAY(SELECT q.id FROM pgq.queue q WHERE q.name = ANY (queues));
    RETURN (
        SELECT least(min(n.run_at), (
            SELECT min(t.due)
            FROM unnest(queues) u (name)
            CROSS JOIN LATERAL (
                -- (queue, due): by the index on both, whatever is planned
                SELECT s.queue, coalesce(s.retry_at, s.next_at) AS due FROM pgq.schedule s
                WHERE (s.queue, coalesce(s.retry_at, s.next_at)) > (u.name, v_overdue)
                ORDER BY s.queue, coalesce(s.retry_at, s.next_at) LIMIT 1
            ) t
            WHERE t.queue = u.name
        ), (
            SELECT min(pgq._limited_until(q)) FROM pgq.queue q WHERE q.id = ANY (v_ids)
        ))
        FROM unnest(v_ids) q (id)
        CROSS JOIN LATERAL (
            SELECT s.run_at FROM pgq.scheduled s
            WHERE s.lane >> 16 = q.id AND s.run_at >= pgq._marked('promote') AND s.run_at < 'infinity'
            ORDER BY s.run_at LIMIT 1
        ) n
    );
END;
$$;
COMMENT ON FUNCTION pgq.watch(text[]) IS
    'Registers this session as waiting for jobs of these queues, until pgq.unwatch or its end: enqueue then notifies channel '
    '"pgq", payload the queue''s name. LISTEN pgq first, watch, claim once more, then sleep. Returns when the next scheduled '
    'or recurring job of these queues is due, or a rate lets the next one start. If nobody watches anew for a minute, '
    'producers stop looking: unwatch and watch again before. Needs a session of its own: not for transaction pooling. Raises PQ002';

-- Without a warning for queues that are not watched: their names may have been wrong, or they do not notify.
CREATE FUNCTION pgq.unwatch(queues text[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET client_min_messages = error
AS $$
BEGIN
    PERFORM pgq._require('queues', queues IS NOT NULL OR NULL, 'an array of names of queues');
    PERFORM pg_advisory_unlock_shared(pgq._watch_key(q.id)) FROM pgq.queue q WHERE q.name = ANY (queues);
END;
$$;
COMMENT ON FUNCTION pgq.unwatch(text[]) IS 'Ends one pgq.watch of these queues by this session';
