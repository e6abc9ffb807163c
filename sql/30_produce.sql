-- enqueue, enqueue_many, and the wake-up of idle workers.
-- Tables: reads queue, line, epoch; appends to job, or to scheduled if it is for later or waits for others (46_after);
-- adds to line on first use.

-- A sleeping worker holds the queue's watch lock in shared mode, so trying for it in exclusive mode tells whether there
-- is one, without a table that every idle worker would keep writing to. Two producers that try in the same microsecond
-- look like a worker to each other; looking twice more makes that rare, and it is harmless: one NOTIFY too many.
CREATE FUNCTION pgq._is_watched(key bigint) RETURNS boolean
    LANGUAGE plpgsql
AS $$
BEGIN
    FOR v_look IN 1..3 LOOP
        IF pg_try_advisory_lock(key) AND pg_advisory_unlock(key) THEN
            RETURN false;
        END IF;
    END LOOP;
    RETURN true;
END;
$$;
COMMENT ON FUNCTION pgq._is_watched(bigint) IS 'Whether another session holds an advisory lock';

-- If nobody began to wait during the last minute, it is not even tried: the lock is hot.
-- NOTIFY takes a lock of the whole cluster at commit, so it is sent only if somebody waits.
CREATE FUNCTION pgq._wake(queue_id int, queue text) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    IF pg_sequence_last_value('pgq.watched') > date_part('epoch', pgq._now()) - 60
        AND pgq._is_watched(pgq._watch_key(queue_id))
        AND pg_notification_queue_usage() < 0.5 AND (SELECT q.notify FROM pgq.queue q WHERE q.id = queue_id) THEN
        PERFORM pg_notify('pgq', queue);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._wake(int, text) IS 'Notifies channel pgq with the queue''s name if a session watches it';

-- Called while the open segment is held. pgq.drop_queue first names the queue in `dropping` and then waits for all who
-- hold a segment; so who comes later finds the name, waits for the end of the drop, and reads the row again. Under
-- REPEATABLE READ only a row lock tells that it is gone; it raises 40001.
CREATE FUNCTION pgq._producing(queue text) RETURNS pgq.queue
    LANGUAGE plpgsql
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
BEGIN
    IF pg_sequence_last_value('pgq.dropping') & 8388607 = v_queue.id THEN
        PERFORM pg_advisory_xact_lock_shared(pgq._queue_key(v_queue.id));
        v_queue := pgq._find_queue(queue);
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM FROM pgq.queue q WHERE q.id = v_queue.id FOR KEY SHARE;
    END IF;
    RETURN v_queue;
END;
$$;
COMMENT ON FUNCTION pgq._producing(text) IS 'The queue that a producer adds to; raises PQ002';

-- Priority 0 is in use from the beginning, and a gate stays. Who adds another line holds a segment (pgq._hold), which
-- cannot become older than the open one here.
CREATE FUNCTION pgq._add_line(lane bigint) RETURNS void
    LANGUAGE plpgsql
AS $$
DECLARE
    v_open CONSTANT bigint := pg_sequence_last_value('pgq.epoch') >> 36;
    v_ever CONSTANT bigint := 9223372036854775807;
BEGIN
    INSERT INTO pgq.line AS l (lane, queue_id, until)
    SELECT n.lane, _add_line.lane >> 16, n.until
    FROM (VALUES
        (pgq._line(lane), CASE WHEN pgq._line(lane) & 65535 = pgq._lane(0, 0, 1) THEN v_ever ELSE v_open + 3 END),
        (CASE WHEN lane & 96 = 96 THEN -1 END, v_ever)
    ) n (lane, until)
    WHERE n.lane IS NOT NULL AND NOT EXISTS (
        SELECT FROM pgq.line l WHERE l.queue_id = _add_line.lane >> 16 AND l.lane = n.lane AND l.until >= v_open
    );
END;
$$;
COMMENT ON FUNCTION pgq._add_line(bigint) IS 'Makes sure that claims look at the line of a lane, and through the gate if it is one of the gate''s';

CREATE FUNCTION pgq._due(run_at timestamptz, delay interval) RETURNS timestamptz
    LANGUAGE plpgsql
AS $$
BEGIN
    IF run_at IS NOT NULL AND delay IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'run_at and delay are both given',
            HINT = 'Give one of them: a time, or an interval from now.';
    ELSIF run_at IS NOT NULL THEN
        PERFORM pgq._require('run_at', isfinite(run_at), 'a finite time');
        RETURN run_at;
    ELSIF delay IS NOT NULL THEN
        PERFORM pgq._require('delay', delay BETWEEN '0' AND '100 years', 'an interval between 0 and 100 years');
        RETURN pgq._now() + delay;
    END IF;
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION pgq._due(timestamptz, interval) IS 'When a job is due, of the two ways to say so; null: now';

CREATE FUNCTION pgq._check_job(priority int, max_attempts int, headers jsonb) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._require('priority', priority BETWEEN -100 AND 100, 'between -100 (runs first) and 100 (runs last)');
    IF max_attempts IS NOT NULL THEN
        PERFORM pgq._require('max_attempts', max_attempts BETWEEN 1 AND 32767, 'between 1 and 32767');
    END IF;
    IF headers IS NOT NULL THEN
        PERFORM pgq._require('headers', jsonb_typeof(headers) = 'object', 'a JSON object');
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._check_job(int, int, jsonb) IS 'Raises 22004 or 22023 for bad arguments of enqueue';

-- What enqueue does with anything but a plain job.
CREATE FUNCTION pgq._enqueue(
    queue text, payload jsonb, task text, priority int, run_at timestamptz, delay interval, max_attempts int,
    unique_key text, group_key text, headers jsonb
) RETURNS bigint
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._require('payload', payload IS NOT NULL OR NULL, 'JSON; the JSON null is written ''null''');
    IF unique_key IS NOT NULL THEN
        RETURN (pgq.enqueue_unique(queue, payload, task, priority, run_at, delay, max_attempts, unique_key, group_key, headers)).id;
    END IF;
    RETURN (
        SELECT e FROM pgq.enqueue_many(queue, ARRAY[payload], task, priority, run_at, delay, max_attempts,
            CASE WHEN group_key IS NOT NULL THEN ARRAY[group_key] END, headers) e
    );
END;
$$;
COMMENT ON FUNCTION pgq._enqueue(text, jsonb, text, int, timestamptz, interval, int, text, text, jsonb) IS
    'The general form of pgq.enqueue';

-- The plain case is measured in microseconds. Single look-ups are faster than a join of them, and everything stands in
-- one function because each expression of each function called is prepared anew in every transaction.
CREATE FUNCTION pgq.enqueue(
    queue text,
    payload jsonb DEFAULT '{}',
    task text DEFAULT NULL,
    priority int DEFAULT 0,
    run_at timestamptz DEFAULT NULL,
    delay interval DEFAULT NULL,
    max_attempts int DEFAULT NULL,
    unique_key text DEFAULT NULL,
    group_key text DEFAULT NULL,
    headers jsonb DEFAULT NULL
) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_epoch bigint := pg_sequence_last_value('pgq.epoch');
    v_dropping bigint := pg_sequence_last_value('pgq.dropping');
    v_queue int;
    v_shards bigint;
    v_id bigint;
BEGIN
    IF priority IS DISTINCT FROM 0 OR payload IS NULL OR run_at IS NOT NULL OR delay IS NOT NULL
        OR max_attempts IS NOT NULL OR headers IS NOT NULL OR unique_key IS NOT NULL OR group_key IS NOT NULL
        OR (v_epoch >> 4) & 4294967295 <> pgq._boot() OR current_setting('transaction_isolation') <> 'read committed'
    THEN
        RETURN pgq._enqueue(queue, payload, task, priority, run_at, delay, max_attempts, unique_key, group_key, headers);
    END IF;
    SELECT q.id, q.shards INTO v_queue, v_shards FROM pgq.queue q WHERE q.name = enqueue.queue AND q.validator IS NULL;
    IF v_queue IS NULL THEN
        RETURN pgq._enqueue(queue, payload, task, priority, run_at, delay, max_attempts, unique_key, group_key, headers);
    END IF;
    v_id := nextval('pgq.job_id');
    INSERT INTO pgq.job (lane, xid, id, enqueued_at, slot, attempt, task, payload)
    VALUES (pgq._lane(v_queue, 0, (v_id % v_shards)::int + 1), pg_current_xact_id(), v_id, pgq._now(), v_epoch & 15, 1,
        enqueue.task, enqueue.payload);
    IF pg_sequence_last_value('pgq.epoch') <> v_epoch OR pg_sequence_last_value('pgq.dropping') <> v_dropping
        OR v_dropping & 8388607 = v_queue
    THEN
        EXECUTE format('DELETE FROM pgq.job_%s j WHERE j.id = $1', v_epoch & 15) USING v_id;
        RETURN pgq._enqueue(queue, payload, task, priority, run_at, delay, max_attempts, unique_key, group_key, headers);
    END IF;
    IF pg_sequence_last_value('pgq.watched') > date_part('epoch', pgq._now()) - 60
        AND NOT (pg_try_advisory_lock(pgq._watch_key(v_queue)) AND pg_advisory_unlock(pgq._watch_key(v_queue)))
    THEN
        PERFORM pgq._wake(v_queue, queue);
    END IF;
    RETURN v_id;
END;
$$;
COMMENT ON FUNCTION pgq.enqueue(text, jsonb, text, int, timestamptz, interval, int, text, text, jsonb) IS
    'Adds a job to a queue as part of the caller''s transaction and returns its id. priority: -100 runs first, 100 last. '
    'run_at or delay: not before then. max_attempts: instead of the queue''s. headers: a JSON object for metadata. '
    'unique_key: not if a job of the queue holds it; see pgq.enqueue_unique. group_key: in the order of its group, and one '
    'at a time or as pgq.set_limits says. Raises PQ002 if there is no such queue, PQ004 if its validator refuses the '
    'payload, 22023 and 22004 for bad arguments';

CREATE FUNCTION pgq._check_payloads(payloads jsonb[], group_keys text[]) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._require('payloads', payloads IS NOT NULL OR NULL, 'an array of JSON');
    PERFORM pgq._require('each of payloads', array_position(payloads, NULL) IS NULL OR NULL,
        'JSON; the JSON null is written ''null''');
    PERFORM pgq._require('group_keys', coalesce(cardinality(group_keys) = cardinality(payloads), true),
        'null or as long as payloads');
END;
$$;
COMMENT ON FUNCTION pgq._check_payloads(jsonb[], text[]) IS 'Raises 22004 or 22023';

CREATE FUNCTION pgq._new_lane(queue_id int, shards int, priority int, job bigint, group_key text) RETURNS bigint
    LANGUAGE sql IMMUTABLE
AS $$
    SELECT pgq._lane(queue_id, priority, CASE WHEN group_key IS NULL THEN (job % shards)::int + 1 ELSE 97 END)
$$;
COMMENT ON FUNCTION pgq._new_lane(int, int, int, bigint, text) IS 'The lane that a job joins: a shard, or the gate''s if it has a group';

-- Puts new jobs with these ids where they belong: into the open segment, or to the scheduled ones.
CREATE FUNCTION pgq._add_jobs(
    ids bigint[], queue text, payloads jsonb[], task text, priority int, run_at timestamptz, max_attempts int,
    group_keys text[], headers jsonb, after bigint[], on_dead text
) RETURNS void
    LANGUAGE plpgsql
AS $$
DECLARE
    v_slot int;
    v_queue pgq.queue;
    v_grouped boolean;
BEGIN
    PERFORM pgq._check_job(priority, max_attempts, headers);
    v_grouped := num_nonnulls(VARIADIC group_keys) > 0;
    IF v_grouped THEN
        PERFORM pgq._require('each of group_keys',
            (SELECT bool_and(octet_length(k) BETWEEN 1 AND 1000) FROM unnest(group_keys) k), 'null or 1 to 1000 bytes');
    END IF;
    v_slot := pgq._hold();
    v_queue := pgq._producing(queue);
    IF v_queue.validator IS NOT NULL THEN
        PERFORM pgq._validate(v_queue, payloads, task);
    END IF;
    IF cardinality(ids) = 0 THEN
        RETURN;
    END IF;
    IF after IS NOT NULL THEN
        PERFORM pgq._make_wait(ids, after, on_dead, run_at), pgq._wake(v_queue.id, queue);
        run_at := 'infinity';
    END IF;
    IF run_at > pgq._now() THEN
        INSERT INTO pgq.scheduled (run_at, id, lane, enqueued_at, attempt, max_attempts, task, payload, headers, group_key)
        SELECT _add_jobs.run_at, u.id, pgq._new_lane(v_queue.id, v_queue.shards, _add_jobs.priority, u.id, u.group_key),
            pgq._now(), 1, _add_jobs.max_attempts, _add_jobs.task, u.payload, _add_jobs.headers, u.group_key
        FROM unnest(ids, payloads, group_keys) u (id, payload, group_key);
        RETURN;
    END IF;
    IF priority <> 0 THEN
        PERFORM pgq._add_line(pgq._lane(v_queue.id, priority, 1));
    END IF;
    IF v_grouped THEN
        PERFORM pgq._add_line(pgq._lane(v_queue.id, priority, 97));
    END IF;
    INSERT INTO pgq.job (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers, group_key)
    SELECT pgq._new_lane(v_queue.id, v_queue.shards, _add_jobs.priority, u.id, u.group_key), pg_current_xact_id(), u.id,
        pgq._now(), v_slot, 1, _add_jobs.max_attempts, _add_jobs.task, u.payload, _add_jobs.headers, u.group_key
    FROM unnest(ids, payloads, group_keys) u (id, payload, group_key);
    PERFORM pgq._wake(v_queue.id, queue);
END;
$$;
COMMENT ON FUNCTION pgq._add_jobs(bigint[], text, jsonb[], text, int, timestamptz, int, text[], jsonb, bigint[], text) IS
    'Adds jobs to a queue; raises PQ002, PQ004, 22004, 22023';

CREATE FUNCTION pgq.enqueue_many(
    queue text,
    payloads jsonb[],
    task text DEFAULT NULL,
    priority int DEFAULT 0,
    run_at timestamptz DEFAULT NULL,
    delay interval DEFAULT NULL,
    max_attempts int DEFAULT NULL,
    group_keys text[] DEFAULT NULL,
    headers jsonb DEFAULT NULL
) RETURNS SETOF bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_ids bigint[];
BEGIN
    PERFORM pgq._check_payloads(payloads, group_keys);
    v_ids := ARRAY(SELECT nextval('pgq.job_id') FROM generate_series(1, cardinality(payloads)));
    PERFORM pgq._add_jobs(v_ids, queue, payloads, task, priority, pgq._due(run_at, delay), max_attempts, group_keys, headers,
        NULL, NULL);
    RETURN QUERY SELECT u.id FROM unnest(v_ids) u (id);
END;
$$;
COMMENT ON FUNCTION pgq.enqueue_many(text, jsonb[], text, int, timestamptz, interval, int, text[], jsonb) IS
    'Adds one job per payload, as pgq.enqueue does, and returns their ids in the order of payloads';
