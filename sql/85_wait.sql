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

-- An unknown job is looked for twice: a segment that is truncated in the middle of a look takes its rows out of any
-- snapshot.
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
