"""A database with pgqueue and what the harness needs, to be cloned for each story."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.chaos.install import install
from tests.chaos.world import World
from tests.cluster import Cluster
from tests.conftest import fresh_database

TEMPLATE = "chaos_template"


@pytest.fixture(scope="session")
def chaos_template(cluster: Cluster) -> str:
    """Name of the database to be cloned."""
    with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    with psycopg.connect(cluster.dsn(TEMPLATE), autocommit=True) as connection:
        install(connection)
    return TEMPLATE


@pytest.fixture
def story_dsn(cluster: Cluster, chaos_template: str) -> Iterator[str]:
    """Connection string of a fresh database for a story."""
    yield from fresh_database(cluster, chaos_template)


@pytest.fixture
def world(story_dsn: str, tmp_path: Path) -> Iterator[World]:
    """Where a story is played."""
    world = World(story_dsn, tmp_path)
    yield world
    world.close()
