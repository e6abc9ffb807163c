-- A function of the user checks what is enqueued.
-- Tables: changes queue.
--
-- It is called by functions that run with the rights of pgq's owner, so it runs with them too. Therefore only the owner
-- may name one, and only one that nobody else can replace.

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
