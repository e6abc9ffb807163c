"""Every public function, in every order that hypothesis can think of, against the model."""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from tests.model.database import Database
from tests.model.machine import DRIVEN, Machine
from tests.model.world import World
from tests.sql.support import Connection, column

EXAMPLES = 40
# An example takes as long as a busy machine lets it, and there is nothing to filter or to remember.
COMMON = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))


def test_every_public_function_has_a_rule(db: Connection) -> None:
    public = column(
        db, "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'pgq'::regnamespace AND proname !~ '^_'"
    )
    assert sorted(public) == sorted(DRIVEN)


def run(database: Database, how: settings, seed: int | None = None) -> Counter[str]:
    """Run the machine; returns how often each function was called and came back without an error."""
    called: Counter[str] = Counter()

    class Here(Machine):
        @staticmethod
        def make_world() -> World:
            return World(database, note)

        def teardown(self) -> None:
            super().teardown()
            called.update(self.world.called if hasattr(self, "world") else {})

    run_state_machine_as_test(Here if seed is None else seeded(seed)(Here), settings=how)
    return called


@pytest.mark.timeout(1800)  # to shrink what was found takes its time
def test_the_queue_does_what_the_model_says(database: Database) -> None:
    called = run(database, settings(COMMON, max_examples=EXAMPLES, stateful_step_count=40, derandomize=True))
    seed = 0
    while (never := DRIVEN.keys() - called.keys()) and seed < 10:
        called += run(database, settings(COMMON, max_examples=10, stateful_step_count=40), seed)
        seed += 1
    assert never == set()


@pytest.mark.long
@pytest.mark.timeout(0)
def test_the_queue_does_what_the_model_says_for_minutes_or_hours(database: Database) -> None:
    """make model MINUTES=15 SEED=7: each round has its own seed, and says which."""
    seed = int(os.environ.get("SEED") or random.randrange(1_000_000))
    until = time.monotonic() + 60 * float(os.environ.get("MINUTES") or 10)
    while time.monotonic() < until:
        print(f"SEED={seed}", flush=True)
        called = run(database, settings(COMMON, max_examples=50, stateful_step_count=70), seed)
        print(f"  {called.total()} calls agreed with the model", flush=True)
        seed += 1
