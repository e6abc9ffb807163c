-- The beginning of every upgrade script. The build puts in what stands between @: versions, and plain or extension.

-- Names mean the same whatever the settings are of whom runs it.
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL quote_all_identifiers = off;
SET LOCAL standard_conforming_strings = on;

DO $$
DECLARE
    v_owner name := (SELECT pg_get_userbyid(n.nspowner) FROM pg_namespace n WHERE n.nspname = 'pgq');
BEGIN
    IF v_owner <> current_user THEN
        -- What it makes would belong to somebody else, and its SECURITY DEFINER functions run with his rights.
        RAISE EXCEPTION USING
            ERRCODE = 'insufficient_privilege',
            MESSAGE = format('schema pgq belongs to %s, and so must what an upgrade adds to it', v_owner),
            HINT = format('First: SET ROLE %I. Nothing was changed.', v_owner);
    ELSIF '@FORM@' = 'plain' AND EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pgqueue') THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'pgq is installed as an extension here, and this script is for the plain form',
            HINT = 'Use ALTER EXTENSION pgqueue UPDATE. Nothing was changed.';
    ELSIF pgq.version() <> '@FROM@' THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('this script takes pgq from @FROM@ to @TO@, and it is %s', pgq.version()),
            HINT = 'Use `pgqueue upgrade`, which knows what to do. Nothing was changed.';
    END IF;
END;
$$;
