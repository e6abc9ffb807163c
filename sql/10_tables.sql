-- Every table, its constraints and indexes.
--
-- Append-only, in a ring of sixteen segments: job, lease, outcome.
-- Small and mutable, for those who use the feature: scheduled, dead, straggler, unique_key, parked, parked_group,
-- permit, start, dependent, dependency, ended, cancel_request, progress, schedule.
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
AS $$ SELECT (nextval('pgq.lease_id') << 12) | (floor(random() * 128)::bigint << 5) | slot $$;
COMMENT ON FUNCTION pgq._new_lease(int) IS
    'A new lease id: it grows, its lowest four bits are the segment''s slot, and the fifth says that its jobs have permits';

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

CREATE SEQUENCE pgq.watched MINVALUE 0;
COMMENT ON SEQUENCE pgq.watched IS 'When a session last began to wait for jobs, in seconds';

SELECT setval('pgq.epoch', 0), setval('pgq.live', 1), setval('pgq.restored', 0), setval('pgq.dropping', 0),
    setval('pgq.watched', 0), setval('pgq.awaited', 0), setval('pgq.waited_on', 0),
    setval('pgq.looked_after', 0), setval('pgq.first_waiting', 0),
    setval('pgq.age', -81985529216486896),  -- 0xFEDCBA9876543210
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
    validator text,
    unique_until text DEFAULT 'finished',
    unique_for interval,
    on_repeat text NOT NULL DEFAULT 'keep',
    running_limit int,
    group_limit int DEFAULT 1,
    rate int,
    rate_period interval,
    group_rate int,
    group_period interval,
    fair boolean NOT NULL DEFAULT false,
    keep_place boolean NOT NULL DEFAULT true,
    CONSTRAINT queue_id_pkey PRIMARY KEY (id),
    CONSTRAINT queue_name_key UNIQUE (name),
    CONSTRAINT queue_name_check CHECK (length(name) BETWEEN 1 AND 128),
    CONSTRAINT queue_lease_check CHECK (lease > '0'),
    CONSTRAINT queue_max_attempts_check CHECK (max_attempts > 0),
    CONSTRAINT queue_backoff_check CHECK (backoff >= '0' AND backoff_max >= backoff),
    CONSTRAINT queue_retention_check CHECK (retention >= '0'),
    CONSTRAINT queue_shards_check CHECK (shards BETWEEN 1 AND 64 AND lanes >= shards),
    CONSTRAINT queue_unique_check CHECK (num_nonnulls(unique_until, unique_for) = 1),
    CONSTRAINT queue_unique_until_check CHECK (unique_until IN ('finished', 'claimed')),
    CONSTRAINT queue_unique_for_check CHECK (unique_for > '0'),
    CONSTRAINT queue_on_repeat_check CHECK (on_repeat IN ('keep', 'replace', 'debounce')),
    CONSTRAINT queue_limits_check CHECK (running_limit > 0 AND group_limit > 0),
    CONSTRAINT queue_rate_check CHECK (rate > 0 AND rate_period > '0'),
    CONSTRAINT queue_group_rate_check CHECK (group_rate > 0 AND group_period > '0')
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

-- A lane is one queue, one priority, one shard; its id says which: queue << 16 | (priority + 128) << 8 | shard. Shard 0
-- is the front of the line: released, expired and carried jobs, taken before all others of their priority. What was
-- taken back lies in its lane | 128, where nobody claims from. Three more lanes are the gate's (44_groups).
--
-- Lanes need no rows. What claims must know is which priorities are in use: a line is the front lane of one, all its
-- shards, or a lane of the gate. Producers add it on first use, without a unique constraint, so that they never wait
-- for each other; a line that is listed twice is looked at twice until pgq.maintain removes the second row. A row is
-- for jobs in a few segments only, and who adds a job to a later one adds the line again. So pgq.maintain can forget
-- lines that nobody uses any more without asking what producers are about to do.
CREATE TABLE pgq.line (
    lane bigint NOT NULL,
    queue_id int NOT NULL,
    until bigint NOT NULL
);
CREATE INDEX line_queue_id_lane_idx ON pgq.line (queue_id, lane);
COMMENT ON TABLE pgq.line IS 'Lines in use: for each queue and priority the front lane, all shards, or one of the gate''s';
COMMENT ON COLUMN pgq.line.lane IS 'The front lane, the first of the shards, or a lane of the gate; -1: claims of this queue go through the gate';
COMMENT ON COLUMN pgq.line.queue_id IS 'The queue';
COMMENT ON COLUMN pgq.line.until IS 'Generation of the last segment whose jobs it is for; 9223372036854775807: no last one';

-- The ring ------------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.outcome_kind AS ENUM (
    'done', 'retry', 'dead', 'expired', 'released', 'cancelled', 'carried', 'moved', 'split', 'snoozed'
);
COMMENT ON TYPE pgq.outcome_kind IS
    'How an attempt ended; carried: put elsewhere unworked, into a younger segment for instance, moved: now in pgq.straggler, split: not an end';

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
    history jsonb,
    group_key text
) PARTITION BY LIST (slot);
COMMENT ON TABLE pgq.job IS 'One row per attempt that may be claimed. Truncated by segment, never deleted; updated only to take a job '
    'back, or by who enqueues its unique key again';
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
COMMENT ON COLUMN pgq.job.group_key IS 'The group that it belongs to; null: none';

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
COMMENT ON COLUMN pgq.segment.generation IS 'How many segments had been opened before; 0: not known';
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
COMMENT ON COLUMN pgq.mark.kind IS 'reap, promote, sweep, tidy, cancel';
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
    group_key text,
    CONSTRAINT scheduled_id_pkey PRIMARY KEY (id)
);
CREATE INDEX scheduled_run_at_idx ON pgq.scheduled (run_at);
CREATE INDEX scheduled_queue_run_at_idx ON pgq.scheduled ((lane >> 16), run_at);
COMMENT ON TABLE pgq.scheduled IS 'Jobs whose time has not come: enqueued for later, or waiting for their next attempt';
COMMENT ON COLUMN pgq.scheduled.run_at IS 'When the job becomes ready; infinity: when the jobs have ended that it waits for (pgq.dependent)';
COMMENT ON COLUMN pgq.scheduled.id IS 'Job id';
COMMENT ON COLUMN pgq.scheduled.lane IS 'Lane that it will join';
COMMENT ON COLUMN pgq.scheduled.enqueued_at IS 'When the job was first enqueued';
COMMENT ON COLUMN pgq.scheduled.attempt IS 'Number of the attempt to come';
COMMENT ON COLUMN pgq.scheduled.max_attempts IS 'Attempts allowed; null: what the queue says';
COMMENT ON COLUMN pgq.scheduled.task IS 'What to do';
COMMENT ON COLUMN pgq.scheduled.payload IS 'Arguments';
COMMENT ON COLUMN pgq.scheduled.headers IS 'Metadata';
COMMENT ON COLUMN pgq.scheduled.history IS 'Errors of earlier attempts';
COMMENT ON COLUMN pgq.scheduled.group_key IS 'The group that it belongs to; null: none';

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
    group_key text,
    CONSTRAINT dead_id_pkey PRIMARY KEY (id)
);
CREATE INDEX dead_queue_id_idx ON pgq.dead ((lane >> 16), id);
CREATE INDEX dead_queue_task_id_idx ON pgq.dead ((lane >> 16), task, id);
CREATE INDEX dead_queue_died_at_idx ON pgq.dead ((lane >> 16), died_at);
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
COMMENT ON COLUMN pgq.dead.group_key IS 'The group that it belonged to; null: none';

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
    group_key text,
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
COMMENT ON COLUMN pgq.straggler.group_key IS 'The group that it belongs to; null: none';

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

-- Room to update a row on its own page; and no index on what changes.
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
