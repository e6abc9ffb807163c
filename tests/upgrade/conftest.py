"""The ways that the gate is tried on: every one from a released version, and one that is made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import psycopg
import pytest

from tests.build.catalog import Catalog, Connection
from tests.cluster import Cluster
from tests.programs import ROOT
from tests.upgrade.gate import Form, describe
from tests.upgrade.synthetic import next_version
from tests.upgrade.tree import Tree, Upgrade, Version

SYNTHETIC = "the version after this one"
WAYS = [SYNTHETIC, *(version.number for version in Tree(ROOT).released)]
FORMS = ["plain", "extension"]
ONE_WORKER = pytest.mark.xdist_group("install")  # with the tests that use the same server


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(ONE_WORKER)


@pytest.fixture(scope="session")
def next_tree(run_dir: Path) -> Tree:
    """The sources of a next version."""
    return next_version(run_dir / "next")


@pytest.fixture(scope="session")
def form_of(request: pytest.FixtureRequest) -> Callable[[str], Form]:
    """The two forms by name."""

    def form_of(name: str) -> Form:
        server: Cluster = request.getfixturevalue("cluster" if name == "plain" else "extended")
        return Form(name, server)

    return form_of


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, form_of: Callable[[str], Form]) -> Form:
    return form_of(request.param)


@pytest.fixture(params=WAYS)
def tree(request: pytest.FixtureRequest, next_tree: Tree) -> Tree:
    """The sources of the version to which is upgraded."""
    return next_tree if request.param == SYNTHETIC else Tree(ROOT)


@pytest.fixture
def upgrade(request: pytest.FixtureRequest, tree: Tree) -> Upgrade:
    """The way that is taken."""
    way: str = request.getfixturevalue("way")
    return tree.upgrade(way)


@pytest.fixture
def way(request: pytest.FixtureRequest, tree: Tree) -> str:
    """The version from which is upgraded."""
    chosen: str = request.node.callspec.params["tree"]
    return tree.released[-1].number if chosen == SYNTHETIC else chosen


@pytest.fixture(scope="session")
def fresh() -> Callable[[Form, Version], Catalog]:
    """What a fresh installation looks like."""

    @cache
    def fresh(form: Form, version: Version) -> Catalog:
        with form.database(version) as dsn, psycopg.connect(dsn, autocommit=True) as db:
            return describe(db)

    return fresh


@pytest.fixture
def old_dsn(form: Form, upgrade: Upgrade) -> Iterator[str]:
    """A database with the old version."""
    with form.database(upgrade.old) as dsn:
        yield dsn


@pytest.fixture
def old_db(old_dsn: str) -> Iterator[Connection]:
    with psycopg.connect(old_dsn, autocommit=True) as db:
        yield db
