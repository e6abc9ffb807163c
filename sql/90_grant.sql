-- Who may do what. Nothing is granted to PUBLIC; the functions run with the rights of their owner, so nobody else needs
-- any on the tables.

REVOKE ALL ON SCHEMA pgq FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA pgq FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgq FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA pgq FROM PUBLIC;
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
        SELECT string_agg(format('GRANT EXECUTE ON ROUTINE %s TO %s', f::regprocedure, role), '; ')
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
    PERFORM pgq._grant(role, '{
        pgq.enqueue, pgq.enqueue_many, pgq.enqueue_unique, pgq.enqueue_unique_many, pgq.enqueue_after,
        pgq.enqueue_many_after, pgq.batch, pgq.add_to_batch, pgq.enqueue_row, pgq.enqueue_rows, pgq.version
    }');
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
        pgq.snooze_many, pgq.cancel_requested, pgq.cancel_claimed, pgq.progress, pgq.watch, pgq.unwatch, pgq.maintain,
        pgq.promote, pgq.reap, pgq.rotate, pgq.try_exclusive, pgq.exclusive_holder, pgq.version,
        pgq.work, pgq._outside_of_a_transaction_block, pgq._handler, pgq._nap, pgq._now
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
REVOKE ALL ON FUNCTION pgq.grant_admin(regrole) FROM PUBLIC;
