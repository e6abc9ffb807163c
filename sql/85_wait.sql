-- Waiting for the end of a job.
-- Tables: those of job_status, which it calls with the rights of its caller. As in 45_work, every name is qualified.

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
