"""The gate itself: an upgrade script that forgets one thing does not pass, and is told which."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial, reduce

import psycopg
import pytest

from tests.build.catalog import Catalog, Connection, differences
from tests.upgrade.changes import Mistake, mistakes
from tests.upgrade.gate import Form, describe
from tests.upgrade.synthetic import batches, with_mistake
from tests.upgrade.tree import Tree, Upgrade, Version

Fresh = Callable[[Form, Version], Catalog]
ALL = mistakes()


@pytest.fixture(scope="module")
def plain(form_of: Callable[[str], Form]) -> Form:
    return form_of("plain")


@pytest.fixture(scope="module")
def extension(form_of: Callable[[str], Form]) -> Form:
    return form_of("extension")


@pytest.fixture(scope="module")
def made_up(next_tree: Tree) -> Upgrade:
    """The way from this version to one that does not exist."""
    return next_tree.upgrade(next_tree.released[-1].number)


@pytest.fixture(scope="module")
def session(plain: Form, made_up: Upgrade) -> Iterator[Connection]:
    """A session on a plain installation of the old version, to be rolled back after each test."""
    with plain.database(made_up.old) as dsn, psycopg.connect(dsn) as db:
        yield db


@pytest.fixture(scope="module")
def extension_session(extension: Form, made_up: Upgrade) -> Iterator[Connection]:
    """A session on an extension of the old version, with roles that have been granted something."""
    extension.provide(made_up)
    with extension.database(made_up.old) as dsn, psycopg.connect(dsn) as db:
        db.execute("CREATE ROLE clerk; SELECT pgq.grant_consumer('clerk')")
        db.commit()
        yield db
        db.rollback()
        db.execute("DROP OWNED BY clerk; DROP ROLE clerk")
        db.commit()


@pytest.fixture(scope="module")
def complaints(
    plain: Form, session: Connection, made_up: Upgrade, next_tree: Tree, fresh: Fresh
) -> Callable[[list[Mistake]], list[str]]:
    """What the gate says of an upgrade script with these mistakes."""

    def complaints(made: list[Mistake]) -> list[str]:
        def change(script: str) -> str:
            return reduce(partial(with_mistake, next_tree), made, script)

        try:
            plain.apply(session, made_up, change)
            return differences(describe(session), fresh(plain, made_up.new))
        finally:
            session.rollback()

    return complaints


@pytest.fixture(scope="module")
def together(complaints: Callable[[list[Mistake]], list[str]]) -> Callable[[Mistake], tuple[list[Mistake], list[str]]]:
    """A mistake and others that were made with it, and what the gate says of them: each trial takes its time."""
    trials = batches(ALL)
    known: dict[int, list[str]] = {}

    def together(mistake: Mistake) -> tuple[list[Mistake], list[str]]:
        (number,) = (n for n, made in enumerate(trials) if mistake in made)
        if number not in known:
            known[number] = complaints(trials[number])
        return trials[number], known[number]

    return together


@pytest.mark.parametrize("mistake", ALL, ids=lambda mistake: mistake.what)
def test_an_upgrade_forgets(mistake: Mistake, together: Callable[[Mistake], tuple[list[Mistake], list[str]]]) -> None:
    made, said = together(mistake)
    assert [line for line in said if re.search(mistake.about, line)], said
    assert [line for line in said if not any(re.search(other.about, line) for other in made)] == []


@pytest.mark.long
@pytest.mark.parametrize("mistake", ALL, ids=lambda mistake: mistake.what)
def test_an_upgrade_forgets_nothing_but(mistake: Mistake, complaints: Callable[[list[Mistake]], list[str]]) -> None:
    said = complaints([mistake])
    assert said
    assert [line for line in said if not re.search(mistake.about, line)] == []


def test_there_are_mistakes_of_every_kind() -> None:
    assert len(ALL) > 50
    assert len({mistake.what for mistake in ALL}) == len(ALL)


@pytest.mark.parametrize(
    ("pattern", "instead", "about"),
    [
        (r"-- Only in the extension(.|\n)*", "", r"(table|sequence) pgq.(note|beat): condition for a dump"),
        (r"\Z", "ALTER EXTENSION pgqueue DROP TABLE pgq.note;", r"pgq.note(\[\])?: (member|initial|condition)"),
        (
            r"-- Only in the extension",
            "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgq FROM PUBLIC;\n--",
            r"function pgq\..*: initial rights is .*clerk",
        ),
    ],
    ids=["what a dump must contain", "what belongs to it", "that users have been granted rights"],
)
def test_an_update_of_the_extension_forgets(
    pattern: str,
    instead: str,
    about: str,
    extension: Form,
    extension_session: Connection,
    made_up: Upgrade,
    fresh: Fresh,
) -> None:
    expected = fresh(extension, made_up.new)

    def change(script: str) -> str:
        changed, count = re.subn(pattern, instead, script)
        assert count == 1
        return changed

    try:
        extension.apply(extension_session, made_up, change)
        said = differences(describe(extension_session, but_for=["clerk"]), expected)
    finally:
        extension_session.rollback()
        extension.provide(made_up)
    assert said
    assert [line for line in said if not re.search(about, line)] == []
