-- From 0.1.0 to 0.2.0: what is new and what has changed.
--
-- Who was granted something keeps it, and gets nothing new: call pgq.grant_producer, pgq.grant_consumer and
-- pgq.grant_admin once more for the roles that shall use it, and before workers of the Python package 0.2.0 start.
--
-- All wait while the two indexes on pgq.dead are built; with millions of dead letters, throw some away before.

-- Sessions go on meanwhile, and this must not wait for somebody who waits for it. Those who insert jobs hold a segment
-- before anything else, those who claim read pgq.queue first, and so do those who use pgq.dead; who maintains takes
-- what he needs in other orders. So he is kept out, then the first are, then all others, and then nobody holds what is
-- altered. But for an enqueue between its look at pgq.queue and its insert: `pgqueue upgrade` gives way to it.
DO $$
BEGIN
    PERFORM pg_advisory_xact_lock(pgq._task_key(n)) FROM generate_series(1, 3) n;
    FOR v_slot IN 0..15 LOOP
        EXECUTE format('LOCK TABLE ONLY pgq.job_%s IN SHARE MODE', v_slot);
    END LOOP;
    LOCK TABLE pgq.queue IN ACCESS EXCLUSIVE MODE;
END;
$$;

-- Tables and types ----------------------------------------------------------------------------------------------------

-- No statement of this transaction may use the new label; functions that name it may be created.
ALTER TYPE pgq.outcome_kind ADD VALUE 'snoozed' AFTER 'split';

ALTER TABLE pgq.queue
    ADD COLUMN validator text,
    ADD COLUMN unique_until text DEFAULT 'finished',
    ADD COLUMN unique_for interval,
    ADD COLUMN on_repeat text NOT NULL DEFAULT 'keep',
    ADD COLUMN running_limit int,
    ADD COLUMN group_limit int DEFAULT 1,
    ADD COLUMN rate int,
    ADD COLUMN rate_period interval,
    ADD COLUMN group_rate int,
    ADD COLUMN group_period interval,
    ADD COLUMN fair boolean NOT NULL DEFAULT false,
    ADD COLUMN keep_place boolean NOT NULL DEFAULT true,
    ADD CONSTRAINT queue_unique_check CHECK (num_nonnulls(unique_until, unique_for) = 1),
    ADD CONSTRAINT queue_unique_until_check CHECK (unique_until IN ('finished', 'claimed')),
    ADD CONSTRAINT queue_unique_for_check CHECK (unique_for > '0'),
    ADD CONSTRAINT queue_on_repeat_check CHECK (on_repeat IN ('keep', 'replace', 'debounce')),
    ADD CONSTRAINT queue_limits_check CHECK (running_limit > 0 AND group_limit > 0),
    ADD CONSTRAINT queue_rate_check CHECK (rate > 0 AND rate_period > '0'),
    ADD CONSTRAINT queue_group_rate_check CHECK (group_rate > 0 AND group_period > '0');
-- Lines that are there stay for good: who began before may rely on them.
ALTER TABLE pgq.line ADD COLUMN until bigint NOT NULL DEFAULT 9223372036854775807;
ALTER TABLE pgq.line ALTER COLUMN until DROP DEFAULT;
COMMENT ON COLUMN pgq.line.until IS 'Generation of the last segment whose jobs it is for; 9223372036854775807: no last one';
COMMENT ON COLUMN pgq.queue.validator IS 'Function that checks payloads, as in ''app.check(jsonb)''; null: all are good';
COMMENT ON COLUMN pgq.queue.unique_until IS 'How far a job holds its unique key: finished or claimed; null: see unique_for';
COMMENT ON COLUMN pgq.queue.unique_for IS 'How long a job holds its unique key after it was enqueued, whatever becomes of it';
COMMENT ON COLUMN pgq.queue.on_repeat IS 'What a repeat does to a job not yet claimed: keep, replace or debounce';
COMMENT ON COLUMN pgq.queue.running_limit IS 'How many jobs of the queue may run at once; null: any number';
COMMENT ON COLUMN pgq.queue.group_limit IS 'How many jobs of one group may run at once; null: any number';
COMMENT ON COLUMN pgq.queue.rate IS 'How many jobs of the queue may start in rate_period; null: any number';
COMMENT ON COLUMN pgq.queue.rate_period IS 'The period that rate is about';
COMMENT ON COLUMN pgq.queue.group_rate IS 'How many jobs of one group may start in group_period; null: any number';
COMMENT ON COLUMN pgq.queue.group_period IS 'The period that group_rate is about';
COMMENT ON COLUMN pgq.queue.fair IS 'Whether groups take turns';
COMMENT ON COLUMN pgq.queue.keep_place IS 'Whether its group waits for a job that is to be tried again';
COMMENT ON TYPE pgq.outcome_kind IS
    'How an attempt ended; carried: put elsewhere unworked, into a younger segment for instance, moved: now in pgq.straggler, split: not an end';
COMMENT ON TABLE pgq.job IS 'One row per attempt that may be claimed. Truncated by segment, never deleted; updated only to take a job '
    'back, or by who enqueues its unique key again';
COMMENT ON COLUMN pgq.mark.kind IS 'reap, promote, sweep, tidy, cancel';
ALTER TABLE pgq.job ADD COLUMN group_key text;
COMMENT ON COLUMN pgq.job.group_key IS 'The group that it belongs to; null: none';
COMMENT ON COLUMN pgq.scheduled.run_at IS 'When the job becomes ready; infinity: when the jobs have ended that it waits for (pgq.dependent)';
ALTER TABLE pgq.scheduled ADD COLUMN group_key text;
COMMENT ON COLUMN pgq.scheduled.group_key IS 'The group that it belongs to; null: none';
ALTER TABLE pgq.dead ADD COLUMN group_key text;
COMMENT ON COLUMN pgq.dead.group_key IS 'The group that it belonged to; null: none';
ALTER TABLE pgq.straggler ADD COLUMN group_key text;
COMMENT ON COLUMN pgq.straggler.group_key IS 'The group that it belongs to; null: none';
ALTER TYPE pgq.attempt ADD ATTRIBUTE group_key text;
COMMENT ON COLUMN pgq.attempt.group_key IS 'The group that it belongs to';
ALTER TYPE pgq.queue_stat ADD ATTRIBUTE parked bigint;
COMMENT ON COLUMN pgq.queue_stat.parked IS 'Jobs that wait for a limit of their group or queue';
ALTER TYPE pgq.queue_stat ADD ATTRIBUTE waiting bigint;
COMMENT ON COLUMN pgq.queue_stat.waiting IS 'Jobs that wait for other jobs to end';
COMMENT ON COLUMN pgq.segment.generation IS 'How many segments had been opened before; 0: not known';
COMMENT ON TABLE pgq.line IS 'Lines in use: for each queue and priority the front lane, all shards, or one of the gate''s';
COMMENT ON COLUMN pgq.line.lane IS 'The front lane, the first of the shards, or a lane of the gate; -1: claims of this queue go through the gate';
CREATE SEQUENCE pgq.turn;
COMMENT ON SEQUENCE pgq.turn IS 'Turns of the groups of fair queues';
CREATE SEQUENCE pgq.awaited MINVALUE 0;
COMMENT ON SEQUENCE pgq.awaited IS '1: somebody may be waiting for the end of jobs, so it is told';
CREATE SEQUENCE pgq.waited_on MINVALUE 0;
COMMENT ON SEQUENCE pgq.waited_on IS 'When a session last began to wait for the end of a job, in seconds';
CREATE SEQUENCE pgq.looked_after MINVALUE 0;
COMMENT ON SEQUENCE pgq.looked_after IS 'The last job that waits for others which was looked after, see pgq._look_after';
CREATE SEQUENCE pgq.first_waiting MINVALUE 0;
COMMENT ON SEQUENCE pgq.first_waiting IS 'No job up to this one waits for others, as far as was seen';
SELECT setval('pgq.awaited', 0), setval('pgq.waited_on', 0), setval('pgq.looked_after', 0),
    setval('pgq.first_waiting', 0);
CREATE OR REPLACE FUNCTION pgq._new_lease(slot int) RETURNS bigint
    LANGUAGE sql VOLATILE
AS $$ SELECT (nextval('pgq.lease_id') << 12) | (floor(random() * 128)::bigint << 5) | slot $$;
COMMENT ON FUNCTION pgq._new_lease(int) IS
    'A new lease id: it grows, its lowest four bits are the segment''s slot, and the fifth says that its jobs have permits';
CREATE INDEX dead_queue_task_id_idx ON pgq.dead ((lane >> 16), task, id);
CREATE INDEX dead_queue_died_at_idx ON pgq.dead ((lane >> 16), died_at);

CREATE TABLE pgq.schedule (
    name text NOT NULL,
    queue text NOT NULL,
    cron text NOT NULL,
    timezone text NOT NULL,
    catch_up text NOT NULL,
    task text,
    payload jsonb NOT NULL,
    next_at timestamptz NOT NULL,
    last_at timestamptz,
    last_job bigint,
    retry_at timestamptz,
    error text,
    CONSTRAINT schedule_name_pkey PRIMARY KEY (name)
) WITH (fillfactor = 50);
CREATE INDEX schedule_due_idx ON pgq.schedule (coalesce(retry_at, next_at));
CREATE INDEX schedule_queue_due_idx ON pgq.schedule (queue, coalesce(retry_at, next_at));
COMMENT ON TABLE pgq.schedule IS
    'Recurring jobs. Change them with pgq.schedule; they go with pgq.unschedule, or with their queue';
COMMENT ON COLUMN pgq.schedule.name IS 'Name, 1 to 128 characters';
COMMENT ON COLUMN pgq.schedule.queue IS 'The queue that the jobs are added to';
COMMENT ON COLUMN pgq.schedule.cron IS 'When: a cron line, as it was given';
COMMENT ON COLUMN pgq.schedule.timezone IS 'The time zone that the line is about, as the server spells it';
COMMENT ON COLUMN pgq.schedule.catch_up IS
    'What becomes of ticks that nobody was there for; skip: nothing, one: one job for all of them, all: a job for each';
COMMENT ON COLUMN pgq.schedule.task IS 'What to do';
COMMENT ON COLUMN pgq.schedule.payload IS 'Arguments';
COMMENT ON COLUMN pgq.schedule.next_at IS 'The next tick, or the oldest one that is still to be fired. Only goes forward';
COMMENT ON COLUMN pgq.schedule.last_at IS 'The last tick that became a job';
COMMENT ON COLUMN pgq.schedule.last_job IS 'That job''s id';
COMMENT ON COLUMN pgq.schedule.retry_at IS 'It failed: not again before this time. Null: nothing is wrong';
COMMENT ON COLUMN pgq.schedule.error IS 'Why it failed';

CREATE TABLE pgq.unique_key (
    queue_id int NOT NULL,
    key text NOT NULL,
    job_id bigint NOT NULL,
    until_claimed boolean NOT NULL,
    held_until timestamptz,
    CONSTRAINT unique_key_queue_id_key_pkey PRIMARY KEY (queue_id, key)
);
CREATE INDEX unique_key_job_id_idx ON pgq.unique_key (job_id);
CREATE INDEX unique_key_held_until_idx ON pgq.unique_key (held_until) WHERE held_until IS NOT NULL;
COMMENT ON TABLE pgq.unique_key IS 'The last job with each unique key; it holds the key or no longer, and the row goes later';
COMMENT ON COLUMN pgq.unique_key.queue_id IS 'The queue';
COMMENT ON COLUMN pgq.unique_key.key IS 'What the application calls one and the same';
COMMENT ON COLUMN pgq.unique_key.job_id IS 'Job id';
COMMENT ON COLUMN pgq.unique_key.until_claimed IS 'Whether the key is free as soon as the job is claimed';
COMMENT ON COLUMN pgq.unique_key.held_until IS 'Until when the key is held, whatever becomes of the job; null: as long as it lives';

CREATE TABLE pgq.parked (
    id bigint NOT NULL,
    queue_id int NOT NULL,
    group_key text NOT NULL,
    priority smallint NOT NULL,
    lane bigint NOT NULL,
    enqueued_at timestamptz NOT NULL,
    attempt smallint NOT NULL,
    max_attempts smallint,
    task text,
    payload jsonb NOT NULL,
    headers jsonb,
    history jsonb,
    CONSTRAINT parked_id_pkey PRIMARY KEY (id)
);
CREATE INDEX parked_queue_id_group_key_priority_id_idx ON pgq.parked (queue_id, group_key, priority, id);
COMMENT ON TABLE pgq.parked IS 'Jobs that could be claimed but for a limit of their group or queue';
COMMENT ON COLUMN pgq.parked.id IS 'Job id';
COMMENT ON COLUMN pgq.parked.queue_id IS 'The queue';
COMMENT ON COLUMN pgq.parked.group_key IS 'The group that it belongs to; empty: none';
COMMENT ON COLUMN pgq.parked.priority IS 'Priority, lower runs first';
COMMENT ON COLUMN pgq.parked.lane IS 'Lane that it came from';
COMMENT ON COLUMN pgq.parked.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.parked.attempt IS 'Number of the attempt to come';
COMMENT ON COLUMN pgq.parked.max_attempts IS 'Attempts allowed; null: what the queue says';
COMMENT ON COLUMN pgq.parked.task IS 'What to do';
COMMENT ON COLUMN pgq.parked.payload IS 'Arguments';
COMMENT ON COLUMN pgq.parked.headers IS 'Metadata';
COMMENT ON COLUMN pgq.parked.history IS 'Errors of earlier attempts';

CREATE TABLE pgq.parked_group (
    queue_id int NOT NULL,
    group_key text NOT NULL,
    priority smallint NOT NULL,
    turn bigint NOT NULL,
    ready boolean NOT NULL,
    ready_at timestamptz,
    CONSTRAINT parked_group_queue_id_group_key_pkey PRIMARY KEY (queue_id, group_key)
);
CREATE INDEX parked_group_turn_idx ON pgq.parked_group (queue_id, priority, turn) WHERE ready;
CREATE INDEX parked_group_ready_at_idx ON pgq.parked_group (queue_id, ready_at) WHERE NOT ready;
COMMENT ON TABLE pgq.parked_group IS 'The groups that have parked jobs. Only who holds the gate writes here';
COMMENT ON COLUMN pgq.parked_group.queue_id IS 'The queue';
COMMENT ON COLUMN pgq.parked_group.group_key IS 'The group; empty: jobs without one';
COMMENT ON COLUMN pgq.parked_group.priority IS 'Priority of its first job';
COMMENT ON COLUMN pgq.parked_group.turn IS 'Groups of one priority are served in this order: the first job''s id or, if they take turns, their turn';
COMMENT ON COLUMN pgq.parked_group.ready IS 'Whether it is worth looking at: a job of it may be allowed to run';
COMMENT ON COLUMN pgq.parked_group.ready_at IS 'When it is worth looking at again; null: when a job of it ends';

CREATE TABLE pgq.permit (
    job_id bigint NOT NULL,
    queue_id int NOT NULL,
    group_key text NOT NULL,
    state text NOT NULL,
    CONSTRAINT permit_job_id_pkey PRIMARY KEY (job_id),
    CONSTRAINT permit_state_check CHECK (state IN ('running', 'waiting', 'ended'))
);
CREATE INDEX permit_queue_id_group_key_idx ON pgq.permit (queue_id, group_key);
CREATE INDEX permit_ended_idx ON pgq.permit (queue_id) WHERE state = 'ended';
COMMENT ON TABLE pgq.permit IS 'The right to run: one row for each job that counts against a limit';
COMMENT ON COLUMN pgq.permit.job_id IS 'Job id';
COMMENT ON COLUMN pgq.permit.queue_id IS 'The queue';
COMMENT ON COLUMN pgq.permit.group_key IS 'The group; empty: none';
COMMENT ON COLUMN pgq.permit.state IS
    'running; waiting: for its next attempt, its group waits for it; ended: given back, and the next claim removes it';

CREATE TABLE pgq.start (
    queue_id int NOT NULL,
    group_key text NOT NULL,
    at timestamptz NOT NULL,
    jobs int NOT NULL,
    total bigint NOT NULL,
    CONSTRAINT start_queue_id_group_key_at_total_pkey PRIMARY KEY (queue_id, group_key, at, total)
);
COMMENT ON TABLE pgq.start IS 'How many jobs of a queue or group with a rate were claimed when; rows go when their period is over';
COMMENT ON COLUMN pgq.start.queue_id IS 'The queue';
COMMENT ON COLUMN pgq.start.group_key IS 'The group; empty: the whole queue';
COMMENT ON COLUMN pgq.start.at IS 'When they were claimed; never before the row before it';
COMMENT ON COLUMN pgq.start.jobs IS 'How many';
COMMENT ON COLUMN pgq.start.total IS 'How many by then';

CREATE TABLE pgq.dependent (
    job_id bigint NOT NULL,
    on_dead text NOT NULL,
    not_before timestamptz,
    done int NOT NULL DEFAULT 0,
    failed int NOT NULL DEFAULT 0,
    given_up boolean NOT NULL DEFAULT false,
    CONSTRAINT dependent_job_id_pkey PRIMARY KEY (job_id),
    CONSTRAINT dependent_on_dead_check CHECK (on_dead IN ('fail', 'skip', 'run'))
) WITH (fillfactor = 50);
CREATE INDEX dependent_job_id_idx ON pgq.dependent (job_id) WHERE NOT given_up;
COMMENT ON TABLE pgq.dependent IS
    'Jobs that wait for others: scheduled ones, whose run_at is infinity, and dead letters that would wait again';
COMMENT ON COLUMN pgq.dependent.job_id IS 'Job id';
COMMENT ON COLUMN pgq.dependent.on_dead IS 'What it does if one of the others dies or is cancelled: fail, skip or run';
COMMENT ON COLUMN pgq.dependent.not_before IS 'When it is due at the earliest; null: as soon as they have ended';
COMMENT ON COLUMN pgq.dependent.done IS 'How many of the others are known to be done';
COMMENT ON COLUMN pgq.dependent.failed IS 'How many of them have ended otherwise';
COMMENT ON COLUMN pgq.dependent.given_up IS 'Whether it is a dead letter because of one of them; if it is redriven, it waits again';

CREATE TABLE pgq.dependency (
    after_id bigint NOT NULL,
    job_id bigint NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT dependency_after_id_job_id_pkey PRIMARY KEY (after_id, job_id)
);
CREATE INDEX dependency_job_id_after_id_idx ON pgq.dependency (job_id, after_id);
COMMENT ON TABLE pgq.dependency IS 'What jobs wait for; a row goes when the job that it names has ended';
COMMENT ON COLUMN pgq.dependency.after_id IS 'The job that must end first';
COMMENT ON COLUMN pgq.dependency.job_id IS 'The job that waits';
COMMENT ON COLUMN pgq.dependency.xid IS 'The transaction that said so. An id nobody knows may be that of a job of one that ran then';

CREATE TABLE pgq.ended (
    at timestamptz NOT NULL,
    job_id bigint NOT NULL,
    kind pgq.outcome_kind NOT NULL
);
CREATE INDEX ended_at_idx ON pgq.ended (at);
COMMENT ON TABLE pgq.ended IS 'Jobs that others wait for and that have ended, told by whoever ended them, until pgq._resolve knows';
COMMENT ON COLUMN pgq.ended.at IS 'When';
COMMENT ON COLUMN pgq.ended.job_id IS 'Job id';
COMMENT ON COLUMN pgq.ended.kind IS 'How: done, dead or cancelled';

CREATE TABLE pgq.cancel_request (
    id bigint NOT NULL,
    at timestamptz NOT NULL,
    CONSTRAINT cancel_request_id_pkey PRIMARY KEY (id)
);
COMMENT ON TABLE pgq.cancel_request IS 'Running jobs that are asked to stop, until they have ended';
COMMENT ON COLUMN pgq.cancel_request.id IS 'Job id';
COMMENT ON COLUMN pgq.cancel_request.at IS 'When pgq.cancel was called';

CREATE TABLE pgq.progress (
    id bigint NOT NULL,
    lease bigint NOT NULL,
    at timestamptz NOT NULL,
    value jsonb NOT NULL,
    CONSTRAINT progress_id_lease_pkey PRIMARY KEY (id, lease)
) WITH (fillfactor = 50);
COMMENT ON TABLE pgq.progress IS
    'How far running attempts say they are. Rows of attempts that have ended mean nothing; pgq.maintain removes them';
COMMENT ON COLUMN pgq.progress.id IS 'Job id';
COMMENT ON COLUMN pgq.progress.lease IS 'The lease that holds it';
COMMENT ON COLUMN pgq.progress.at IS 'When it was told';
COMMENT ON COLUMN pgq.progress.value IS 'What the handler told';

-- 20_internal ---------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._front(lane bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT (lane & ~255::bigint) | CASE WHEN lane & 96 = 96 THEN 96 ELSE 0 END $$;
COMMENT ON FUNCTION pgq._front(bigint) IS 'The front of the line that a lane belongs to';

CREATE FUNCTION pgq._line(lane bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT CASE WHEN lane & 96 = 96 OR lane & 255 = 0 THEN lane ELSE (lane & ~255::bigint) | 1 END $$;
COMMENT ON FUNCTION pgq._line(bigint) IS 'What pgq.line calls a lane: itself, or the first of the shards';

CREATE FUNCTION pgq._gate_key(queue_id int) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT pgq._lane_key(queue_id::bigint << 16) $$;
COMMENT ON FUNCTION pgq._gate_key(int) IS 'Advisory lock of a queue''s gate, held while claiming by its limits';

DROP FUNCTION pgq._attempts(int, bigint[], bigint[]);
CREATE OR REPLACE FUNCTION pgq._attempts_0(ids bigint[], leases bigint[]) RETURNS SETOF pgq.attempt
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    SELECT a.id, l.id, l.lane, j.enqueued_at, l.claimed_at, j.attempt::int, j.max_attempts::int, l.worker,
        j.task, j.payload, j.headers, j.history, j.group_key
    FROM (SELECT DISTINCT u.id, u.lease FROM unnest(ids, leases) u (id, lease)) a
    JOIN (
        SELECT * FROM pgq.lease_0 l WHERE l.id = ANY (leases) AND l.job_ids IS NOT NULL
    ) l ON l.id = a.lease AND a.id = ANY (l.job_ids)
    CROSS JOIN LATERAL (
        -- lane + 0: by id, not by walking the lane
        SELECT * FROM pgq.job_0 j
        WHERE j.id = a.id AND j.lane + 0 = l.lane AND j.attempt = coalesce(l.attempts[array_position(l.job_ids, a.id)], 1)
        -- A redriven job begins again with attempt 1, and a longer history.
        ORDER BY jsonb_array_length(j.history) DESC NULLS LAST
        LIMIT 1
    ) j;
END;
$$;
SELECT pgq._for_each_slot('pgq._attempts_0(bigint[],bigint[])');

CREATE OR REPLACE FUNCTION pgq._attempts(ids bigint[], leases bigint[]) RETURNS SETOF pgq.attempt
    LANGUAGE plpgsql
AS $$
BEGIN
    -- A straggler is found twice until its segment is truncated.
    RETURN QUERY
    SELECT DISTINCT ON (a.id, a.lease) a.*
    FROM (
        SELECT p.*
        FROM (SELECT DISTINCT (u.lease & 15)::int AS slot FROM unnest(leases) u (lease) WHERE u.lease IS NOT NULL) n,
            pgq._attempts(n.slot, ids, leases) p
        UNION ALL
        SELECT s.id, s.lease, s.lane, s.enqueued_at, s.claimed_at, s.attempt::int, s.max_attempts::int, s.worker,
            s.task, s.payload, s.headers, s.history, s.group_key
        FROM unnest(ids, leases) u (id, lease)
        JOIN pgq.straggler s ON s.id = u.id AND s.lease = u.lease AND s.kind IS NULL
    ) a;
END;
$$;
COMMENT ON FUNCTION pgq._task_key(int) IS
    'Advisory lock of a task that one session does at a time: 1 the ring, 2 reap, 3 promote, 4 drop a queue, 5 resolve; '
    '6, shared: let a job wait for others; 7 pursue what is to stop';

CREATE FUNCTION pgq._wait_key(job bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 8099567318138355712 | (job & 4294967295) $$;
COMMENT ON FUNCTION pgq._wait_key(bigint) IS 'Advisory lock of a job, held in shared mode by sessions that wait for its end';

CREATE FUNCTION pgq._state_of(run_at timestamptz, attempt smallint) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT CASE WHEN run_at = 'infinity' THEN 'waiting' WHEN attempt = 1 THEN 'scheduled' ELSE 'retrying' END $$;
COMMENT ON FUNCTION pgq._state_of(timestamptz, smallint) IS 'The state of a job in pgq.scheduled';

-- 30_produce ----------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION pgq._enqueue(
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

CREATE OR REPLACE FUNCTION pgq.enqueue(
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

CREATE FUNCTION pgq._home(lane bigint, job bigint, shards int) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE WHEN lane & 96 = 96 THEN (lane & ~255::bigint) | 96 WHEN lane & 255 = 0 THEN lane | (job % shards + 1) ELSE lane END
$$;
COMMENT ON FUNCTION pgq._home(bigint, bigint, int) IS
    'The lane of a job that comes back later: its own, or a shard instead of the front of the line';

CREATE FUNCTION pgq._filled() RETURNS SETOF int
    LANGUAGE sql STABLE
AS $$ SELECT n FROM generate_series(0, 15) n WHERE pg_relation_size(format('pgq.job_%s', n)::regclass) > 0 $$;
COMMENT ON FUNCTION pgq._filled() IS 'The segments that hold jobs';

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

CREATE OR REPLACE FUNCTION pgq.enqueue_many(
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
DROP FUNCTION pgq._not_yet(text);
DROP FUNCTION pgq._schedule(text, jsonb[], text, int, timestamptz, int, jsonb);

-- Priority 0 is in use from the beginning.
CREATE OR REPLACE FUNCTION pgq._add_line(lane bigint) RETURNS void
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

CREATE FUNCTION pgq._new_lane(queue_id int, shards int, priority int, job bigint, group_key text) RETURNS bigint
    LANGUAGE sql IMMUTABLE
AS $$
    SELECT pgq._lane(queue_id, priority, CASE WHEN group_key IS NULL THEN (job % shards)::int + 1 ELSE 97 END)
$$;
COMMENT ON FUNCTION pgq._new_lane(int, int, int, bigint, text) IS 'The lane that a job joins: a shard, or the gate''s if it has a group';

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

-- If nobody began to wait during the last minute, they do not try at all: the lock is hot.
-- NOTIFY takes a lock of the whole cluster at commit, so it is sent only if somebody waits.
CREATE OR REPLACE FUNCTION pgq._wake(queue_id int, queue text) RETURNS void
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

-- 32_unique -----------------------------------------------------------------------------------------------------------

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

-- 34_validate ---------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._validate(queue pgq.queue, payloads jsonb[], task text) RETURNS void
    LANGUAGE plpgsql
AS $$
DECLARE
    v_function CONSTANT regprocedure := queue.validator;
    v_call CONSTANT text := format('SELECT %s(%s)', v_function::regproc,
        CASE WHEN queue.validator LIKE '%(jsonb)' THEN '$2' ELSE '$1, $2' END);
    v_valid boolean;
    v_why text;
BEGIN
    FOR v_n IN 1..cardinality(payloads) LOOP
        BEGIN
            EXECUTE v_call INTO v_valid USING task, payloads[v_n];
        EXCEPTION WHEN raise_exception THEN
            v_valid := false;
            v_why := SQLERRM;
        END;
        IF v_valid IS NOT TRUE THEN
            RAISE EXCEPTION USING
                ERRCODE = 'PQ004',
                MESSAGE = format('payload %s is not valid in queue "%s"', v_n, queue.name),
                DETAIL = coalesce(v_why, format('%s did not return true.', v_function)),
                HINT = 'Mend the payload. Nothing was enqueued.';
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq._validate(pgq.queue, jsonb[], text) IS 'Raises PQ004 unless the queue''s validator accepts all payloads';

CREATE FUNCTION pgq.set_validator(queue text, validator regprocedure) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
BEGIN
    IF validator IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner
        WHERE p.oid = validator AND p.prokind = 'f' AND p.prorettype = 'boolean'::regtype AND NOT p.proretset
            AND oidvectortypes(p.proargtypes) IN ('jsonb', 'text, jsonb')
            AND (r.rolname = current_user OR r.rolsuper)
    ) THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('%s cannot be a validator', validator),
            DETAIL = 'A validator is a function (payload jsonb) or (task text, payload jsonb) that returns boolean, and '
                'belongs to the owner of schema pgq or to a superuser: it runs with the rights of the former.',
            HINT = format('ALTER FUNCTION %s OWNER TO %I, if its code is to be trusted.', validator, current_user);
    END IF;
    UPDATE pgq.queue q SET validator = set_validator.validator::text WHERE q.id = v_queue.id;
END;
$$;
COMMENT ON FUNCTION pgq.set_validator(text, regprocedure) IS
    'From now on every payload that is enqueued must pass this function, (payload jsonb) or (task text, payload jsonb): it '
    'returns true, or false, or raises an exception with the reason; enqueue then raises PQ004. Null: no check. It runs with '
    'the rights of the owner of schema pgq, so only he may set it. Raises PQ002, 22023';

-- 35_outbox -----------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._is_plain(relation oid) RETURNS boolean
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN NOT EXISTS (
        SELECT FROM pg_attribute a
        WHERE a.attrelid = relation AND a.attnum > 0 AND (a.atttypid >= 16384 OR a.attgenerated = 'v') AND NOT a.attisdropped
    );
END;
$$;
COMMENT ON FUNCTION pgq._is_plain(oid) IS 'Whether to_jsonb() of a row of this table calls nothing but PostgreSQL';

CREATE FUNCTION pgq._safe_columns(relation oid) RETURNS text
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN (
        WITH RECURSIVE base (attnum, attname, type, basetype) AS (
            SELECT a.attnum, a.attname, a.atttypid, t.typbasetype
            FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
            WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'
            UNION ALL
            SELECT b.attnum, b.attname, t.oid, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.basetype
        )
        SELECT string_agg(
            format(
                CASE WHEN b.type < 16384 THEN 'r.%1$I' ELSE 'CASE WHEN num_nulls(r.%1$I) = 0 THEN format(''%%s'', r.%1$I) END AS %1$I' END,
                b.attname
            ),
            ', ' ORDER BY b.attnum
        )
        FROM base b WHERE b.basetype = 0
    );
END;
$$;
COMMENT ON FUNCTION pgq._safe_columns(oid) IS 'The columns of row r of this table, as a list of what to_jsonb() may be given';

CREATE FUNCTION pgq._change(relation oid, op text, old jsonb, new jsonb) RETURNS jsonb
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN (
        SELECT jsonb_build_object('op', op, 'schema', n.nspname, 'table', c.relname, 'old', old, 'new', new)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = coalesce(pg_partition_root(relation), relation)
    );
END;
$$;
COMMENT ON FUNCTION pgq._change(oid, text, jsonb, jsonb) IS 'The payload of a job for a change of a row';

CREATE FUNCTION pgq._keep(change jsonb, columns text[]) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF change IS NULL OR columns IS NULL THEN
        RETURN change;
    ELSIF NOT change ?& columns THEN
        RAISE EXCEPTION USING
            ERRCODE = 'undefined_column',
            MESSAGE = format('column "%s" does not exist', (SELECT c FROM unnest(columns) c WHERE NOT change ? c LIMIT 1)),
            DETAIL = 'It is named in the arguments of a trigger that enqueues changes.',
            HINT = 'Create the trigger again. Its arguments are the queue, the task, and the columns that jobs shall contain.';
    END IF;
    RETURN (SELECT jsonb_object_agg(c, change -> c) FROM unnest(columns) c);
END;
$$;
COMMENT ON FUNCTION pgq._keep(jsonb, text[]) IS 'A row reduced to some of its columns; null: all';

CREATE FUNCTION pgq._refuse_trigger(wanted text) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'trigger_protocol_violated',
        MESSAGE = format('this trigger cannot enqueue: it must be %s', wanted),
        DETAIL = 'Nothing was changed.',
        HINT = 'pgq.enqueue_row(queue, task, columns ...) is for triggers AFTER INSERT OR UPDATE OR DELETE FOR EACH ROW, '
            'pgq.enqueue_rows for those FOR EACH STATEMENT with REFERENCING NEW TABLE or OLD TABLE.';
END;
$$;
COMMENT ON FUNCTION pgq._refuse_trigger(text) IS 'Raises 39P01';

CREATE FUNCTION pgq.enqueue_row() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_columns CONSTANT text[] := nullif(TG_ARGV[2:], '{}');
    v_safe text;
    v_old jsonb;
    v_new jsonb;
BEGIN
    IF TG_WHEN <> 'AFTER' OR TG_LEVEL <> 'ROW' THEN
        PERFORM pgq._refuse_trigger('AFTER and FOR EACH ROW');
    ELSIF TG_NARGS = 0 THEN
        PERFORM pgq._refuse_trigger('given the name of a queue');
    ELSIF pgq._is_plain(TG_RELID) THEN
        v_old := to_jsonb(OLD);
        v_new := to_jsonb(NEW);
    ELSE
        v_safe := format('SELECT to_jsonb(s.*) FROM (SELECT %s FROM (SELECT ($1).*) r) s', pgq._safe_columns(TG_RELID));
        IF TG_OP <> 'INSERT' THEN
            EXECUTE v_safe INTO v_old USING OLD;
        END IF;
        IF TG_OP <> 'DELETE' THEN
            EXECUTE v_safe INTO v_new USING NEW;
        END IF;
    END IF;
    PERFORM pgq.enqueue(
        TG_ARGV[0], pgq._change(TG_RELID, TG_OP, pgq._keep(v_old, v_columns), pgq._keep(v_new, v_columns)), TG_ARGV[1]
    );
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION pgq.enqueue_row() IS
    'For triggers AFTER INSERT OR UPDATE OR DELETE FOR EACH ROW: enqueue_row(queue, task, columns ...) adds a job for each '
    'changed row in the transaction that changes it, with payload {"op", "schema", "table", "old", "new"}. Who creates the '
    'trigger needs EXECUTE, who writes to the table nothing. Raises 39P01 (not such a trigger), 42703 (no such column), PQ002';

CREATE FUNCTION pgq.enqueue_rows() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_columns CONSTANT text[] := nullif(TG_ARGV[2:], '{}');
    v_rows name;
    v_payload jsonb;
    v_payloads jsonb[] := '{}';
BEGIN
    SELECT CASE TG_OP WHEN 'DELETE' THEN t.tgoldtable ELSE t.tgnewtable END INTO v_rows
    FROM pg_trigger t WHERE t.tgrelid = TG_RELID AND t.tgname = TG_NAME;
    IF TG_LEVEL <> 'STATEMENT' OR v_rows IS NULL THEN
        PERFORM pgq._refuse_trigger(
            format('FOR EACH STATEMENT and REFERENCING %s TABLE', CASE TG_OP WHEN 'DELETE' THEN 'OLD' ELSE 'NEW' END)
        );
    ELSIF TG_NARGS = 0 THEN
        PERFORM pgq._refuse_trigger('given the name of a queue');
    END IF;
    -- In portions: an array of millions of rows has no room in memory.
    FOR v_payload IN EXECUTE format(
        'SELECT $1 || jsonb_build_object($2, pgq._keep(to_jsonb(s.*), $3)) FROM (SELECT %s FROM %I r) s',
        CASE WHEN pgq._is_plain(TG_RELID) THEN 'r.*' ELSE pgq._safe_columns(TG_RELID) END, v_rows
    )
    USING pgq._change(TG_RELID, TG_OP, NULL, NULL), CASE TG_OP WHEN 'DELETE' THEN 'old' ELSE 'new' END, v_columns
    LOOP
        v_payloads := array_append(v_payloads, v_payload);
        IF cardinality(v_payloads) = 4096 THEN
            PERFORM pgq.enqueue_many(TG_ARGV[0], v_payloads, TG_ARGV[1]);
            v_payloads := '{}';
        END IF;
    END LOOP;
    PERFORM pgq.enqueue_many(TG_ARGV[0], v_payloads, TG_ARGV[1]);
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION pgq.enqueue_rows() IS
    'For triggers AFTER INSERT, UPDATE or DELETE with REFERENCING NEW TABLE (DELETE: OLD TABLE) FOR EACH STATEMENT: as '
    'pgq.enqueue_row, but all rows of a statement at once, several times as fast. Payloads of updates have no "old"';

-- 40_consume ----------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._awaited(lease bigint) RETURNS boolean
    LANGUAGE sql VOLATILE
AS $$ SELECT lease & 16 = 16 OR pg_sequence_last_value('pgq.awaited') > 0 $$;
COMMENT ON FUNCTION pgq._awaited(bigint) IS
    'Whether somebody may wait for the end of an attempt: it has a permit, or jobs are waited for';

CREATE OR REPLACE FUNCTION pgq._fail(
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
COMMENT ON FUNCTION pgq.reject(bigint, bigint, text, interval, boolean) IS
    'Ends a claimed job as failed. It is tried again after retry_in, or after the queue''s exponential backoff, and becomes '
    'a dead letter when its attempts are used up or retry is false. Returns ''retry'' or ''dead'', or ''cancelled'' if it was '
    'asked to stop (pgq.cancel). Raises PQ001 if the lease is lost, 22023';

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

CREATE OR REPLACE FUNCTION pgq.release(ids bigint[], leases bigint[]) RETURNS SETOF bigint
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

CREATE OR REPLACE FUNCTION pgq.snooze(id bigint, lease bigint, delay interval) RETURNS void
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

CREATE OR REPLACE FUNCTION pgq._live_slots() RETURNS int[]
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

-- The settings keep a plan that was made for an empty segment good for ten million rows. One opening statement, because
-- each further one, and each expression outside of it, costs as much again.
CREATE OR REPLACE FUNCTION pgq.claim(
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
SELECT pgq._choose_slot('pgq.claim(text,int,interval,text)');

CREATE OR REPLACE FUNCTION pgq.ack(id bigint, lease bigint, result jsonb DEFAULT NULL) RETURNS void
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
SELECT pgq._choose_slot('pgq.ack(bigint,bigint,jsonb)');

CREATE OR REPLACE FUNCTION pgq._done_each_0(ids bigint[], leases bigint[], results jsonb[]) RETURNS SETOF bigint
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
DROP FUNCTION pgq._done_each(int, bigint[], bigint[], jsonb[]);
SELECT pgq._for_each_slot('pgq._done_each_0(bigint[],bigint[],jsonb[])');

CREATE OR REPLACE FUNCTION pgq.ack_many(ids bigint[], leases bigint[], results jsonb[] DEFAULT NULL)
    RETURNS SETOF bigint
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
SELECT pgq._choose_slot('pgq.ack_many(bigint[],bigint[],jsonb[])');

CREATE OR REPLACE FUNCTION pgq._open_front(ids bigint[], leases bigint[]) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._add_line(l.lane), pgq._wake(q.id, q.name)
    FROM (
        SELECT DISTINCT pgq._front(a.lane) AS lane FROM pgq._attempts(ids, leases) a
    ) l JOIN pgq.queue q ON q.id = l.lane >> 16;
END;
$$;

-- 42_cancel -----------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._lanes_0(job bigint) RETURNS SETOF bigint
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY SELECT DISTINCT j.lane FROM pgq.job_0 j WHERE j.id = job AND j.lane & 128 = 0;
END;
$$;
COMMENT ON FUNCTION pgq._lanes_0(bigint) IS 'The lanes that a job was put into in segment 0, handed out or not';

SELECT pgq._for_each_slot('pgq._lanes_0(bigint)');

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

CREATE OR REPLACE FUNCTION pgq.cancel(id bigint) RETURNS text
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

-- 44_groups -----------------------------------------------------------------------------------------------------------

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

-- 45_work -------------------------------------------------------------------------------------------------------------

CREATE PROCEDURE pgq._outside_of_a_transaction_block()
    LANGUAGE plpgsql
AS $$
BEGIN
    COMMIT;
END;
$$;
COMMENT ON PROCEDURE pgq._outside_of_a_transaction_block () IS
    'Raises 2D000 inside of one. No code can catch that error and explain it, so this name in its context has to';

CREATE FUNCTION pgq._handler(handler text) RETURNS text
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_function CONSTANT regprocedure := CASE
        WHEN pg_catalog.right(handler, 1) OPERATOR(pg_catalog.=) ')' THEN pg_catalog.to_regprocedure(handler)
        ELSE coalesce(
            pg_catalog.to_regprocedure(handler OPERATOR(pg_catalog.||) '(jsonb)'),
            pg_catalog.to_regprocedure(handler OPERATOR(pg_catalog.||) '(pgq.claimed_job)')
        )
    END;
    v_call text;
BEGIN
    SELECT pg_catalog.format(
        CASE
            WHEN p.proargtypes[0] OPERATOR(pg_catalog.=) 'pg_catalog.jsonb'::regtype THEN 'SELECT %I.%I($1)%s'
            WHEN p.proargtypes[0] OPERATOR(pg_catalog.=) 'pgq.claimed_job'::regtype THEN 'SELECT %I.%I($2)%s'
        END,
        n.nspname, p.proname,
        CASE
            WHEN p.prorettype OPERATOR(pg_catalog.=) ANY ('{pg_catalog.jsonb,pg_catalog.json}'::regtype[])
                THEN '::pg_catalog.jsonb'
        END
    )
    INTO v_call
    FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
    WHERE p.oid OPERATOR(pg_catalog.=) v_function AND p.prokind OPERATOR(pg_catalog.=) 'f'
        AND p.pronargs OPERATOR(pg_catalog.=) 1 AND NOT p.proretset;
    IF v_call IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = pg_catalog.format('there is no handler %s', coalesce(handler, 'NULL')),
            DETAIL = 'A handler is a function of one argument, the payload (jsonb) or the job (pgq.claimed_job), that returns '
                'no set.',
            HINT = 'Give its name with its schema, for instance ''app.send_mail(jsonb)''.';
    END IF;
    RETURN v_call;
END;
$$;
COMMENT ON FUNCTION pgq._handler(text) IS
    'The call of a handler: $1 is the payload, $2 the job. It ends in jsonb if the handler returns something to keep';

CREATE FUNCTION pgq._nap(waited interval) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pg_catalog.pg_sleep(
        least(greatest(pg_catalog.date_part('epoch', waited) OPERATOR(pg_catalog./) 10, 0.002), 0.25)
    );
END;
$$;
COMMENT ON FUNCTION pgq._nap(interval) IS
    'Sleeps a tenth as long as one has waited for something, but from 2 ms to a quarter of a second';

CREATE PROCEDURE pgq.work(
    queue text,
    handler text,
    batch int DEFAULT 10,
    idle interval DEFAULT '0',
    for_time interval DEFAULT NULL,
    lease_for interval DEFAULT NULL,
    worker text DEFAULT NULL,
    INOUT done bigint DEFAULT 0,
    INOUT failed bigint DEFAULT 0
)
    LANGUAGE plpgsql
AS $$
DECLARE
    v_call text;
    v_kept boolean;
    v_end timestamptz;
    v_quiet timestamptz;
    v_waited interval;
    v_maintain timestamptz;
    v_third interval;
    v_renew timestamptz;
    v_jobs pgq.claimed_job[];
    v_job pgq.claimed_job;
    v_first int;
    v_last int;
    v_alone int;
    v_ran int;
    v_count bigint;
    v_result jsonb;
    v_results jsonb[];
    v_cancelled boolean;
    v_state text;
    v_error text;
    v_detail text;
    v_context text;
BEGIN
    CALL pgq._outside_of_a_transaction_block();
    v_call := pgq._handler(handler);
    v_kept := pg_catalog.right(v_call, 5) OPERATOR(pg_catalog.=) 'jsonb';
    v_quiet := pgq._now();
    v_maintain := v_quiet;
    v_end := v_quiet OPERATOR(pg_catalog.+) for_time;
    worker := coalesce(worker, pg_catalog.format('pgq.work %s', pg_catalog.pg_backend_pid()));
    done := 0;
    failed := 0;

    LOOP
        IF pgq._now() OPERATOR(pg_catalog.>=) v_maintain THEN
            PERFORM pgq.maintain();
            COMMIT;
            v_maintain := pgq._now() OPERATOR(pg_catalog.+) interval '1 second';
        END IF;
        EXIT WHEN pgq._now() OPERATOR(pg_catalog.>=) v_end;
        v_jobs := ARRAY(SELECT c FROM pgq.claim(work.queue, work.batch, work.lease_for, work.worker) c);
        COMMIT;
        IF v_jobs OPERATOR(pg_catalog.=) '{}' THEN
            v_waited := pgq._now() OPERATOR(pg_catalog.-) v_quiet;
            EXIT WHEN v_waited OPERATOR(pg_catalog.>=) idle;
            PERFORM pgq._nap(v_waited);
            COMMIT;
            CONTINUE;
        END IF;

        v_third := (v_jobs[1].expires_at OPERATOR(pg_catalog.-) pgq._now()) OPERATOR(pg_catalog./) 3::double precision;
        v_renew := pgq._now() OPERATOR(pg_catalog.+) v_third;
        v_first := 1;
        v_alone := 0;
        WHILE v_first OPERATOR(pg_catalog.<=) pg_catalog.cardinality(v_jobs) LOOP
            IF pgq._now() OPERATOR(pg_catalog.>=) v_end THEN
                EXIT;
            ELSIF pgq._now() OPERATOR(pg_catalog.>=) v_renew THEN
                PERFORM pgq.extend_many(ARRAY(SELECT DISTINCT j.lease FROM pg_catalog.unnest(v_jobs[v_first:]) j), lease_for);
                COMMIT;
                v_renew := pgq._now() OPERATOR(pg_catalog.+) v_third;
            END IF;

            v_ran := 0;
            v_results := '{}';
            v_state := NULL;
            v_last := CASE
                WHEN v_first OPERATOR(pg_catalog.<=) v_alone THEN v_first
                ELSE pg_catalog.cardinality(v_jobs)
            END;
            FOR v_next IN v_first..v_last LOOP
                v_job := v_jobs[v_next];
                v_result := NULL;
                BEGIN
                    IF v_kept THEN
                        EXECUTE v_call INTO v_result USING v_job.payload, v_job;
                    ELSE
                        EXECUTE v_call USING v_job.payload, v_job;
                    END IF;
                EXCEPTION WHEN OTHERS OR assert_failure OR query_canceled THEN
                    GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_error = MESSAGE_TEXT,
                        v_detail = PG_EXCEPTION_DETAIL, v_context = PG_EXCEPTION_CONTEXT;
                    EXIT;
                END;
                v_ran := v_ran OPERATOR(pg_catalog.+) 1;
                v_results := pg_catalog.array_append(v_results, v_result);
                EXIT WHEN pgq._now() OPERATOR(pg_catalog.>=) least(v_renew, v_end);
            END LOOP;
            v_cancelled := coalesce(v_state OPERATOR(pg_catalog.=) '57014', false);
            IF v_cancelled THEN
                -- The postmaster tells a process and its group, so one cancel may come twice: not into what follows.
                BEGIN
                    PERFORM pg_catalog.pg_sleep(0.05);
                EXCEPTION WHEN query_canceled THEN
                    NULL;
                END;
            END IF;

            IF v_ran OPERATOR(pg_catalog.>) 0 THEN
                v_last := v_first OPERATOR(pg_catalog.+) v_ran OPERATOR(pg_catalog.-) 1;
                BEGIN
                    SET CONSTRAINTS ALL IMMEDIATE;
                    SELECT pg_catalog.count(*) INTO v_count
                    FROM (
                        SELECT pg_catalog.array_agg(j.id) AS ids, pg_catalog.array_agg(j.lease) AS leases
                        FROM pg_catalog.unnest(v_jobs[v_first:v_last]) j
                    ) b, pgq.ack_many(b.ids, b.leases, CASE WHEN v_kept THEN v_results END);
                    IF v_count OPERATOR(pg_catalog.<>) v_ran THEN
                        RAISE EXCEPTION USING
                            ERRCODE = 'PQ001',
                            MESSAGE = 'a lease was lost, or the handler settled its job itself';
                    END IF;
                    v_count := v_ran;
                EXCEPTION WHEN OTHERS OR assert_failure THEN
                    GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_error = MESSAGE_TEXT,
                        v_detail = PG_EXCEPTION_DETAIL, v_context = PG_EXCEPTION_CONTEXT;
                    v_count := 0;
                END;
                IF v_count OPERATOR(pg_catalog.>) 0 THEN
                    COMMIT;
                    done := done OPERATOR(pg_catalog.+) v_count;
                    v_first := v_last OPERATOR(pg_catalog.+) 1;
                    CONTINUE WHEN NOT v_cancelled;
                ELSE
                    ROLLBACK;
                    v_alone := v_last;
                    CONTINUE WHEN v_ran OPERATOR(pg_catalog.>) 1 AND NOT v_cancelled;
                END IF;
            END IF;

            SELECT pg_catalog.count(*) INTO v_count
            FROM pgq.reject_many(
                ARRAY[v_jobs[v_first].id], ARRAY[v_jobs[v_first].lease],
                ARRAY[pg_catalog.concat_ws(E'\n', pg_catalog.format('%s (SQLSTATE %s)', v_error, v_state),
                    CASE WHEN v_detail OPERATOR(pg_catalog.<>) '' THEN v_detail END, v_context)]
            );
            COMMIT;
            failed := failed OPERATOR(pg_catalog.+) v_count;
            v_first := v_first OPERATOR(pg_catalog.+) 1;
            EXIT WHEN v_cancelled;
        END LOOP;

        IF v_first OPERATOR(pg_catalog.<=) pg_catalog.cardinality(v_jobs) THEN
            PERFORM pgq.release(pg_catalog.array_agg(j.id), pg_catalog.array_agg(j.lease))
            FROM pg_catalog.unnest(v_jobs[v_first:]) j;
            COMMIT;
        END IF;
        IF v_cancelled THEN
            RAISE EXCEPTION USING
                ERRCODE = 'query_canceled',
                MESSAGE = v_error,
                DETAIL = pg_catalog.format('The handler was working on job %s, which counts as failed.',
                    v_jobs[v_first OPERATOR(pg_catalog.-) 1].id),
                HINT = 'A statement_timeout ends pgq.work as a whole: give it a for_time that is shorter, or SET statement_timeout = 0.';
        END IF;
        v_quiet := pgq._now();
    END LOOP;
END;
$$;
COMMENT ON PROCEDURE pgq.work (text, text, int, interval, interval, interval, text, bigint, bigint) IS
    'Works on a queue in this session: calls handler, a function of a payload (jsonb) or of a pgq.claimed_job, for each job '
    'and acknowledges it in the transaction of what the handler wrote, with its result if that is JSON. An error rejects '
    'the job. Claims and commits up to `batch` jobs at once. Ends when there was no work for as long as idle (null: never), or '
    'after for_time (null: never), and returns how many jobs it has done, and how many attempts failed. Runs with the rights '
    'of its caller, and so does the handler. Raises 2D000 inside of a transaction block, PQ002, PQ003, 22023';

-- 46_after ------------------------------------------------------------------------------------------------------------

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

-- 50_maintain ---------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION pgq.promote() RETURNS bigint
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

CREATE OR REPLACE FUNCTION pgq._archive_partition(at timestamptz) RETURNS void
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

-- Those that there are.
DO $$
DECLARE
    v_partition regclass;
BEGIN
    FOR v_partition IN SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = 'pgq.archive'::regclass LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_vacuum_insert_threshold = -1)', v_partition);
    END LOOP;
END;
$$;

CREATE OR REPLACE FUNCTION pgq._archive_segment(slot int) RETURNS boolean
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

CREATE OR REPLACE FUNCTION pgq._archive_stragglers() RETURNS void
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

CREATE OR REPLACE FUNCTION pgq._open_segment(token bigint) RETURNS void
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

CREATE OR REPLACE FUNCTION pgq.rotate(seal boolean DEFAULT false) RETURNS jsonb
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

CREATE OR REPLACE FUNCTION pgq.maintain() RETURNS jsonb
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

CREATE OR REPLACE FUNCTION pgq._running(known pg_snapshot) RETURNS xid8[]
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
CREATE OR REPLACE FUNCTION pgq._clear_lane(
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

CREATE OR REPLACE FUNCTION pgq._carry(ids bigint[], leases bigint[], kind pgq.outcome_kind, slot int)
    RETURNS SETOF bigint
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

CREATE OR REPLACE FUNCTION pgq._move_stragglers(slot int) RETURNS bigint
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

-- Takes what little waits in these closed segments forward, so that they can go. Nothing may overtake: the front lane
-- of a priority goes first, whole, and together with the same lane of all younger segments; other lanes when no front
-- lane has anything, those of the oldest segment first. Each lane is a lock, so not all at once.
CREATE OR REPLACE FUNCTION pgq._carry_forward(slots int[]) RETURNS bigint
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

-- 60_schedule ---------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.cron AS (
    seconds int ARRAY,
    minutes int ARRAY,
    hours int ARRAY,
    days int ARRAY,
    months int ARRAY,
    weekdays int ARRAY,
    either boolean,
    any_hour boolean
);
COMMENT ON TYPE pgq.cron IS 'A cron line that was read; each field is the sorted list of its values';
COMMENT ON COLUMN pgq.cron.seconds IS '0 to 59; a line of five fields has 0';
COMMENT ON COLUMN pgq.cron.minutes IS '0 to 59';
COMMENT ON COLUMN pgq.cron.hours IS '0 to 23';
COMMENT ON COLUMN pgq.cron.days IS 'Days of the month, 1 to 31';
COMMENT ON COLUMN pgq.cron.months IS '1 to 12';
COMMENT ON COLUMN pgq.cron.weekdays IS 'Days of the week, 0 (Sunday) to 6';
COMMENT ON COLUMN pgq.cron.either IS 'A day matches by day of month or day of week; otherwise by both';
COMMENT ON COLUMN pgq.cron.any_hour IS 'The field of hours begins with a star; see pgq._next_run';

CREATE FUNCTION pgq._bad_cron(cron text, place text, problem text, rule text) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'invalid_parameter_value',
        MESSAGE = format('"%s" is not a cron line', left(cron, 128)),
        DETAIL = format('%s: %s.', place, problem),
        HINT = rule;
END;
$$;
COMMENT ON FUNCTION pgq._bad_cron(text, text, text, text) IS 'Raises 22023: where a cron line is wrong, and what is allowed';

CREATE FUNCTION pgq._cron_field(cron text, field text, at int, kind int, number int) RETURNS int[]
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_name CONSTANT text := ('{second,minute,hour,day of month,month,day of week}'::text[])[kind];
    v_low CONSTANT int := ('{0,0,0,1,1,0}'::int[])[kind];
    v_high CONSTANT int := ('{59,59,23,31,12,7}'::int[])[kind];
    v_last CONSTANT int := CASE kind WHEN 6 THEN 6 ELSE v_high END;  -- 7 is a second name of Sunday
    v_words CONSTANT text[] := CASE kind
        WHEN 5 THEN '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}'
        WHEN 6 THEN '{sun,mon,tue,wed,thu,fri,sat}'
    END;
    v_range CONSTANT text := format('%s to %s', v_low, v_high)
        || coalesce(', or ' || v_words[1] || ' to ' || v_words[cardinality(v_words)], '');
    v_rule CONSTANT text := format('Allowed for the %s: %s, *, ranges as in a-b, steps as in */2 or a-b/2 (1 to %s), and '
        'lists of these with commas and without blanks.', v_name, v_range, v_last - v_low + 1);
    v_item text;
    v_match text[];
    v_from int;
    v_to int;
    v_values int[] := '{}';
BEGIN
    FOREACH v_item IN ARRAY string_to_array(field, ',') LOOP
        v_match := regexp_match(v_item, '^(?:[*]|([a-z0-9]+)(?:-([a-z0-9]+))?)(?:/([0-9]+))?$');
        IF v_match IS NULL THEN
            at := at + length(substring(v_item, '^(?:(?:[*]|[a-z0-9]+(?:-(?:[a-z0-9]+)?)?)(?:/[0-9]*)?)?'));
            PERFORM pgq._bad_cron(cron, format('Field %s (%s), character %s', number, v_name, at),
                CASE WHEN btrim(substr(cron, at, 1)) = '' THEN 'something is missing'
                    ELSE format('"%s" is not expected here', substr(cron, at, 1)) END, v_rule);
        END IF;
        v_from := v_low;
        v_to := v_last;
        IF v_match[1] IS NOT NULL THEN
            v_from := pgq._cron_value(v_match[1], v_low, v_high, v_words);
            IF v_from IS NULL THEN
                PERFORM pgq._bad_cron(cron, format('Field %s (%s), character %s', number, v_name, at),
                    format('"%s" is not %s', left(v_match[1], 20), v_range), v_rule);
            END IF;
            v_to := CASE WHEN v_match[3] IS NULL THEN v_from ELSE greatest(v_from, v_last) END;
        END IF;
        IF v_match[2] IS NOT NULL THEN
            v_to := pgq._cron_value(v_match[2], v_low, v_high, v_words);
            IF kind = 6 AND v_to = 0 AND v_from > 0 THEN
                v_to := 7;
            END IF;
            IF v_to IS NULL OR v_to < v_from THEN
                PERFORM pgq._bad_cron(cron, format('Field %s (%s), character %s', number, v_name, at + length(v_match[1]) + 1),
                    format(CASE WHEN v_to IS NULL THEN '"%s" is not %s' ELSE '"%s" comes before the beginning of the range' END,
                        left(v_match[2], 20), v_range),
                    CASE WHEN v_to IS NULL THEN v_rule
                        ELSE format('Write two ranges: %s-%s,%s-%s.', v_from, v_last, v_low, v_to) END);
            END IF;
        END IF;
        IF v_match[3] IS NOT NULL AND pgq._cron_value(v_match[3], 1, v_last - v_low + 1, NULL) IS NULL THEN
            PERFORM pgq._bad_cron(cron,
                format('Field %s (%s), character %s', number, v_name, at + length(v_item) - length(v_match[3])),
                format('a step of %s is not 1 to %s', left(v_match[3], 20), v_last - v_low + 1), v_rule);
        END IF;
        v_values := v_values || ARRAY(
            SELECT CASE kind WHEN 6 THEN n % 7 ELSE n END FROM generate_series(v_from, v_to, coalesce(v_match[3]::int, 1)) n
        );
        at := at + length(v_item) + 1;
    END LOOP;
    RETURN ARRAY(SELECT DISTINCT v FROM unnest(v_values) v ORDER BY v);
END;
$$;
COMMENT ON FUNCTION pgq._cron_field(text, text, int, int, int) IS
    'The values of a field of a cron line, which begins at a character of it and is its number-th; kind: 1 (second) to 6';

CREATE FUNCTION pgq._cron_value(word text, low int, high int, words text[]) RETURNS int
    LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE
        WHEN word !~ '^[0-9]{1,2}$' THEN low + array_position(words, word) - 1
        WHEN word::int BETWEEN low AND high THEN word::int
    END
$$;
COMMENT ON FUNCTION pgq._cron_value(text, int, int, text[]) IS 'A number or name in a cron line; null: it is neither';

CREATE FUNCTION pgq._read_cron(cron text) RETURNS pgq.cron
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_line text := lower(cron COLLATE "C");
    v_fields text[];
    v_starts int[] := '{}';
    v_at int := 1;
    v_field text;
    v_first int;
    v_cron pgq.cron;
BEGIN
    PERFORM pgq._require('cron', length(cron) <= 1000, 'a cron line of up to 1000 characters');
    v_line := CASE btrim(v_line, E' \t')
        WHEN '@yearly' THEN '0 0 1 1 *'
        WHEN '@annually' THEN '0 0 1 1 *'
        WHEN '@monthly' THEN '0 0 1 * *'
        WHEN '@weekly' THEN '0 0 * * 0'
        WHEN '@daily' THEN '0 0 * * *'
        WHEN '@midnight' THEN '0 0 * * *'
        WHEN '@hourly' THEN '0 * * * *'
        ELSE v_line
    END;
    LOOP
        v_at := v_at + length(substring(substr(v_line, v_at), E'^[ \t]*'));
        v_field := substring(substr(v_line, v_at), E'^[^ \t]+');
        EXIT WHEN v_field IS NULL;
        v_fields := v_fields || v_field;
        v_starts := v_starts || v_at;
        v_at := v_at + length(v_field);
    END LOOP;
    IF coalesce(cardinality(v_fields), 0) NOT IN (5, 6) THEN
        PERFORM pgq._bad_cron(cron,
            CASE WHEN cardinality(v_fields) > 6 THEN format('Field 7, character %s', v_starts[7])
                WHEN left(v_fields[1], 1) = '@' THEN format('Field 1, character %s', v_starts[1])
                ELSE format('Field %s, character %s', cardinality(v_starts) + 1, length(v_line) + 1) END,
            CASE WHEN cardinality(v_fields) > 6 THEN 'there are at most six fields'
                WHEN left(v_fields[1], 1) = '@' THEN format('"%s" is no name of a cron line', left(v_fields[1], 20))
                ELSE format('the line ends after %s fields', cardinality(v_starts)) END,
            'Five fields: minute, hour, day of month, month, day of week; six: a second before them; or one of @yearly, '
            '@annually, @monthly, @weekly, @daily, @midnight, @hourly.');
    END IF;
    v_first := 6 - cardinality(v_fields);
    v_cron.seconds := CASE WHEN v_first = 1 THEN '{0}'::int[] ELSE pgq._cron_field(cron, v_fields[1], v_starts[1], 1, 1) END;
    v_cron.minutes := pgq._cron_field(cron, v_fields[2 - v_first], v_starts[2 - v_first], 2, 2 - v_first);
    v_cron.hours := pgq._cron_field(cron, v_fields[3 - v_first], v_starts[3 - v_first], 3, 3 - v_first);
    v_cron.days := pgq._cron_field(cron, v_fields[4 - v_first], v_starts[4 - v_first], 4, 4 - v_first);
    v_cron.months := pgq._cron_field(cron, v_fields[5 - v_first], v_starts[5 - v_first], 5, 5 - v_first);
    v_cron.weekdays := pgq._cron_field(cron, v_fields[6 - v_first], v_starts[6 - v_first], 6, 6 - v_first);
    v_cron.any_hour := left(v_fields[3 - v_first], 1) = '*';
    v_cron.either := left(v_fields[4 - v_first], 1) <> '*' AND left(v_fields[6 - v_first], 1) <> '*';
    IF NOT v_cron.either AND v_cron.days[1] > (
        SELECT max(('{31,29,31,30,31,30,31,31,30,31,30,31}'::int[])[m]) FROM unnest(v_cron.months) m
    ) THEN
        PERFORM pgq._bad_cron(cron, format('Field %s (day of month), character %s', 4 - v_first, v_starts[4 - v_first]),
            'none of the months has such a day, so it would never run',
            'February has 29 days at most, April, June, September and November have 30.');
    END IF;
    RETURN v_cron;
END;
$$;
COMMENT ON FUNCTION pgq._read_cron(text) IS 'Reads a cron line; raises 22023 and says where it is wrong';

CREATE FUNCTION pgq._cron_time(cron pgq.cron, second int) RETURNS int
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_hour int;
    v_minute int;
    v_second int;
BEGIN
    FOREACH v_hour IN ARRAY cron.hours LOOP
        CONTINUE WHEN v_hour * 3600 + 3599 < second;
        FOREACH v_minute IN ARRAY cron.minutes LOOP
            CONTINUE WHEN v_hour * 3600 + v_minute * 60 + 59 < second;
            FOREACH v_second IN ARRAY cron.seconds LOOP
                IF v_hour * 3600 + v_minute * 60 + v_second >= second THEN
                    RETURN v_hour * 3600 + v_minute * 60 + v_second;
                END IF;
            END LOOP;
        END LOOP;
    END LOOP;
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION pgq._cron_time(pgq.cron, int) IS 'The first second of a day that matches, from this one on; null: none';

CREATE FUNCTION pgq._cron_wall(cron pgq.cron, wall timestamp) RETURNS timestamp
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_month date := date_trunc('month', wall);
    v_day int := extract(day FROM wall);
    v_second int := extract(epoch FROM wall - date_trunc('day', wall));
    v_first int;
    v_this_day boolean;
    v_this_weekday boolean;
BEGIN
    LOOP
        IF extract(month FROM v_month)::int = ANY (cron.months) THEN
            v_first := extract(dow FROM v_month)::int - 1;
            FOR d IN v_day..(v_month + interval '1 month')::date - v_month LOOP
                v_this_day := d = ANY (cron.days);
                v_this_weekday := (v_first + d) % 7 = ANY (cron.weekdays);
                IF v_this_day AND v_this_weekday OR cron.either AND (v_this_day OR v_this_weekday) THEN
                    v_second := pgq._cron_time(cron, v_second);
                    IF v_second IS NOT NULL THEN
                        RETURN (v_month + d - 1) + make_interval(secs => v_second);
                    END IF;
                END IF;
                v_second := 0;
            END LOOP;
        END IF;
        v_month := v_month + interval '1 month';
        v_day := 1;
        v_second := 0;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq._cron_wall(pgq.cron, timestamp) IS
    'The first time that matches, from this one on, on a clock that is never put forward or back';

CREATE FUNCTION pgq._offset(zone text, instant timestamp) RETURNS interval
    LANGUAGE sql IMMUTABLE
AS $$ SELECT ((instant AT TIME ZONE 'UTC') AT TIME ZONE zone) - instant $$;
COMMENT ON FUNCTION pgq._offset(text, timestamp) IS 'How far the clocks of a time zone are ahead of UTC at an instant';

CREATE FUNCTION pgq._clock_change(zone text, low timestamp, high timestamp) RETURNS timestamp
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_before CONSTANT interval := pgq._offset(zone, low);
    v_middle timestamp;
BEGIN
    IF pgq._offset(zone, high) = v_before THEN
        RETURN NULL;
    END IF;
    WHILE high - low > interval '1 second' LOOP
        v_middle := date_trunc('second', low + (high - low) / 2);
        IF pgq._offset(zone, v_middle) = v_before THEN
            low := v_middle;
        ELSE
            high := v_middle;
        END IF;
    END LOOP;
    RETURN high;
END;
$$;
COMMENT ON FUNCTION pgq._clock_change(text, timestamp, timestamp) IS
    'The instant after low, and not after high, at which the clocks of a time zone are put forward or back; null: none';

CREATE FUNCTION pgq._next_run(cron pgq.cron, zone text, after timestamptz) RETURNS timestamptz
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_day CONSTANT interval := interval '24 hours';
    v_at timestamp := date_trunc('second', after AT TIME ZONE 'UTC');
    v_from timestamp := v_at + pgq._offset(zone, v_at) + interval '1 second';
    v_wall timestamp;
    v_change timestamp;
    v_run timestamp;
BEGIN
    IF cron.any_hour THEN
        LOOP
            v_wall := pgq._cron_wall(cron, v_from);
            v_run := v_wall - pgq._offset(zone, v_at);
            v_change := pgq._clock_change(zone, v_at, least(v_run, v_at + v_day));
            EXIT WHEN v_change IS NULL AND v_run <= v_at + v_day;
            -- Go on from the change; or, as there is nothing between, from shortly before the time found.
            v_at := coalesce(v_change, greatest(v_at + v_day, v_wall - 2 * v_day));
            v_from := v_at + pgq._offset(zone, v_at);
        END LOOP;
    ELSE
        v_change := pgq._clock_change(zone, v_at - v_day, v_at);
        IF v_change IS NOT NULL THEN
            v_from := greatest(v_from, v_change + pgq._offset(zone, v_at - v_day));
        END IF;
        v_wall := pgq._cron_wall(cron, v_from);
        v_run := v_wall - pgq._offset(zone, v_wall - v_day);
        v_change := pgq._clock_change(zone, v_wall - v_day, v_wall + v_day);
        IF v_run >= v_change THEN
            v_run := greatest(v_change, v_wall - pgq._offset(zone, v_change));
        END IF;
    END IF;
    RETURN v_run AT TIME ZONE 'UTC';
END;
$$;
COMMENT ON FUNCTION pgq._next_run(pgq.cron, text, timestamptz) IS 'The first tick after an instant';

CREATE FUNCTION pgq._zone(timezone text) RETURNS text
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_zone text;
BEGIN
    PERFORM pgq._require('timezone', timezone IS NOT NULL OR NULL, 'the name of a time zone');
    IF upper(timezone COLLATE "C") IN ('UTC', 'GMT') THEN
        RETURN upper(timezone COLLATE "C");
    END IF;
    SELECT z.name INTO v_zone FROM pg_timezone_names z
    WHERE lower(z.name COLLATE "C") = lower(timezone COLLATE "C")
        AND NOT EXISTS (SELECT FROM pg_timezone_abbrevs a WHERE a.abbrev = upper(z.name COLLATE "C"));
    IF v_zone IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('"%s" is not the full name of a time zone', left(timezone, 128)),
            HINT = 'Give a full name as in SELECT name FROM pg_timezone_names, such as Europe/Berlin, and no abbreviation.';
    END IF;
    RETURN v_zone;
END;
$$;
COMMENT ON FUNCTION pgq._zone(text) IS 'A time zone as the server spells it; raises 22023 if it does not know it';

CREATE FUNCTION pgq.next_runs(
    cron text, timezone text DEFAULT 'UTC', n int DEFAULT 5, after timestamptz DEFAULT NULL
) RETURNS SETOF timestamptz
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_cron CONSTANT pgq.cron := pgq._read_cron(cron);
    v_zone CONSTANT text := pgq._zone(timezone);
    v_run timestamptz := coalesce(after, pgq._now());
BEGIN
    PERFORM pgq._require('n', n BETWEEN 1 AND 1000, 'between 1 and 1000');
    PERFORM pgq._require('after', v_run BETWEEN '1900-01-01 00:00+00' AND '9999-12-31 00:00+00',
        'a time between the years 1900 and 9999');
    FOR v_turn IN 1..n LOOP
        v_run := pgq._next_run(v_cron, v_zone, v_run);
        RETURN NEXT v_run;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq.next_runs(text, text, int, timestamptz) IS
    'The next n times at which a schedule with this cron line would run, after now or after a time. Raises 22023, and says '
    'where the line is wrong';

CREATE OR REPLACE FUNCTION pgq.schedule(
    name text,
    cron text,
    queue text,
    payload jsonb DEFAULT '{}',
    task text DEFAULT NULL,
    timezone text DEFAULT 'UTC',
    catch_up text DEFAULT 'one'
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_cron CONSTANT pgq.cron := pgq._read_cron(cron);
    v_zone CONSTANT text := pgq._zone(timezone);
    v_queue CONSTANT pgq.queue := pgq._find_queue(queue);
BEGIN
    PERFORM pgq._require('name', length(name) BETWEEN 1 AND 128, 'a name of 1 to 128 characters');
    PERFORM pgq._require('payload', payload IS NOT NULL OR NULL, 'JSON; the JSON null is written ''null''');
    PERFORM pgq._require('catch_up', catch_up IN ('skip', 'one', 'all'),
        '''skip'' (missed ticks are left out), ''one'' (one job for all of them) or ''all'' (a job for each)');
    -- Waits for who drops the queue, and makes him wait who comes later.
    PERFORM pg_advisory_xact_lock_shared(pgq._queue_key(v_queue.id));
    PERFORM pgq._producing(queue);
    INSERT INTO pgq.schedule AS s (name, queue, cron, timezone, catch_up, task, payload, next_at)
    VALUES (schedule.name, schedule.queue, schedule.cron, v_zone, schedule.catch_up, schedule.task, schedule.payload,
        pgq._next_run(v_cron, v_zone, pgq._now()))
    ON CONFLICT ON CONSTRAINT schedule_name_pkey DO UPDATE
    SET queue = excluded.queue,
        cron = excluded.cron,
        timezone = excluded.timezone,
        catch_up = excluded.catch_up,
        task = excluded.task,
        payload = excluded.payload,
        next_at = CASE WHEN (s.cron, s.timezone) = (excluded.cron, excluded.timezone) THEN s.next_at ELSE excluded.next_at END,
        retry_at = NULL,
        error = NULL
    WHERE (s.queue, s.cron, s.timezone, s.catch_up, s.task, s.payload, s.error) IS DISTINCT FROM (
        excluded.queue, excluded.cron, excluded.timezone, excluded.catch_up, excluded.task, excluded.payload, NULL
    );
END;
$$;
COMMENT ON FUNCTION pgq.schedule(text, text, text, jsonb, text, text, text) IS
    'Enqueues a job whenever a cron line says so, or changes what was scheduled under this name. cron: minute, hour, day of '
    'month, month, day of week, or a second before them, or @daily and the like; try it with pgq.next_runs. timezone: whose '
    'clock. catch_up: after a time without maintenance ''skip'' missed ticks, run ''one'' job for all of them, or ''all''. '
    'The same line in the same time zone keeps its next tick. The jobs'' headers are {"schedule": name, "scheduled_at": tick}. '
    'Dropping the queue drops its schedules. Raises PQ002, 22023, 22004';

CREATE OR REPLACE FUNCTION pgq.unschedule(name text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._require('name', name IS NOT NULL OR NULL, 'the name of a schedule');
    DELETE FROM pgq.schedule s WHERE s.name = unschedule.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'undefined_object',
            MESSAGE = format('schedule "%s" does not exist', left(name, 128)),
            HINT = 'Look for the right name in the table pgq.schedule.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq.unschedule(text) IS
    'Ends what pgq.schedule began; jobs that are in the queue already stay. Raises 42704 if there is no such schedule';

CREATE FUNCTION pgq._enqueue_tick(schedule pgq.schedule, tick timestamptz) RETURNS bigint
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN pgq.enqueue(schedule.queue, schedule.payload, schedule.task, headers => jsonb_build_object(
        'schedule', schedule.name,
        'scheduled_at', to_char(tick AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')));
END;
$$;
COMMENT ON FUNCTION pgq._enqueue_tick(pgq.schedule, timestamptz) IS 'Enqueues the job of a tick; returns its id';

CREATE FUNCTION pgq._last_run(cron pgq.cron, zone text, tick timestamptz, now timestamptz) RETURNS timestamptz
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_end timestamptz := now;
    v_middle timestamptz;
    v_next timestamptz;
BEGIN
    WHILE v_end - tick >= interval '1 second' LOOP
        v_middle := tick + make_interval(secs => extract(epoch FROM v_end - tick)::float8 / 2);
        v_next := pgq._next_run(cron, zone, v_middle);
        IF v_next <= now THEN
            tick := v_next;
        ELSE
            v_end := v_middle;
        END IF;
    END LOOP;
    RETURN tick;
END;
$$;
COMMENT ON FUNCTION pgq._last_run(pgq.cron, text, timestamptz, timestamptz) IS 'The last tick up to now, given an earlier one';

CREATE FUNCTION pgq._fire_one(schedule pgq.schedule, now timestamptz) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_most CONSTANT int := 100;
    v_minute CONSTANT interval := interval '1 minute';
    v_cron pgq.cron;
    v_tick timestamptz := schedule.next_at;
    v_next timestamptz;
    v_job bigint;
    v_jobs bigint := 0;
BEGIN
    v_cron := pgq._read_cron(schedule.cron);
    v_next := pgq._next_run(v_cron, schedule.timezone, v_tick);
    IF schedule.catch_up = 'skip' AND v_tick < now - v_minute THEN
        v_next := pgq._next_run(v_cron, schedule.timezone, now);
    ELSE
        IF schedule.catch_up <> 'all' AND v_next <= now THEN
            v_tick := pgq._last_run(v_cron, schedule.timezone, v_next, now);
            v_next := pgq._next_run(v_cron, schedule.timezone, now);
        END IF;
        LOOP
            v_job := pgq._enqueue_tick(schedule, v_tick);
            v_jobs := v_jobs + 1;
            EXIT WHEN v_next > now OR v_jobs >= v_most;
            v_tick := v_next;
            v_next := pgq._next_run(v_cron, schedule.timezone, v_tick);
        END LOOP;
    END IF;
    UPDATE pgq.schedule s
    SET next_at = v_next, retry_at = NULL, error = NULL, last_job = coalesce(v_job, s.last_job),
        last_at = CASE WHEN v_job IS NULL THEN s.last_at ELSE v_tick END
    WHERE s.name = schedule.name;
    RETURN v_jobs;
EXCEPTION WHEN OTHERS THEN
    UPDATE pgq.schedule s SET retry_at = now + v_minute, error = format('%s: %s', SQLSTATE, left(SQLERRM, 1000))
    WHERE s.name = schedule.name;
    RETURN 0;
END;
$$;
COMMENT ON FUNCTION pgq._fire_one(pgq.schedule, timestamptz) IS
    'Enqueues what is due of a schedule that is locked, up to 100 jobs, and moves it on; returns how many';

CREATE FUNCTION pgq._fire() RETURNS bigint
    LANGUAGE plpgsql SET enable_seqscan = off
AS $$
DECLARE
    v_now CONSTANT timestamptz := pgq._now();
    v_due record;
    v_schedule pgq.schedule;
    v_jobs bigint := 0;
BEGIN
    FOR v_due IN
        SELECT s.name, s.queue, q.id
        FROM pgq.schedule s JOIN pgq.queue q ON q.name = s.queue
        WHERE coalesce(s.retry_at, s.next_at) <= v_now
        ORDER BY coalesce(s.retry_at, s.next_at), s.name
        LIMIT 300
    LOOP
        EXIT WHEN v_jobs >= 300;
        CONTINUE WHEN NOT pg_try_advisory_xact_lock_shared(pgq._queue_key(v_due.id));
        SELECT * INTO v_schedule FROM pgq.schedule s
        WHERE s.name = v_due.name AND s.queue = v_due.queue AND coalesce(s.retry_at, s.next_at) <= v_now
        FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            v_jobs := v_jobs + pgq._fire_one(v_schedule, v_now);
        END IF;
    END LOOP;
    RETURN v_jobs;
END;
$$;
COMMENT ON FUNCTION pgq._fire() IS 'Enqueues the jobs of ticks that have come, some 300 at a time; returns how many';

-- 65_exclusive --------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._exclusive_key(name text) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 8099567386857832448 | (hashtextextended(name COLLATE pg_catalog."C", 0) & 137438953471) $$;
COMMENT ON FUNCTION pgq._exclusive_key(text) IS 'Advisory lock of a name, held by the one who is exclusive under it';

CREATE OR REPLACE FUNCTION pgq.try_exclusive(name text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._require('name', name IS NOT NULL OR NULL, 'any text that all who exclude each other agree on');
    RETURN pg_try_advisory_xact_lock(pgq._exclusive_key(name));
END;
$$;
COMMENT ON FUNCTION pgq.try_exclusive(text) IS
    'Whether this transaction is, until it ends, the only one under this name in the database. Never waits. True also if it '
    'is so already. Under REPEATABLE READ and SERIALIZABLE the transaction may still not see what the one before it wrote. '
    'Raises 22004';

CREATE TYPE pgq.holder AS (
    pid int,
    username text,
    application_name text,
    client_addr inet,
    since timestamptz
);
COMMENT ON TYPE pgq.holder IS 'Who is exclusive under a name';
COMMENT ON COLUMN pgq.holder.pid IS 'Process id of the session; null: a prepared transaction';
COMMENT ON COLUMN pgq.holder.username IS 'Role';
COMMENT ON COLUMN pgq.holder.application_name IS 'What the session calls itself';
COMMENT ON COLUMN pgq.holder.client_addr IS
    'Where it comes from; null: the same machine, or the owner of pgq may not see it (pg_read_all_stats)';
COMMENT ON COLUMN pgq.holder.since IS 'When its transaction began; null: the owner of pgq may not see it (pg_read_all_stats)';

CREATE FUNCTION pgq.exclusive_holder(name text) RETURNS SETOF pgq.holder
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._require('name', name IS NOT NULL OR NULL, 'the name given to pgq.try_exclusive');
    RETURN QUERY
    SELECT l.pid, a.usename::text, a.application_name, a.client_addr, a.xact_start
    FROM pg_locks l
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
        AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
        AND (l.classid::bigint << 32) | l.objid::bigint = pgq._exclusive_key(name);
END;
$$;
COMMENT ON FUNCTION pgq.exclusive_holder(text) IS
    'Who is exclusive under this name; no row if nobody is. It takes no lock: by the time you read it, it may have changed. '
    'Raises 22004';

-- 70_admin ------------------------------------------------------------------------------------------------------------

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

CREATE OR REPLACE FUNCTION pgq._clear_queue(queue pgq.queue) RETURNS bigint
    LANGUAGE plpgsql SET lock_timeout = '5s'
AS $$
BEGIN
    RETURN pgq._clear_ready(queue) + pgq._clear_parked(queue.id) + pgq._clear_scheduled(queue.id, NULL);
END;
$$;

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

CREATE OR REPLACE FUNCTION pgq.drop_queue(queue text, force boolean DEFAULT false) RETURNS void
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

CREATE OR REPLACE FUNCTION pgq.watch(queues text[]) RETURNS timestamptz
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

CREATE FUNCTION pgq._clear_parked(queue_id int) RETURNS bigint
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(pgq._gate_key(queue_id));
    RETURN pgq._cancel_waiting(ARRAY(SELECT p.id FROM pgq.parked p WHERE p.queue_id = _clear_parked.queue_id));
END;
$$;
COMMENT ON FUNCTION pgq._clear_parked(int) IS 'Cancels the parked jobs of a queue';
COMMENT ON FUNCTION pgq.purge(text) IS
    'Cancels every ready, parked, scheduled, waiting and retrying job of a queue and returns how many; running ones and dead '
    'letters stay. Raises PQ002, PQ003, 55P03 if a claiming transaction does not end within five seconds';

-- 75_dead -------------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.dead_letter AS (
    id bigint,
    queue text,
    task text,
    payload jsonb,
    priority int,
    attempt int,
    max_attempts int,
    enqueued_at timestamptz,
    died_at timestamptz,
    error text,
    headers jsonb,
    history jsonb
);
COMMENT ON TYPE pgq.dead_letter IS 'A job that failed for good';
COMMENT ON COLUMN pgq.dead_letter.id IS 'Job id';
COMMENT ON COLUMN pgq.dead_letter.queue IS 'Queue';
COMMENT ON COLUMN pgq.dead_letter.task IS 'What to do';
COMMENT ON COLUMN pgq.dead_letter.payload IS 'Arguments';
COMMENT ON COLUMN pgq.dead_letter.priority IS 'Priority, lower runs first';
COMMENT ON COLUMN pgq.dead_letter.attempt IS 'Attempts made';
COMMENT ON COLUMN pgq.dead_letter.max_attempts IS 'Attempts allowed; null: what the queue says';
COMMENT ON COLUMN pgq.dead_letter.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.dead_letter.died_at IS 'When its last attempt failed';
COMMENT ON COLUMN pgq.dead_letter.error IS 'The last error';
COMMENT ON COLUMN pgq.dead_letter.headers IS 'Metadata';
COMMENT ON COLUMN pgq.dead_letter.history IS 'Errors of all attempts: array of {attempt, at, error, worker}';

CREATE FUNCTION pgq._is_chosen(letter pgq.dead, task text, error text, since timestamptz, before timestamptz)
    RETURNS boolean
    LANGUAGE sql IMMUTABLE
AS $$
    SELECT (_is_chosen.task IS NULL OR letter.task = _is_chosen.task)
        AND (_is_chosen.error IS NULL OR strpos(letter.error, _is_chosen.error) > 0)
        AND (since IS NULL OR letter.died_at >= since)
        AND (before IS NULL OR letter.died_at < before)
$$;
COMMENT ON FUNCTION pgq._is_chosen(pgq.dead, text, text, timestamptz, timestamptz) IS
    'Whether a dead letter is of a task, with this text in its last error, and died since or before a time; null: any';

CREATE FUNCTION pgq.dead_letters(
    queue text,
    task text DEFAULT NULL,
    error text DEFAULT NULL,
    since timestamptz DEFAULT NULL,
    before timestamptz DEFAULT NULL,
    after_id bigint DEFAULT NULL,
    n int DEFAULT 100
) RETURNS SETOF pgq.dead_letter
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_custom_plan SET jit = off
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
BEGIN
    PERFORM pgq._require('n', n BETWEEN 1 AND 100000, 'between 1 and 100000');
    RETURN QUERY
    SELECT d.id, v_queue.name, d.task, d.payload, pgq._priority(d.lane), d.attempt::int, d.max_attempts::int,
        d.enqueued_at, d.died_at, d.error, d.headers, d.history
    FROM pgq.dead d
    WHERE d.lane >> 16 = v_queue.id
        AND (after_id IS NULL OR d.id > after_id)
        AND pgq._is_chosen(d, dead_letters.task, dead_letters.error, since, before)
    ORDER BY d.id
    LIMIT n;
END;
$$;
COMMENT ON FUNCTION pgq.dead_letters(text, text, text, timestamptz, timestamptz, bigint, int) IS
    'Up to n dead letters of a queue (1 to 100000) in the order of their ids: of a task, with this text in their last error, '
    'that died since or before a time; null: any. The next page: after_id => the last id of this one. Raises PQ002, 22023';

CREATE FUNCTION pgq._take_dead(
    queue_id int, ids bigint[], task text, error text, since timestamptz, before timestamptz, n int
) RETURNS SETOF pgq.dead
    LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_custom_plan SET jit = off
AS $$
BEGIN
    IF n IS NOT NULL THEN
        PERFORM pgq._require('n', n > 0, 'null (all) or at least 1');
    END IF;
    RETURN QUERY
    WITH picked AS MATERIALIZED (
        SELECT d.id FROM pgq.dead d
        WHERE d.lane >> 16 = queue_id
            AND (ids IS NULL OR d.id = ANY (ids))
            AND pgq._is_chosen(d, _take_dead.task, _take_dead.error, since, before)
        ORDER BY d.id
        LIMIT n
        FOR UPDATE
    )
    -- Not joined: how many are picked by their error's text is anybody's guess, and a guess too low makes it quadratic.
    DELETE FROM pgq.dead d WHERE d.id = ANY (ARRAY(SELECT p.id FROM picked p)) RETURNING d.*;
END;
$$;
COMMENT ON FUNCTION pgq._take_dead(int, bigint[], text, text, timestamptz, timestamptz, int) IS
    'Deletes dead letters of a queue and returns them';

CREATE FUNCTION pgq._redrive(
    queue text, ids bigint[], task text, error text, since timestamptz, before timestamptz, n int, per_second float8
) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_slot int := pgq._hold();
    v_queue pgq.queue := pgq._producing(queue);
    v_now CONSTANT timestamptz := pgq._now();
    v_count bigint;
    v_waits boolean;
    v_lanes bigint[];
BEGIN
    PERFORM pg_advisory_xact_lock_shared(pgq._task_key(6));  -- see pgq._make_wait
    WITH gone AS MATERIALIZED (
        SELECT d.*, pgq._home(pgq._front(d.lane), d.id, v_queue.shards) AS home,
            EXISTS (SELECT FROM pgq.dependency n WHERE n.job_id = d.id OFFSET 0) AS waits
        FROM pgq._take_dead(v_queue.id, ids, task, error, since, before, n) d
    ), ready AS (
        INSERT INTO pgq.job (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers, history, group_key)
        SELECT g.home, pg_current_xact_id(), g.id, g.enqueued_at, v_slot, 1, g.max_attempts, g.task, g.payload,
            g.headers, g.history, g.group_key
        FROM gone g WHERE per_second IS NULL AND NOT g.waits
    ), later AS (
        INSERT INTO pgq.scheduled (run_at, id, lane, enqueued_at, attempt, max_attempts, task, payload, headers, history, group_key)
        SELECT CASE WHEN g.waits THEN 'infinity'
                ELSE v_now + (row_number() OVER (ORDER BY g.id) - 1) / per_second * interval '1 second' END,
            g.id, g.home, g.enqueued_at, 1, g.max_attempts, g.task, g.payload, g.headers, g.history, g.group_key
        FROM gone g WHERE per_second IS NOT NULL OR g.waits
    ), again AS (
        UPDATE pgq.dependent t SET given_up = false
        WHERE t.job_id = ANY (ARRAY(SELECT g.id FROM gone g WHERE g.waits))
    )
    SELECT count(*), bool_or(g.waits), array_agg(DISTINCT g.home) INTO v_count, v_waits, v_lanes FROM gone g;
    IF v_waits THEN
        PERFORM setval('pgq.first_waiting', 0);
    END IF;
    IF v_count > 0 AND per_second IS NULL THEN
        PERFORM pgq._add_line(l) FROM unnest(v_lanes) l;
        PERFORM pgq._wake(v_queue.id, queue);
    END IF;
    RETURN v_count;
END;
$$;
COMMENT ON FUNCTION pgq._redrive(text, bigint[], text, text, timestamptz, timestamptz, int, float8) IS
    'Sends dead letters back to work, at once or one after the other';

CREATE OR REPLACE FUNCTION pgq.redrive(queue text, ids bigint[] DEFAULT NULL) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN pgq._redrive(queue, ids, NULL, NULL, NULL, NULL, NULL, NULL);
END;
$$;

CREATE FUNCTION pgq.redrive_where(
    queue text,
    task text DEFAULT NULL,
    error text DEFAULT NULL,
    since timestamptz DEFAULT NULL,
    before timestamptz DEFAULT NULL,
    n int DEFAULT NULL,
    per_second float8 DEFAULT NULL
) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF per_second IS NOT NULL THEN
        PERFORM pgq._require('per_second', per_second BETWEEN 0.001 AND 1000000,
            'null (all at once) or between 0.001 and 1000000');
    END IF;
    RETURN pgq._redrive(queue, NULL, task, error, since, before, n, per_second);
END;
$$;
COMMENT ON FUNCTION pgq.redrive_where(text, text, text, timestamptz, timestamptz, int, float8) IS
    'Sends dead letters back to work as pgq.redrive does, those that pgq.dead_letters would list, of the lowest ids n at '
    'most. per_second: not all at once, but so many each second, as scheduled jobs from now on, so that what has just '
    'recovered is not flooded. Returns how many. Raises PQ002, 22023';

CREATE FUNCTION pgq.discard(queue text, ids bigint[]) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
BEGIN
    PERFORM pgq._require('ids', ids IS NOT NULL OR NULL, 'an array of job ids');
    RETURN (SELECT count(*) FROM pgq._take_dead(v_queue.id, ids, NULL, NULL, NULL, NULL, NULL));
END;
$$;
COMMENT ON FUNCTION pgq.discard(text, bigint[]) IS
    'Throws dead letters of a queue away, those with these ids; their attempts stay in the archive as long as it keeps them. '
    'Returns how many. Raises PQ002, 22004';

CREATE FUNCTION pgq.discard_where(
    queue text,
    task text DEFAULT NULL,
    error text DEFAULT NULL,
    since timestamptz DEFAULT NULL,
    before timestamptz DEFAULT NULL,
    n int DEFAULT NULL
) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_queue pgq.queue := pgq._find_queue(queue);
BEGIN
    RETURN (SELECT count(*) FROM pgq._take_dead(v_queue.id, NULL, task, error, since, before, n));
END;
$$;
COMMENT ON FUNCTION pgq.discard_where(text, text, text, timestamptz, timestamptz, int) IS
    'Throws dead letters of a queue away as pgq.discard does, those that pgq.dead_letters would list, of the lowest ids n at '
    'most; without conditions all of them. Returns how many. Raises PQ002, 22023';
COMMENT ON FUNCTION pgq.redrive(text, bigint[]) IS
    'Sends dead letters of a queue back to work, all or those with these ids, with all their attempts before them; their '
    'history stays. Those that died because others did, which they waited for, wait for them again. Returns how many. '
    'Raises PQ002';

-- 80_observe ----------------------------------------------------------------------------------------------------------

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

CREATE OR REPLACE FUNCTION pgq._find_0(job bigint) RETURNS SETOF pgq.job_state
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

DROP FUNCTION pgq._find(int, bigint);
SELECT pgq._for_each_slot('pgq._find_0(bigint)');

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

CREATE OR REPLACE FUNCTION pgq.version() RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT '0.2.0'::pg_catalog.text $$;

CREATE OR REPLACE FUNCTION pgq.doctor() RETURNS SETOF pgq.finding
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

CREATE FUNCTION pgq._started_at(kind pgq.outcome_kind, started_at timestamptz, finished_at timestamptz, worker text)
    RETURNS timestamptz
    LANGUAGE sql IMMUTABLE
AS $$ SELECT CASE WHEN kind <> 'cancelled' OR started_at < finished_at OR worker IS NOT NULL THEN started_at END $$;
COMMENT ON FUNCTION pgq._started_at(pgq.outcome_kind, timestamptz, timestamptz, text) IS
    'When an archived attempt began; null: it never did, as the job was cancelled before';

CREATE OR REPLACE FUNCTION pgq.job_status(id bigint) RETURNS SETOF pgq.job_state
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

-- Ready: what lies behind the position of the lane, and the transactions that were late.
DROP FUNCTION pgq._count(int, boolean);
CREATE OR REPLACE FUNCTION pgq._count_0(live boolean) RETURNS SETOF pgq.lane_stat
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
SELECT pgq._for_each_slot('pgq._count_0(boolean)');

-- Stable, as job_status is, and all that they call: what they say is true of one moment.
CREATE OR REPLACE FUNCTION pgq.stats() RETURNS SETOF pgq.queue_stat
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

CREATE OR REPLACE VIEW pgq.queue_stats AS SELECT * FROM pgq.stats();
COMMENT ON COLUMN pgq.queue_stats.parked IS 'Jobs that wait for a limit of their group or queue';
COMMENT ON COLUMN pgq.job_state.state IS 'scheduled, waiting (for other jobs), ready, running, retrying, parked, done, dead or cancelled';
COMMENT ON COLUMN pgq.job_state.run_at IS 'When it is due, if it is scheduled or retrying; at the earliest, if it waits for others';
COMMENT ON COLUMN pgq.queue_stats.waiting IS 'Jobs that wait for other jobs to end';

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
        SELECT max(x.expires_at) AS expires_at FROM (SELECT x.expires_at FROM pgq.lease_0 x WHERE x.id = c.id OFFSET 0) x
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
CREATE FUNCTION pgq._next_0(lanes bigint[], named text, newest boolean, most int) RETURNS SETOF pgq.attempt
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
COMMENT ON FUNCTION pgq._next_0(bigint[], text, boolean, int) IS
    'The jobs of a task, or all, among the first or last of each lane that can be claimed in segment 0';

SELECT pgq._for_each_slot('pgq._next_0(bigint[],text,boolean,int)');

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
    CROSS JOIN LATERAL pgq._next(s, ARRAY(SELECT pgq._lanes_of(queue)), named, newest,
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

-- 85_wait -------------------------------------------------------------------------------------------------------------

CREATE PROCEDURE pgq.wait(
    id bigint,
    timeout interval DEFAULT '1 minute',
    INOUT state text DEFAULT NULL,
    INOUT result jsonb DEFAULT NULL,
    INOUT error text DEFAULT NULL
)
    LANGUAGE plpgsql
AS $$
DECLARE
    v_since CONSTANT timestamptz := pgq._now();
    v_waited interval;
    v_unknown int := 0;
BEGIN
    CALL pgq._outside_of_a_transaction_block();
    LOOP
        SELECT s.state, s.result, s.error INTO wait.state, wait.result, wait.error FROM pgq.job_status(wait.id) s;
        IF NOT FOUND THEN
            state := 'not found';
            v_unknown := v_unknown OPERATOR(pg_catalog.+) 1;
        END IF;
        v_waited := pgq._now() OPERATOR(pg_catalog.-) v_since;
        COMMIT;
        EXIT WHEN state OPERATOR(pg_catalog.=) ANY ('{done,dead,cancelled}')
            OR v_unknown OPERATOR(pg_catalog.=) 2
            OR v_waited OPERATOR(pg_catalog.>=) timeout;
        PERFORM pgq._nap(v_waited);
        COMMIT;
    END LOOP;
END;
$$;
COMMENT ON PROCEDURE pgq.wait (bigint, interval, text, jsonb, text) IS
    'Waits until a job is done, dead or cancelled, but no longer than timeout (null: for ever), in one short transaction '
    'after the other. Returns its state, result and last error, as pgq.job_status does; after a timeout the state is the one '
    'it is in; ''not found'': it is unknown, not committed, or its archive was dropped. Raises 2D000 inside of a transaction '
    'block, 22004';

-- Waiting for the end of a job, asleep (watch_job) or looking again and again (wait).
-- Tables: those of job_status. pgq.wait calls it with the rights of its caller; as in 45_work, every name is qualified.
CREATE FUNCTION pgq.watch_job(id bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pgq.job_status(id) s JOIN pgq.queue q ON q.name = s.queue WHERE q.notify) THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_lock_shared(pgq._wait_key(id));
    IF pg_sequence_last_value('pgq.waited_on') < date_part('epoch', pgq._now()) - 5 THEN
        PERFORM setval('pgq.waited_on', date_part('epoch', pgq._now())::bigint);
    END IF;
    IF pg_sequence_last_value('pgq.awaited') = 0 THEN
        PERFORM setval('pgq.awaited', 1);
    END IF;
    RETURN true;
END;
$$;
COMMENT ON FUNCTION pgq.watch_job(bigint) IS
    'Registers this session as waiting for the end of a job, until pgq.unwatch_job or its own end: whoever ends the job then '
    'notifies channel "pgq_job", payload the job''s id. LISTEN pgq_job first, watch, look at pgq.job_status once more, then '
    'sleep, but not for ever: after a minute without a new watch nobody is told. Needs a session of its own: not for '
    'transaction pooling. Returns false, and registers nothing, if the job is unknown or its queue does not notify. Raises 22004';

CREATE FUNCTION pgq.unwatch_job(id bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET client_min_messages = error
AS $$
BEGIN
    PERFORM pgq._require('id', id IS NOT NULL OR NULL, 'the id of a job');
    PERFORM pg_advisory_unlock_shared(pgq._wait_key(id));
END;
$$;
COMMENT ON FUNCTION pgq.unwatch_job(bigint) IS 'Ends one pgq.watch_job of this job by this session. Raises 22004';

-- 90_grant ------------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION pgq._grant(role regrole, functions regproc[]) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._require('role', role IS NOT NULL OR NULL, 'the name of a role');
    EXECUTE format('GRANT USAGE ON SCHEMA pgq TO %s', role);
    EXECUTE (
        SELECT string_agg(format('GRANT EXECUTE ON ROUTINE %s TO %s', f::regprocedure, role), '; ')
        FROM unnest(functions) f
    );
END;
$$;

CREATE OR REPLACE FUNCTION pgq.grant_producer(role regrole) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._grant(role, '{
        pgq.enqueue, pgq.enqueue_many, pgq.enqueue_unique, pgq.enqueue_unique_many, pgq.enqueue_after,
        pgq.enqueue_many_after, pgq.batch, pgq.add_to_batch, pgq.enqueue_row, pgq.enqueue_rows, pgq.version
    }');
END;
$$;

CREATE OR REPLACE FUNCTION pgq.grant_consumer(role regrole) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._grant(role, '{
        pgq.claim, pgq.ack, pgq.ack_many, pgq.reject, pgq.reject_many, pgq.extend, pgq.extend_many, pgq.release, pgq.snooze,
        pgq.snooze_many, pgq.cancel_requested, pgq.cancel_claimed, pgq.progress, pgq.watch, pgq.unwatch, pgq.maintain,
        pgq.promote, pgq.reap, pgq.rotate, pgq.try_exclusive, pgq.exclusive_holder, pgq.version,
        pgq.work, pgq._outside_of_a_transaction_block, pgq._handler, pgq._nap, pgq._now
    }');
END;
$$;

CREATE OR REPLACE FUNCTION pgq.grant_admin(role regrole) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq.grant_producer(role);
    PERFORM pgq.grant_consumer(role);
    PERFORM pgq._grant(role, '{
        pgq.create_queue, pgq.alter_queue, pgq.set_unique, pgq.set_limits, pgq.drop_queue, pgq.pause, pgq.resume, pgq.purge,
        pgq.purge_state, pgq.cancel, pgq.cancel_many, pgq.reschedule, pgq.set_priority, pgq.schedule, pgq.unschedule,
        pgq.next_runs, pgq.dead_letters, pgq.redrive, pgq.redrive_where, pgq.discard, pgq.discard_where,
        pgq.job_status, pgq.batch_status, pgq.waits_for, pgq.wait, pgq.watch_job,
        pgq.unwatch_job, pgq.attempts, pgq.job_progress, pgq.stats, pgq.doctor,
        pgq.queues, pgq.jobs, pgq.workers, pgq.activity, pgq.failures,
        pgq.grant_producer, pgq.grant_consumer, pgq.grant_admin
    }');
    EXECUTE format('GRANT SELECT ON pgq.queue_stats, pgq.archive, pgq.schedule TO %s', role);
END;
$$;
COMMENT ON FUNCTION pgq.grant_admin(regrole) IS
    'Lets a role do all that producers and consumers do, manage queues and schedules, read the archive, and grant these rights';

-- Nothing of it is open to everybody ----------------------------------------------------------------------------------

REVOKE ALL ON TABLE
    pgq.schedule, pgq.unique_key, pgq.parked, pgq.parked_group, pgq.permit, pgq.start, pgq.dependent, pgq.dependency,
    pgq.ended, pgq.cancel_request, pgq.progress
FROM PUBLIC;
REVOKE ALL ON SEQUENCE pgq.turn, pgq.awaited, pgq.waited_on, pgq.looked_after, pgq.first_waiting FROM PUBLIC;
REVOKE ALL ON TYPE
    pgq.schedule, pgq.unique_key, pgq.parked, pgq.parked_group, pgq.permit, pgq.start, pgq.dependent, pgq.dependency,
    pgq.ended, pgq.cancel_request, pgq.progress, pgq.enqueued, pgq.cron, pgq.holder, pgq.dead_letter, pgq.job_attempt,
    pgq.batch_state, pgq.queue_setting, pgq.live_job, pgq.held_lease, pgq.worker_stat, pgq.pace, pgq.backlog,
    pgq.queue_activity, pgq.failure
FROM PUBLIC;
REVOKE ALL ON FUNCTION
    pgq._home(bigint, bigint, int), pgq._lanes_of(pgq.queue), pgq._empty_lane(int, bigint),
    pgq._check_rate(text, int, interval),
    pgq.set_limits(text, int, int, int, interval, int, interval, boolean, boolean), pgq._started(int, text, bigint),
    pgq._room(int, text, int, interval), pgq._room_at(int, text, int, interval),
    pgq._end_permits(bigint[], boolean), pgq._hand_back(bigint[], pgq.outcome_kind),
    pgq._look_again(int), pgq._park(pgq.queue, bigint, int, int[], pg_snapshot),
    pgq._take_known(pgq.queue, int, bigint, int, pg_snapshot, timestamptz, text),
    pgq._pick_of(pgq.queue, text, int, int), pgq._pick(pgq.queue, int, int),
    pgq._admit(pgq.queue, pgq.parked[], timestamptz, text), pgq._claim_limited(int, int, timestamptz, text),
    pgq._limited_until(pgq.queue), pgq._tidy_limits(), pgq._front(bigint), pgq._line(bigint), pgq._gate_key(int),
    pgq._new_lane(int, int, int, bigint, text), pgq._clear_parked(int), pgq._attempts(int, bigint[], bigint[]),
    pgq._count(int, boolean),
    pgq._check_payloads(jsonb[], text[]),
    pgq._add_jobs(bigint[], text, jsonb[], text, int, timestamptz, int, text[], jsonb, bigint[], text),
    pgq.enqueue_after(bigint[], text, jsonb, text, int, timestamptz, interval, int, text, text, jsonb, text),
    pgq.enqueue_many_after(bigint[], text, jsonb[], text, int, timestamptz, interval, int, text[], jsonb, text),
    pgq._is_watched(bigint), pgq._wait_key(bigint), pgq._state_of(timestamptz, smallint),
    pgq._put_off(bigint, timestamptz),
    pgq._check_after(bigint[]), pgq._make_wait(bigint[], bigint[], text, timestamptz),
    pgq.batch(bigint[], text, jsonb, text, int, int, jsonb), pgq.add_to_batch(bigint, bigint[]),
    pgq.batch_status(bigint),
    pgq.waits_for(bigint, int), pgq._tell(bigint[], pgq.outcome_kind), pgq._lock_dependents(bigint[]),
    pgq._let_go(bigint[]),
    pgq._give_up(bigint[], text[]), pgq._take_in(bigint[], pgq.outcome_kind[]), pgq._end_of(bigint, xid8),
    pgq._look_after(int, boolean), pgq._resolve(int), pgq._look_around(), pgq._tidy_dependents(), pgq.watch_job(bigint),
    pgq.unwatch_job(bigint),
    pgq._started_at(pgq.outcome_kind, timestamptz, timestamptz, text),
    pgq._check_unique(text, interval, text), pgq.set_unique(text, text, interval, text), pgq._lives(bigint, boolean),
    pgq._holds(pgq.unique_key), pgq._take_key(pgq.unique_key), pgq._drop_keys(bigint[]), pgq._tidy_keys(),
    pgq._repeat(bigint, jsonb, text, jsonb, timestamptz),
    pgq.enqueue_unique_many(text, jsonb[], text[], text, int,
        timestamptz, interval, int, text[], jsonb, text, interval, text, bigint[], text),
    pgq.enqueue_unique(text, jsonb, text, int,
        timestamptz, interval, int, text, text, jsonb, text, interval, text, bigint[], text),
    pgq._validate(pgq.queue, jsonb[], text),
    pgq.set_validator(text, regprocedure), pgq._is_plain(oid), pgq._safe_columns(oid),
    pgq._change(oid, text, jsonb, jsonb), pgq._keep(jsonb, text[]), pgq._refuse_trigger(text), pgq.enqueue_row(),
    pgq.enqueue_rows(), pgq._given_back(bigint[], bigint[], pgq.outcome_kind),
    pgq.snooze_many(bigint[], bigint[], interval), pgq._awaited(bigint), pgq._filled(), pgq._lock_lane(int, bigint),
    pgq._withdraw_job(bigint, pgq.outcome_kind), pgq._withdraw_waiting(bigint),
    pgq._cancel_waiting(bigint[]), pgq._cancel(bigint),
    pgq.cancel_many(text, text, boolean), pgq.cancel_requested(bigint[]), pgq.cancel_claimed(bigint, bigint, text),
    pgq._pursue(),
    pgq.reschedule(bigint, timestamptz), pgq.set_priority(bigint, int), pgq._handler(text), pgq._nap(interval),
    pgq._bad_cron(text, text, text, text), pgq._cron_field(text, text, int, int, int),
    pgq._cron_value(text, int, int, text[]), pgq._read_cron(text), pgq._cron_time(pgq.cron, int),
    pgq._cron_wall(pgq.cron, timestamp), pgq._offset(text, timestamp), pgq._clock_change(text, timestamp, timestamp),
    pgq._next_run(pgq.cron, text, timestamptz), pgq._zone(text), pgq.next_runs(text, text, int, timestamptz),
    pgq._enqueue_tick(pgq.schedule, timestamptz), pgq._last_run(pgq.cron, text, timestamptz, timestamptz),
    pgq._fire_one(pgq.schedule, timestamptz), pgq._fire(), pgq._exclusive_key(text), pgq.exclusive_holder(text),
    pgq._clear_ready(pgq.queue), pgq._clear_scheduled(int, text), pgq.purge_state(text, text),
    pgq._is_chosen(pgq.dead, text, text, timestamptz, timestamptz),
    pgq.dead_letters(text, text, text, timestamptz, timestamptz, bigint, int),
    pgq._take_dead(int, bigint[], text, text, timestamptz, timestamptz, int),
    pgq._redrive(text, bigint[], text, text, timestamptz, timestamptz, int, double precision),
    pgq.redrive_where(text, text, text, timestamptz, timestamptz, int, double precision), pgq.discard(text, bigint[]),
    pgq.discard_where(text, text, text, timestamptz, timestamptz, int), pgq._find(int, bigint),
    pgq._done_each(int, bigint[], bigint[], jsonb[]),
    pgq._tried(int, bigint), pgq._failures(bigint), pgq.attempts(bigint), pgq.progress(bigint, bigint, jsonb),
    pgq.job_progress(bigint), pgq._forget_progress(), pgq.queues(),
    pgq._list_running(pgq.queue, text, int, boolean), pgq._list_ready(pgq.queue, text, int, boolean),
    pgq._list_parked(pgq.queue, text, int, boolean), pgq._list_scheduled(pgq.queue, text, text, int, boolean),
    pgq.jobs(text, text, text, int, boolean), pgq.workers(), pgq._backlogs(int), pgq.activity(interval),
    pgq.failures(int)
FROM PUBLIC;
REVOKE ALL ON PROCEDURE
    pgq._outside_of_a_transaction_block(),
    pgq.work(text, text, int, interval, interval, interval, text, bigint, bigint),
    pgq.wait(bigint, interval, text, jsonb, text)
FROM PUBLIC;
-- And what pgq._for_each_slot has made.
DO $$
DECLARE
    v_function regprocedure;
BEGIN
    FOR v_function IN
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = 'pgq'::regnamespace
            AND p.proname ~ '^_(revise|lanes|ready|withdraw|asked|lease_of|running_since|hand_out|'
                'held|next|next_line|pace|backlog|failed)(_\d+)?$'
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', v_function);
    END LOOP;
END;
$$;
