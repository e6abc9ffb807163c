"""What is in a database: enough to say that two installations are the same, and that one has left nothing behind.

Everything in the system catalogs counts, except what is named here as not counting: so nothing is forgotten, and what
a later PostgreSQL knows of its objects is compared, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import psycopg
from psycopg import sql

Connection = psycopg.Connection[tuple[Any, ...]]
Catalog = dict[str, dict[str, Any]]
"""Properties of each object, by its kind and name."""

# Whatever DROP SCHEMA pgq CASCADE would take with it.
_MEMBERS = """
    DROP TABLE IF EXISTS pg_temp.member;
    CREATE TEMPORARY TABLE member ON COMMIT DROP AS
    WITH RECURSIVE member (classid, objid) AS (
        SELECT 'pg_namespace'::regclass::oid, oid FROM pg_namespace WHERE nspname = 'pgq'
        UNION
        SELECT d.classid, d.objid FROM member m JOIN pg_depend d ON d.refclassid = m.classid AND d.refobjid = m.objid
    )
    SELECT classid, objid, (pg_identify_object(classid, objid, 0)).identity AS name,
        (pg_identify_object(classid, objid, 0)).type AS kind
    FROM member
    WHERE classid <> 'pg_class'::regclass
        OR objid NOT IN (SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'pg_toast'::regnamespace);
    ANALYZE member;
"""

# Catalogs whose rows say more about an object of another one.
_SATELLITES = {"pg_index": "indexrelid", "pg_sequence": "seqrelid", "pg_partitioned_table": "partrelid"}

# What differs without a difference: numbers that the server gives, statistics, flags that it sets in its own time.
_VOLATILE = {
    *("oid", "relfilenode", "relpages", "reltuples", "relallvisible", "relallfrozen", "relfrozenxid", "relminmxid"),
    *("reltoastrelid", "relhasindex", "relhasrules", "relhastriggers", "relhassubclass", "relrewrite", "relnatts"),
    *("attnum", "attcacheoff", "atthasmissing", "attmissingval", "indcheckxmin"),
    "reltablespace",  # the choice of whoever installs
}
# Lists that mean the same in any order.
_UNORDERED = {"reloptions", "attoptions", "proconfig", "acl", "attacl", "defaclacl", "toast options"}

# What only functions can put into words that are the same in every database.
_DEFINITIONS = {
    "pg_attrdef": "pg_get_expr(t.adbin, t.adrelid)",
    "pg_class": """CASE WHEN t.relkind IN ('v', 'm') THEN pg_get_viewdef(t.oid)
        WHEN t.relkind IN ('i', 'I') THEN pg_get_indexdef(t.oid)
        ELSE concat_ws(' ', pg_get_partkeydef(t.oid), pg_get_expr(t.relpartbound, t.oid)) END""",
    "pg_constraint": "pg_get_constraintdef(t.oid)",
    "pg_policy": "concat_ws(' / ', pg_get_expr(t.polqual, t.polrelid), pg_get_expr(t.polwithcheck, t.polrelid))",
    "pg_proc": "concat_ws(' ', pg_get_function_arguments(t.oid), pg_get_function_sqlbody(t.oid))",
    "pg_rewrite": "pg_get_ruledef(t.oid)",
    "pg_statistic_ext": "pg_get_statisticsobjdef(t.oid)",
    "pg_trigger": "pg_get_triggerdef(t.oid)",
    "pg_type": """(SELECT array_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid)""",
}
# Rights that were never changed are written down as null.
_RIGHTS = {
    "pg_class": "coalesce(t.relacl, acldefault(CASE t.relkind WHEN 'S' THEN 's'::\"char\" ELSE 'r' END, t.relowner))",
    "pg_namespace": "coalesce(t.nspacl, acldefault('n', t.nspowner))",
    "pg_proc": "coalesce(t.proacl, acldefault('f', t.proowner))",
    "pg_type": "coalesce(t.typacl, acldefault('T', t.typowner))",
}
_TOAST = "(SELECT o.reloptions FROM pg_class o WHERE o.oid = t.reltoastrelid)"
_ACL_COLUMNS = {"relacl", "nspacl", "proacl", "typacl"}

_COLUMNS = """
    SELECT format('column %s.%s', m.name, a.attname), 'pg_attribute', to_jsonb(a) || jsonb_build_object(
        'position', row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum),
        'type', format_type(a.atttypid, a.atttypmod), 'comment', col_description(a.attrelid, a.attnum))
    FROM member m JOIN pg_attribute a ON a.attrelid = m.objid
    WHERE m.classid = 'pg_class'::regclass AND a.attnum > 0 AND NOT a.attisdropped
"""
_PARENTS = """
    SELECT format('%s %s', m.kind, m.name), 'pg_inherits',
        jsonb_build_object('parents', array_agg(i.inhparent::regclass::text || i.inhdetachpending ORDER BY i.inhseqno))
    FROM member m JOIN pg_inherits i ON i.inhrelid = m.objid AND m.classid = 'pg_class'::regclass
    GROUP BY m.kind, m.name
"""
_OWNED = """
    SELECT format('%s %s', m.kind, m.name), 'pg_depend', jsonb_build_object('owned by',
        (pg_identify_object(d.refclassid, d.refobjid, d.refobjsubid)).identity, 'ownership', d.deptype)
    FROM member m JOIN pg_depend d ON d.classid = m.classid AND d.objid = m.objid AND d.deptype IN ('a', 'i')
    WHERE m.kind = 'sequence'
"""
_CONTENTS = """
    SELECT format('%I.%I', n.nspname, c.relname), c.relkind::text
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'pgq' AND c.relkind IN ('r', 'S') ORDER BY 1
"""


def objects(connection: Connection) -> Catalog:
    """Describe every object in schema pgq, and what depends on it."""
    with connection.transaction():
        connection.execute(_MEMBERS)
        rows = [row for query in (_COLUMNS, _PARENTS, _OWNED) for row in connection.execute(query).fetchall()]
        for (catalog,) in connection.execute("SELECT DISTINCT classid::regclass::text FROM member").fetchall():
            rows += _rows(connection, catalog, "oid")
        for catalog, key in _SATELLITES.items():
            rows += _rows(connection, catalog, key)
        names = _names(connection, rows)
    found: Catalog = {}
    for name, catalog, properties in rows:
        known = found.setdefault(name, {})
        for key, value in properties.items():
            if key not in names.dropped:
                known[key] = names.resolved(catalog, key, value)
    return found


def _rows(connection: Connection, catalog: str, key: str) -> list[tuple[Any, ...]]:
    extra = "jsonb_build_object('definition', {}, 'acl', {}, 'toast options', {}, 'comment', {})".format(
        f"to_jsonb({_DEFINITIONS.get(catalog, 'NULL::text')})",
        _RIGHTS.get(catalog, "NULL::text"),
        "(SELECT o.reloptions FROM pg_class o WHERE o.oid = t.reltoastrelid)"
        if catalog == "pg_class"
        else "NULL::text",
        "obj_description(m.objid, m.classid::regclass::name)" if key == "oid" else "NULL::text",
    )
    return connection.execute(
        sql.SQL(
            f"SELECT format('%s %s', m.kind, m.name), {{}}, to_jsonb(t) || jsonb_strip_nulls({extra})"
            f" FROM member m JOIN pg_catalog.{catalog} t ON t.{key} = m.objid"
            f" AND m.classid = {{}}::regclass"
        ).format(catalog, catalog if key == "oid" else "pg_class")
    ).fetchall()


class _Names:
    """Object numbers in the columns of the catalogs, and the names that they stand for."""

    def __init__(self, references: dict[tuple[str, str], str], dropped: set[str]) -> None:
        self._references = references
        self.dropped = dropped
        self.known: dict[tuple[str, str], str] = {}

    def numbers(self, catalog: str, key: str, value: Any) -> Iterable[tuple[str, str]]:
        target = self._references.get((catalog, key))
        if target is not None and value is not None:
            for number in value if isinstance(value, list) else str(value).split():
                if str(number).isdigit():
                    yield target, str(number)

    def resolved(self, catalog: str, key: str, value: Any) -> Any:
        """The value with names for numbers."""
        if key in _UNORDERED and isinstance(value, list):
            return sorted(value)
        if names := [self.known[number] for number in self.numbers(catalog, key, value)]:
            return ", ".join(names)
        return value


def _names(connection: Connection, rows: list[tuple[Any, ...]]) -> _Names:
    # PostgreSQL itself tells which column refers to which catalog. Numbers of columns are in the definitions, by name.
    references = {}
    dropped = _VOLATILE | _ACL_COLUMNS
    for table, columns, target in connection.execute(
        "SELECT fktable::text, fkcols, pktable::text FROM pg_get_catalog_foreign_keys()"
    ):
        if len(columns) > 1:
            dropped.add(columns[-1])
        else:
            references[table, columns[0]] = target
    # Parsed expressions contain positions and numbers.
    trees = "SELECT attname FROM pg_attribute WHERE atttypid = 'pg_node_tree'::regtype AND attrelid < 16384"
    dropped |= {name for (name,) in connection.execute(trees)}
    names = _Names(references, dropped)
    wanted = {n for _, catalog, row in rows for key, value in row.items() for n in names.numbers(catalog, key, value)}
    targets, numbers = [t for t, _ in wanted], [n for _, n in wanted]
    names.known = {
        (target, number): name
        for target, number, name in connection.execute(
            """
            SELECT w.target, w.number::text,
                coalesce(m.name, (pg_identify_object(w.target::regclass, w.number, 0)).identity, '-')
            FROM unnest(%s::text[], %s::oid[]) w (target, number)
            LEFT JOIN member m ON m.classid = w.target::regclass AND m.objid = w.number
            """,
            [targets, numbers],
        )
    }
    return names


def membership(connection: Connection) -> Catalog:
    """What the extension knows of itself: its members, the rights that came with them, and what a dump contains."""
    with connection.transaction():
        connection.execute(_MEMBERS)
        found: Catalog = {
            f"{kind} {name}": {"member of the extension": member, "initial rights": acl}
            for kind, name, member, acl in connection.execute(
                """
                SELECT m.kind, m.name,
                    EXISTS (SELECT FROM pg_depend d WHERE (d.classid, d.objid, d.deptype) = (m.classid, m.objid, 'e')),
                    (SELECT array_agg(format('%s: %s', p.objsubid, a) ORDER BY p.objsubid, a::text)
                     FROM pg_init_privs p, unnest(p.initprivs) a WHERE (p.classoid, p.objoid) = (m.classid, m.objid))
                FROM member m
                """
            )
        }
        for name, kind in connection.execute(_CONTENTS):
            found[f"{'table' if kind == 'r' else 'sequence'} {name}"]["condition for a dump"] = None
        for name, kind, condition in connection.execute(
            """
            SELECT m.kind, m.name, c.condition
            FROM pg_extension e, unnest(e.extconfig, e.extcondition) c (id, condition)
            JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.id WHERE e.extname = 'pgqueue'
            """
        ):
            found[f"{name} {kind}"]["condition for a dump"] = condition
        row = connection.execute(
            "SELECT to_jsonb(e) - '{oid,extconfig,extcondition}'::text[] FROM pg_extension e WHERE extname = 'pgqueue'"
        ).fetchone()
        found["extension pgqueue"] = row[0] if row else {}
    return found


def contents(connection: Connection) -> Catalog:
    """The rows and numbers that an installation begins with."""
    found: Catalog = {}
    for name, kind in connection.execute(_CONTENTS).fetchall():
        what = "t::text" if kind == "r" else "format('%s, used: %s', last_value, is_called)"
        rows = [row for (row,) in connection.execute(f"SELECT {what} FROM {name} t ORDER BY 1".encode())]
        found[f"{'table' if kind == 'r' else 'sequence'} {name}"] = {"contents": rows}
    return found


def differences(found: Catalog, expected: Catalog) -> list[str]:
    """Say where two descriptions differ, one line for each object and property."""
    lines = [f"{name} is missing" for name in expected.keys() - found.keys()]
    lines += [f"{name} is there and should not be" for name in found.keys() - expected.keys()]
    for name in found.keys() & expected.keys():
        mine, other = found[name], expected[name]
        lines += [
            f"{name}: {key} is {_short(mine.get(key))} and should be {_short(other.get(key))}"
            for key in sorted(mine.keys() | other.keys())
            if mine.get(key) != other.get(key)
        ]
    return sorted(lines)


def _short(value: Any) -> str:
    text = re.sub(r"\s+", " ", repr(value))
    return text if len(text) <= 200 else f"{text[:90]} … {text[-90:]}"


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
