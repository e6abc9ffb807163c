"""`pgqueue upgrade`: all or nothing, forwards only, by whomever, and what it says when it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue import SchemaMissing, VersionMismatch
from pgqueue import upgrade as command
from pgqueue.errors import PgqError
from tests.build.catalog import Connection, counts, objects
from tests.programs import ROOT
from tests.sql.support import column, one
from tests.upgrade.conftest import SYNTHETIC
from tests.upgrade.gate import Form, pgqueue
from tests.upgrade.synthetic import version_function
from tests.upgrade.tree import Tree, Upgrade, Version

OURS = Tree(ROOT)
synthetic = pytest.mark.parametrize("tree", [SYNTHETIC], indirect=True)


@pytest.fixture
def form(request: pytest.FixtureRequest, form_of: Callable[[str], Form]) -> Form:
    """Here the plain form, unless a test says otherwise."""
    return form_of(getattr(request, "param", "plain"))


@pytest.fixture
def current() -> Version:
    return OURS.current


@pytest.fixture
def dsn(form: Form, current: Version) -> Iterator[str]:
    with form.database(current) as dsn:
        yield dsn


@pytest.fixture
def db(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn, autocommit=True) as db:
        yield db


@pytest.fixture
def scripts(tmp_path: Path) -> Callable[..., list[Path]]:
    """Write upgrade scripts: scripts({"0.1.0--0.2.0": "SELECT 1"})."""

    def scripts(steps: dict[str, str]) -> list[Path]:
        for name, text in steps.items():
            (tmp_path / f"pgqueue--{name}.sql").write_text(text)
        return list(tmp_path.iterdir())

    return scripts


def state(db: Connection) -> object:
    return objects(db), counts(db)


def test_it_goes_several_steps_and_only_as_far_as_it_should(
    db: Connection, current: Version, scripts: Callable[..., list[Path]]
) -> None:
    chain = scripts(
        {
            f"{current.number}--10.2.0": version_function("10.2.0"),
            "10.2.0--10.10.0": version_function("10.10.0"),
            "10.10.0--11.0.0": version_function("11.0.0"),
        }
    )
    taken = [f"pgqueue--{current.number}--10.2.0.sql", "pgqueue--10.2.0--10.10.0.sql"]
    assert command.upgrade(db, chain, "10.10.0") == (current.number, taken)
    assert one(db, "SELECT pgq.version()") == "10.10.0"
    assert command.upgrade(db, chain, "10.10.0") == ("10.10.0", [])


@pytest.mark.parametrize(
    ("second", "error"),
    [
        ("CREATE TABLE pgq.half (); SELECT 1 / 0", psycopg.errors.DivisionByZero),
        ("CREATE TABLE pgq.half ()", VersionMismatch),  # it does not even count the version up
    ],
)
def test_a_step_that_fails_leaves_nothing_of_those_before(
    db: Connection, current: Version, scripts: Callable[..., list[Path]], second: str, error: type[Exception]
) -> None:
    before = state(db)
    chain = scripts({f"{current.number}--8.0.0": version_function("8.0.0"), "8.0.0--9.0.0": second})
    with pytest.raises(error):
        command.upgrade(db, chain, "9.0.0")
    assert state(db) == before
    assert one(db, "SELECT current_user") == "postgres"


def test_versions_without_a_way_are_refused(
    db: Connection, current: Version, scripts: Callable[..., list[Path]]
) -> None:
    chain = scripts({f"{current.number}--8.0.0": version_function("8.0.0"), "8.5.0--9.0.0": "SELECT 1"})
    before = state(db)
    with pytest.raises(VersionMismatch, match="no script to upgrade") as caught:
        command.upgrade(db, chain, "9.0.0")
    assert "8.5.0" in str(caught.value)
    assert "Nothing was changed" in str(caught.value)
    with pytest.raises(VersionMismatch, match="no way back") as caught:
        command.upgrade(db, chain, "0.0.9")
    assert state(db) == before


@synthetic
def test_this_package_does_not_take_a_newer_installation_back(form: Form, tree: Tree, upgrade: Upgrade) -> None:
    with form.database(upgrade.new) as dsn:
        said = pgqueue(OURS, dsn, "upgrade", fails=True)
        assert f"pgq {upgrade.new.number} in this database is newer than this package" in said
        assert "pip install --upgrade" in said
        assert upgrade.new.number in pgqueue(OURS, dsn, "version")


def test_where_there_is_no_pgq_it_says_how_to_install_it(form: Form) -> None:
    with (
        form.database() as dsn,
        psycopg.connect(dsn, autocommit=True) as db,
        pytest.raises(SchemaMissing, match="pgqueue install"),
    ):
        command.upgrade(db, [], "9.0.0")


@pytest.mark.parametrize("form", ["extension"], indirect=True)
def test_a_server_without_the_files_is_told_which_to_install(db: Connection, form: Form) -> None:
    before = state(db)
    with pytest.raises(VersionMismatch, match="the server has no files") as caught:
        command.upgrade(db, [], "9.0.0")
    assert "make install" in str(caught.value)
    assert state(db) == before


def test_a_long_transaction_makes_it_give_up_and_change_nothing(
    db: Connection, dsn: str, current: Version, scripts: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "LOCK_TIMEOUT", "SET LOCAL lock_timeout = '50ms'")
    monkeypatch.setattr(command, "ATTEMPTS", 2)
    chain = scripts(
        {f"{current.number}--9.0.0": f"ALTER TABLE pgq.queue ADD COLUMN x int; {version_function('9.0.0')}"}
    )
    with psycopg.connect(dsn) as dump:
        dump.execute("LOCK TABLE pgq.queue IN ACCESS SHARE MODE")
        before = state(db)
        with pytest.raises(PgqError, match="in use") as caught:
            command.upgrade(db, chain, "9.0.0")
        assert "Nothing was changed" in str(caught.value)
        assert state(db) == before
        dump.rollback()
        dump.execute("SELECT pg_advisory_xact_lock(7014353)")  # another upgrade
        with pytest.raises(PgqError, match="in use"):
            command.upgrade(db, chain, "9.0.0")
    assert command.upgrade(db, chain, "9.0.0")[0] == current.number


@pytest.fixture
def landlord(form: Form, upgrade: Upgrade) -> Iterator[str]:
    """A database in which an ordinary role has installed the old version; who it is: its name with _owner."""
    with form.database() as dsn, psycopg.connect(dsn, autocommit=True) as admin:
        database = conninfo_to_dict(dsn)["dbname"]
        owner = f"{database}_owner"
        admin.execute(f"CREATE ROLE {owner} LOGIN; GRANT CREATE ON DATABASE {database} TO {owner}".encode())
        with psycopg.connect(dsn, user=owner, autocommit=True) as session:
            form.install(session, upgrade.old)
        yield dsn
        admin.execute("DROP EXTENSION IF EXISTS pgqueue CASCADE")
        admin.execute(f"DROP OWNED BY {owner} CASCADE; DROP ROLE {owner}".encode())


OWNERS = """
    SELECT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'pgq'::regnamespace
    UNION SELECT relowner::regrole::text FROM pg_class WHERE relnamespace = 'pgq'::regnamespace
    UNION SELECT typowner::regrole::text FROM pg_type WHERE typnamespace = 'pgq'::regnamespace
"""


@synthetic
@pytest.mark.parametrize("form", ["plain", "extension"], indirect=True)
def test_everything_belongs_to_the_owner_whoever_upgrades(
    form: Form, tree: Tree, upgrade: Upgrade, landlord: str
) -> None:
    """A new SECURITY DEFINER function would else run with the rights of a superuser."""
    form.provide(upgrade)
    with psycopg.connect(landlord, autocommit=True) as superuser:
        before = state(superuser)
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="belongs to") as caught:
            form.apply(superuser, upgrade)
        assert "SET ROLE" in str(caught.value.diag.message_hint)
        assert state(superuser) == before
        pgqueue(tree, landlord, "upgrade")
        owner = f"{superuser.info.dbname}_owner"
        assert column(superuser, OWNERS) == [owner]


@synthetic
def test_who_may_not_become_the_owner_changes_nothing(tree: Tree, upgrade: Upgrade, landlord: str) -> None:
    with psycopg.connect(landlord, autocommit=True) as superuser:
        stranger = f"{superuser.info.dbname}_stranger"
        superuser.execute(f"CREATE ROLE {stranger} LOGIN; SELECT pgq.grant_admin('{stranger}')".encode())
        before = state(superuser)
        said = pgqueue(tree, make_conninfo(landlord, user=stranger), "upgrade", fails=True)
        assert "permission denied to set role" in said
        assert state(superuser) == before
        superuser.execute(f"DROP OWNED BY {stranger}; DROP ROLE {stranger}".encode())


@synthetic
def test_a_script_by_hand_is_refused_where_it_does_not_fit(upgrade: Upgrade, form_of: Callable[[str], Form]) -> None:
    script = upgrade.plain[0].read_bytes()
    for form, version, message in (
        (form_of("extension"), upgrade.old, "ALTER EXTENSION pgqueue UPDATE"),
        (form_of("plain"), upgrade.new, "pgqueue upgrade"),
    ):
        with form.database(version) as dsn, psycopg.connect(dsn) as db:
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
                db.execute(script)
            assert message in str(caught.value.diag.message_hint)


@synthetic
def test_the_next_package_refuses_the_old_schema(tree: Tree, upgrade: Upgrade, old_dsn: str) -> None:
    for arguments in (["stats"], ["enqueue", "q"], ["maintain"]):
        said = pgqueue(tree, old_dsn, *arguments, fails=True)
        assert f"pgq {upgrade.old.number} in this database is older than this package needs" in said
        assert "pgqueue upgrade" in said
    assert f"pgq {upgrade.old.number}" in pgqueue(tree, old_dsn, "version")
    pgqueue(tree, old_dsn, "upgrade")
    assert "no queues" in pgqueue(tree, old_dsn, "stats")
    assert "no queues" in pgqueue(OURS, old_dsn, "stats")
