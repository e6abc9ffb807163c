"""One database for all tests of the model, emptied between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.model.database import Database


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Not on the older server of the two that `make test` runs on: it takes its time, and finds the same."""
    if config.getoption("--pg") == "16":
        here = [item for item in items if Path(__file__).parent in item.path.parents]
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]


@pytest.fixture(scope="module")
def database(cluster: Cluster, template: str) -> Iterator[Database]:
    database = Database(cluster, template)
    yield database
    database.close()
