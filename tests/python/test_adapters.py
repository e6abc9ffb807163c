"""Joining the transactions of other libraries."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgqueue import App, AsyncClient, Client


def ready(client: Client) -> int:
    return client.stats()[0].ready


@pytest.fixture
def url(dsn: str) -> Any:
    """The test's database, as SQLAlchemy wants it."""
    from sqlalchemy import URL

    parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}
    return URL.create(
        "postgresql+psycopg",
        username=parts["user"],
        database=parts["dbname"],
        query={key: value for key, value in parts.items() if key not in ("user", "dbname")},
    )


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_sqlalchemy(client: Client, url: Any, kind: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    app = App("host=nowhere")
    task = app.task("t", queue="q")(lambda: None)
    engine = create_engine(url)
    with Session(engine) if kind == "session" else engine.connect() as given:
        Client(connection=given).enqueue("q")
        client.enqueue("q", connection=given)
        task.enqueue(connection=given)
        task.using(connection=given).enqueue()
        assert ready(client) == 0
        given.rollback()
        client.enqueue("q", connection=given)
        given.commit()
    assert ready(client) == 1
    engine.dispose()
    app.close()


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_sqlalchemy_with_asyncio(client: Client, url: Any, kind: str) -> None:
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    async def main() -> None:
        engine = create_async_engine(url)
        other = AsyncClient("host=nowhere")
        async with AsyncSession(engine) if kind == "session" else engine.connect() as given:
            await other.enqueue("q", connection=given)
            assert ready(client) == 0
            await given.rollback()
            await other.enqueue("q", connection=given)
            await given.commit()
        await engine.dispose()

    asyncio.run(main())
    assert ready(client) == 1


@pytest.fixture
def from_django(dsn: str) -> Iterator[Any]:
    """Django's connection to the test's database."""
    import django
    from django.conf import settings
    from django.db import connections

    parts = conninfo_to_dict(dsn)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        **{name: str(parts[key]) for name, key in [("NAME", "dbname"), ("USER", "user"), ("HOST", "host")]},
        "PORT": str(parts["port"]),
    }
    if not settings.configured:
        settings.configure(DATABASES={"default": database}, USE_TZ=True)
        django.setup()
    connections["default"].settings_dict.update(database)
    yield connections["default"]
    connections["default"].close()


def test_django(client: Client, from_django: Any) -> None:
    from django.db import connection, transaction

    with transaction.atomic():
        client.enqueue("q", connection=connection)
        Client(connection=from_django).enqueue("q")
        assert ready(client) == 0
        transaction.set_rollback(True)
    assert ready(client) == 0
    with transaction.atomic():
        client.enqueue("q", connection=connection)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    assert ready(client) == 1
    client.enqueue("q", connection=connection)
    assert ready(client) == 2, "outside of a transaction it commits at once"


@pytest.mark.parametrize("wrong", ["dsn", 7, object()])
def test_anything_else_is_refused(client: Client, wrong: Any) -> None:
    with pytest.raises(TypeError, match="psycopg 3"):
        client.enqueue("q", connection=wrong)

    async def main() -> None:
        async with AsyncClient("host=nowhere") as other:
            await other.enqueue("q", connection=wrong)

    with pytest.raises(TypeError, match="psycopg 3"):
        asyncio.run(main())


def test_a_connection_of_the_other_kind_is_refused(client: Client, dsn: str) -> None:
    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            with pytest.raises(TypeError, match="not async"):
                client.enqueue("q", connection=connection)
            with pytest.raises(TypeError, match="not async"):
                client.enqueue("q", connection=connection.cursor())

    asyncio.run(main())
