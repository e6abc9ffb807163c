"""The checker finds each broken engine, and finds nothing wrong with the one in order."""

from __future__ import annotations

import psycopg
import pytest

from tests.chaos.mutations import MUTATIONS, AnchorGone, Mutation, Patch
from tests.chaos.stories import STORIES, Story
from tests.chaos.world import World


@pytest.mark.parametrize("story", STORIES, ids=[story.__name__ for story in STORIES])
def test_nothing_is_wrong_with_the_engine(world: World, story: Story) -> None:
    story(world)
    assert [str(violation) for violation in world.finish()] == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_a_broken_engine_is_found_out(world: World, mutation: Mutation) -> None:
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        mutation.apply(connection)
    mutation.story(world)
    assert mutation.kind in {violation.kind for violation in world.finish()}


def test_every_story_is_played_on_the_engine_in_order() -> None:
    assert {mutation.story for mutation in MUTATIONS} <= set(STORIES)


def test_a_mutation_whose_anchor_is_gone_fails(world: World) -> None:
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        for patch in (Patch("claim", "no such text", ""), Patch("no_such_function", "", "")):
            with pytest.raises(AnchorGone):
                patch.apply(connection)
