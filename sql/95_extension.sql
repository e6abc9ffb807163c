-- Only in the extension: what a dump must contain besides CREATE EXTENSION.

DO $$
DECLARE
    v_relation regclass;
BEGIN
    FOR v_relation IN
        SELECT c.oid::regclass FROM pg_class c
        WHERE c.relnamespace = 'pgq'::regnamespace AND c.relkind IN ('r', 'S')
            -- Not the partitions of the archive, which are made at run time.
            AND EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
        ORDER BY c.oid
    LOOP
        PERFORM pg_extension_config_dump(v_relation, '');
    END LOOP;
END;
$$;
