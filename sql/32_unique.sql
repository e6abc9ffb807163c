-- Unique keys: while a job with a key holds it, enqueueing another one with the same key gives back the first.
-- Tables: unique_key; reads and changes scheduled; otherwise as enqueue does.
--
-- Nobody gives a key back. Who finds one taken looks whether the job still holds it, and if not takes it over. So only
-- those who enqueue with keys pay for them, and claim and ack know nothing of it. Rows of ended jobs are removed when
-- their segment is retired.

CREATE TYPE pgq.enqueued AS (id bigint, inserted boolean);
COMMENT ON TYPE pgq.enqueued IS 'What became of a job that was enqueued with a unique key';
COMMENT ON COLUMN pgq.enqueued.id IS 'Id of the job, or of the one that holds its key';
COMMENT ON COLUMN pgq.enqueued.inserted IS 'Whether a job was added';

CREATE FUNCTION pgq._check_unique(unique_until text, unique_for interval, on_repeat text) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._require('unique_until', coalesce(unique_until IN ('finished', 'claimed'), true), 'finished or claimed');
    PERFORM pgq._require('unique_for', coalesce(unique_for BETWEEN '1 millisecond' AND '10 years', true),
        'between 1 ms and 10 years');
    PERFORM pgq._require('on_repeat', coalesce(on_repeat IN ('keep', 'replace', 'debounce'), true),
        'keep, replace or debounce');
    IF unique_until IS NOT NULL AND unique_for IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'unique_until and unique_for are both given',
            HINT = 'A key is held until something happens to its job, or for a time after it was enqueued.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._check_unique(text, interval, text) IS 'Raises 22023';

CREATE FUNCTION pgq.set_unique(
    queue text, unique_until text DEFAULT 'finished', unique_for interval DEFAULT NULL, on_repeat text DEFAULT 'keep'
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
BEGIN
    IF unique_for IS NOT NULL THEN
        unique_until := NULL;
    END IF;
    PERFORM pgq._require('unique_until', unique_until IS NOT NULL OR unique_for IS NOT NULL OR NULL, 'finished or claimed');
    PERFORM pgq._require('on_repeat', on_repeat IS NOT NULL OR NULL, 'keep, replace or debounce');
    PERFORM pgq._check_unique(unique_until, unique_for, on_repeat);
    UPDATE pgq.queue q
    SET unique_until = set_unique.unique_until, unique_for = set_unique.unique_for, on_repeat = set_unique.on_repeat
    WHERE q.id = v_queue.id;
END;
$$;
COMMENT ON FUNCTION pgq.set_unique(text, text, interval, text) IS
    'Says how unique keys work in a queue for jobs enqueued from now on; see pgq.enqueue_unique. Raises PQ002, 22023, 22004';

-- Whether a job has not ended; or with `unclaimed`, whether nobody has begun with it. By one snapshot, for it may be
-- moved from one place to another meanwhile.
CREATE FUNCTION pgq._lives(job bigint, unclaimed boolean) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
BEGIN
    IF EXISTS (SELECT FROM pgq.scheduled s WHERE s.id = job AND NOT (unclaimed AND s.attempt > 1))
        OR EXISTS (SELECT FROM pgq.parked p WHERE p.id = job AND NOT (unclaimed AND p.attempt > 1))
    THEN
        RETURN true;
    END IF;
    RETURN EXISTS (
        SELECT FROM pgq._filled() s, pgq._find(s, job) f
        WHERE f.state IN ('ready', 'running') AND NOT (unclaimed AND (f.state = 'running' OR f.attempt > 1))
    ) OR NOT unclaimed AND EXISTS (SELECT FROM pgq.straggler s WHERE s.id = job AND s.kind IS NULL);
END;
$$;
COMMENT ON FUNCTION pgq._lives(bigint, boolean) IS 'Whether a job has not ended, or has not even been claimed';

CREATE FUNCTION pgq._holds(key pgq.unique_key) RETURNS boolean
    LANGUAGE plpgsql
AS $$
BEGIN
    IF key.held_until IS NOT NULL THEN
        RETURN key.held_until > pgq._now();
    END IF;
    RETURN pgq._lives(key.job_id, key.until_claimed);
END;
$$;
COMMENT ON FUNCTION pgq._holds(pgq.unique_key) IS 'Whether the job of a unique key still holds it';

-- Gives the key to this job and returns its id, or that of the job that holds it. Who finds somebody else in the middle
-- of taking the key waits for the end of his transaction; if it is rolled back, the key is free.
-- Locks: the row of the key, unless it is held by a job that was committed before.
CREATE FUNCTION pgq._take_key(wanted pgq.unique_key) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_key pgq.unique_key;
BEGIN
    LOOP
        SELECT * INTO v_key FROM pgq.unique_key k WHERE k.queue_id = wanted.queue_id AND k.key = wanted.key;
        IF NOT FOUND THEN
            INSERT INTO pgq.unique_key SELECT wanted.* ON CONFLICT DO NOTHING;
            IF FOUND THEN
                RETURN wanted.job_id;
            END IF;
        ELSIF pgq._holds(v_key) THEN
            RETURN v_key.job_id;
        ELSE
            SELECT * INTO v_key FROM pgq.unique_key k WHERE k.queue_id = wanted.queue_id AND k.key = wanted.key FOR UPDATE;
            IF FOUND AND NOT pgq._holds(v_key) THEN
                UPDATE pgq.unique_key k
                SET job_id = wanted.job_id, until_claimed = wanted.until_claimed, held_until = wanted.held_until
                WHERE k.queue_id = wanted.queue_id AND k.key = wanted.key;
                RETURN wanted.job_id;
            END IF;
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq._take_key(pgq.unique_key) IS 'Takes a unique key for a job; returns the job that has it now';

-- What somebody is taking over at this moment stays.
CREATE FUNCTION pgq._drop_keys(ids bigint[]) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    DELETE FROM pgq.unique_key k
    USING (
        SELECT k.queue_id, k.key FROM pgq.unique_key k
        WHERE k.job_id = ANY (ids) AND k.held_until IS NULL
        ORDER BY k.queue_id, k.key
        FOR UPDATE SKIP LOCKED
    ) e
    WHERE k.queue_id = e.queue_id AND k.key = e.key;
END;
$$;
COMMENT ON FUNCTION pgq._drop_keys(bigint[]) IS 'Removes the rows of unique keys of jobs that have ended';

-- Those that are held for a time; and a few others from a random place on, for whatever left a row behind.
CREATE FUNCTION pgq._tidy_keys() RETURNS void
    LANGUAGE plpgsql SET enable_seqscan = off
AS $$
DECLARE
    v_from bigint;
BEGIN
    DELETE FROM pgq.unique_key k
    USING (
        SELECT k.queue_id, k.key FROM pgq.unique_key k
        WHERE k.held_until < pgq._now()
        ORDER BY k.held_until
        LIMIT 10000
        FOR UPDATE SKIP LOCKED
    ) e
    WHERE k.queue_id = e.queue_id AND k.key = e.key;
    SELECT b.first + floor(random() * (b.last - b.first + 1))::bigint INTO v_from
    FROM (SELECT min(k.job_id), max(k.job_id) FROM pgq.unique_key k) b (first, last);
    PERFORM pgq._drop_keys(ARRAY(
        SELECT k.job_id
        FROM (SELECT k.job_id FROM pgq.unique_key k WHERE k.job_id >= v_from ORDER BY k.job_id LIMIT 100) k
        WHERE NOT pgq._lives(k.job_id, false)
    ));
END;
$$;
COMMENT ON FUNCTION pgq._tidy_keys() IS 'Removes rows of unique keys that nobody holds any more';

-- In its place in line: who claims waits for the lane, and then sees the new version.
CREATE FUNCTION pgq._revise_0(places tid[], payload jsonb, task text, headers jsonb) RETURNS SETOF bigint
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    UPDATE pgq.job_0 j SET payload = _revise_0.payload, task = _revise_0.task, headers = _revise_0.headers
    WHERE j.ctid = ANY (places) AND j.attempt = 1
    RETURNING j.id;
END;
$$;
COMMENT ON FUNCTION pgq._revise_0(tid[], jsonb, text, jsonb) IS
    'Changes jobs in segment 0 that nobody has claimed; the lane is locked and the segment is held';

SELECT pgq._for_each_slot('pgq._revise_0(tid[],jsonb,text,jsonb)');

-- Looks again if the job has gone from one place to another meanwhile; if somebody has claimed it, that is all.
CREATE FUNCTION pgq._repeat(job bigint, payload jsonb, task text, headers jsonb, run_at timestamptz) RETURNS void
    LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_slot int;
    v_lane bigint;
BEGIN
    WHILE pgq._lives(job, true) LOOP
        UPDATE pgq.scheduled s
        SET payload = _repeat.payload, task = _repeat.task, headers = _repeat.headers
        WHERE s.id = job AND s.attempt = 1;
        IF FOUND THEN
            IF run_at IS NOT NULL THEN
                PERFORM pgq._put_off(job, run_at);
            END IF;
            RETURN;
        END IF;
        UPDATE pgq.parked p SET payload = _repeat.payload, task = _repeat.task, headers = _repeat.headers
        WHERE p.id = job AND p.attempt = 1;
        IF FOUND THEN
            IF run_at IS NOT NULL THEN
                PERFORM pgq.reschedule(job, run_at);
            END IF;
            RETURN;
        END IF;
        FOR v_slot, v_lane IN SELECT s, l FROM pgq._filled() s, pgq._lanes(s, job) l LOOP
            PERFORM pgq._lock_lane(v_slot, v_lane);
            PERFORM pgq._revise(v_slot, pgq._ready(v_slot, v_lane, ARRAY[job], NULL), payload, task, headers);
            IF FOUND THEN
                IF run_at IS NOT NULL THEN
                    PERFORM pgq.reschedule(job, run_at);
                END IF;
                RETURN;
            END IF;
        END LOOP;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq._repeat(bigint, jsonb, text, jsonb, timestamptz) IS
    'Lets a job that nobody has claimed be the one that was enqueued once more';

CREATE FUNCTION pgq.enqueue_unique_many(
    queue text,
    payloads jsonb[],
    unique_keys text[],
    task text DEFAULT NULL,
    priority int DEFAULT 0,
    run_at timestamptz DEFAULT NULL,
    delay interval DEFAULT NULL,
    max_attempts int DEFAULT NULL,
    group_keys text[] DEFAULT NULL,
    headers jsonb DEFAULT NULL,
    unique_until text DEFAULT NULL,
    unique_for interval DEFAULT NULL,
    on_repeat text DEFAULT NULL,
    after bigint[] DEFAULT NULL,
    on_dead text DEFAULT 'fail'
) RETURNS SETOF pgq.enqueued
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
    v_ids bigint[];
    v_holders bigint[];
BEGIN
    -- Whether a job has ended cannot be seen in an old snapshot: it may have been moved, and its segment emptied.
    PERFORM pgq._read_committed();
    PERFORM pgq._check_payloads(payloads, group_keys);
    PERFORM pgq._require('unique_keys', cardinality(unique_keys) = cardinality(payloads), 'an array as long as payloads');
    PERFORM pgq._require('each of unique_keys',
        coalesce((SELECT bool_and(octet_length(k) BETWEEN 1 AND 1000) FROM unnest(unique_keys) k), true),
        'null or 1 to 1000 bytes');
    PERFORM pgq._check_unique(unique_until, unique_for, on_repeat);
    IF unique_until IS NULL AND unique_for IS NULL THEN
        unique_until := v_queue.unique_until;
        unique_for := v_queue.unique_for;
    END IF;
    run_at := pgq._due(run_at, delay);

    on_repeat := coalesce(on_repeat, v_queue.on_repeat);
    PERFORM pgq._require('run_at or delay', on_repeat <> 'debounce' OR run_at IS NOT NULL,
        'given: debounce puts the job off until then');

    v_ids := ARRAY(SELECT nextval('pgq.job_id') FROM generate_series(1, cardinality(payloads)));
    -- Keys in the same order for all, so that nobody waits for somebody who waits for him.
    SELECT array_agg(coalesce(t.holder, u.id) ORDER BY u.n) INTO v_holders
    FROM unnest(unique_keys, v_ids) WITH ORDINALITY u (key, id, n)
    LEFT JOIN (
        SELECT k.key, pgq._take_key(
            (v_queue.id, k.key, k.id, coalesce(unique_until = 'claimed', false), pgq._now() + unique_for)::pgq.unique_key
        ) AS holder
        FROM (
            SELECT u.key, min(u.id) AS id FROM unnest(unique_keys, v_ids) u (key, id)
            WHERE u.key IS NOT NULL GROUP BY u.key ORDER BY u.key OFFSET 0
        ) k
        OFFSET 0
    ) t ON t.key = u.key;
    PERFORM pgq._add_jobs(a.ids, queue, a.payloads, task, priority, run_at, max_attempts, a.group_keys, headers,
        after, on_dead)
    FROM (
        SELECT coalesce(array_agg(u.id ORDER BY u.n), '{}') AS ids, coalesce(array_agg(u.payload ORDER BY u.n), '{}') AS payloads,
            array_agg(u.group_key ORDER BY u.n) AS group_keys
        FROM unnest(v_ids, v_holders, payloads, group_keys) WITH ORDINALITY u (id, holder, payload, group_key, n)
        WHERE u.id = u.holder
    ) a;
    IF on_repeat <> 'keep' THEN
        PERFORM pgq._repeat(r.holder, r.payload, task, headers, CASE WHEN on_repeat = 'debounce' THEN run_at END)
        FROM (
            SELECT DISTINCT ON (u.holder) u.holder, u.payload
            FROM unnest(v_ids, v_holders, payloads) WITH ORDINALITY u (id, holder, payload, n)
            WHERE u.holder <> u.id
            ORDER BY u.holder, u.n DESC
        ) r;
    END IF;
    RETURN QUERY SELECT u.holder, u.holder = u.id FROM unnest(v_ids, v_holders) u (id, holder);
END;
$$;
COMMENT ON FUNCTION pgq.enqueue_unique_many(
    text, jsonb[], text[], text, int, timestamptz, interval, int, text[], jsonb, text, interval, text, bigint[], text
) IS
    'Adds one job per payload unless its unique key is held, as pgq.enqueue_unique does; keys may be null. Returns for each '
    'payload, in their order, the job''s id and whether it was added. Of several with one key the first is added, and the '
    'others repeat it. Raises PQ002, PQ003, PQ004, 22023, 22004';

CREATE FUNCTION pgq.enqueue_unique(
    queue text,
    payload jsonb DEFAULT '{}',
    task text DEFAULT NULL,
    priority int DEFAULT 0,
    run_at timestamptz DEFAULT NULL,
    delay interval DEFAULT NULL,
    max_attempts int DEFAULT NULL,
    unique_key text DEFAULT NULL,
    group_key text DEFAULT NULL,
    headers jsonb DEFAULT NULL,
    unique_until text DEFAULT NULL,
    unique_for interval DEFAULT NULL,
    on_repeat text DEFAULT NULL,
    after bigint[] DEFAULT NULL,
    on_dead text DEFAULT 'fail'
) RETURNS pgq.enqueued
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_enqueued pgq.enqueued;
BEGIN
    PERFORM pgq._require('unique_key', unique_key IS NOT NULL OR NULL, '1 to 1000 bytes of text');
    SELECT * INTO v_enqueued FROM pgq.enqueue_unique_many(queue, ARRAY[payload], ARRAY[unique_key], task, priority, run_at,
        delay, max_attempts, CASE WHEN group_key IS NOT NULL THEN ARRAY[group_key] END, headers, unique_until, unique_for,
        on_repeat, after, on_dead);
    RETURN v_enqueued;
END;
$$;
COMMENT ON FUNCTION pgq.enqueue_unique(
    text, jsonb, text, int, timestamptz, interval, int, text, text, jsonb, text, interval, text, bigint[], text
) IS
    'Adds a job unless another one in the queue holds its unique key; returns the id of the one or the other, and whether it '
    'was added. unique_until: the key is held until the job has ended (finished), or only until it is claimed; or '
    'unique_for: for so long after it was enqueued, whatever becomes of it (throttle). on_repeat: a job that holds the key '
    'and has not been claimed is left as it is (keep), gets the new payload, task and headers (replace), or these and the '
    'new run_at too (debounce); until the transaction ends nobody claims from the lane of a ready one. Null: as the queue '
    'says, see pgq.set_unique. Waits for a transaction that is enqueueing the same key. A dead letter has given up its key. '
    'Raises PQ002, PQ003 (not READ COMMITTED), PQ004, 22023, 22004';
