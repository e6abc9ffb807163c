"""Fixtures for the tests of programs that have jobs; pytest finds them when pgqueue is installed.

By default they start a PostgreSQL of their own (``pgqueue[embedded]``). ``--pgqueue-dsn`` or the environment variable
PGQUEUE_TEST_DSN name another server instead, on which they create databases and drop them.

    >>> def test_an_order_sends_a_mail(pgqueue_use):
    ...     with pgqueue_use(app):
    ...         place_order("ann@example.com")
    ...         assert_enqueued(send, {"to": "ann@example.com"})
    ...         assert drain(app) == 1
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pgqueue.app import App
    from pgqueue.testing import Clock


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --pgqueue-dsn."""
    parser.getgroup("pgqueue").addoption(
        "--pgqueue-dsn",
        default=os.environ.get("PGQUEUE_TEST_DSN"),
        help="connection string of a server for the databases of tests; else PGQUEUE_TEST_DSN, else an embedded one",
    )


@pytest.fixture(scope="session")
def pgqueue_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """Connection string of a server on which databases may be created."""
    from pgqueue.embedded import EmbeddedPostgres

    given = pytestconfig.getoption("--pgqueue-dsn")
    if given is not None:
        yield given
        return
    with EmbeddedPostgres(config={"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}) as server:
        yield server.dsn()


@pytest.fixture(scope="session")
def pgqueue_template(pgqueue_server: str) -> Iterator[str]:
    """Name of a database with pgq, to be copied."""
    from psycopg.conninfo import conninfo_to_dict

    from pgqueue.testing import database

    with database(pgqueue_server) as dsn:
        yield str(conninfo_to_dict(dsn)["dbname"])


@pytest.fixture
def pgqueue_dsn(pgqueue_server: str, pgqueue_template: str) -> Iterator[str]:
    """Connection string of a fresh database with pgq, and without queues."""
    from pgqueue.testing import database

    with database(pgqueue_server, pgqueue_template) as dsn:
        yield dsn


@pytest.fixture
def pgqueue_clock(pgqueue_dsn: str) -> Iterator[Clock]:
    """The clock of pgq in the test's database: ``pgqueue_clock.advance(60)``."""
    import psycopg

    from pgqueue.testing import Clock

    with psycopg.connect(pgqueue_dsn, autocommit=True) as connection:
        yield Clock(connection)


@pytest.fixture
def pgqueue_use(pgqueue_dsn: str) -> Callable[[App], AbstractContextManager[App]]:
    """Have an app use the test's database, with the queues of its tasks: ``with pgqueue_use(app): …``."""
    from pgqueue.testing import create_queues

    @contextmanager
    def use(app: App) -> Iterator[App]:
        with app.connected_to(pgqueue_dsn):
            create_queues(app)
            yield app

    return use
