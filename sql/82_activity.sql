-- queues, jobs, workers, activity, failures: what a person looks at, again and again, while the queue is at work.
-- Tables: all, and nothing is written. Each look reads so many rows and no more, however many there are.

-- Settings ------------------------------------------------------------------------------------------------------------

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

-- Live jobs -----------------------------------------------------------------------------------------------------------

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

-- Workers -------------------------------------------------------------------------------------------------------------

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

-- What goes on --------------------------------------------------------------------------------------------------------

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
