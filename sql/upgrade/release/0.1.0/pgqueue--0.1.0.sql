\echo Use "CREATE EXTENSION pgqueue" to load this file. \quit
-- pgqueue: a job queue inside PostgreSQL.
--
-- A map of the house. Read the rooms in order; each stands on those before it.
--
--   10_tables    Where everything is kept. A job is a row in pgq.job, a claim of jobs a row in pgq.lease, the end of
--                an attempt a row in pgq.outcome. None of the three is ever updated or deleted. They live in a ring of
--                sixteen segments; a segment is filled, sealed, worked off, archived and then truncated as a whole.
--                So there are no dead rows, and a long transaction elsewhere cannot slow the queue down.
--   20_internal  The clock, the locks, the ring, and how an attempt is looked up. Names begin with an underscore.
--   30_produce   enqueue, enqueue_many, and the wake-up of idle workers.
--   40_consume   claim, and the ways an attempt ends: ack, reject, release; extend in between.
--   50_maintain  promote what is due, reap expired leases, turn the ring. Called by the workers; there is no daemon.
--   60_schedule  recurring jobs.
--   70_admin     queues, dead letters, waiting workers.
--   80_observe   job_status, stats, the doctor.
--   90_grant     who may do what. Nobody but the owner may do anything until told otherwise.
--
-- Errors of our own: PQ001 lease_lost, PQ002 queue_not_found, PQ003 not_read_committed, PQ004 payload_rejected,
-- PQ005 queue_not_empty. Bad arguments are 22023 or 22004, as everywhere in PostgreSQL.

-- Names mean the same whatever the installer's settings are.
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL quote_all_identifiers = off;

DO $$
DECLARE
    v_owner text;
BEGIN
    IF current_setting('server_version_num')::int < 140000 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'feature_not_supported',
            MESSAGE = 'pgqueue needs PostgreSQL 14 or newer',
            DETAIL = format('This server is %s.', current_setting('server_version')),
            HINT = 'Install it on a newer server. Nothing was changed.';
    END IF;
    IF to_regprocedure('pgq.version()') IS NOT NULL AND to_regclass('pgq.outcome_15') IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'duplicate_schema',
            MESSAGE = 'pgqueue is already installed in this database',
            HINT = 'SELECT pgq.version() shows which one. Use `pgqueue upgrade` or ALTER EXTENSION pgqueue UPDATE '
                'to upgrade. Nothing was changed.';
    END IF;
    SELECT nspowner::regrole::text INTO v_owner FROM pg_catalog.pg_namespace WHERE nspname = 'pgq';
    IF FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'duplicate_schema',
            MESSAGE = 'schema pgq exists already and is not pgqueue''s',
            DETAIL = format('It belongs to role %s. Skytools'' PgQ and PgQue use the same schema name.', v_owner),
            HINT = 'Install pgqueue into another database. Nothing was changed.';
    END IF;
END;
$$;

CREATE SCHEMA pgq;
COMMENT ON SCHEMA pgq IS 'pgqueue: an append-only job queue with leases, retries, priorities and an archive';
-- Every table, its constraints and indexes.
--
-- Append-only, in a ring of sixteen segments: job, lease, outcome.
-- Small and mutable, for those who use the feature: scheduled, dead, straggler.
-- Settings and bookkeeping: queue, line, segment, segment_lane, mark.
-- The past: archive.

-- Sequences -----------------------------------------------------------------------------------------------------------

CREATE SEQUENCE pgq.job_id;
COMMENT ON SEQUENCE pgq.job_id IS 'Job ids. Gaps are normal: a rolled-back enqueue leaves one';

CREATE SEQUENCE pgq.lease_id;
COMMENT ON SEQUENCE pgq.lease_id IS 'Lease numbers, the upper bits of lease ids; see pgq._new_lease';

-- A crash of the server sets a sequence back to what was on disk, so a number may be drawn twice: by a claim that is
-- lost, and by a later one. pgq._adopt leaps ahead after each start. The random bits are for the crash of one backend,
-- after which the server does not start anew.
CREATE FUNCTION pgq._new_lease(slot int) RETURNS bigint
    LANGUAGE sql VOLATILE
AS $$ SELECT (nextval('pgq.lease_id') << 12) | (floor(random() * 256)::bigint << 4) | slot $$;
COMMENT ON FUNCTION pgq._new_lease(int) IS 'A new lease id: it grows, and its lowest four bits are the segment''s slot';

-- What every transaction must see as it is now and not as it was when its snapshot was taken. Which segment is open,
-- for instance: a REPEATABLE READ producer that trusted its snapshot could insert into one that was retired since.
-- Sequences are outside of snapshots, leave no dead rows, and pg_sequence_last_value() reads one in a microsecond.
CREATE SEQUENCE pgq.epoch MINVALUE 0;
COMMENT ON SEQUENCE pgq.epoch IS
    'Which segment is open: generation << 36 | server start (pgq._boot) << 4 | slot';

CREATE SEQUENCE pgq.live MINVALUE 0;
COMMENT ON SEQUENCE pgq.live IS 'Bit mask of the segments that may have jobs to claim. A bit too many does no harm';

CREATE SEQUENCE pgq.age MINVALUE -9223372036854775808 START 1;
COMMENT ON SEQUENCE pgq.age IS
    'The sixteen segments in the order in which they were last opened, four bits each, the oldest in the lowest';

CREATE SEQUENCE pgq.restored MINVALUE 0;
COMMENT ON SEQUENCE pgq.restored IS 'Bit mask of the segments that came from another cluster: their xids mean nothing here';

CREATE SEQUENCE pgq.system_identifier MINVALUE 0;
COMMENT ON SEQUENCE pgq.system_identifier IS 'The cluster that the other segments belong to, from pg_control_system()';

CREATE SEQUENCE pgq.dropping MINVALUE 0;
COMMENT ON SEQUENCE pgq.dropping IS
    'drops << 23 | the queue that is being dropped, or was dropped last; its producers look twice';

CREATE SEQUENCE pgq.watched MINVALUE 0;
COMMENT ON SEQUENCE pgq.watched IS 'When a session last began to wait for jobs, in seconds';

SELECT setval('pgq.epoch', 0), setval('pgq.live', 1), setval('pgq.restored', 0), setval('pgq.dropping', 0),
    setval('pgq.watched', 0), setval('pgq.age', -81985529216486896),  -- 0xFEDCBA9876543210
    setval('pgq.system_identifier', c.system_identifier)
FROM pg_control_system() AS c;

-- Queues --------------------------------------------------------------------------------------------------------------

CREATE TABLE pgq.queue (
    id int GENERATED ALWAYS AS IDENTITY (MAXVALUE 8388607),
    name text NOT NULL,
    lease interval NOT NULL,
    max_attempts smallint NOT NULL,
    backoff interval NOT NULL,
    backoff_max interval NOT NULL,
    retention interval NOT NULL,
    shards smallint NOT NULL,
    lanes smallint NOT NULL,
    paused boolean NOT NULL DEFAULT false,
    notify boolean NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT queue_id_pkey PRIMARY KEY (id),
    CONSTRAINT queue_name_key UNIQUE (name),
    CONSTRAINT queue_name_check CHECK (length(name) BETWEEN 1 AND 128),
    CONSTRAINT queue_lease_check CHECK (lease > '0'),
    CONSTRAINT queue_max_attempts_check CHECK (max_attempts > 0),
    CONSTRAINT queue_backoff_check CHECK (backoff >= '0' AND backoff_max >= backoff),
    CONSTRAINT queue_retention_check CHECK (retention >= '0'),
    CONSTRAINT queue_shards_check CHECK (shards BETWEEN 1 AND 64 AND lanes >= shards)
);
COMMENT ON TABLE pgq.queue IS 'Queues and their settings. Change them with pgq.alter_queue';
COMMENT ON COLUMN pgq.queue.id IS 'Number of the queue, part of its lanes'' ids';
COMMENT ON COLUMN pgq.queue.name IS 'Name, 1 to 128 characters';
COMMENT ON COLUMN pgq.queue.lease IS 'How long a claim holds a job unless the claim says otherwise';
COMMENT ON COLUMN pgq.queue.max_attempts IS 'Attempts before a job goes to the dead letters, unless the job says otherwise';
COMMENT ON COLUMN pgq.queue.backoff IS 'Delay before the second attempt; doubles with each further one';
COMMENT ON COLUMN pgq.queue.backoff_max IS 'Longest delay between two attempts';
COMMENT ON COLUMN pgq.queue.retention IS 'How long finished attempts stay in pgq.archive; zero: they are not archived';
COMMENT ON COLUMN pgq.queue.shards IS 'Lanes per priority that new jobs are spread over; 1 is strict first in, first out';
COMMENT ON COLUMN pgq.queue.lanes IS 'Lanes per priority that claims look into: the most that shards has ever been';
COMMENT ON COLUMN pgq.queue.paused IS 'Claims return nothing while true';
COMMENT ON COLUMN pgq.queue.notify IS 'Whether enqueue wakes waiting workers with NOTIFY';
COMMENT ON COLUMN pgq.queue.created_at IS 'When the queue was created';

-- A lane is one queue, one priority, one shard; its id says which: queue << 16 | (priority + 128) << 8 | shard. Shard 0
-- is the front of the line: released, expired and carried jobs, taken before all others of their priority. The lanes of
-- a priority need no rows. What claims must know is which priorities are in use: a line is the front lane of one, or
-- all its shards. Producers add it on first use, without a unique constraint, so that they never wait for each other;
-- a line that is listed twice is looked at twice until pgq.maintain removes the second row.
CREATE TABLE pgq.line (
    lane bigint NOT NULL,
    queue_id int NOT NULL
);
CREATE INDEX line_queue_id_lane_idx ON pgq.line (queue_id, lane);
COMMENT ON TABLE pgq.line IS 'Lines in use: for each queue and priority the front lane, or all shards';
COMMENT ON COLUMN pgq.line.lane IS 'The front lane, or the first of the shards';
COMMENT ON COLUMN pgq.line.queue_id IS 'The queue';

-- The ring ------------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.outcome_kind AS ENUM (
    'done', 'retry', 'dead', 'expired', 'released', 'cancelled', 'carried', 'moved', 'split'
);
COMMENT ON TYPE pgq.outcome_kind IS
    'How an attempt ended; carried: put into a younger segment unworked, moved: now in pgq.straggler, split: not an end';

CREATE TABLE pgq.job (
    lane bigint NOT NULL,
    xid xid8 NOT NULL,
    id bigint NOT NULL,
    enqueued_at timestamptz NOT NULL,
    slot smallint NOT NULL,
    attempt smallint NOT NULL,
    max_attempts smallint,
    task text,
    payload jsonb NOT NULL,
    headers jsonb,
    history jsonb
) PARTITION BY LIST (slot);
COMMENT ON TABLE pgq.job IS 'One row per attempt that may be claimed. Never updated, never deleted, truncated by segment';
COMMENT ON COLUMN pgq.job.lane IS 'Lane: queue, priority and shard';
COMMENT ON COLUMN pgq.job.xid IS 'Transaction that inserted the row';
COMMENT ON COLUMN pgq.job.id IS 'Job id, the same for all attempts';
COMMENT ON COLUMN pgq.job.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.job.slot IS 'Segment of the ring, 0 to 15';
COMMENT ON COLUMN pgq.job.attempt IS 'Number of this attempt, from 1';
COMMENT ON COLUMN pgq.job.max_attempts IS 'Attempts allowed; null: what the queue says';
COMMENT ON COLUMN pgq.job.task IS 'What to do, in the words of the application';
COMMENT ON COLUMN pgq.job.payload IS 'Arguments';
COMMENT ON COLUMN pgq.job.headers IS 'Metadata, for instance a trace context';
COMMENT ON COLUMN pgq.job.history IS 'Errors of earlier attempts: array of {attempt, at, error, worker}';

CREATE TABLE pgq.lease (
    id bigint NOT NULL,
    lane bigint,
    claimed_at timestamptz,
    expires_at timestamptz NOT NULL,
    cursor_xid xid8,
    cursor_id bigint,
    taken bigint,
    late_xid xid8,
    late_id bigint,
    slot smallint NOT NULL,
    worker text,
    job_ids bigint[],
    attempts smallint[],
    open_xids xid8[]
) PARTITION BY LIST (slot);
COMMENT ON TABLE pgq.lease IS
    'One row per claim, and one per extension. Never updated, never deleted, truncated with its segment';
COMMENT ON COLUMN pgq.lease.id IS 'Lease id; grows within a lane; its lowest four bits are the slot';
COMMENT ON COLUMN pgq.lease.lane IS 'Lane that was claimed from; null: an extension of the lease with this id';
COMMENT ON COLUMN pgq.lease.claimed_at IS 'When the jobs were claimed';
COMMENT ON COLUMN pgq.lease.expires_at IS 'When the lease ends, unless a later row extends it';
COMMENT ON COLUMN pgq.lease.cursor_xid IS 'Position of the lane after this claim: xid of the last job in order';
COMMENT ON COLUMN pgq.lease.cursor_id IS 'Position of the lane after this claim: id of the last job in order';
COMMENT ON COLUMN pgq.lease.taken IS 'Jobs taken from this lane and segment so far, this claim included';
COMMENT ON COLUMN pgq.lease.late_xid IS 'The transaction among open_xids whose jobs were handed out in part';
COMMENT ON COLUMN pgq.lease.late_id IS 'The last job of late_xid that was handed out';
COMMENT ON COLUMN pgq.lease.slot IS 'Segment of the ring, 0 to 15';
COMMENT ON COLUMN pgq.lease.worker IS 'Who claimed, as the worker calls itself';
COMMENT ON COLUMN pgq.lease.job_ids IS
    'The jobs claimed; null: an extension. (Queries ask this and not lane, which an index would tempt to read in full)';
COMMENT ON COLUMN pgq.lease.attempts IS 'Their attempt numbers; null: all are first attempts';
COMMENT ON COLUMN pgq.lease.open_xids IS 'Transactions that the cursor has passed before they ended';

CREATE TABLE pgq.outcome (
    job_id bigint NOT NULL,
    lease_id bigint NOT NULL,
    at timestamptz NOT NULL,
    kind pgq.outcome_kind NOT NULL,
    slot smallint NOT NULL,
    result jsonb,
    error text,
    results jsonb[]
) PARTITION BY LIST (slot);
COMMENT ON TABLE pgq.outcome IS
    'How claimed attempts ended, each exactly once, alone or with all others of its lease: the first writer wins';
COMMENT ON COLUMN pgq.outcome.job_id IS 'The job; 0: all jobs of the lease or, of kind split, a note that they end one by one';
COMMENT ON COLUMN pgq.outcome.lease_id IS 'The lease that held it';
COMMENT ON COLUMN pgq.outcome.at IS 'When the attempt ended';
COMMENT ON COLUMN pgq.outcome.kind IS 'How it ended';
COMMENT ON COLUMN pgq.outcome.slot IS 'Segment of the ring, 0 to 15';
COMMENT ON COLUMN pgq.outcome.result IS 'What the handler returned';
COMMENT ON COLUMN pgq.outcome.error IS 'Why it failed';
COMMENT ON COLUMN pgq.outcome.results IS 'What the handlers returned, in the order of the lease''s job_ids, if all ended at once';

-- The sixteen segments. Autovacuum has nothing to do in a table that is only ever appended to and truncated. Indexes
-- and defaults are the leaves' own, so that functions may name a leaf and never lock another one.
DO $$
DECLARE
    v_slot int;
BEGIN
    FOR v_slot IN 0..15 LOOP
        EXECUTE format($ddl$
            CREATE TABLE pgq.job_%1$s PARTITION OF pgq.job (slot DEFAULT %1$s) FOR VALUES IN (%1$s)
                WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
            CREATE INDEX job_%1$s_lane_xid_id_idx ON pgq.job_%1$s (lane, xid, id);
            CREATE INDEX job_%1$s_id_idx ON pgq.job_%1$s (id);

            CREATE TABLE pgq.lease_%1$s PARTITION OF pgq.lease (
                slot DEFAULT %1$s, id DEFAULT pgq._new_lease(%1$s)
            ) FOR VALUES IN (%1$s)
                WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
            CREATE INDEX lease_%1$s_lane_id_idx ON pgq.lease_%1$s (lane, id);
            -- NULLS FIRST, so that no plan takes it for the order of one lane's leases.
            CREATE INDEX lease_%1$s_id_idx ON pgq.lease_%1$s (id NULLS FIRST);
            CREATE INDEX lease_%1$s_expires_at_idx ON pgq.lease_%1$s (expires_at);

            CREATE TABLE pgq.outcome_%1$s PARTITION OF pgq.outcome (slot DEFAULT %1$s) FOR VALUES IN (%1$s)
                WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
            CREATE UNIQUE INDEX outcome_%1$s_lease_id_job_id_key ON pgq.outcome_%1$s (lease_id, job_id);

            CREATE VIEW pgq.unsettled_%1$s AS
            SELECT j.id, l.id AS lease, l.lane
            FROM pgq.lease_%1$s l CROSS JOIN LATERAL unnest(l.job_ids) j (id)
            WHERE l.job_ids IS NOT NULL
                AND NOT EXISTS (
                    SELECT FROM pgq.outcome_%1$s w WHERE w.lease_id = l.id AND w.job_id = 0 AND w.kind = 'done' OFFSET 0
                )
                AND NOT EXISTS (SELECT FROM pgq.outcome_%1$s o WHERE o.lease_id = l.id AND o.job_id = j.id OFFSET 0);
            COMMENT ON VIEW pgq.unsettled_%1$s IS 'Claimed attempts in segment %1$s that have not ended';
            COMMENT ON COLUMN pgq.unsettled_%1$s.id IS 'Job id';
            COMMENT ON COLUMN pgq.unsettled_%1$s.lease IS 'The lease that holds it';
            COMMENT ON COLUMN pgq.unsettled_%1$s.lane IS 'Lane that it was claimed from';
        $ddl$, v_slot);
    END LOOP;
END;
$$;

CREATE TABLE pgq.segment (
    slot smallint NOT NULL,
    generation bigint NOT NULL,
    state text NOT NULL,
    opened_at timestamptz,
    sealed_at timestamptz,
    claimed_at timestamptz,
    passed_xid xid8,
    checked_at timestamptz,
    jobs bigint,
    archived_to tid,
    CONSTRAINT segment_slot_pkey PRIMARY KEY (slot),
    CONSTRAINT segment_state_check CHECK (
        state IN ('free', 'open', 'sealed', 'closed', 'claimed', 'drained', 'archived')
    )
) WITH (fillfactor = 50);
COMMENT ON TABLE pgq.segment IS 'The sixteen segments of the ring and how far each has come. Only pgq.rotate writes here';
COMMENT ON COLUMN pgq.segment.slot IS '0 to 15; its tables are job_N, lease_N and outcome_N';
COMMENT ON COLUMN pgq.segment.generation IS 'How many segments had been opened before this one';
COMMENT ON COLUMN pgq.segment.state IS
    'free; open: takes new jobs; sealed: takes none; closed: nobody is still writing to it; '
    'claimed: every job was handed out; drained: every attempt has ended; archived: may be truncated';
COMMENT ON COLUMN pgq.segment.opened_at IS 'When it was opened';
COMMENT ON COLUMN pgq.segment.sealed_at IS 'When it was sealed';
COMMENT ON COLUMN pgq.segment.claimed_at IS 'When its last job was seen handed out';
COMMENT ON COLUMN pgq.segment.passed_xid IS 'The transaction since which, if it is committed, claims need not look here';
COMMENT ON COLUMN pgq.segment.checked_at IS 'When it was last looked at for the next step';
COMMENT ON COLUMN pgq.segment.jobs IS 'Rows in its job table, counted when it was closed';
COMMENT ON COLUMN pgq.segment.archived_to IS 'The last row of its outcome table that is in the archive already';

CREATE TABLE pgq.segment_lane (
    slot smallint NOT NULL,
    lane bigint NOT NULL,
    jobs bigint NOT NULL,
    CONSTRAINT segment_lane_slot_lane_pkey PRIMARY KEY (slot, lane)
);
COMMENT ON TABLE pgq.segment_lane IS 'Jobs per lane of closed segments that still have some to hand out';
COMMENT ON COLUMN pgq.segment_lane.slot IS 'Segment of the ring, 0 to 15';
COMMENT ON COLUMN pgq.segment_lane.lane IS 'Lane';
COMMENT ON COLUMN pgq.segment_lane.jobs IS 'Jobs of this lane in the segment, claimed or not';

CREATE TABLE pgq.mark (
    seq bigint GENERATED ALWAYS AS IDENTITY,
    kind text NOT NULL,
    at timestamptz NOT NULL,
    CONSTRAINT mark_kind_seq_pkey PRIMARY KEY (kind, seq)
);
COMMENT ON TABLE pgq.mark IS
    'How far the reaper and the promoter have come, so that they need not walk again over what is gone but not yet '
    'vacuumed. The newest row of a kind counts; nothing depends on it but speed';
COMMENT ON COLUMN pgq.mark.seq IS 'Grows with every change';
COMMENT ON COLUMN pgq.mark.kind IS 'reap, promote, sweep, tidy';
COMMENT ON COLUMN pgq.mark.at IS 'What is older has been dealt with';

-- For those who use them ----------------------------------------------------------------------------------------------

CREATE TABLE pgq.scheduled (
    run_at timestamptz NOT NULL,
    id bigint NOT NULL,
    lane bigint NOT NULL,
    enqueued_at timestamptz NOT NULL,
    attempt smallint NOT NULL,
    max_attempts smallint,
    task text,
    payload jsonb NOT NULL,
    headers jsonb,
    history jsonb,
    CONSTRAINT scheduled_id_pkey PRIMARY KEY (id)
);
CREATE INDEX scheduled_run_at_idx ON pgq.scheduled (run_at);
CREATE INDEX scheduled_queue_run_at_idx ON pgq.scheduled ((lane >> 16), run_at);
COMMENT ON TABLE pgq.scheduled IS 'Jobs whose time has not come: enqueued for later, or waiting for their next attempt';
COMMENT ON COLUMN pgq.scheduled.run_at IS 'When the job becomes ready';
COMMENT ON COLUMN pgq.scheduled.id IS 'Job id';
COMMENT ON COLUMN pgq.scheduled.lane IS 'Lane that it will join';
COMMENT ON COLUMN pgq.scheduled.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.scheduled.attempt IS 'Number of the attempt to come';
COMMENT ON COLUMN pgq.scheduled.max_attempts IS 'Attempts allowed; null: what the queue says';
COMMENT ON COLUMN pgq.scheduled.task IS 'What to do';
COMMENT ON COLUMN pgq.scheduled.payload IS 'Arguments';
COMMENT ON COLUMN pgq.scheduled.headers IS 'Metadata';
COMMENT ON COLUMN pgq.scheduled.history IS 'Errors of earlier attempts';

CREATE TABLE pgq.dead (
    id bigint NOT NULL,
    lane bigint NOT NULL,
    enqueued_at timestamptz NOT NULL,
    died_at timestamptz NOT NULL,
    attempt smallint NOT NULL,
    max_attempts smallint,
    task text,
    payload jsonb NOT NULL,
    headers jsonb,
    history jsonb,
    error text,
    CONSTRAINT dead_id_pkey PRIMARY KEY (id)
);
CREATE INDEX dead_queue_id_idx ON pgq.dead ((lane >> 16), id);
COMMENT ON TABLE pgq.dead IS 'Dead letters: jobs that failed for good. pgq.redrive sends them back to work';
COMMENT ON COLUMN pgq.dead.id IS 'Job id';
COMMENT ON COLUMN pgq.dead.lane IS 'Lane that it came from';
COMMENT ON COLUMN pgq.dead.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.dead.died_at IS 'When its last attempt failed';
COMMENT ON COLUMN pgq.dead.attempt IS 'Attempts made';
COMMENT ON COLUMN pgq.dead.max_attempts IS 'Attempts allowed; null: what the queue says';
COMMENT ON COLUMN pgq.dead.task IS 'What to do';
COMMENT ON COLUMN pgq.dead.payload IS 'Arguments';
COMMENT ON COLUMN pgq.dead.headers IS 'Metadata';
COMMENT ON COLUMN pgq.dead.history IS 'Errors of all attempts: array of {attempt, at, error, worker}';
COMMENT ON COLUMN pgq.dead.error IS 'The last error';

CREATE TABLE pgq.straggler (
    id bigint NOT NULL,
    lease bigint NOT NULL,
    lane bigint NOT NULL,
    enqueued_at timestamptz NOT NULL,
    claimed_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    attempt smallint NOT NULL,
    max_attempts smallint,
    worker text,
    task text,
    payload jsonb NOT NULL,
    headers jsonb,
    history jsonb,
    finished_at timestamptz,
    kind pgq.outcome_kind,
    result jsonb,
    error text,
    CONSTRAINT straggler_id_lease_pkey PRIMARY KEY (id, lease)
);
CREATE INDEX straggler_lease_idx ON pgq.straggler (lease);
CREATE INDEX straggler_expires_at_idx ON pgq.straggler (expires_at) WHERE kind IS NULL;
COMMENT ON TABLE pgq.straggler IS 'Jobs that run longer than their segment could wait for; their leases go on here';
COMMENT ON COLUMN pgq.straggler.id IS 'Job id';
COMMENT ON COLUMN pgq.straggler.lease IS 'The lease that holds it';
COMMENT ON COLUMN pgq.straggler.lane IS 'Lane';
COMMENT ON COLUMN pgq.straggler.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.straggler.claimed_at IS 'When it was claimed';
COMMENT ON COLUMN pgq.straggler.expires_at IS 'When the lease ends';
COMMENT ON COLUMN pgq.straggler.attempt IS 'Number of this attempt';
COMMENT ON COLUMN pgq.straggler.max_attempts IS 'Attempts allowed; null: what the queue says';
COMMENT ON COLUMN pgq.straggler.worker IS 'Who claimed it';
COMMENT ON COLUMN pgq.straggler.task IS 'What to do';
COMMENT ON COLUMN pgq.straggler.payload IS 'Arguments';
COMMENT ON COLUMN pgq.straggler.headers IS 'Metadata';
COMMENT ON COLUMN pgq.straggler.history IS 'Errors of earlier attempts';
COMMENT ON COLUMN pgq.straggler.finished_at IS 'When the attempt ended; null: it is running';
COMMENT ON COLUMN pgq.straggler.kind IS 'How it ended';
COMMENT ON COLUMN pgq.straggler.result IS 'What the handler returned';
COMMENT ON COLUMN pgq.straggler.error IS 'Why it failed';

-- The past ------------------------------------------------------------------------------------------------------------

CREATE TABLE pgq.archive (
    id bigint NOT NULL,
    lease bigint NOT NULL,
    enqueued_at timestamptz NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    drop_after timestamptz NOT NULL,
    kind pgq.outcome_kind NOT NULL,
    attempt smallint NOT NULL,
    priority smallint NOT NULL,
    queue text NOT NULL,
    worker text,
    task text,
    payload jsonb NOT NULL,
    headers jsonb,
    result jsonb,
    error text
) PARTITION BY RANGE (drop_after);
COMMENT ON TABLE pgq.archive IS
    'Finished attempts, copied here when their segment is retired; partitions are dropped whole when their time is over';
COMMENT ON COLUMN pgq.archive.id IS 'Job id';
COMMENT ON COLUMN pgq.archive.lease IS 'The lease under which the attempt ran';
COMMENT ON COLUMN pgq.archive.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.archive.started_at IS 'When the attempt was claimed';
COMMENT ON COLUMN pgq.archive.finished_at IS 'When the attempt ended';
COMMENT ON COLUMN pgq.archive.drop_after IS 'When the row may go: finished_at plus the queue''s retention';
COMMENT ON COLUMN pgq.archive.kind IS 'How the attempt ended';
COMMENT ON COLUMN pgq.archive.attempt IS 'Number of the attempt';
COMMENT ON COLUMN pgq.archive.priority IS 'Priority, lower runs first';
COMMENT ON COLUMN pgq.archive.queue IS 'Queue';
COMMENT ON COLUMN pgq.archive.worker IS 'Who worked on it';
COMMENT ON COLUMN pgq.archive.task IS 'What to do';
COMMENT ON COLUMN pgq.archive.payload IS 'Arguments';
COMMENT ON COLUMN pgq.archive.headers IS 'Metadata';
COMMENT ON COLUMN pgq.archive.result IS 'What the handler returned';
COMMENT ON COLUMN pgq.archive.error IS 'Why it failed';
-- The clock, the locks, the ring and the reading of single leases.

-- The clock and the locks ---------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._now() RETURNS timestamptz
    LANGUAGE sql VOLATILE
AS $$ SELECT pg_catalog.clock_timestamp() $$;
COMMENT ON FUNCTION pgq._now() IS 'The one clock. Tests replace it';

-- Advisory locks are keyed by 'pgq' in the upper 24 bits; the lower 40 are a lane, or a queue or a purpose above them.
CREATE FUNCTION pgq._lane_key(lane bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 8099566699663065088 | lane $$;
COMMENT ON FUNCTION pgq._lane_key(bigint) IS 'Advisory lock of a lane, held while claiming from it';

CREATE FUNCTION pgq._watch_key(queue_id int) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 8099567249418878976 | queue_id $$;
COMMENT ON FUNCTION pgq._watch_key(int) IS 'Advisory lock of a queue, held in shared mode by sessions that wait for work';

CREATE FUNCTION pgq._task_key(purpose int) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 8099567524296785920 | purpose $$;
COMMENT ON FUNCTION pgq._task_key(int) IS
    'Advisory lock of a task that one session does at a time: 1 the ring, 2 reap, 3 promote, 4 drop a queue';

CREATE FUNCTION pgq._queue_key(queue_id int) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 8099567799174692864 | queue_id $$;
COMMENT ON FUNCTION pgq._queue_key(int) IS 'Advisory lock of a queue that is being dropped';

CREATE FUNCTION pgq._lane(queue_id int, priority int, shard int) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT (queue_id::bigint << 16) | ((priority + 128) << 8) | shard $$;
COMMENT ON FUNCTION pgq._lane(int, int, int) IS 'The id of a lane; shard 0 is the front of the line';

CREATE FUNCTION pgq._priority(lane bigint) RETURNS int
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT ((lane >> 8) & 255)::int - 128 $$;
COMMENT ON FUNCTION pgq._priority(bigint) IS 'The priority of a lane';

-- Arguments -----------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._require(argument text, valid boolean, rule text) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    IF valid IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'null_value_not_allowed',
            MESSAGE = format('%s must not be null', argument),
            HINT = format('%s must be %s.', argument, rule);
    ELSIF NOT valid THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('%s is out of range', argument),
            HINT = format('%s must be %s.', argument, rule);
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._require(text, boolean, text) IS 'Raises 22004 or 22023 unless an argument is valid';

CREATE FUNCTION pgq._not_yet(feature text) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'feature_not_supported',
        MESSAGE = format('%s is not supported by this version of pgqueue', feature),
        HINT = 'SELECT pgq.version() shows the version; the change log says which one brings it.';
END;
$$;
COMMENT ON FUNCTION pgq._not_yet(text) IS 'Raises 0A000 for what is reserved';

CREATE FUNCTION pgq._find_queue(queue text) RETURNS pgq.queue
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_queue pgq.queue;
BEGIN
    IF queue IS NULL THEN
        PERFORM pgq._require('queue', NULL, 'the name of a queue');
    END IF;
    SELECT * INTO v_queue FROM pgq.queue q WHERE q.name = _find_queue.queue;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PQ002',
            MESSAGE = format('queue "%s" does not exist', left(queue, 128)),
            HINT = 'Create it with SELECT pgq.create_queue(...), or look for the right name in pgq.stats().';
    END IF;
    RETURN v_queue;
END;
$$;
COMMENT ON FUNCTION pgq._find_queue(text) IS 'The settings of a queue; raises PQ002 if there is none';

CREATE FUNCTION pgq._read_committed() RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING
            ERRCODE = 'PQ003',
            MESSAGE = 'this needs a READ COMMITTED transaction',
            DETAIL = format('The transaction is %s: it cannot see what others have claimed since it began.',
                upper(current_setting('transaction_isolation'))),
            HINT = 'Claim and maintain in short READ COMMITTED transactions of their own.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq._read_committed() IS 'Raises PQ003 unless each statement sees the newest committed state';

-- The ring ------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._boot() RETURNS bigint
    LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT (date_part('epoch', pg_postmaster_start_time()) * 1000000)::bigint & 4294967295 $$;
COMMENT ON FUNCTION pgq._boot() IS
    'When this server started, the lowest 32 bits in microseconds. It tells a restored database from the original';

CREATE FUNCTION pgq._open_token(epoch bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT ((epoch >> 36) << 4) | (epoch & 15) $$;
COMMENT ON FUNCTION pgq._open_token(bigint) IS 'generation << 4 | slot of the segment that an epoch says is open';

CREATE FUNCTION pgq._by_age() RETURNS int[]
    LANGUAGE sql VOLATILE
AS $$
    SELECT array_agg(((a >> (4 * i)) & 15)::int ORDER BY i)
    FROM pg_sequence_last_value('pgq.age') a CROSS JOIN generate_series(0, 15) i
$$;
COMMENT ON FUNCTION pgq._by_age() IS 'The sixteen segments in the order in which they were last opened';

CREATE FUNCTION pgq._set_open(token bigint) RETURNS bigint
    LANGUAGE sql VOLATILE
AS $$
    SELECT setval('pgq.live', pg_sequence_last_value('pgq.live') | (1::bigint << (token & 15)::int));
    SELECT setval('pgq.age', bit_or(a.slot::bigint << (4 * (a.n - 1))::int))
    FROM unnest(array_remove(pgq._by_age(), (token & 15)::int) || (token & 15)::int) WITH ORDINALITY a (slot, n);
    SELECT setval('pgq.epoch', ((token >> 4) << 36) | (pgq._boot() << 4) | (token & 15));
$$;
COMMENT ON FUNCTION pgq._set_open(bigint) IS
    'Opens a segment, for everybody and at once, whatever becomes of this transaction; returns the epoch';

-- After each start of the server the first caller looks whether the transaction ids still mean what they meant. After
-- a restore into another cluster they do not: new jobs could sort before cursors that have passed. Then a fresh segment
-- is opened, and the old ones are claimed by their own order, all their transactions taken as ended.
CREATE FUNCTION pgq._adopt_alone() RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_epoch bigint := pg_sequence_last_value('pgq.epoch');
    v_here bigint := (SELECT c.system_identifier FROM pg_control_system() c);
    v_filled bigint := 0;
    v_slot int;
    v_free int;
    v_newest xid8;
    v_future boolean := false;
BEGIN
    IF (v_epoch >> 4) & 4294967295 = pgq._boot() THEN
        RETURN v_epoch;
    END IF;
    -- Lease numbers that were drawn and not yet on disk when the server crashed must not be drawn again, and this leap may
    -- not be on disk when it crashes next. So it goes to a number that no leap went to before: microseconds since 2026.
    PERFORM setval('pgq.lease_id', CASE WHEN n.clock > n.last THEN n.clock ELSE n.last + 1048576 END)
    FROM (
        SELECT ((date_part('epoch', clock_timestamp()) - 1767225600) * 1000000)::bigint AS clock,
            coalesce(pg_sequence_last_value('pgq.lease_id'), 0) AS last
    ) n;
    FOR v_turn IN REVERSE 16..1 LOOP  -- so that the free one next in the ring is the last one found
        v_slot := (v_epoch + v_turn) & 15;
        IF pg_relation_size(format('pgq.job_%s', v_slot)::regclass) = 0 THEN
            v_free := v_slot;
            CONTINUE;
        END IF;
        v_filled := v_filled | (1::bigint << v_slot);
        -- The newest rows are at the end of the heap.
        EXECUTE format(
            'SELECT j.xid FROM pgq.job_%s j WHERE j.ctid >= format(''(%%s,0)'', $1)::tid ORDER BY j.xid DESC LIMIT 1',
            v_slot)
        INTO v_newest
        USING greatest(pg_relation_size(format('pgq.job_%s', v_slot)::regclass) / 8192 - 4, 0);
        v_future := v_future OR coalesce(v_newest >= pg_snapshot_xmax(pg_current_snapshot()), false);
    END LOOP;
    -- A dump reads sequences a little later than tables: what has been claimed since is to be claimed again.
    PERFORM setval('pgq.live', pg_sequence_last_value('pgq.live') | v_filled);
    IF v_here = pg_sequence_last_value('pgq.system_identifier') AND NOT v_future THEN
        RETURN pgq._set_open(pgq._open_token(v_epoch));
    ELSIF v_free IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'this database was restored from another cluster and has no free segment for new jobs',
            DETAIL = 'All sixteen segments hold jobs whose transaction ids come from the other cluster.',
            HINT = 'Restore from a dump taken when fewer jobs were waiting.';
    END IF;
    PERFORM setval('pgq.restored', v_filled), setval('pgq.system_identifier', v_here);
    RETURN pgq._set_open((((v_epoch >> 36) + 1) << 4) | v_free);
END;
$$;
COMMENT ON FUNCTION pgq._adopt_alone() IS 'What pgq._adopt does while the ring stands still';

-- What _adopt_alone changes are sequences, which stay changed when it is undone; the lock is given back, at once and
-- not at the end of a transaction that may be a producer's and long.
CREATE FUNCTION pgq._adopt() RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_epoch bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(pgq._task_key(1));
    v_epoch := pgq._adopt_alone();
    RAISE SQLSTATE 'PQ000';
EXCEPTION WHEN SQLSTATE 'PQ000' THEN
    RETURN v_epoch;
END;
$$;
COMMENT ON FUNCTION pgq._adopt() IS 'Confirms or changes the open segment after a server start; returns the epoch';

-- The functions whose names end in _0 read the tables of segment 0 by name: a plan over the partitioned parent would
-- lock all sixteen segments each time and wait for the truncation of one that it does not need. _for_each_slot makes
-- the other fifteen from them, and one that chooses (EXECUTE would cost 10 to 20 us more).
--
-- A binary tree of IFs: PL/pgSQL prepares every expression that it meets anew in each transaction.
CREATE FUNCTION pgq._by_slot(slot text, statement text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_tree text[] := ARRAY(
        SELECT regexp_replace(statement, E'\\m([a-z_]+)_0\\M', E'\\1_' || n, 'g') FROM generate_series(0, 15) n
    );
    v_step int := 1;
BEGIN
    WHILE cardinality(v_tree) > 1 LOOP
        SELECT array_agg(format(E'IF %s < %s THEN\n%s\nELSE\n%s\nEND IF;', slot, (2 * i - 1) * v_step, v_tree[2 * i - 1],
            v_tree[2 * i]) ORDER BY i)
        INTO v_tree FROM generate_series(1, cardinality(v_tree) / 2) i;
        v_step := v_step * 2;
    END LOOP;
    RETURN v_tree[1];
END;
$$;
COMMENT ON FUNCTION pgq._by_slot(text, text) IS 'From a statement about segment 0 makes one that does it in the segment of a slot';

CREATE FUNCTION pgq._for_each_slot(function regprocedure) RETURNS void
    LANGUAGE plpgsql
AS $$
DECLARE
    v_code text := pg_get_functiondef(function);
    v_comment text := obj_description(function, 'pg_proc');
    v_types text := pg_get_function_identity_arguments(function);
    v_name text;
    v_call text;
    v_volatility text;
BEGIN
    SELECT regexp_replace(p.proname, '_0$', ''),
        format(CASE WHEN p.proretset THEN 'RETURN QUERY SELECT * FROM pgq.%I(%s);'
            WHEN p.prorettype = 'void'::regtype THEN 'PERFORM pgq.%I(%s);' ELSE 'RETURN pgq.%I(%s);' END,
            p.proname, array_to_string(p.proargnames, ', ')),
        CASE p.provolatile WHEN 's' THEN 'STABLE' ELSE 'VOLATILE' END
    INTO v_name, v_call, v_volatility FROM pg_proc p WHERE p.oid = function;
    FOR v_slot IN 1..15 LOOP
        EXECUTE regexp_replace(v_code, E'\\m([a-z_]+)_0\\M', E'\\1_' || v_slot, 'g');
        EXECUTE format('COMMENT ON FUNCTION pgq.%I(%s) IS %L', v_name || '_' || v_slot, v_types,
            replace(v_comment, 'segment 0', 'segment ' || v_slot));
    END LOOP;
    EXECUTE format('CREATE FUNCTION pgq.%I(%s) RETURNS %s LANGUAGE plpgsql %s AS %L', v_name,
        concat_ws(', ', 'slot int', nullif(v_types, '')), pg_get_function_result(function), v_volatility,
        format(E'BEGIN\n%s\nEND;', pgq._by_slot('slot', v_call)));
    EXECUTE format('COMMENT ON FUNCTION pgq.%I(%s) IS %L', v_name, concat_ws(', ', 'slot int', nullif(v_types, '')),
        replace(v_comment, 'segment 0', 'the segment in a slot'));
END;
$$;
COMMENT ON FUNCTION pgq._for_each_slot(regprocedure) IS
    'From a function for segment 0 makes those for 1 to 15, and the one that takes the slot as its first argument';

-- The hottest functions choose for themselves, which saves a call and a copy of the result: a statement below a line
-- "-- by slot: <expression>" becomes such a tree.
CREATE FUNCTION pgq._choose_slot(function regprocedure) RETURNS void
    LANGUAGE plpgsql
AS $$
DECLARE
    v_code text := pg_get_functiondef(function);
    v_match text[];
BEGIN
    LOOP
        v_match := regexp_match(v_code, E'(-- by slot: ([^\n]*)\n([^;]*;))');
        EXIT WHEN v_match IS NULL;
        v_code := replace(v_code, v_match[1], pgq._by_slot(v_match[2], v_match[3]));
    END LOOP;
    EXECUTE v_code;
END;
$$;
COMMENT ON FUNCTION pgq._choose_slot(regprocedure) IS
    'Makes a function that was written for segment 0 do the marked statements in the segment of a slot';

-- To insert jobs, hold the open segment: lock its job table as an INSERT does, then look whether it is still open.
-- Either the look shows that it was sealed meanwhile, or who seals it finds the lock and waits for its end.
CREATE FUNCTION pgq._lock_0() RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    LOCK TABLE pgq.job_0 IN ROW EXCLUSIVE MODE;
END;
$$;
COMMENT ON FUNCTION pgq._lock_0() IS 'Locks the job table of segment 0 as an INSERT does';

SELECT pgq._for_each_slot('pgq._lock_0()');

CREATE FUNCTION pgq._hold() RETURNS int
    LANGUAGE plpgsql
AS $$
DECLARE
    v_epoch bigint;
BEGIN
    LOOP
        v_epoch := pg_sequence_last_value('pgq.epoch');
        IF (v_epoch >> 4) & 4294967295 <> pgq._boot() THEN
            v_epoch := pgq._adopt();
        END IF;
        PERFORM pgq._lock((v_epoch & 15)::int);
        IF pg_sequence_last_value('pgq.epoch') = v_epoch THEN
            RETURN v_epoch & 15;
        END IF;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq._hold() IS 'The slot of the open segment, held so that what is inserted into it will be found';

-- One lease, read from the tables of its segment ----------------------------------------------------------------------

CREATE TYPE pgq.attempt AS (
    id bigint,
    lease bigint,
    lane bigint,
    enqueued_at timestamptz,
    claimed_at timestamptz,
    attempt int,
    max_attempts int,
    worker text,
    task text,
    payload jsonb,
    headers jsonb,
    history jsonb
);
COMMENT ON TYPE pgq.attempt IS 'A claimed attempt with all that is needed to make the next one';
COMMENT ON COLUMN pgq.attempt.id IS 'Job id';
COMMENT ON COLUMN pgq.attempt.lease IS 'The lease that holds it';
COMMENT ON COLUMN pgq.attempt.lane IS 'Lane that it was claimed from';
COMMENT ON COLUMN pgq.attempt.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.attempt.claimed_at IS 'When it was claimed';
COMMENT ON COLUMN pgq.attempt.attempt IS 'Number of this attempt, from 1';
COMMENT ON COLUMN pgq.attempt.max_attempts IS 'Attempts allowed; null: what the queue says';
COMMENT ON COLUMN pgq.attempt.worker IS 'Who claimed it';
COMMENT ON COLUMN pgq.attempt.task IS 'What to do';
COMMENT ON COLUMN pgq.attempt.payload IS 'Arguments';
COMMENT ON COLUMN pgq.attempt.headers IS 'Metadata';
COMMENT ON COLUMN pgq.attempt.history IS 'Errors of earlier attempts';

CREATE FUNCTION pgq._attempts_0(ids bigint[], leases bigint[]) RETURNS SETOF pgq.attempt
    LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    SELECT a.id, l.id, l.lane, j.enqueued_at, l.claimed_at, j.attempt::int, j.max_attempts::int, l.worker,
        j.task, j.payload, j.headers, j.history
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
COMMENT ON FUNCTION pgq._attempts_0(bigint[], bigint[]) IS 'The attempts that these leases of segment 0 hold or held';

SELECT pgq._for_each_slot('pgq._attempts_0(bigint[],bigint[])');

CREATE FUNCTION pgq._attempts(ids bigint[], leases bigint[]) RETURNS SETOF pgq.attempt
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
            s.task, s.payload, s.headers, s.history
        FROM unnest(ids, leases) u (id, lease)
        JOIN pgq.straggler s ON s.id = u.id AND s.lease = u.lease AND s.kind IS NULL
    ) a;
END;
$$;
COMMENT ON FUNCTION pgq._attempts(bigint[], bigint[]) IS 'The attempts that these leases hold or held, stragglers too';
-- enqueue, enqueue_many, and the wake-up of idle workers.
-- Tables: reads queue, line, epoch; appends to job, or to scheduled if it is for later; adds to line on first use.

-- A sleeping worker holds the queue's watch lock in shared mode, so trying for it in exclusive mode tells whether there
-- is one, without a table that every idle worker would keep writing to. Two producers that try in the same microsecond
-- look like a worker to each other; looking twice more makes that rare, and it is harmless: one NOTIFY too many.
-- If nobody began to wait during the last minute, they do not try at all: the lock is hot.
-- NOTIFY takes a lock of the whole cluster at commit, so it is sent only if somebody waits.
CREATE FUNCTION pgq._wake(queue_id int, queue text) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    IF pg_sequence_last_value('pgq.watched') <= date_part('epoch', pgq._now()) - 60 THEN
        RETURN;
    END IF;
    FOR v_look IN 1..3 LOOP
        IF pg_try_advisory_lock(pgq._watch_key(queue_id)) AND pg_advisory_unlock(pgq._watch_key(queue_id)) THEN
            RETURN;
        END IF;
    END LOOP;
    IF pg_notification_queue_usage() < 0.5 AND (SELECT q.notify FROM pgq.queue q WHERE q.id = queue_id) THEN
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

-- Priority 0 is in use from the beginning.
CREATE FUNCTION pgq._add_line(lane bigint) RETURNS void
    LANGUAGE plpgsql
AS $$
DECLARE
    v_line CONSTANT bigint := (lane & ~255::bigint) | CASE WHEN lane & 255 = 0 THEN 0 ELSE 1 END;
BEGIN
    INSERT INTO pgq.line AS l (lane, queue_id)
    SELECT v_line, v_line >> 16
    WHERE NOT EXISTS (SELECT FROM pgq.line l WHERE l.queue_id = v_line >> 16 AND l.lane = v_line);
END;
$$;
COMMENT ON FUNCTION pgq._add_line(bigint) IS 'Makes sure that claims look at the line of a lane';

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
    IF unique_key IS NOT NULL OR group_key IS NOT NULL THEN
        PERFORM pgq._not_yet(CASE WHEN unique_key IS NOT NULL THEN 'unique_key' ELSE 'group_key' END);
    END IF;
    RETURN (
        SELECT e FROM pgq.enqueue_many(queue, ARRAY[payload], task, priority, run_at, delay, max_attempts, NULL, headers) e
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
    SELECT q.id, q.shards INTO v_queue, v_shards FROM pgq.queue q WHERE q.name = enqueue.queue;
    IF v_queue IS NULL THEN
        PERFORM pgq._find_queue(queue);
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
    'Raises PQ002 if there is no such queue, 22023 and 22004 for bad arguments';

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
    v_slot int;
    v_queue pgq.queue;
BEGIN
    PERFORM pgq._check_job(priority, max_attempts, headers);
    PERFORM pgq._require('payloads', payloads IS NOT NULL OR NULL, 'an array of JSON');
    PERFORM pgq._require('each of payloads', array_position(payloads, NULL) IS NULL OR NULL,
        'JSON; the JSON null is written ''null''');
    IF group_keys IS NOT NULL THEN
        PERFORM pgq._not_yet('group_keys');
    END IF;
    run_at := pgq._due(run_at, delay);
    IF run_at > pgq._now() THEN
        RETURN QUERY SELECT * FROM pgq._schedule(queue, payloads, task, priority, run_at, max_attempts, headers);
        RETURN;
    END IF;

    v_slot := pgq._hold();
    v_queue := pgq._producing(queue);
    IF cardinality(payloads) = 0 THEN
        RETURN;
    END IF;
    IF priority <> 0 THEN
        PERFORM pgq._add_line(pgq._lane(v_queue.id, priority, 1));
    END IF;
    v_ids := ARRAY(SELECT nextval('pgq.job_id') FROM generate_series(1, cardinality(payloads)));
    INSERT INTO pgq.job (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers)
    SELECT pgq._lane(v_queue.id, enqueue_many.priority, (u.id % v_queue.shards)::int + 1), pg_current_xact_id(), u.id,
        pgq._now(), v_slot, 1, enqueue_many.max_attempts, enqueue_many.task, u.payload, enqueue_many.headers
    FROM unnest(v_ids, payloads) u (id, payload);
    PERFORM pgq._wake(v_queue.id, queue);
    RETURN QUERY SELECT u.id FROM unnest(v_ids) u (id);
END;
$$;
COMMENT ON FUNCTION pgq.enqueue_many(text, jsonb[], text, int, timestamptz, interval, int, text[], jsonb) IS
    'Adds one job per payload, as pgq.enqueue does, and returns their ids in the order of payloads';

CREATE FUNCTION pgq._schedule(
    queue text, payloads jsonb[], task text, priority int, run_at timestamptz, max_attempts int, headers jsonb
) RETURNS SETOF bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_queue pgq.queue;
BEGIN
    PERFORM pgq._hold();
    v_queue := pgq._producing(queue);
    RETURN QUERY
    INSERT INTO pgq.scheduled AS s (run_at, id, lane, enqueued_at, attempt, max_attempts, task, payload, headers)
    SELECT _schedule.run_at, u.id, pgq._lane(v_queue.id, _schedule.priority, (u.id % v_queue.shards)::int + 1),
        pgq._now(), 1, _schedule.max_attempts, _schedule.task, u.payload, _schedule.headers
    FROM (SELECT nextval('pgq.job_id'), p.payload FROM unnest(payloads) p (payload)) u (id, payload)
    RETURNING s.id;
END;
$$;
COMMENT ON FUNCTION pgq._schedule(text, jsonb[], text, int, timestamptz, int, jsonb) IS
    'Keeps jobs until they are due; returns their ids in the order of payloads';
-- claim, and the ways an attempt ends: ack, reject, release; extend in between.
-- Tables: reads queue, line, ring, job, lease; appends to lease and outcome. A retry goes to scheduled, a failure for
-- good to dead, a released job to the front of the line.

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
    v_live bigint := pg_sequence_last_value('pgq.live') | (1::bigint << (pg_sequence_last_value('pgq.epoch') & 15)::int);
BEGIN
    RETURN ARRAY(SELECT s FROM unnest(pgq._by_age()) WITH ORDINALITY a (s, n) WHERE (v_live >> s) & 1 = 1 ORDER BY n);
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
    IF v_done THEN
        RETURN;
    END IF;
    PERFORM pgq._settle_many(ARRAY[id], ARRAY[lease], '{done}', ARRAY[result], NULL);
    IF NOT FOUND THEN
        PERFORM pgq._lost(id, lease);
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
    JOIN pgq.lease_0 l ON l.id = g.lease AND l.job_ids = g.ids AND pgq._whole(l.job_ids)
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
BEGIN
    IF array_dims(leases) = array_dims(ids) AND leases[1] = ALL (leases)
        AND (results IS NULL OR array_dims(results) = array_dims(ids))
    THEN
        -- by slot: v_slot
        v_done := pgq._done_0(ids, leases[1], results);
        IF v_done THEN
            RETURN QUERY SELECT unnest(ids);
            RETURN;
        END IF;
    ELSE
        PERFORM pgq._same_length(ids, leases, cardinality(results));
        v_whole := ARRAY(
            SELECT d FROM (SELECT DISTINCT (u.lease & 15)::int AS slot FROM unnest(leases) u (lease) WHERE u.lease IS NOT NULL) s,
                pgq._done_each(s.slot, ids, leases, results) d
        );
        RETURN QUERY SELECT u.id FROM unnest(ids, leases) u (id, lease) WHERE u.lease = ANY (v_whole);
    END IF;
    RETURN QUERY
    SELECT s.id
    FROM (
        SELECT array_agg(u.id) AS ids, array_agg(u.lease) AS leases, array_agg(u.result) AS results
        FROM unnest(ids, leases, results) u (id, lease, result)
        WHERE (u.lease = ANY (v_whole)) IS NOT TRUE
    ) u, pgq._settle_many(u.ids, u.leases, '{done}', u.results, NULL) s;
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
        SELECT DISTINCT a.lane & ~255::bigint AS lane FROM pgq._attempts(ids, leases) a
    ) l JOIN pgq.queue q ON q.id = l.lane >> 16;
END;
$$;
COMMENT ON FUNCTION pgq._open_front(bigint[], bigint[]) IS
    'Makes claims look at the front lanes that these attempts are about to join, and wakes who waits for them';

-- Ends attempts as failed. Each gets its error on record and another attempt, or becomes a dead letter. `retry_in`
-- null: backoff. `expired`: the worker was lost, so another may begin at once, at the front of the line.
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
            q.id IS NOT NULL AS known,
            coalesce(retry AND a.attempt < coalesce(a.max_attempts, q.max_attempts) AND q.id IS NOT NULL, false) AS again,
            CASE WHEN a.lane & 255 = 0 THEN a.lane | (a.id % q.shards + 1) ELSE a.lane END AS home,
            coalesce(a.history, '[]') || jsonb_build_object('attempt', a.attempt, 'at', pgq._now(),
                'error', left(u.error, 10000), 'worker', a.worker) AS errors
        FROM pgq._attempts(ids, leases) a
        JOIN (
            SELECT DISTINCT ON (u.id, u.lease) * FROM unnest(ids, leases, errors) u (id, lease, error)
        ) u ON u.id = a.id AND u.lease = a.lease
        LEFT JOIN pgq.queue q ON q.id = a.lane >> 16
    ), ended AS MATERIALIZED (
        SELECT s.id, s.lease FROM (
            SELECT array_agg(f.id) AS ids, array_agg(f.lease) AS leases, array_agg(f.error) AS errors, array_agg(
                CASE WHEN expired THEN 'expired' WHEN f.again THEN 'retry' ELSE 'dead' END::pgq.outcome_kind
            ) AS kinds
            FROM failed f
        ) f, pgq._settle_many(f.ids, f.leases, f.kinds, NULL, f.errors) s
    ), waiting AS (
        INSERT INTO pgq.scheduled (run_at, id, lane, enqueued_at, attempt, max_attempts, task, payload, headers, history)
        SELECT pgq._now() + coalesce(retry_in, pgq._backoff(f.backoff, f.backoff_max, f.attempt)), f.id,
            f.home, f.enqueued_at, f.attempt + 1, f.max_attempts, f.task, f.payload, f.headers, f.errors
        FROM failed f JOIN ended e ON e.id = f.id AND e.lease = f.lease
        WHERE f.again AND NOT expired
    ), ready AS (
        INSERT INTO pgq.job (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers, history)
        SELECT f.lane & ~255::bigint, pg_current_xact_id(), f.id, f.enqueued_at, v_slot, f.attempt + 1, f.max_attempts,
            f.task, f.payload, f.headers, f.errors
        FROM failed f JOIN ended e ON e.id = f.id AND e.lease = f.lease
        WHERE f.again AND expired
    ), buried AS (
        INSERT INTO pgq.dead (id, lane, enqueued_at, died_at, attempt, max_attempts, task, payload, headers, history, error)
        SELECT f.id, f.lane, f.enqueued_at, pgq._now(), f.attempt, f.max_attempts, f.task, f.payload, f.headers, f.errors,
            f.error
        FROM failed f JOIN ended e ON e.id = f.id AND e.lease = f.lease
        WHERE NOT f.again AND f.known
    )
    SELECT f.id, CASE WHEN f.again THEN 'retry' ELSE 'dead' END::pgq.outcome_kind
    FROM failed f JOIN ended e ON e.id = f.id AND e.lease = f.lease;
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
    'a dead letter when its attempts are used up or retry is false. Returns ''retry'' or ''dead''. Raises PQ001 if the lease '
    'is lost, 22023';

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
        SELECT * FROM pgq._attempts(ids, leases)
    ), ended AS MATERIALIZED (
        SELECT s.id, s.lease
        FROM (SELECT array_agg(h.id) AS ids, array_agg(h.lease) AS leases FROM held h) h,
            pgq._settle_many(h.ids, h.leases, '{released}', NULL, NULL) s
    )
    INSERT INTO pgq.job AS j (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers, history)
    SELECT h.lane & ~255::bigint, pg_current_xact_id(), h.id, h.enqueued_at, v_slot, h.attempt, h.max_attempts,
        h.task, h.payload, h.headers, h.history
    FROM held h JOIN ended e ON e.id = h.id AND e.lease = h.lease
    RETURNING j.id;
END;
$$;
COMMENT ON FUNCTION pgq.release(bigint[], bigint[]) IS
    'Gives claimed jobs back unworked, to the front of the line; the attempt does not count. Returns the ids that took effect';

CREATE FUNCTION pgq.snooze(id bigint, lease bigint, delay interval) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._not_yet('snooze');
END;
$$;
COMMENT ON FUNCTION pgq.snooze(bigint, bigint, interval) IS 'Reserved: raises 0A000';

CREATE FUNCTION pgq.cancel(id bigint) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._not_yet('cancel');
END;
$$;
COMMENT ON FUNCTION pgq.cancel(bigint) IS 'Reserved: raises 0A000';

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
BEGIN
    PERFORM pgq._read_committed();
    IF NOT pg_try_advisory_xact_lock(pgq._task_key(3)) THEN
        RETURN 0;
    END IF;
    v_since := CASE WHEN pgq._due_again('promote-all', '1 minute') THEN '-infinity'::timestamptz ELSE pgq._marked('promote') END;
    PERFORM FROM pgq.scheduled s WHERE s.run_at >= v_since AND s.run_at <= v_now ORDER BY s.run_at LIMIT 1;
    IF NOT FOUND THEN
        RETURN 0;
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
        INSERT INTO pgq.job (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers, history)
        SELECT g.lane, pg_current_xact_id(), g.id, g.enqueued_at, v_slot, g.attempt, g.max_attempts, g.task, g.payload,
            g.headers, g.history
        FROM gone g JOIN pgq.queue q ON q.id = g.lane >> 16
    )
    SELECT array_agg(DISTINCT g.lane & ~255::bigint), max(g.run_at), count(*) INTO v_lanes, v_last, v_count FROM gone g;
    IF v_count > 0 THEN
        PERFORM pgq._add_line(l.lane | 1), pgq._wake(q.id, q.name)
        FROM unnest(v_lanes) l (lane) JOIN pgq.queue q ON q.id = l.lane >> 16;
        PERFORM pgq._set_mark('promote', CASE WHEN v_count < v_batch THEN v_now ELSE v_last END);
    END IF;
    RETURN v_count;
END;
$$;
COMMENT ON FUNCTION pgq.promote() IS
    'Makes scheduled jobs and retries ready that are due, up to 10000 at a time; returns how many. Raises PQ003';

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
    EXECUTE format('CREATE TABLE pgq.%I (LIKE pgq.archive INCLUDING COMMENTS)', v_name);
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
CREATE FUNCTION pgq._archive_segment(slot int) RETURNS boolean
    LANGUAGE plpgsql SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET lock_timeout = '50ms'
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
    IF NOT EXISTS (SELECT FROM pgq.queue q WHERE q.retention > '0') THEN
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
            SELECT e.id, l.id, j.enqueued_at, l.claimed_at, o.at, o.at + q.retention, o.kind, j.attempt,
                pgq._priority(l.lane), q.name, l.worker, j.task, j.payload, j.headers, e.result, o.error
            FROM pgq.outcome_%1$s o
            JOIN pgq.lease_%1$s l ON l.id = o.lease_id AND l.job_ids IS NOT NULL
            JOIN pgq.queue q ON q.id = l.lane >> 16
            CROSS JOIN LATERAL (
                SELECT o.job_id AS id, o.result WHERE o.job_id > 0
                UNION ALL
                SELECT u.id, u.result FROM unnest(l.job_ids, o.results) u (id, result) WHERE o.job_id = 0
            ) e
            CROSS JOIN LATERAL (
                SELECT * FROM pgq.job_%1$s j
                WHERE j.id = e.id AND j.lane + 0 = l.lane
                    AND j.attempt = CASE WHEN l.attempts IS NULL THEN 1 ELSE l.attempts[array_position(l.job_ids, e.id)] END
                ORDER BY j.xid > l.cursor_xid, j.xid DESC
                LIMIT 1
            ) j
            WHERE o.ctid > $1 AND o.ctid <= $2
                AND q.retention > '0' AND o.kind NOT IN ('released', 'carried', 'moved', 'split')
        $sql$, slot)
        USING v_after, v_last;
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
    -- Jobs of the claiming transaction itself would be visible, and taken too early: it may still roll back.
    IF v_own IS NOT NULL THEN
        v_running := v_running || v_own;
    END IF;
    RETURN v_running;
END;
$$;
COMMENT ON FUNCTION pgq._running(pg_snapshot) IS 'Transactions that have not ended, the caller''s own included';

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
        IF NOT pg_try_advisory_xact_lock(pgq._lane_key(lane & ~255::bigint)) THEN
            RETURN 0;
        END IF;
        PERFORM pgq._add_line(lane & ~255::bigint);
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
        INSERT INTO pgq.job (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers, history)
        SELECT a.lane & ~255::bigint, pg_current_xact_id(), a.id, a.enqueued_at, _carry.slot, a.attempt, a.max_attempts,
            a.task, a.payload, a.headers, a.history
        FROM pgq._attempts(ids, leases) a;
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
        payload, headers, history)
    SELECT h.id, h.lease, h.lane, h.enqueued_at, h.claimed_at, pgq._expiry(slot, h.lease), h.attempt, h.max_attempts,
        h.worker, h.task, h.payload, h.headers, h.history
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
    SELECT n, token >> 4, 'sealed', pgq._now()
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
    WHERE q.retention > '0' AND g.kind <> 'released';
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
        SELECT l.slot, l.lane, l.lane & ~255::bigint AS front, array_position(pgq._by_age(), l.slot::int) AS age
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
        PERFORM pgq._archive_drop();
        DELETE FROM pgq.line l USING pgq.line d
        WHERE d.queue_id = l.queue_id AND d.lane = l.lane AND d.ctid < l.ctid;
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
    v_promoted bigint := pgq.promote();
    v_reaped bigint := pgq.reap();
BEGIN
    RETURN v_done || jsonb_build_object('promoted', v_promoted, 'reaped', v_reaped, 'more',
        v_promoted >= 10000 OR v_reaped >= 10000 OR coalesce((v_done -> 'more')::boolean, false));
END;
$$;
COMMENT ON FUNCTION pgq.maintain() IS
    'Does what is due: pgq.promote, pgq.reap, pgq.rotate. Call it about once a second, from anywhere; workers do. Returns '
    'what was done; "more": true if it is worth calling again at once. Raises PQ003';
-- Recurring jobs, and one node at a time: reserved.

CREATE FUNCTION pgq.schedule(
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
BEGIN
    PERFORM pgq._not_yet('schedule');
END;
$$;
COMMENT ON FUNCTION pgq.schedule(text, text, text, jsonb, text, text, text) IS 'Reserved: raises 0A000';

CREATE FUNCTION pgq.unschedule(name text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._not_yet('unschedule');
END;
$$;
COMMENT ON FUNCTION pgq.unschedule(text) IS 'Reserved: raises 0A000';

CREATE FUNCTION pgq.try_exclusive(name text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._not_yet('try_exclusive');
END;
$$;
COMMENT ON FUNCTION pgq.try_exclusive(text) IS 'Reserved: raises 0A000';
-- Queues, dead letters, waiting workers.

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

-- Waits for those who are claiming, so that nothing is left.
CREATE FUNCTION pgq._clear_queue(queue pgq.queue) RETURNS bigint
    LANGUAGE plpgsql SET lock_timeout = '5s'
AS $$
DECLARE
    v_live bigint := pg_sequence_last_value('pgq.live');
    v_lane bigint;
    v_count bigint;
    v_total bigint := 0;
BEGIN
    FOR v_lane IN
        SELECT DISTINCT (l.lane & ~255::bigint) | s
        FROM pgq.line l CROSS JOIN generate_series(0, queue.lanes) s
        WHERE l.queue_id = queue.id
        ORDER BY 1
    LOOP
        PERFORM pg_advisory_xact_lock(pgq._lane_key(v_lane));
        FOR v_slot IN 0..15 LOOP
            CONTINUE WHEN (v_live >> v_slot) & 1 = 0;
            LOOP
                v_count := pgq._clear_lane(v_slot, v_lane, 10000, 'cancelled');
                v_total := v_total + v_count;
                EXIT WHEN v_count < 10000;
            END LOOP;
        END LOOP;
    END LOOP;
    DELETE FROM pgq.scheduled s WHERE s.lane >> 16 = queue.id;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_total + v_count;
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
    'Cancels every waiting, scheduled and retrying job of a queue and returns how many; running ones and dead letters stay. '
    'Raises PQ002, PQ003, 55P03 if a claiming transaction does not end within five seconds';

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
    PERFORM pg_advisory_xact_lock(pgq._lane_key((l.lane & ~255::bigint) | s))
    FROM (SELECT DISTINCT l.lane FROM pgq.line l WHERE l.queue_id = v_queue.id) l
    CROSS JOIN generate_series(0, v_queue.lanes) s;
    SELECT coalesce(sum(s.ready + s.scheduled + s.retrying + s.dead), 0)
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
    FOR v_slot IN 0..15 LOOP
        CONTINUE WHEN pg_relation_size(format('pgq.lease_%s', v_slot)::regclass) = 0;
        SELECT array_agg(r.id), array_agg(r.lease) INTO v_ids, v_leases FROM pgq._running(v_slot, v_queue.id) r;
        PERFORM pgq._settle_many(v_ids, v_leases, '{cancelled}', NULL, NULL);
    END LOOP;
    UPDATE pgq.straggler s SET kind = 'cancelled', finished_at = pgq._now() WHERE s.lane >> 16 = v_queue.id AND s.kind IS NULL;
    DELETE FROM pgq.dead d WHERE d.lane >> 16 = v_queue.id;
    DELETE FROM pgq.line l WHERE l.queue_id = v_queue.id;
    DELETE FROM pgq.queue q WHERE q.id = v_queue.id;
END;
$$;
COMMENT ON FUNCTION pgq.drop_queue(text, boolean) IS
    'Drops a queue. With force also if it has jobs: they are cancelled, running ones too, and its dead letters deleted. '
    'Raises PQ005 if it is not empty, PQ002, PQ003, 55P03 if a transaction that enqueues does not end within five seconds';

-- Dead letters --------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq.redrive(queue text, ids bigint[] DEFAULT NULL) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_slot int := pgq._hold();
    v_queue pgq.queue := pgq._producing(queue);
    v_count bigint;
BEGIN
    WITH gone AS (
        DELETE FROM pgq.dead d
        WHERE d.lane >> 16 = v_queue.id AND (redrive.ids IS NULL OR d.id = ANY (redrive.ids))
        RETURNING d.*
    )
    INSERT INTO pgq.job (lane, xid, id, enqueued_at, slot, attempt, max_attempts, task, payload, headers, history)
    SELECT pgq._lane(v_queue.id, pgq._priority(g.lane), (g.id % v_queue.shards)::int + 1), pg_current_xact_id(), g.id,
        g.enqueued_at, v_slot, 1, g.max_attempts, g.task, g.payload, g.headers, g.history
    FROM gone g;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    IF v_count > 0 THEN
        PERFORM pgq._wake(v_queue.id, queue);
    END IF;
    RETURN v_count;
END;
$$;
COMMENT ON FUNCTION pgq.redrive(text, bigint[]) IS
    'Sends dead letters of a queue back to work, all or those with these ids, with all their attempts before them; their '
    'history stays. Returns how many. Raises PQ002';

-- Waiting workers -----------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq.watch(queues text[]) RETURNS timestamptz
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off
AS $$
DECLARE
    v_ids int[];
BEGIN
    PERFORM pgq._require('queues', queues IS NOT NULL OR NULL, 'an array of names of queues');
    PERFORM pgq._find_queue(u.name) FROM unnest(queues) u (name);
    PERFORM pg_advisory_lock_shared(pgq._watch_key(q.id)) FROM pgq.queue q WHERE q.name = ANY (queues) AND q.notify;
    IF pg_sequence_last_value('pgq.watched') < date_part('epoch', pgq._now()) - 5 THEN
        PERFORM setval('pgq.watched', date_part('epoch', pgq._now())::bigint);
    END IF;
    v_ids := ARRAY(SELECT q.id FROM pgq.queue q WHERE q.name = ANY (queues));
    RETURN (
        SELECT min(n.run_at)
        FROM unnest(v_ids) q (id)
        CROSS JOIN LATERAL (
            SELECT s.run_at FROM pgq.scheduled s
            WHERE s.lane >> 16 = q.id AND s.run_at >= pgq._marked('promote')
            ORDER BY s.run_at LIMIT 1
        ) n
    );
END;
$$;
COMMENT ON FUNCTION pgq.watch(text[]) IS
    'Registers this session as waiting for jobs of these queues, until pgq.unwatch or its end: enqueue then notifies channel '
    '"pgq", payload the queue''s name. LISTEN pgq first, watch, claim once more, then sleep. Returns when the next scheduled '
    'job of these queues is due. If nobody watches anew for a minute, producers stop looking: unwatch and watch again before. '
    'Needs a session of its own: not for transaction pooling. Raises PQ002';

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
-- Who may do what. Nothing is granted to PUBLIC; the functions run with the rights of their owner, so nobody else needs
-- any on the tables.

REVOKE ALL ON SCHEMA pgq FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA pgq FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgq FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgq FROM PUBLIC;
-- Who may use a type may make a table of it, and then it can be neither changed nor dropped.
DO $$
DECLARE
    v_type regtype;
BEGIN
    FOR v_type IN SELECT t.oid FROM pg_type t WHERE t.typnamespace = 'pgq'::regnamespace AND t.typelem = 0 LOOP
        EXECUTE format('REVOKE ALL ON TYPE %s FROM PUBLIC', v_type);
    END LOOP;
END;
$$;

CREATE FUNCTION pgq._grant(role regrole, functions regproc[]) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pgq._require('role', role IS NOT NULL OR NULL, 'the name of a role');
    EXECUTE format('GRANT USAGE ON SCHEMA pgq TO %s', role);
    EXECUTE (
        SELECT string_agg(format('GRANT EXECUTE ON FUNCTION %s TO %s', f::regprocedure, role), '; ')
        FROM unnest(functions) f
    );
END;
$$;
COMMENT ON FUNCTION pgq._grant(regrole, regproc[]) IS 'Lets a role call functions';
REVOKE ALL ON FUNCTION pgq._grant(regrole, regproc[]) FROM PUBLIC;

CREATE FUNCTION pgq.grant_producer(role regrole) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._grant(role, '{pgq.enqueue, pgq.enqueue_many, pgq.version}');
END;
$$;
COMMENT ON FUNCTION pgq.grant_producer(regrole) IS 'Lets a role enqueue';
REVOKE ALL ON FUNCTION pgq.grant_producer(regrole) FROM PUBLIC;

CREATE FUNCTION pgq.grant_consumer(role regrole) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._grant(role, '{
        pgq.claim, pgq.ack, pgq.ack_many, pgq.reject, pgq.reject_many, pgq.extend, pgq.extend_many, pgq.release, pgq.snooze,
        pgq.watch, pgq.unwatch, pgq.maintain, pgq.promote, pgq.reap, pgq.rotate, pgq.try_exclusive, pgq.version, pgq._now
    }');
END;
$$;
COMMENT ON FUNCTION pgq.grant_consumer(regrole) IS 'Lets a role claim and settle jobs, and do the maintenance';
REVOKE ALL ON FUNCTION pgq.grant_consumer(regrole) FROM PUBLIC;

CREATE FUNCTION pgq.grant_admin(role regrole) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq.grant_producer(role);
    PERFORM pgq.grant_consumer(role);
    PERFORM pgq._grant(role, '{
        pgq.create_queue, pgq.alter_queue, pgq.drop_queue, pgq.pause, pgq.resume, pgq.purge, pgq.redrive, pgq.cancel,
        pgq.schedule, pgq.unschedule, pgq.job_status, pgq.stats, pgq.doctor,
        pgq.grant_producer, pgq.grant_consumer, pgq.grant_admin
    }');
    EXECUTE format('GRANT SELECT ON pgq.queue_stats, pgq.archive TO %s', role);
END;
$$;
COMMENT ON FUNCTION pgq.grant_admin(regrole) IS
    'Lets a role do all that producers and consumers do, manage queues, read the archive, and grant these rights';
REVOKE ALL ON FUNCTION pgq.grant_admin(regrole) FROM PUBLIC;
-- Only in the extension: what a dump must contain besides CREATE EXTENSION.

DO $$
DECLARE
    v_relation regclass;
BEGIN
    FOR v_relation IN
        SELECT c.oid::regclass FROM pg_class c
        WHERE c.relnamespace = 'pgq'::regnamespace AND c.relkind IN ('r', 'S')
            -- Not the partitions of the archive, which are made at run time.
            AND EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
        ORDER BY c.oid
    LOOP
        PERFORM pg_extension_config_dump(v_relation, '');
    END LOOP;
END;
$$;
