"""A next version that does not exist, made from the sources of this one: with it the gate itself is tested."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from textwrap import dedent

from tests.programs import ROOT
from tests.upgrade.changes import CHANGES, Change, Edit, Mistake
from tests.upgrade.tree import Tree

_IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "dist")


def copy_sources(target: Path) -> Tree:
    """A copy of everything that the build needs, with this version released and frozen."""
    target.mkdir()
    for name in ("Makefile", "pgqueue.control", "CHANGELOG.md", "LICENSE"):
        shutil.copy2(ROOT / name, target)
    for name in ("sql", "python"):
        shutil.copytree(ROOT / name, target / name, ignore=_IGNORED)
    tree = Tree(target)
    if tree.current.number not in [version.number for version in tree.released]:
        tree.make("freeze")
    return tree


def next_version(target: Path) -> Tree:
    """The sources of the next version, with a correct upgrade script."""
    tree = copy_sources(target)
    old = tree.current.number
    new = bump(tree)
    for change in CHANGES:
        for edit in change.edits:
            replace(tree, edit)
        if change.append:
            file, text = change.append
            path = target / "sql" / file
            path.write_text(path.read_text() + dedent(change.upgrade if text is None else text))
    script = "\n".join([version_function(new), *(statements(tree, change) for change in CHANGES)])
    (target / f"sql/upgrade/pgqueue--{old}--{new}.sql").write_text(script)
    tree.make("build")
    return tree


def bump(tree: Tree) -> str:
    """Count the sources one minor version up, which the new package needs; returns the new version."""
    old = tree.current.number
    major, minor, *_ = old.split(".")
    new = f"{major}.{int(minor) + 1}.0"
    for file, text in {
        "pgqueue.control": f"default_version = '{old}'",
        "sql/80_observe.sql": f"SELECT '{old}'::pg_catalog.text",
        "python/pyproject.toml": f'version = "{old}"',
        "python/src/pgqueue/__init__.py": f'__version__ = "{old}"',
    }.items():
        replace(tree, Edit(f"../{file}", text, text.replace(old, new)))
    path = tree.package / "pgqueue/_versions.py"
    path.write_text(re.sub(r'^REQUIRED = ".*"', f'REQUIRED = "{new}"', path.read_text(), flags=re.MULTILINE))
    return new


def replace(tree: Tree, edit: Edit) -> None:
    path = tree.root / "sql" / edit.file
    text = path.read_text()
    assert text.count(edit.old) == 1, f"{edit.file} has {text.count(edit.old)} times: {edit.old}"
    path.write_text(text.replace(edit.old, edit.new))


def version_function(version: str) -> str:
    return (
        "CREATE OR REPLACE FUNCTION pgq.version() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE\n"
        f"AS $$ SELECT '{version}'::pg_catalog.text $$;"
    )


def statements(tree: Tree, change: Change) -> str:
    """The statements of a change, with the functions that it names in full."""

    def definition(match: re.Match[str]) -> str:
        sources = "".join(path.read_text() for path in sorted((tree.root / "sql").glob("*.sql")))
        found = re.findall(rf"^CREATE (FUNCTION {match[1]}\(.*?^\$\$;)$", sources, re.MULTILINE | re.DOTALL)
        assert len(found) == 1, match[1]
        return f"CREATE OR REPLACE {found[0]}"

    return re.sub(r"{(pgq\.\w+)}", definition, dedent(change.upgrade))


def with_mistake(tree: Tree, script: str, mistake: Mistake) -> str:
    """An upgrade script in which one thing is forgotten."""
    (change,) = (c for c in CHANGES if c.what == mistake.of)
    right = statements(tree, change)
    part = right if mistake.right == change.upgrade else mistake.right
    assert part in right, f"{mistake.of} has no {part!r}"
    wrong = right.replace(part, mistake.wrong, 1) if part else right + mistake.wrong
    assert script.count(right) == 1, mistake.of
    return script.replace(right, wrong)


def batches(mistakes: Iterable[Mistake]) -> list[list[Mistake]]:
    """The mistakes in as few scripts as possible, at most one in each change."""
    found: list[list[Mistake]] = []
    for mistake in mistakes:
        for batch in found:
            if mistake.of not in (other.of for other in batch):
                batch.append(mistake)
                break
        else:
            found.append([mistake])
    return found
