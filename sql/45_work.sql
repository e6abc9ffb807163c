-- A worker that is a procedure: it calls SQL functions.
-- Tables: those of claim, ack, reject, release, extend and maintain, which it calls with the rights of its caller.
--
-- A procedure that commits can neither be SECURITY DEFINER nor have a search_path of its own, and the handler is to
-- find its objects in that of its caller. So every name here is qualified, operators too.

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

-- In a procedure every expression takes a snapshot, this too, and a COMMIT gives it back. So who calls it holds up
-- vacuum for no longer than one nap.
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

-- The jobs of a claim run in turn, each in a subtransaction, and are acknowledged and committed together, with what
-- they wrote. What goes wrong in company may be the company's doing (a temporary table that is there already, a
-- setting): so a job that fails is counted as failed only if it was the first of its transaction, and goes first into
-- the next one if not. If the jobs fail together (a deferred constraint), all are done again, one by one.
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
