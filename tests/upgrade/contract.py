"""What programs rely on: the functions that may be granted, and the types and relations that come back.

It may grow within a major version and must not change: what was written for an older one goes on working.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tests.build.catalog import Connection

# pgq._now is granted to consumers, who count the seconds of a lease with it.
_FUNCTIONS = """
    SELECT p.proname, pg_get_function_result(p.oid),
        ARRAY(
            SELECT format('%s %s', n.name, format_type(t.oid, NULL))
            FROM unnest(p.proargnames, p.proargtypes::oid[]) WITH ORDINALITY n (name, oid, position)
            JOIN pg_type t ON t.oid = n.oid
            ORDER BY n.position
        ),
        p.pronargdefaults::int
    FROM pg_proc p
    WHERE p.pronamespace = 'pgq'::regnamespace AND (p.proname !~ '^_' OR p.proname = '_now')
    ORDER BY p.proname, p.oid::regprocedure::text
"""
# Composite types that come back, and relations that are granted to administrators.
_COLUMNS = """
    SELECT c.oid::regclass::text,
        array_agg(format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)) ORDER BY a.attnum)
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.oid IN (to_regclass('pgq.queue_stats'), to_regclass('pgq.archive'), to_regclass('pgq.schedule'))
        OR c.reltype IN (
            SELECT p.prorettype FROM pg_proc p WHERE p.pronamespace = 'pgq'::regnamespace AND p.proname !~ '^_'
        )
    GROUP BY c.oid
    ORDER BY 1
"""
_LABELS = """
    SELECT enumtypid::regtype::text, array_agg(enumlabel::text ORDER BY enumsortorder)
    FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid WHERE t.typnamespace = 'pgq'::regnamespace GROUP BY enumtypid
"""
_ERRORS = """
    SELECT array_agg(DISTINCT m[1])
    FROM pg_proc p, regexp_matches(p.prosrc, '''(PQ(?!000)\\d\\d\\d)''', 'g') m
    WHERE p.pronamespace = 'pgq'::regnamespace
"""


@dataclass(frozen=True)
class Function:
    """How a function may be called; the last so many arguments may be left out. A procedure has no result."""

    name: str
    arguments: tuple[str, ...]
    optional: int
    result: str | None

    def __str__(self) -> str:
        first = len(self.arguments) - self.optional
        shown = [a if n < first else f"{a} = …" for n, a in enumerate(self.arguments)]
        kind, returns = ("function", f" returns {self.result}") if self.result else ("procedure", "")
        return f"{kind} pgq.{self.name}({', '.join(shown)}){returns}"

    def takes_calls_of(self, old: Function) -> bool:
        """Whether every call of the old function is one of this."""
        added = len(self.arguments) - len(old.arguments)
        return (
            self.name == old.name
            and self.result == old.result
            and self.arguments[: len(old.arguments)] == old.arguments
            and 0 <= added <= self.optional
            and self.optional - added >= old.optional
        )


@dataclass(frozen=True)
class Contract:
    """Functions, and lists that may only grow at their end: columns, labels, errors."""

    functions: tuple[Function, ...]
    lists: dict[str, list[str]]

    def __str__(self) -> str:
        lines = [str(function) for function in self.functions]
        lines += [f"{name}: {', '.join(entries)}" for name, entries in self.lists.items()]
        return "\n".join(lines) + "\n"


def contract(db: Connection) -> Contract:
    """Read the contract of an installation."""
    functions = tuple(
        Function(name, tuple(arguments), optional, result)
        for name, result, arguments, optional in db.execute(_FUNCTIONS).fetchall()
    )
    lists = {f"columns of {name}": columns for name, columns in db.execute(_COLUMNS).fetchall()}
    lists |= {f"labels of {name}": labels for name, labels in db.execute(_LABELS).fetchall()}
    row = db.execute(_ERRORS).fetchone()
    return Contract(functions, lists | {"errors": row[0] if row else []})


# Labels are compared by name, and errors caught one by one: their order says nothing.
_IN_ANY_ORDER = ("labels", "errors")


def broken(old: Contract, new: Contract) -> list[str]:
    """What a program that was written for the old contract could miss in the new one."""
    found = []
    for function in old.functions:
        fitting = [other for other in new.functions if other.takes_calls_of(function)]
        if not fitting:
            found.append(f"no longer there: {function}")
        elif len(fitting) > 1:
            found.append(f"ambiguous: {function} could be each of {', '.join(map(str, fitting))}")
    for name, entries in old.lists.items():
        now = new.lists.get(name, [])
        kept = not Counter(entries) - Counter(now) if name.startswith(_IN_ANY_ORDER) else now[: len(entries)] == entries
        if not kept:
            found.append(f"{name} were {', '.join(entries)} and are {', '.join(now)}")
    return found
