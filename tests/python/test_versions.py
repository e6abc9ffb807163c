"""A package and a schema that do not fit together: nothing is done, and it is said what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgqueue import App, AsyncClient, Client, VersionMismatch, Worker, __version__, _versions
from pgqueue._versions import numbers
from tests.python.support import Face

MAJOR = numbers(__version__)[0]


@pytest.fixture
def installed(fresh_dsn: str) -> Iterator[Any]:
    """Let the database of this test say that it has another version: installed("1.0.0")."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute("SELECT pgq.create_queue('q')")

        def say(version: str) -> str:
            connection.execute(
                f"CREATE OR REPLACE FUNCTION pgq.version() RETURNS text LANGUAGE sql AS $$ SELECT '{version}'::text $$"
            )
            return fresh_dsn

        yield say


@pytest.mark.parametrize(
    ("schema", "hint"),
    [
        ("0.0.9", "pgqueue upgrade"),
        (f"{MAJOR + 1}.0.0", "pip install --upgrade pgqueue"),
    ],
)
def test_it_is_refused_by_client_and_worker(installed: Any, schema: str, hint: str) -> None:
    dsn = installed(schema)
    loop = asyncio.new_event_loop()
    for face in (Face(Client(dsn), loop), Face(AsyncClient(dsn), loop)):
        with pytest.raises(VersionMismatch, match=hint) as caught:
            face.enqueue("q")
        assert schema in str(caught.value)
        assert face.version() == schema
        face.close()
    loop.close()
    with pytest.raises(VersionMismatch, match=hint):
        asyncio.run(Worker(App(dsn), ["q"]).run())
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT ready FROM pgq.stats()").fetchone() == (0,)


@pytest.mark.parametrize("schema", [f"{MAJOR}.9999.0", f"{MAJOR}.9999.0rc1", __version__])
def test_every_newer_schema_of_the_same_major_version_is_good(installed: Any, schema: str) -> None:
    with Client(installed(schema)) as client:
        assert client.enqueue("q") == 1


def test_a_caller_s_connection_is_checked_before_anything_is_done(installed: Any) -> None:
    dsn = installed("0.0.9")
    with Client() as client, psycopg.connect(dsn) as connection:
        with pytest.raises(VersionMismatch):
            client.enqueue("q", connection=connection)
        connection.commit()
        assert connection.execute("SELECT ready FROM pgq.stats()").fetchone() == (0,)


def test_each_connection_is_asked_once(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dsn = installed(__version__)
    asked: list[str] = []
    monkeypatch.setattr(_versions, "check", asked.append)
    with psycopg.connect(dsn) as first, psycopg.connect(dsn) as second, Client() as client:
        for connection in (first, second, first, second):
            client.stats(connection=connection)
            client.stats(connection=connection.cursor())
    assert asked == [__version__] * 2


def test_versions_compare_as_numbers() -> None:
    assert numbers("0.9.0") < numbers("0.10.0") < numbers("0.10.1rc2") < numbers("1.0.0") < numbers("10.0.0")
    assert numbers(_versions.REQUIRED) <= numbers(__version__)
