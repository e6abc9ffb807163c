-- pgqueue: a job queue inside PostgreSQL.
--
-- A map of the house. Read the rooms in order; each stands on those before it.
--
--   10_tables    Where everything is kept. A job is a row in pgq.job, a claim of jobs a row in pgq.lease, the end of
--                an attempt a row in pgq.outcome. On its way nothing is updated or deleted. The three live in a ring of
--                sixteen segments; a segment is filled, sealed, worked off, archived and then truncated as a whole.
--                So there are no dead rows, and a long transaction elsewhere cannot slow the queue down.
--   20_internal  The clock, the locks, the ring, and how an attempt is looked up. Names begin with an underscore.
--   30_produce   enqueue, enqueue_many, and the wake-up of idle workers.
--   32_unique    unique keys: one live job of a kind.
--   34_validate  the user's own check of payloads.
--   35_outbox    triggers that turn changes of rows into jobs.
--   40_consume   claim, and the ways an attempt ends: ack, reject, release, snooze; extend in between.
--   42_cancel    cancel, reschedule and set_priority: taking back what was not handed out, stopping what was.
--   44_groups    groups and limits: what may run at once, in which order, how often.
--   45_work      a worker that is a procedure: it calls SQL functions.
--   46_after     jobs that wait for other jobs, and batches.
--   50_maintain  promote what is due, reap expired leases, turn the ring. Called by the workers; there is no daemon.
--   60_schedule  recurring jobs.
--   65_exclusive one node at a time.
--   70_admin     queues, waiting workers.
--   75_dead      dead letters: listed, sent back to work, thrown away.
--   80_observe   job_status, attempts and progress, stats, the doctor.
--   82_activity  live jobs, workers, rates and failures, at the same cost at any size.
--   85_wait      waiting for the end of a job.
--   90_grant     who may do what. Nobody but the owner may do anything until told otherwise.
--
-- Errors of our own: PQ001 lease_lost, PQ002 queue_not_found, PQ003 not_read_committed, PQ004 payload_rejected,
-- PQ005 queue_not_empty, PQ006 not_waiting. Bad arguments are 22023 or 22004, as everywhere in PostgreSQL.

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
