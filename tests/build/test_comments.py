"""Everything a user can see in schema pgq has a comment; the reference is made of them."""

from __future__ import annotations

import pytest

from tests.build.catalog import Connection

UNCOMMENTED = {
    "schema": "SELECT nspname FROM pg_namespace WHERE nspname = 'pgq' AND obj_description(oid, 'pg_namespace') IS NULL",
    "relations": """
        SELECT oid::regclass FROM pg_class
         WHERE relnamespace = 'pgq'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'c', 'S') AND NOT relispartition
           AND coalesce(obj_description(oid, 'pg_class'), obj_description(reltype, 'pg_type')) IS NULL
           AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype IN ('a', 'i')
                                                   AND relkind = 'S' AND classid = 'pg_class'::regclass)""",
    "columns": """
        SELECT attrelid::regclass || '.' || attname
          FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
         WHERE relnamespace = 'pgq'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'c') AND NOT relispartition
           AND attnum > 0 AND NOT attisdropped AND col_description(attrelid, attnum) IS NULL""",
    "functions": """
        SELECT oid::regprocedure FROM pg_proc
         WHERE pronamespace = 'pgq'::regnamespace AND proname NOT LIKE '\\_%'
           AND obj_description(oid, 'pg_proc') IS NULL""",
    "types": """
        SELECT oid::regtype FROM pg_type
         WHERE typnamespace = 'pgq'::regnamespace AND typtype IN ('d', 'e', 'r')
           AND obj_description(oid, 'pg_type') IS NULL""",
}


@pytest.mark.parametrize("kind", UNCOMMENTED)
def test_everything_has_a_comment(db: Connection, kind: str) -> None:
    assert [str(name) for (name,) in db.execute(UNCOMMENTED[kind].encode())] == []
