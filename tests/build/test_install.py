"""The plain script and the extension: they install, refuse to overwrite, are the same, and leave nothing behind."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.build.catalog import Connection, counts, objects
from tests.cluster import Cluster
from tests.conftest import PLAIN_SQL, ROOT, fresh_database
from tests.programs import make, run
from tests.security.shadows import OVERLOADS, SHADOWS

# One server with the extension serves them all.
pytestmark = pytest.mark.xdist_group("install")

Install = Callable[[str], None]


@pytest.fixture
def dsn(extended: Cluster) -> Iterator[str]:
    yield from fresh_database(extended, None)


@pytest.fixture
def db(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture(params=["psql", "psycopg", "extension"])
def install(request: pytest.FixtureRequest, extended: Cluster) -> Install:
    """Install pgqueue in one of the three ways; raises RuntimeError with the server's message."""

    def with_psql(dsn: str) -> None:
        # As a user would type it: without ON_ERROR_STOP, which the script sets itself.
        script = ROOT / "build/pgqueue.sql"
        done = subprocess.run(
            [extended.program("psql"), "-X", "-q", "-f", script, dsn], check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr)

    def with_psycopg(statements: bytes) -> Install:
        def execute(dsn: str) -> None:
            with psycopg.connect(dsn, autocommit=True) as connection:
                try:
                    connection.execute(statements)
                except psycopg.Error as error:
                    raise RuntimeError(f"{error}\n{error.diag.message_hint}") from error

        return execute

    ways = {
        "psql": with_psql,
        "psycopg": with_psycopg(PLAIN_SQL.read_bytes()),
        "extension": with_psycopg(b"CREATE EXTENSION pgqueue"),
    }
    way: str = request.param
    return ways[way]


def uninstall(db: Connection) -> None:
    db.execute("DROP EXTENSION IF EXISTS pgqueue CASCADE")
    db.execute("DROP SCHEMA IF EXISTS pgq CASCADE")


def test_it_installs_and_tells_its_version(db: Connection, dsn: str, install: Install) -> None:
    install(dsn)
    assert db.execute("SELECT pgq.version()").fetchone() == ("0.2.0",)


def test_installing_twice_is_an_error_and_changes_nothing(db: Connection, dsn: str, install: Install) -> None:
    install(dsn)
    before = objects(db), counts(db)
    with pytest.raises(RuntimeError, match="already"):
        install(dsn)
    assert (objects(db), counts(db)) == before


def test_the_extension_is_not_created_over_a_plain_installation(db: Connection) -> None:
    db.execute(PLAIN_SQL.read_bytes())
    before = objects(db), counts(db)
    with pytest.raises(psycopg.Error, match="already"):
        db.execute("CREATE EXTENSION pgqueue")
    assert (objects(db), counts(db)) == before


@pytest.mark.parametrize(
    "foreign",
    [
        # Skytools' PgQ, which pgqueue shares its schema's name with
        """
        CREATE SCHEMA pgq;
        CREATE TABLE pgq.queue (queue_id serial PRIMARY KEY, queue_name text NOT NULL UNIQUE);
        CREATE FUNCTION pgq.create_queue(i_queue_name text) RETURNS integer LANGUAGE sql AS 'SELECT 1';
        CREATE FUNCTION pgq.version() RETURNS text LANGUAGE sql AS $$ SELECT '3.5'::text $$;
        """,
        # and anybody's empty schema
        "CREATE SCHEMA pgq",
    ],
    ids=["skytools", "empty"],
)
def test_a_foreign_schema_pgq_is_refused_and_left_alone(
    db: Connection, dsn: str, install: Install, foreign: str
) -> None:
    db.execute(foreign.encode())
    before = objects(db), counts(db)
    with pytest.raises(RuntimeError, match="pgq") as raised:
        install(dsn)
    assert "schema" in str(raised.value)
    assert (objects(db), counts(db)) == before


def test_extension_and_plain_script_make_the_same(dsn: str, extended: Cluster) -> None:
    found = []
    for statements in (PLAIN_SQL.read_bytes(), b"CREATE EXTENSION pgqueue"):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(statements)
            found.append(objects(connection))
            uninstall(connection)
    plain, extension = found
    assert plain == extension
    assert len(plain) > 100


@pytest.mark.parametrize("path", ["evil, pg_catalog", "evil"])
def test_what_lies_in_the_installers_search_path_is_not_used(
    db: Connection, dsn: str, install: Install, path: str
) -> None:
    """Others may be allowed to create functions and operators there, and the installer is often a superuser."""
    install(dsn)
    expected = objects(db)
    db.execute("CREATE SCHEMA evil")
    db.execute(SHADOWS)
    db.execute(OVERLOADS)
    uninstall(db)
    database = conninfo_to_dict(dsn)["dbname"]
    db.execute(f"ALTER DATABASE {database} SET search_path = {path}".encode())
    install(dsn)
    assert objects(db) == expected


def test_uninstalling_leaves_nothing_behind_even_after_use(db: Connection, dsn: str, install: Install) -> None:
    before = counts(db)
    install(dsn)
    db.execute("SELECT pgq.create_queue('q')")
    db.execute("SELECT pgq.enqueue('q')")
    db.execute("SELECT pgq.enqueue('q', delay => '1 hour')")
    db.execute("SELECT pgq.ack(id, lease) FROM pgq.claim('q')")
    db.execute("SELECT pgq.maintain()")
    uninstall(db)
    left = {name: n - before[name] for name, n in counts(db).items() if n != before[name]}
    assert left == {}


def test_the_extension_dumps_every_table_with_data(db: Connection) -> None:
    """Without pg_extension_config_dump, pg_dump would leave the jobs out. A partition needs its own."""
    db.execute("CREATE EXTENSION pgqueue")
    forgotten = db.execute(
        """
        SELECT c.oid::regclass::text
          FROM pg_class c
          JOIN pg_depend d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype = 'e'
          JOIN pg_extension e ON e.oid = d.refobjid
         WHERE c.relkind IN ('r', 'S') AND c.relpersistence = 'p' AND c.oid <> ALL (e.extconfig)
        """
    ).fetchall()
    assert forgotten == []


def test_a_dump_of_either_form_restores_with_its_jobs(
    db: Connection, dsn: str, install: Install, extended: Cluster, tmp_path: Path
) -> None:
    install(dsn)
    db.execute("SELECT pgq.create_queue('q', shards => 1)")
    db.execute("SELECT pgq.enqueue_many('q', array_fill('{}'::jsonb, ARRAY[5]))")
    db.execute("SELECT pgq.ack(id, lease, '\"first\"') FROM pgq.claim('q', 1)")
    db.execute("SELECT pgq.enqueue('q', delay => '1 hour')")

    dump = tmp_path / "dump"
    run(extended.program("pg_dump"), "-Fc", "-f", dump, dsn)
    for restored_dsn in fresh_database(extended, None):
        run(extended.program("pg_restore"), "--exit-on-error", "-d", restored_dsn, dump)
        with psycopg.connect(restored_dsn, autocommit=True) as restored:
            assert restored.execute("SELECT ready, running, scheduled FROM pgq.stats()").fetchall() == [(4, 0, 1)]
            assert restored.execute("SELECT result FROM pgq.job_status(1)").fetchall() == [("first",)]
            restored.execute("SELECT pgq.enqueue('q')")
            ids = restored.execute("SELECT id FROM pgq.claim('q', 100)").fetchall()
            assert ids == [(2,), (3,), (4,), (5,), (7,)]


def test_an_ordinary_role_that_owns_its_database_can_install(dsn: str, extended: Cluster, install: Install) -> None:
    database = conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE landlord LOGIN")
        try:
            connection.execute(f"ALTER DATABASE {database} OWNER TO landlord".encode())
            install(extended.dsn(str(database), user="landlord"))
            owners = connection.execute(
                "SELECT DISTINCT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'pgq'::regnamespace"
            ).fetchall()
            assert owners == [("landlord",)]
        finally:
            connection.execute("DROP EXTENSION IF EXISTS pgqueue CASCADE")
            connection.execute(f"ALTER DATABASE {database} OWNER TO postgres".encode())
            connection.execute("DROP OWNED BY landlord CASCADE")
            connection.execute("DROP ROLE landlord")


def test_make_install_and_uninstall(tmp_path: Path) -> None:
    pg_config = tmp_path / "pg_config"
    pg_config.write_text("#!/bin/sh\necho /usr/share/postgresql\n")
    pg_config.chmod(0o755)
    extension = tmp_path / "root/usr/share/postgresql/extension"
    make("install", f"PG_CONFIG={pg_config}", f"DESTDIR={tmp_path}/root")
    assert sorted(path.name for path in extension.iterdir()) == [
        "pgqueue--0.1.0--0.2.0.sql",
        "pgqueue--0.2.0.sql",
        "pgqueue.control",
    ]
    make("uninstall", f"PG_CONFIG={pg_config}", f"DESTDIR={tmp_path}/root")
    assert list(extension.iterdir()) == []
