"""What is in a database: enough to say that two installations are the same, and that one has left nothing behind."""

from __future__ import annotations

from typing import Any

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]

# One line for each object of the schema, with everything that makes it what it is.
_OBJECTS = """
SELECT format('%s %s returns %s: %s %s definer=%s config=%s acl=%s "%s" %s', prokind, oid::regprocedure,
              pg_get_function_result(oid), prolang::text, provolatile, prosecdef, proconfig, proacl,
              obj_description(oid, 'pg_proc'), md5(prosrc))
  FROM pg_proc WHERE pronamespace = 'pgq'::regnamespace
UNION ALL
SELECT format('relation %s %s persistence=%s options=%s acl=%s bound=%s "%s"', relkind, oid::regclass, relpersistence,
              reloptions, relacl, pg_get_expr(relpartbound, oid), obj_description(oid, 'pg_class'))
  FROM pg_class WHERE relnamespace = 'pgq'::regnamespace
UNION ALL
SELECT format('column %s.%s %s notnull=%s default=%s "%s"', attrelid::regclass, attname,
              format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid),
              col_description(attrelid, attnum))
  FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
 WHERE attnum > 0 AND NOT attisdropped
   AND attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'pgq'::regnamespace)
UNION ALL
SELECT format('constraint %s on %s: %s', conname, conrelid::regclass, pg_get_constraintdef(oid))
  FROM pg_constraint WHERE connamespace = 'pgq'::regnamespace
UNION ALL
SELECT format('index %s: %s', indexrelid::regclass, pg_get_indexdef(indexrelid))
  FROM pg_index WHERE indrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'pgq'::regnamespace)
UNION ALL
SELECT format('trigger %s', pg_get_triggerdef(oid))
  FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'pgq'::regnamespace)
UNION ALL
SELECT format('view %s: %s', oid::regclass, pg_get_viewdef(oid))
  FROM pg_class WHERE relnamespace = 'pgq'::regnamespace AND relkind IN ('v', 'm')
UNION ALL
SELECT format('type %s %s acl=%s "%s"', typtype, oid::regtype, typacl, obj_description(oid, 'pg_type'))
  FROM pg_type WHERE typnamespace = 'pgq'::regnamespace
UNION ALL
SELECT format('schema %s acl=%s "%s"', nspname, nspacl, obj_description(oid, 'pg_namespace'))
  FROM pg_namespace WHERE nspname = 'pgq'
"""


def objects(connection: Connection) -> list[str]:
    """Describe every object in schema pgq, one line each."""
    if connection.execute("SELECT to_regnamespace('pgq') IS NULL").fetchone() == (True,):
        return []
    return sorted(line for (line,) in connection.execute(_OBJECTS))


def counts(connection: Connection) -> dict[str, int]:
    """Count the rows of every system catalog that belongs to this database."""
    catalogs = connection.execute(
        """
        SELECT relname FROM pg_class
         WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND NOT relisshared
           AND relname NOT IN ('pg_statistic', 'pg_statistic_ext_data')  -- autovacuum writes these
        """
    ).fetchall()
    return {name: _count(connection, name) for (name,) in catalogs}


def _count(connection: Connection, catalog: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM pg_catalog.{catalog}".encode()).fetchone()
    assert row is not None
    count: int = row[0]
    return count
