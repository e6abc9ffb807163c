"""A function of the user checks what is enqueued."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.sql.support import Connection, call, create, enqueue, one, refused, stats

CHECKS = """
    CREATE SCHEMA app;
    CREATE FUNCTION app.has_to(payload jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT payload ? 'to' $$;
    CREATE FUNCTION app.by_task(task text, payload jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        IF task = 'mail' AND NOT payload ? 'to' THEN
            RAISE EXCEPTION 'a mail needs an address';
        END IF;
        RETURN true;
    END;
    $$;
    CREATE FUNCTION app.breaks(payload jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT 1 / 0 > 0 $$;
    CREATE FUNCTION app.knows_nothing(payload jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT NULL::boolean $$;
    CREATE FUNCTION app."Odd %s; name"(payload jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
    CREATE FUNCTION app.text(payload text) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
    CREATE FUNCTION app.number(payload jsonb) RETURNS int LANGUAGE sql AS $$ SELECT 1 $$;
    CREATE FUNCTION app.rows(payload jsonb) RETURNS SETOF boolean LANGUAGE sql AS $$ SELECT true $$;
    CREATE FUNCTION app.theirs(payload jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
    CREATE ROLE somebody_with_a_validator;
    ALTER FUNCTION app.theirs(jsonb) OWNER TO somebody_with_a_validator;
"""


@pytest.fixture
def db(db: Connection) -> Connection:
    create(db)
    db.execute(
        CHECKS.replace("CREATE ROLE somebody", "DROP ROLE IF EXISTS somebody_with_a_validator; CREATE ROLE somebody")
    )
    return db


def test_payloads_that_do_not_pass_are_refused(db: Connection) -> None:
    call(db, "set_validator", "q", "app.has_to(jsonb)")
    call(db, "enqueue", "q", {"to": "a"})
    with refused("PQ004") as caught:
        call(db, "enqueue", "q", {"from": "a"})
    assert caught.value.diag.message_detail == "app.has_to(jsonb) did not return true."
    with refused("PQ004"):
        call(db, "enqueue", "q", {"from": "a"}, delay=timedelta(hours=1))
    with refused("PQ004"):
        call(db, "enqueue", "q", {"from": "a"}, unique_key="k")
    with refused("PQ004") as caught:
        enqueue(db, 3)
    assert "payload 1" in str(caught.value)
    assert stats(db) == {"ready": 1}
    assert one(db, "SELECT count(*) FROM pgq.unique_key") == 0


def test_a_validator_may_ask_for_the_task_and_say_why(db: Connection) -> None:
    call(db, "set_validator", "q", "app.by_task(text, jsonb)")
    call(db, "enqueue", "q", {}, task="other")
    call(db, "enqueue", "q", {})
    with refused("PQ004") as caught:
        call(db, "enqueue", "q", {}, task="mail")
    assert caught.value.diag.message_detail == "a mail needs an address"


def test_only_true_is_true(db: Connection) -> None:
    call(db, "set_validator", "q", "app.knows_nothing(jsonb)")
    with refused("PQ004"):
        call(db, "enqueue", "q", {})


def test_a_validator_that_is_broken_says_so_itself(db: Connection) -> None:
    call(db, "set_validator", "q", "app.breaks(jsonb)")
    with refused("22012"):
        call(db, "enqueue", "q", {})


def test_a_validator_that_is_gone_stops_producers(db: Connection) -> None:
    call(db, "set_validator", "q", "app.has_to(jsonb)")
    db.execute("DROP FUNCTION app.has_to(jsonb)")
    with refused("42883"):
        call(db, "enqueue", "q", {"to": "a"})
    call(db, "set_validator", "q", None)
    call(db, "enqueue", "q", {})


def test_odd_names_are_good_names(db: Connection) -> None:
    call(db, "set_validator", "q", 'app."Odd %s; name"(jsonb)')
    call(db, "enqueue", "q", {})


@pytest.mark.parametrize("function", ["text(text)", "number(jsonb)", "rows(jsonb)", "theirs(jsonb)"])
def test_other_functions_cannot_be_validators(db: Connection, function: str) -> None:
    with refused("22023"):
        call(db, "set_validator", "q", f"app.{function}")


def test_other_queues_are_not_checked(db: Connection) -> None:
    create(db, "other")
    call(db, "set_validator", "q", "app.has_to(jsonb)")
    call(db, "enqueue", "other", {})
    with refused("PQ002"):
        call(db, "set_validator", "nowhere", "app.has_to(jsonb)")
