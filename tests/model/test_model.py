"""Every public function, in every order that hypothesis can think of, against the model."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.database import Database
from tests.model.machine import DRIVEN, NOT_DRIVEN, Machine
from tests.model.world import World
from tests.sql.support import Connection, column


def test_every_public_function_has_a_rule_or_a_reason(db: Connection) -> None:
    public = column(
        db, "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'pgq'::regnamespace AND proname !~ '^_'"
    )
    assert sorted(public) == sorted(DRIVEN.keys() | NOT_DRIVEN.keys())
    assert not DRIVEN.keys() & NOT_DRIVEN.keys()


def test_the_queue_does_what_the_model_says(database: Database) -> None:
    class Here(Machine):
        make_world = staticmethod(lambda: World(database))

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
