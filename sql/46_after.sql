-- Jobs that wait for other jobs to end, and batches, whose last job is one that waits for all others.
-- Tables: dependent, dependency, ended; scheduled, where such jobs lie with run_at infinity; appends to dead.
--
-- Whoever ends a job that others wait for tells so, by a row in pgq.ended in the same transaction, and does no more.
-- pgq._resolve, one at a time, takes these rows in and lets those go that have nothing left to wait for. It is called
-- by maintain, and by claims that find nothing and are woken for it; so a chain goes on within milliseconds, and the
-- end of ten thousand jobs is counted by somebody who has nothing better to do.
--
-- Nothing depends on being told. What ends while the dependency is not committed yet, or in a way that tells nobody, is
-- found out by looking: at the first job that each one waits for (it has to wait for all anyway), and at so many in
-- each round.
--
-- The sequence pgq.awaited keeps all others out of this: while it is 0, those who end jobs ask no further.

CREATE FUNCTION pgq._check_after(after bigint[]) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._require('the ids of the jobs to wait for', array_position(after, NULL) IS NULL AND after IS NOT NULL OR NULL,
        'an array of job ids');
    PERFORM pgq._require('each of the jobs to wait for',
        NOT EXISTS (SELECT FROM unnest(after) a WHERE a NOT BETWEEN 1 AND coalesce(pg_sequence_last_value('pgq.job_id'), 0)),
        'the id of a job that was enqueued');
END;
$$;
COMMENT ON FUNCTION pgq._check_after(bigint[]) IS 'Raises 22004 or 22023';

CREATE FUNCTION pgq._make_wait(ids bigint[], after bigint[], on_dead text, not_before timestamptz) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._check_after(after);
    PERFORM pgq._require('on_dead', on_dead IN ('fail', 'skip', 'run'), 'fail, skip or run');
    -- While it is held, others know that there are jobs that wait and cannot be seen yet.
    PERFORM pg_advisory_xact_lock_shared(pgq._task_key(6));
    IF pg_sequence_last_value('pgq.awaited') = 0 THEN
        PERFORM setval('pgq.awaited', 1);
    END IF;
    INSERT INTO pgq.dependent (job_id, on_dead, not_before)
    SELECT i, _make_wait.on_dead, _make_wait.not_before FROM unnest(ids) i;
    INSERT INTO pgq.dependency (after_id, job_id) SELECT DISTINCT a, i FROM unnest(after) a CROSS JOIN unnest(ids) i;
END;
$$;
COMMENT ON FUNCTION pgq._make_wait(bigint[], bigint[], text, timestamptz) IS 'Notes what new jobs wait for; raises 22004, 22023';

-- Functions of their own: pgq.enqueue with another argument would be another function, and its grants would be lost.
CREATE FUNCTION pgq.enqueue_many_after(
    after bigint[],
    queue text,
    payloads jsonb[],
    task text DEFAULT NULL,
    priority int DEFAULT 0,
    run_at timestamptz DEFAULT NULL,
    delay interval DEFAULT NULL,
    max_attempts int DEFAULT NULL,
    group_keys text[] DEFAULT NULL,
    headers jsonb DEFAULT NULL,
    on_dead text DEFAULT 'fail'
) RETURNS SETOF bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_ids bigint[];
BEGIN
    PERFORM pgq._check_after(after);
    PERFORM pgq._check_payloads(payloads, group_keys);
    v_ids := ARRAY(SELECT nextval('pgq.job_id') FROM generate_series(1, cardinality(payloads)));
    PERFORM pgq._add_jobs(v_ids, queue, payloads, task, priority, pgq._due(run_at, delay), max_attempts, group_keys, headers,
        after, on_dead);
    RETURN QUERY SELECT u.id FROM unnest(v_ids) u (id);
END;
$$;
COMMENT ON FUNCTION pgq.enqueue_many_after(
    bigint[], text, jsonb[], text, int, timestamptz, interval, int, text[], jsonb, text
) IS
    'Adds one job per payload, each as pgq.enqueue_after does, and returns their ids in the order of payloads';

CREATE FUNCTION pgq.enqueue_after(
    after bigint[],
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
    on_dead text DEFAULT 'fail'
) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._require('payload', payload IS NOT NULL OR NULL, 'JSON; the JSON null is written ''null''');
    IF unique_key IS NOT NULL THEN
        PERFORM pgq._check_after(after);
        RETURN (
            pgq.enqueue_unique(queue, payload, task, priority, run_at, delay, max_attempts, unique_key, group_key, headers,
                after => after, on_dead => on_dead)
        ).id;
    END IF;
    RETURN (
        SELECT e FROM pgq.enqueue_many_after(after, queue, ARRAY[payload], task, priority, run_at, delay, max_attempts,
            CASE WHEN group_key IS NOT NULL THEN ARRAY[group_key] END, headers, on_dead) e
    );
END;
$$;
COMMENT ON FUNCTION pgq.enqueue_after(bigint[], text, jsonb, text, int, timestamptz, interval, int, text, text, jsonb, text) IS
    'Adds a job, as pgq.enqueue does, that becomes ready when these jobs are done, and not before run_at or delay. on_dead: '
    'what if one of them becomes a dead letter, is cancelled or is not known: it becomes a dead letter too (fail), is cancelled '
    '(skip), or runs when all have ended (run). Returns its id. Raises as pgq.enqueue does, and 22023 if there was never such a job';

-- Batches ------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq.batch(
    ids bigint[],
    queue text,
    payload jsonb DEFAULT '{}',
    task text DEFAULT NULL,
    priority int DEFAULT 0,
    max_attempts int DEFAULT NULL,
    headers jsonb DEFAULT NULL
) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN pgq.enqueue_after(ids, queue, payload, task, priority, max_attempts => max_attempts, headers => headers,
        on_dead => 'run');
END;
$$;
COMMENT ON FUNCTION pgq.batch(bigint[], text, jsonb, text, int, int, jsonb) IS
    'Makes a batch of jobs and enqueues the job that runs when all of them have ended, done or not; its header "after" says '
    'how many: {"done": 98, "failed": 2}. Returns the id of this job, which is the batch''s. Raises as pgq.enqueue does';

-- The lock lets others do the same and count, but not let the batch's job go.
CREATE FUNCTION pgq.add_to_batch(id bigint, ids bigint[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET jit = off
AS $$
BEGIN
    PERFORM pgq._require('id', id IS NOT NULL OR NULL, 'the id of a batch');
    PERFORM pgq._check_after(ids);
    PERFORM FROM pgq.dependent t WHERE t.job_id = add_to_batch.id FOR KEY SHARE;
    IF NOT FOUND OR NOT EXISTS (SELECT FROM pgq.scheduled s WHERE s.id = add_to_batch.id AND s.run_at = 'infinity') THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PQ006',
            MESSAGE = format('job %s does not wait for others', id),
            DETAIL = 'It is no batch, or all its jobs have ended, or it was cancelled.',
            HINT = 'Add to a batch in the transaction that makes it, or from a job that belongs to it and runs.';
    ELSIF EXISTS (
        WITH RECURSIVE needed (id) AS (
            SELECT i FROM unnest(ids) i
            UNION
            SELECT d.after_id FROM needed n JOIN pgq.dependency d ON d.job_id = n.id
        )
        SELECT FROM needed n WHERE n.id = add_to_batch.id
    ) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('job %s would wait for itself', id),
            DETAIL = 'One of these jobs is the batch''s own, or waits for it.',
            HINT = 'Add only jobs that do not wait for this batch.';
    END IF;
    INSERT INTO pgq.dependency (after_id, job_id) SELECT DISTINCT i, add_to_batch.id FROM unnest(ids) i ON CONFLICT DO NOTHING;
END;
$$;
COMMENT ON FUNCTION pgq.add_to_batch(bigint, bigint[]) IS
    'Lets the job of a batch, or another one that waits, wait for these jobs too. One that it has waited for before, and that '
    'has ended, counts again. Raises PQ006 if it waits no longer, 22023 if it would wait for itself, 22004';

CREATE TYPE pgq.batch_state AS (id bigint, done int, failed int, pending bigint);
COMMENT ON TYPE pgq.batch_state IS 'How far a batch is';
COMMENT ON COLUMN pgq.batch_state.id IS 'Id of the batch, which is its last job''s';
COMMENT ON COLUMN pgq.batch_state.done IS 'How many of its jobs are known to be done';
COMMENT ON COLUMN pgq.batch_state.failed IS 'How many have become dead letters, were cancelled or are unknown';
COMMENT ON COLUMN pgq.batch_state.pending IS 'How many have not ended, as far as is known';

CREATE FUNCTION pgq.batch_status(id bigint) RETURNS SETOF pgq.batch_state
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    PERFORM pgq._require('id', id IS NOT NULL OR NULL, 'the id of a batch');
    RETURN QUERY
    SELECT t.job_id, t.done, t.failed, (SELECT count(*) FROM pgq.dependency d WHERE d.job_id = t.job_id)
    FROM pgq.dependent t WHERE t.job_id = batch_status.id;
END;
$$;
COMMENT ON FUNCTION pgq.batch_status(bigint) IS
    'How far a batch is, or another job that waits for others. No row if it waits no longer: then pgq.job_status tells how '
    'its last job stands';

CREATE FUNCTION pgq.waits_for(id bigint, n int DEFAULT 100) RETURNS SETOF bigint
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    PERFORM pgq._require('id', id IS NOT NULL OR NULL, 'the id of a job');
    PERFORM pgq._require('n', n BETWEEN 1 AND 100000, 'between 1 and 100000');
    RETURN QUERY SELECT d.after_id FROM pgq.dependency d WHERE d.job_id = waits_for.id ORDER BY d.job_id, d.after_id LIMIT n;
END;
$$;
COMMENT ON FUNCTION pgq.waits_for(bigint, int) IS
    'The jobs that a job waits for and that have not ended as far as is known, up to n of them (1 to 100000). Raises 22023, 22004';

-- What ends tells ---------------------------------------------------------------------------------------------------

-- A claimer who has nothing to do is woken if it may have been the last job that one was waiting for.
CREATE FUNCTION pgq._tell(ids bigint[], kind pgq.outcome_kind) RETURNS void
    LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_told bigint[];
BEGIN
    IF kind = 'cancelled' THEN
        DELETE FROM pgq.dependency d WHERE d.job_id = ANY (ids);
        DELETE FROM pgq.dependent t WHERE t.job_id = ANY (ids);
    END IF;
    WITH told AS (
        INSERT INTO pgq.ended AS e (at, job_id, kind)
        SELECT pgq._now(), i, _tell.kind FROM unnest(ids) i
        WHERE EXISTS (SELECT FROM pgq.dependency d WHERE d.after_id = i OFFSET 0)
        RETURNING e.job_id
    )
    SELECT array_agg(t.job_id) INTO v_told FROM told t;
    IF pg_sequence_last_value('pgq.waited_on') > date_part('epoch', pgq._now()) - 60
        AND pg_notification_queue_usage() < 0.5
    THEN
        PERFORM pg_notify('pgq_job', i::text) FROM unnest(ids) i WHERE pgq._is_watched(pgq._wait_key(i));
    END IF;
    PERFORM pgq._wake(q.id, q.name)
    FROM (
        SELECT DISTINCT s.lane >> 16 AS queue_id
        FROM unnest(v_told) t (id)
        CROSS JOIN LATERAL (SELECT d.job_id FROM pgq.dependency d WHERE d.after_id = t.id LIMIT 1) d
        JOIN pgq.scheduled s ON s.id = d.job_id
        WHERE (SELECT count(*) FROM (SELECT FROM pgq.dependency o WHERE o.job_id = d.job_id LIMIT 21) o) <= 20
    ) w
    JOIN pgq.queue q ON q.id = w.queue_id;
END;
$$;
COMMENT ON FUNCTION pgq._tell(bigint[], pgq.outcome_kind) IS 'Notes the end of jobs that others wait for, and notifies sessions that do';

-- And those who wait go on ------------------------------------------------------------------------------------------

-- Those that somebody is changing at this moment (cancels, adds to) are left for a later look.
CREATE FUNCTION pgq._lock_dependents(ids bigint[]) RETURNS bigint[]
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN ARRAY(
        SELECT t.job_id FROM pgq.dependent t JOIN pgq.scheduled s ON s.id = t.job_id
        WHERE t.job_id = ANY (ids) AND s.run_at = 'infinity'
        ORDER BY t.job_id
        FOR UPDATE SKIP LOCKED
    );
END;
$$;
COMMENT ON FUNCTION pgq._lock_dependents(bigint[]) IS 'Locks jobs that wait for others; returns those it got';

CREATE FUNCTION pgq._let_go(ids bigint[]) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_ids CONSTANT bigint[] := pgq._lock_dependents(ids);
    v_count bigint;
BEGIN
    WITH free AS MATERIALIZED (
        SELECT i FROM unnest(v_ids) i WHERE NOT EXISTS (SELECT FROM pgq.dependency d WHERE d.job_id = i OFFSET 0)
    ), gone AS (
        DELETE FROM pgq.dependent t USING free f WHERE t.job_id = f.i RETURNING t.*
    )
    UPDATE pgq.scheduled s
    SET run_at = greatest(g.not_before, pgq._now()), headers = CASE WHEN g.on_dead = 'run'
        THEN coalesce(s.headers, '{}') || jsonb_build_object('after', jsonb_build_object('done', g.done, 'failed', g.failed))
        ELSE s.headers END
    FROM gone g WHERE s.id = g.job_id;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END;
$$;
COMMENT ON FUNCTION pgq._let_go(bigint[]) IS 'Schedules those of these jobs that have nothing left to wait for; returns how many';

CREATE FUNCTION pgq._give_up(ids bigint[], errors text[]) RETURNS void
    LANGUAGE plpgsql
AS $$
DECLARE
    v_ids CONSTANT bigint[] := pgq._lock_dependents(ids);
    v_skipped CONSTANT bigint[] := ARRAY(SELECT t.job_id FROM pgq.dependent t WHERE t.job_id = ANY (v_ids) AND t.on_dead = 'skip');
    v_buried bigint[];
BEGIN
    IF v_skipped <> '{}' THEN
        PERFORM pgq._cancel_waiting(v_skipped);
    END IF;
    WITH gone AS (
        DELETE FROM pgq.scheduled s WHERE s.id = ANY (v_ids) AND s.id <> ALL (v_skipped) RETURNING s.*
    ), buried AS (
        INSERT INTO pgq.dead AS d (id, lane, enqueued_at, died_at, attempt, max_attempts, task, payload, headers, history, error,
            group_key)
        SELECT g.id, g.lane, g.enqueued_at, pgq._now(), 0, g.max_attempts, g.task, g.payload, g.headers, g.history,
            errors[array_position(ids, g.id)], g.group_key
        FROM gone g
        RETURNING d.id
    ), kept AS (
        UPDATE pgq.dependent t SET given_up = true FROM buried b WHERE t.job_id = b.id
    )
    SELECT array_agg(b.id) INTO v_buried FROM buried b;
    PERFORM pgq._hand_back(v_buried, 'dead');
END;
$$;
COMMENT ON FUNCTION pgq._give_up(bigint[], text[]) IS 'Ends jobs without an attempt, because what they waited for is not done';

-- `after` and `kinds`: jobs that have ended, each once, and how; null: nobody knows them.
CREATE FUNCTION pgq._take_in(after bigint[], kinds pgq.outcome_kind[]) RETURNS bigint[]
    LANGUAGE plpgsql
AS $$
DECLARE
    v_over bigint[];
    v_gone bigint[];
    v_counted bigint[];
    v_ids bigint[];
    v_errors text[];
BEGIN
    FOR v_done IN 0..1 LOOP
        v_over := ARRAY(
            SELECT e.id FROM unnest(_take_in.after, kinds) e (id, kind) WHERE (e.kind = 'done') IS TRUE = (v_done = 1)
        );
        CONTINUE WHEN v_over = '{}';
        WITH over AS MATERIALIZED (
            SELECT d.ctid AS place FROM pgq.dependency d
            WHERE d.after_id = ANY (v_over)
                AND (v_done = 1 OR (SELECT t.on_dead FROM pgq.dependent t WHERE t.job_id = d.job_id) = 'run')
            FOR UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM pgq.dependency d WHERE d.ctid = ANY (ARRAY(SELECT o.place FROM over o)) RETURNING d.job_id
        ), counted AS (
            UPDATE pgq.dependent t SET done = t.done + c.jobs * v_done, failed = t.failed + c.jobs * (1 - v_done)
            FROM (SELECT g.job_id, count(*) AS jobs FROM gone g GROUP BY g.job_id) c
            WHERE t.job_id = c.job_id
            RETURNING t.job_id
        )
        SELECT array_agg(c.job_id) INTO v_gone FROM counted c;
        v_counted := v_counted || v_gone;
        CONTINUE WHEN v_done = 1;
        SELECT array_agg(f.job_id), array_agg(format('job %s, which it waits for, %s', f.after_id,
            CASE kinds[array_position(_take_in.after, f.after_id)]
                WHEN 'dead' THEN 'is dead' WHEN 'cancelled' THEN 'was cancelled' ELSE 'is not known' END))
        INTO v_ids, v_errors
        FROM (
            SELECT DISTINCT ON (d.job_id) d.job_id, d.after_id
            FROM pgq.dependency d
            WHERE d.after_id = ANY (v_over) AND EXISTS (
                SELECT FROM pgq.dependent t WHERE t.job_id = d.job_id AND t.on_dead <> 'run' AND NOT t.given_up OFFSET 0
            )
            ORDER BY d.job_id, d.after_id
        ) f;
        IF v_ids IS NOT NULL THEN
            PERFORM pgq._give_up(v_ids, v_errors);
        END IF;
    END LOOP;
    RETURN v_counted;
END;
$$;
COMMENT ON FUNCTION pgq._take_in(bigint[], pgq.outcome_kind[]) IS
    'Takes note of jobs that have ended; returns the jobs that have less to wait for now';

-- How a job has ended that nobody told about. What is unknown may be about to be committed by a transaction that was
-- running when its id was given away (before `since`); looked for twice, as in pgq.wait.
CREATE FUNCTION pgq._end_of(job bigint, since xid8, OUT over boolean, OUT kind pgq.outcome_kind)
    LANGUAGE plpgsql
AS $$
DECLARE
    v_state text;
BEGIN
    FOR v_look IN 1..2 LOOP
        SELECT s.state INTO v_state FROM pgq.job_status(job) s;
        EXIT WHEN FOUND;
    END LOOP;
    over := CASE WHEN v_state IS NULL
        THEN since < pg_snapshot_xmin(pg_current_snapshot()) OR since >= pg_snapshot_xmax(pg_current_snapshot())
        ELSE v_state IN ('done', 'dead', 'cancelled') END;
    IF over THEN
        kind := v_state::pgq.outcome_kind;
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._end_of(bigint, xid8) IS 'Whether a job has ended, and how; null: nobody knows it';

-- Returns the jobs that may be free now. Each round goes on where the last one ended; those that wait no longer and are
-- not vacuumed yet are walked over once, or with `everything`.
CREATE FUNCTION pgq._look_after(n int, everything boolean) RETURNS bigint[]
    LANGUAGE plpgsql
AS $$
DECLARE
    v_last CONSTANT bigint := pg_sequence_last_value('pgq.job_id');
    v_first_id CONSTANT bigint := CASE WHEN everything THEN 0 ELSE pg_sequence_last_value('pgq.first_waiting') END;
    v_from CONSTANT bigint := CASE WHEN everything THEN 0
        ELSE greatest(pg_sequence_last_value('pgq.looked_after'), v_first_id) END;
    -- Whether all that wait can be seen; see pgq._make_wait.
    v_quiet CONSTANT boolean := NOT pgq._is_watched(pgq._task_key(6));
    v_to bigint;
    v_ids bigint[];
    v_first bigint[];
    v_xids xid8[];
    v_after bigint[];
    v_kinds pgq.outcome_kind[];
BEGIN
    SELECT array_agg(w.job_id ORDER BY w.job_id), array_agg(w.after_id ORDER BY w.job_id), array_agg(w.xid ORDER BY w.job_id)
    INTO v_ids, v_first, v_xids
    FROM (
        SELECT t.job_id, f.after_id, f.xid
        FROM (
            SELECT t.job_id FROM pgq.dependent t
            WHERE t.job_id > v_from AND NOT t.given_up
            ORDER BY t.job_id
            LIMIT n
        ) t
        LEFT JOIN LATERAL (
            SELECT d.after_id, d.xid FROM pgq.dependency d
            WHERE d.job_id = t.job_id
            ORDER BY d.job_id, d.after_id
            LIMIT 1
        ) f ON true
    ) w;
    v_to := CASE WHEN cardinality(v_ids) = n THEN v_ids[n] ELSE 0 END;
    IF v_to <> pg_sequence_last_value('pgq.looked_after') THEN
        PERFORM setval('pgq.looked_after', v_to);
    END IF;
    IF v_from = v_first_id AND v_quiet AND coalesce(v_ids[1] - 1, v_last) <> pg_sequence_last_value('pgq.first_waiting') THEN
        PERFORM setval('pgq.first_waiting', coalesce(v_ids[1] - 1, v_last));
    END IF;
    SELECT array_agg(f.after_id), array_agg(e.kind) INTO v_after, v_kinds
    FROM (
        SELECT u.after_id, max(u.xid::text::bigint)::text::xid8 AS xid
        FROM unnest(v_first, v_xids) u (after_id, xid)
        WHERE u.after_id IS NOT NULL GROUP BY u.after_id OFFSET 0
    ) f
    CROSS JOIN LATERAL pgq._end_of(f.after_id, f.xid) e
    WHERE e.over;
    RETURN pgq._take_in(v_after, v_kinds) || ARRAY(
        SELECT u.id FROM unnest(v_ids, v_first) u (id, after_id) WHERE u.after_id IS NULL
    );
END;
$$;
COMMENT ON FUNCTION pgq._look_after(int, boolean) IS 'Looks whether the jobs have ended that up to n waiting ones wait for, and were not told';

CREATE FUNCTION pgq._resolve(n int) RETURNS bigint
    LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_now CONSTANT timestamptz := pgq._now();
    v_everything boolean;
    v_since timestamptz;
    v_count bigint;
    v_last timestamptz;
    v_after bigint[];
    v_kinds pgq.outcome_kind[];
    v_total bigint := 0;
BEGIN
    IF pg_sequence_last_value('pgq.awaited') = 0 OR NOT pg_try_advisory_xact_lock(pgq._task_key(5)) THEN
        RETURN 0;
    END IF;
    v_everything := pgq._due_again('resolve-all', '1 minute');
    v_since := CASE WHEN v_everything THEN '-infinity'::timestamptz ELSE pgq._marked('resolve') END;
    -- Those that end because of others tell as well. A long chain goes on in the next round.
    FOR v_round IN 1..20 LOOP
        WITH told AS (
            DELETE FROM pgq.ended e
            WHERE e.ctid = ANY (ARRAY(SELECT t.ctid FROM pgq.ended t WHERE t.at >= v_since ORDER BY t.at LIMIT 10000))
            RETURNING e.*
        ), last AS (
            SELECT DISTINCT ON (t.job_id) t.job_id, t.kind FROM told t ORDER BY t.job_id, t.at DESC
        )
        SELECT array_agg(l.job_id), array_agg(l.kind), (SELECT count(*) FROM told), (SELECT max(t.at) FROM told t)
        INTO v_after, v_kinds, v_count, v_last
        FROM last l;
        EXIT WHEN v_count = 0;
        -- What is told now may be committed a moment later.
        PERFORM pgq._set_mark('resolve', CASE WHEN v_count < 10000 THEN v_now - interval '5 seconds' ELSE v_last END);
        v_total := v_total + pgq._let_go(pgq._take_in(v_after, v_kinds));
    END LOOP;
    RETURN v_total + pgq._let_go(pgq._look_after(n, v_everything));
END;
$$;
COMMENT ON FUNCTION pgq._resolve(int) IS
    'Lets jobs go whose dependencies have ended, and looks after up to n that nobody told; returns how many are scheduled now';

CREATE FUNCTION pgq._look_around() RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    IF pg_sequence_last_value('pgq.awaited') > 0 AND pgq._resolve(20) > 0 THEN
        PERFORM pgq.promote();
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._look_around() IS 'What a claim does that found nothing';

-- Removes what is about dead letters that were thrown away, some at a time from a random place on. When nobody waits,
-- awaited becomes 0 again; not while a transaction is about to let a job wait, which cannot be seen yet.
CREATE FUNCTION pgq._tidy_dependents() RETURNS void
    LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_from bigint;
    v_ids bigint[];
BEGIN
    IF pg_sequence_last_value('pgq.awaited') = 0 OR NOT pg_try_advisory_xact_lock(pgq._task_key(5)) THEN
        RETURN;
    END IF;
    SELECT b.first + floor(random() * (b.last - b.first + 1))::bigint INTO v_from
    FROM (SELECT min(t.job_id), max(t.job_id) FROM pgq.dependent t) b (first, last);
    v_ids := ARRAY(
        SELECT t.job_id
        FROM (SELECT t.job_id FROM pgq.dependent t WHERE t.job_id >= v_from ORDER BY t.job_id LIMIT 1000) t
        WHERE NOT EXISTS (SELECT FROM pgq.scheduled s WHERE s.id = t.job_id AND s.run_at = 'infinity' OFFSET 0)
            AND NOT EXISTS (SELECT FROM pgq.dead d WHERE d.id = t.job_id OFFSET 0)
    );
    DELETE FROM pgq.dependency d WHERE d.job_id = ANY (v_ids);
    DELETE FROM pgq.dependent t WHERE t.job_id = ANY (v_ids);
    IF NOT EXISTS (SELECT FROM pgq.dependent) AND pg_try_advisory_lock(pgq._task_key(6)) THEN
        IF NOT EXISTS (SELECT FROM pgq.dependent)
            AND pg_sequence_last_value('pgq.waited_on') < date_part('epoch', pgq._now()) - 60
        THEN
            PERFORM setval('pgq.awaited', 0);
        END IF;
        PERFORM pg_advisory_unlock(pgq._task_key(6));
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._tidy_dependents() IS 'Removes what nobody waits for, and lets nobody tell if nobody waits';
