"""The model is itself tested: mistakes made on purpose must not escape it."""

from __future__ import annotations

import pytest

from tests.model.database import Database
from tests.model.mutants import MUTANTS, SCENARIOS, Mutant, applied
from tests.model.scenarios import Steps
from tests.model.world import World


@pytest.mark.parametrize("steps", SCENARIOS, ids=lambda steps: steps.__name__)
def test_the_queue_as_it_is_passes(database: Database, steps: Steps) -> None:
    world = World(database)
    steps(world)
    world.finish()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_found(database: Database, mutant: Mutant) -> None:
    with applied(mutant, database.observer):
        world = World(database)
        with pytest.raises(AssertionError):
            mutant.steps(world)
