"""The chain of upgrade scripts: no version is left behind, and build, wheel and `make install` have them all."""

from __future__ import annotations

import filecmp
import sys
import zipfile
from pathlib import Path

import pytest

from tests.programs import ROOT, run
from tests.security.test_pgspot import run_pgspot
from tests.upgrade.synthetic import bump, copy_sources
from tests.upgrade.tree import Tree


@pytest.fixture
def sources(tmp_path: Path) -> Tree:
    """A source tree in which the current version is released and frozen."""
    return copy_sources(tmp_path / "sources")


def add_script(tree: Tree, name: str) -> None:
    (tree.root / f"sql/upgrade/pgqueue--{name}.sql").write_text("SELECT 1;\n")


def test_a_version_that_could_not_be_upgraded_stops_the_build(sources: Tree) -> None:
    old = sources.current.number
    new = bump(sources)
    assert f"pgqueue--{old}--{new}.sql is missing" in sources.make("build", fails=True)
    add_script(sources, f"{old}--{new}")
    assert sources.make("build") is not None
    third = bump(sources)
    (sources.root / "sql/upgrade/release" / new).mkdir()
    assert f"pgqueue--{new}--{third}.sql is missing" in sources.make("build", fails=True)
    add_script(sources, f"{old}--{third}")  # not the next one
    assert f"pgqueue--{new}--{third}.sql is missing" in sources.make("build", fails=True)


def test_a_script_that_leads_nowhere_stops_the_build(sources: Tree) -> None:
    add_script(sources, "0.0.1--0.0.2")
    assert "pgqueue--0.0.1--0.0.2.sql leads nowhere" in sources.make("build", fails=True)


def test_a_version_older_than_a_released_one_stops_the_build(sources: Tree) -> None:
    (sources.root / "sql/upgrade/release/99.0.0").mkdir()
    add_script(sources, f"{sources.current.number}--99.0.0")
    assert "is older than 99.0.0" in sources.make("build", fails=True)


def test_a_release_of_which_nothing_was_kept_stops_the_build(sources: Tree) -> None:
    changes = sources.root / "CHANGELOG.md"
    changes.write_text(changes.read_text() + "\n## 0.0.5 (2020-02-02)\n")
    assert "release/0.0.5 is missing" in sources.make("build", fails=True)


def test_a_version_is_frozen_once_and_as_it_was_built(sources: Tree) -> None:
    (frozen,) = [version for version in sources.released if version.number == sources.current.number]
    assert filecmp.cmp(frozen.plain, sources.current.plain, shallow=False)
    assert filecmp.cmp(frozen.extension, sources.current.extension, shallow=False)
    sources.make("freeze", fails=True)


def test_what_was_released_is_not_changed_under_the_same_version() -> None:
    tree = Tree(ROOT)
    for frozen in tree.released:
        if frozen.number == tree.current.number:
            assert frozen.plain.read_text() == tree.current.plain.read_text(), "count the version up"
            assert frozen.extension.read_text() == tree.current.extension.read_text(), "count the version up"


def test_a_script_that_is_gone_is_no_longer_packed(sources: Tree) -> None:
    packed = sources.package / "pgqueue/sql/upgrade/pgqueue--0.0.1--0.0.2.sql"
    packed.parent.mkdir(exist_ok=True)
    packed.write_text("SELECT 1")
    sources.make("build")
    assert not packed.exists()


def test_the_scripts_are_installed_with_the_extension(next_tree: Tree, tmp_path: Path) -> None:
    pg_config = tmp_path / "pg_config"
    pg_config.write_text("#!/bin/sh\necho /share\n")
    pg_config.chmod(0o755)
    next_tree.make("install", f"PG_CONFIG={pg_config}", f"DESTDIR={tmp_path}")
    old, new = next_tree.released[-1].number, next_tree.current.number
    assert {path.name for path in (tmp_path / "share/extension").iterdir()} >= {
        "pgqueue.control",
        f"pgqueue--{new}.sql",
        f"pgqueue--{old}--{new}.sql",
    }


def test_the_scripts_are_in_the_wheel(next_tree: Tree, tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, next_tree.root / "python")
    (wheel,) = tmp_path.glob("*.whl")  # made from the sdist
    upgrade = next_tree.upgrade(next_tree.released[-1].number)
    with zipfile.ZipFile(wheel) as archive:
        for script in upgrade.plain:
            assert archive.read(f"pgqueue/sql/upgrade/{script.name}") == script.read_bytes()


def test_no_script_begins_or_ends_a_transaction_or_speaks_to_psql(next_tree: Tree) -> None:
    """The package sends them as they are, all in one transaction."""
    for tree in (next_tree, Tree(ROOT)):
        for script in (tree.root / "sql/upgrade").glob("pgqueue--*.sql"):
            words = [
                line.split()[0].rstrip(";").upper() for line in script.read_text().splitlines() if line[:1].strip()
            ]
            assert not {"COMMIT", "ROLLBACK", "START"} & set(words), script.name
            assert not [word for word in words if word.startswith("\\")], script.name


def test_pgspot_finds_nothing_in_a_script(next_tree: Tree) -> None:
    """But that it replaces what exists: nobody else can have put it into schema pgq."""
    for tree in (next_tree, Tree(ROOT)):
        for script in (tree.root / "build").glob("pgqueue--*--*.sql"):
            done = run_pgspot(script.read_text(), "--ignore", "PS002", "--ignore", "PS015")
            assert done.returncode == 0, done.stdout
