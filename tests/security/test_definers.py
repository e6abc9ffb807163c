"""Every function that runs with its owner's rights pins the search_path, with pg_temp last."""

from __future__ import annotations

from tests.sql.support import Connection, column


def test_no_definer_without_a_search_path_that_ends_in_pg_temp(db: Connection) -> None:
    loose = """
        SELECT p.oid::regprocedure::text FROM pg_proc p
        WHERE p.pronamespace = 'pgq'::regnamespace AND p.prosecdef AND NOT EXISTS (
            SELECT FROM unnest(p.proconfig) c WHERE c ~ '^search_path=(pg_catalog, )?(pgq, )?pg_temp$'
        )
    """
    assert column(db, loose) == []


def test_no_view_rule_trigger_or_default_belongs_to_another_schema(db: Connection) -> None:
    """All that runs by itself is ours or PostgreSQL's own: nothing was found in somebody's search_path at install."""
    foreign = """
        SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) || ' uses '
            || pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
        FROM pg_depend d
        CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, d.objsubid) o
        CROSS JOIN LATERAL pg_identify_object(d.refclassid, d.refobjid, d.refobjsubid) r
        WHERE d.deptype = 'n' AND o.schema = 'pgq' AND r.schema NOT IN ('pgq', 'pg_catalog')
    """
    assert column(db, foreign) == []
