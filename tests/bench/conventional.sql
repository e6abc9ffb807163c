-- The competitor: a conventional job queue, as the popular ones build it and tuned as well as we know how.
--
-- One mutable table. A job is inserted once, updated when it is claimed (FOR UPDATE SKIP LOCKED over a partial index)
-- and deleted when it is done, with a copy going to an archive table if the queue keeps one.
-- Generous towards it: no index for expired leases, no NOTIFY, no SECURITY DEFINER, a small enum for the state,
-- plpgsql so that plans are cached, and an autovacuum that comes as often as it can and never sleeps.
-- The names and arguments are those of pgq, so that one pgbench script drives either with its search_path.

CREATE SCHEMA conv;

CREATE TABLE conv.queue (
    queue text PRIMARY KEY,
    lease interval NOT NULL,
    archive boolean NOT NULL
);

CREATE TYPE conv.state AS ENUM ('ready', 'running');

CREATE TABLE conv.job (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lease bigint,
    enqueued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    expires_at timestamptz,
    priority int NOT NULL,
    attempt int NOT NULL DEFAULT 0,
    max_attempts int NOT NULL DEFAULT 20,
    state conv.state NOT NULL DEFAULT 'ready',
    archive boolean NOT NULL,
    queue text NOT NULL,
    task text,
    worker text,
    payload jsonb NOT NULL,
    headers jsonb
) WITH (
    autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.05
);

CREATE INDEX job_ready_idx ON conv.job (queue, priority, id) WHERE state = 'ready';

CREATE TABLE conv.archive (
    id bigint NOT NULL,
    attempt int NOT NULL,
    enqueued_at timestamptz NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    queue text NOT NULL,
    task text,
    worker text,
    payload jsonb NOT NULL,
    headers jsonb,
    result jsonb,
    error text
);

CREATE INDEX archive_id_idx ON conv.archive (id);

CREATE SEQUENCE conv.lease_seq CACHE 1;

CREATE TYPE conv.claimed_job AS (
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

CREATE FUNCTION conv.create_queue(queue text, retention interval DEFAULT '7 days', lease interval DEFAULT '1 minute')
    RETURNS void LANGUAGE sql
AS $$
    INSERT INTO conv.queue (queue, lease, archive) VALUES ($1, $3, $2 > '0');
$$;

CREATE FUNCTION conv.enqueue(queue text, payload jsonb)
    RETURNS bigint LANGUAGE plpgsql
AS $$
DECLARE
    v_id bigint;
BEGIN
    INSERT INTO conv.job (queue, priority, archive, payload)
    SELECT q.queue, 0, q.archive, enqueue.payload FROM conv.queue AS q WHERE q.queue = enqueue.queue
    RETURNING job.id INTO STRICT v_id;
    RETURN v_id;
END;
$$;

CREATE FUNCTION conv.enqueue_many(queue text, payloads jsonb[])
    RETURNS SETOF bigint LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    INSERT INTO conv.job (queue, priority, archive, payload)
    SELECT q.queue, 0, q.archive, p.payload
    FROM conv.queue AS q CROSS JOIN unnest(payloads) AS p (payload)
    WHERE q.queue = enqueue_many.queue
    RETURNING job.id;
END;
$$;

CREATE FUNCTION conv.claim(queue text, batch int DEFAULT 1, lease_for interval DEFAULT '1 minute', worker text DEFAULT NULL)
    RETURNS SETOF conv.claimed_job LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    UPDATE conv.job AS j
    SET state = 'running',
        attempt = j.attempt + 1,
        lease = nextval('conv.lease_seq'),
        started_at = clock_timestamp(),
        expires_at = clock_timestamp() + lease_for,
        worker = claim.worker
    WHERE j.id = ANY(ARRAY(
        SELECT r.id FROM conv.job AS r
        WHERE r.queue = claim.queue AND r.state = 'ready'
        ORDER BY r.priority, r.id
        LIMIT batch
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING j.id, j.lease, j.queue, j.task, j.payload, j.attempt, j.max_attempts, j.priority, j.enqueued_at,
        j.expires_at, j.headers;
END;
$$;

CREATE FUNCTION conv.ack(id bigint, lease bigint, result jsonb DEFAULT NULL)
    RETURNS void LANGUAGE plpgsql
AS $$
DECLARE
    v_job conv.job;
BEGIN
    DELETE FROM conv.job AS j
    WHERE j.id = ack.id AND j.lease = ack.lease AND j.state = 'running'
    RETURNING j.* INTO v_job;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'PQ001', MESSAGE = 'lease lost';
    END IF;
    IF v_job.archive THEN
        INSERT INTO conv.archive VALUES (
            v_job.id, v_job.attempt, v_job.enqueued_at, v_job.started_at, clock_timestamp(), v_job.queue, v_job.task,
            v_job.worker, v_job.payload, v_job.headers, ack.result, NULL
        );
    END IF;
END;
$$;

CREATE FUNCTION conv.ack_many(ids bigint[], leases bigint[])
    RETURNS SETOF bigint LANGUAGE plpgsql
AS $$
BEGIN
    RETURN QUERY
    WITH done AS (
        DELETE FROM conv.job AS j
        USING unnest(ids, leases) AS a (id, lease)
        WHERE j.id = a.id AND j.lease = a.lease AND j.state = 'running'
        RETURNING j.*
    ), kept AS (
        INSERT INTO conv.archive
        SELECT d.id, d.attempt, d.enqueued_at, d.started_at, clock_timestamp(), d.queue, d.task, d.worker, d.payload,
            d.headers, NULL, NULL
        FROM done AS d WHERE d.archive
    )
    SELECT d.id FROM done AS d;
END;
$$;

CREATE FUNCTION conv.stats()
    RETURNS TABLE (queue text, ready bigint, running bigint) LANGUAGE sql
AS $$
    SELECT j.queue, count(*) FILTER (WHERE j.state = 'ready'), count(*) FILTER (WHERE j.state = 'running')
    FROM conv.job AS j GROUP BY j.queue;
$$;
