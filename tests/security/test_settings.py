"""The settings of a session or database change how SQL is read, planned and shown, and must not change what is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
from psycopg.types.string import TextLoader

from tests.build.catalog import Catalog, objects
from tests.cluster import Cluster
from tests.conftest import PLAIN_SQL, Clock, fresh_database
from tests.security.life import live
from tests.sql.support import Connection, column

Settings = dict[str, str]

# One line for each life. Each is set for the role, so that it holds from the first moment of a session.
SETTINGS: list[Settings] = [
    {"standard_conforming_strings": "off", "escape_string_warning": "off"},
    {"backslash_quote": "off", "array_nulls": "off", "transform_null_equals": "on"},
    {"quote_all_identifiers": "on"},
    {"DateStyle": "German, DMY", "IntervalStyle": "sql_standard"},
    {"DateStyle": "SQL, DMY", "IntervalStyle": "iso_8601"},
    {"DateStyle": "Postgres, MDY", "IntervalStyle": "postgres_verbose"},
    {"TimeZone": "Pacific/Apia"},
    {"TimeZone": "America/St_Johns"},
    {"TimeZone": "<+14>-14"},
    {"extra_float_digits": "-15", "bytea_output": "escape"},
    {"row_security": "off"},
    {"check_function_bodies": "off"},
    {"client_encoding": "LATIN1"},
    {"client_encoding": "EUC_JP"},
    {"plpgsql.variable_conflict": "use_variable"},
    {"plpgsql.variable_conflict": "use_column"},
    {"plpgsql.extra_errors": "all"},
    {"session_replication_role": "replica"},
    {"enable_indexscan": "off", "enable_indexonlyscan": "off", "enable_bitmapscan": "off", "enable_nestloop": "off"},
    {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_sort": "off", "enable_partition_pruning": "off"},
    {"plan_cache_mode": "force_custom_plan", "work_mem": "64kB", "jit_above_cost": "0"},
    {
        "parallel": "regress",
        "parallel_setup_cost": "0",
        "parallel_tuple_cost": "0",
        "min_parallel_table_scan_size": "0",
    },
    {"default_tablespace": "elsewhere", "temp_tablespaces": "elsewhere"},
    {"lock_timeout": "1min", "statement_timeout": "5min", "synchronous_commit": "off"},
]


def named(settings: Settings) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def set_for(db: Connection, role: str, settings: Settings) -> None:
    """Give a role these settings in its future sessions."""
    for name, value in settings.items():
        if name == "parallel":
            name = "debug_parallel_query" if db.info.server_version >= 160000 else "force_parallel_mode"
        db.execute(f"ALTER ROLE {role} SET {name} = '{value}'")


@pytest.fixture(scope="module")
def elsewhere(cluster: Cluster, run_dir: Path) -> Iterator[str]:
    """A tablespace that everybody may use."""
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        connection.execute("CREATE TABLESPACE elsewhere LOCATION ''")
        connection.execute("GRANT CREATE ON TABLESPACE elsewhere TO PUBLIC")
        yield "elsewhere"
        connection.execute("DROP TABLESPACE elsewhere")


def live_with(db: Connection, settings: Settings) -> list[object]:
    """Live for a day with these settings, then for another, and say what came back."""
    clock, role = Clock(db), f"{db.info.dbname}_settled"
    db.execute(f"CREATE ROLE {role} LOGIN; SELECT pgq.grant_admin('{role}')")
    try:
        set_for(db, role, settings)
        with psycopg.connect(db.info.dsn, user=role, autocommit=True) as session:
            for kind in ("timestamptz", "interval"):  # psycopg reads only the usual styles
                session.adapters.register_loader(kind, TextLoader)
            days = [live(session, clock)]
            clock.advance(86400)
            days.append(live(session, clock))
        return [days, column(db, PLACES)]
    finally:
        db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# Where the partitions of the archive are: a session must not choose that.
PLACES = (
    "SELECT DISTINCT reltablespace FROM pg_class WHERE relnamespace = 'pgq'::regnamespace AND relname ~ '^archive_'"
)


@pytest.fixture(scope="module")
def expected(cluster: Cluster, template: str) -> Iterator[list[object]]:
    """What a life is like with the settings that everybody has."""
    for dsn in fresh_database(cluster, template):
        with psycopg.connect(dsn, autocommit=True) as db:
            yield live_with(db, {})


def test_two_lives_are_alike_and_leave_enough_to_compare(db: Connection, expected: list[object]) -> None:
    """What the other tests rest on."""
    assert live_with(db, {}) == expected
    assert all(kind in str(expected) for kind in ("done", "expired", "retry", "dead", "cancelled"))


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_a_session_with_these_settings_lives_as_any_other(
    db: Connection, elsewhere: str, expected: list[object], settings: Settings
) -> None:
    assert live_with(db, settings) == expected


@pytest.fixture(scope="module")
def site(cluster: Cluster, elsewhere: str) -> Iterator[Connection]:
    """A database into which a superuser named installer installs again and again."""
    for dsn in fresh_database(cluster, None):
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute("CREATE ROLE installer LOGIN SUPERUSER")
            yield db
            db.execute("DROP OWNED BY installer; DROP ROLE installer")


def install(site: Connection, settings: Settings) -> Catalog:
    """Install with these settings, say what there is, and remove it."""
    site.execute("ALTER ROLE installer RESET ALL")
    set_for(site, "installer", settings)
    with psycopg.connect(site.info.dsn, user="installer", autocommit=True) as installer:
        installer.execute(PLAIN_SQL.read_bytes())
    made = objects(site)
    site.execute("DROP SCHEMA pgq CASCADE")
    return made


@pytest.fixture(scope="module")
def installed(site: Connection) -> Catalog:
    return install(site, {})


def together(settings: Sequence[Settings]) -> list[Settings]:
    """The same in as few sets as can be: to install takes its time, and what differs says why."""
    sets: list[Settings] = []
    for one in settings:
        free = next((each for each in sets if not one.keys() & each.keys()), None)
        if free is None:
            sets.append(dict(one))
        else:
            free.update(one)
    return sets


@pytest.mark.parametrize("settings", together(SETTINGS), ids=lambda settings: f"{len(settings)} settings")
def test_an_installer_with_these_settings_installs_the_same(
    site: Connection, installed: Catalog, settings: Settings
) -> None:
    assert install(site, settings) == installed
