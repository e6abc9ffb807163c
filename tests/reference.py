"""Write the reference: SQL from COMMENT ON, the command line from click, Python from docstrings.

`make reference` writes docs/reference/*.md; a test holds them against what they are made from.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import psycopg

import pgqueue
from pgqueue import cli
from tests.cluster import find_binaries
from tests.programs import make

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
HEAD = "<!-- Made by `make reference`; change what it is made from. -->\n"

_ROUTINES = """
    SELECT p.proname, pg_get_function_arguments(p.oid),
        CASE p.prokind WHEN 'p' THEN NULL ELSE pg_get_function_result(p.oid) END, obj_description(p.oid, 'pg_proc')
    FROM pg_proc p
    WHERE p.pronamespace = 'pgq'::regnamespace AND p.proname !~ '^_'
    ORDER BY p.proname, p.oid::regprocedure::text COLLATE "C"
"""
_RELATIONS = """
    SELECT c.relname, obj_description(c.oid, 'pg_class'), obj_description(c.reltype, 'pg_type'), c.relkind,
        array_agg(a.attname ORDER BY a.attnum), array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum),
        array_agg(coalesce(col_description(c.oid, a.attnum), '') ORDER BY a.attnum)
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relnamespace = 'pgq'::regnamespace AND c.relname !~ '^_'
        AND (c.relkind = 'c' OR c.relname IN ('queue', 'queue_stats', 'archive', 'schedule', 'dead', 'scheduled'))
    GROUP BY c.oid
    ORDER BY c.relkind = 'c' DESC, c.relname
"""


def sql_page(connection: psycopg.Connection[Any]) -> str:
    """Every public function, type and view of schema pgq."""
    lines = [HEAD, "# SQL", "", "Everything is in schema `pgq`. Errors are named by their SQLSTATE.", ""]
    for name, arguments, result, comment in connection.execute(_ROUTINES):
        arguments = arguments.replace("pgq.", "")
        call = f"CALL {name}({arguments})" if result is None else f"{name}({arguments}) → {result.replace('pgq.', '')}"
        lines += [f"## {name}", "", f"`{call}`", "", comment or "", ""]
    lines += ["## Rows", "", "What functions return, and what may be read directly.", ""]
    for name, comment, type_comment, _, columns, types, comments in connection.execute(_RELATIONS):
        lines += [f"### {name}", "", comment or type_comment or "", "", "| column | type | |", "|---|---|---|"]
        lines += [f"| {c} | {t} | {d} |" for c, t, d in zip(columns, types, comments, strict=True)]
        lines.append("")
    return "\n".join(lines)


def command_page() -> str:
    """Every command with its help."""
    lines = [HEAD, "# Command line", ""]
    for name, command in [("pgqueue", cli.main), ("pgq-worker", cli.worker)]:
        for path, help in _helps(name, command):
            lines += [f"## {path}", "", "```text", help, "```", ""]
    return "\n".join(lines)


def _helps(path: str, command: click.Command, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    settings = {"terminal_width": 100, "max_content_width": 100}
    name = path.rpartition(" ")[2]
    context = command.make_context(name, [], parent, resilient_parsing=True, **settings)
    yield path, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _helps(f"{path} {name}", inner, context)


def python_page() -> str:
    """Every public name of the package with its docstring."""
    lines = [HEAD, "# Python", ""]
    modules = ["pgqueue.middleware", "pgqueue.testing", "pgqueue.codecs", "pgqueue.embedded"]
    lines += [*_members("pgqueue", [name for name in sorted(pgqueue.__all__, key=str.lower) if name != "__version__"])]
    for module in modules:
        found = __import__(module, fromlist=["*"])
        names = [n for n, value in vars(found).items() if not n.startswith("_") and _is_of(value, module)]
        lines += [*_members(module, [name for name in names if name not in pgqueue.__all__])]
    return "\n".join(lines)


def _is_of(value: Any, module: str) -> bool:
    return (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module


def _members(module: str, names: list[str]) -> Iterator[str]:
    yield from (f"## {module}", "")
    home = __import__(module, fromlist=["*"])
    for name in names:
        yield from _entry(f"{module}.{name}", getattr(home, name), 3)


def _entry(path: str, value: Any, level: int) -> Iterator[str]:
    name = path.rpartition(".")[2]
    text = inspect.getdoc(value) or ""
    if not (inspect.isclass(value) or callable(value)):
        yield from (f"{'#' * level} {name}", "", _pretty(inspect.cleandoc(_constant(path))), "")
        return
    yield from (f"{'#' * level} {name}", "", f"`{name}{_signature(value)}`", "", _pretty(text), "")
    if inspect.isclass(value) and not issubclass(value, tuple):
        for member, inner in vars(value).items():
            documented = callable(inner) or isinstance(inner, (property, classmethod, staticmethod))
            told = value is pgqueue.AsyncClient and _doc(inner) == _doc(vars(pgqueue.Client).get(member))
            if not member.startswith("_") and documented and _doc(inner) and not told:
                yield from _method(member, inner)


def _doc(value: Any) -> str:
    return inspect.getdoc(value.__func__ if isinstance(value, (classmethod, staticmethod)) else value) or ""


def _method(name: str, value: Any) -> Iterator[str]:
    function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    call = name if isinstance(value, property) else f"{name}{_signature(function)}"
    yield from (f"**`{call}`**", "", _pretty(_doc(value)), "")


def _constant(path: str) -> str:
    return {"ACK": "Return it from a handler: the job is done, and has no result.",
            "REJECT": "Return it from a handler: the attempt has failed, and is tried again as after an exception.",
            }.get(path.rpartition(".")[2], "")  # fmt: skip


def _signature(value: Callable[..., Any]) -> str:
    if inspect.isclass(value) and issubclass(value, tuple):
        return f"({', '.join(value._fields)})"  # type: ignore[attr-defined]
    if dataclasses.is_dataclass(value):
        return ""
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return ""
    text = re.sub(r"\bself(, )?", "", text).replace("'", "")
    return re.sub(r"<(?:function )?([\w.]+)[^<>]* at 0x[0-9a-f]+>", r"\1", text)


def _pretty(text: str) -> str:
    """The sections of a docstring as Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    parts = re.split(r"^(Args|Returns|Raises|Yields|Attributes|Example):\n", text, flags=re.MULTILINE)
    lines = [parts[0].strip()]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        inside, rest = _indented(body)
        lines += ["", f"*{title}:*", ""]
        if title == "Example":
            lines += ["```pycon", inside.strip(), "```"]
        else:
            items = re.sub(r"^(\*{0,2}\w[\w., ]*): ", r"- `\1`: ", inside.strip("\n"), flags=re.MULTILINE)
            lines.append(re.sub(r"^    ", "  ", items, flags=re.MULTILINE))
        lines += ["", rest] if rest else []
    return "\n".join(lines).strip()


def _indented(body: str) -> tuple[str, str]:
    """The part of a section that is indented, without its indentation, and what follows it."""
    lines = body.splitlines()
    end = next((n for n, line in enumerate(lines) if line and not line.startswith("    ")), len(lines))
    return "\n".join(line[4:] for line in lines[:end]), "\n".join(lines[end:]).strip()


def pages(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """The files, by name."""
    return {"sql.md": sql_page(connection), "commands.md": command_page(), "python.md": python_page()}


def main() -> None:
    """Write the pages."""
    from pgqueue.embedded import EmbeddedPostgres

    make("build")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (
        EmbeddedPostgres(bin_dir=find_binaries("16")) as server,
        psycopg.connect(server.dsn(), autocommit=True) as connection,
    ):
        connection.execute((ROOT / "python/src/pgqueue/sql/pgqueue.sql").read_bytes())
        for name, text in pages(connection).items():
            (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
