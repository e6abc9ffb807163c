"""One database for all tests of the model, emptied between them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import Cluster
from tests.model.database import Database


@pytest.fixture(scope="module")
def database(cluster: Cluster, template: str) -> Iterator[Database]:
    database = Database(cluster, template)
    yield database
    database.close()
