"""Errors: SQLSTATEs become classes."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgqueue import Client, PermissionDenied, PgqError, SchemaMissing, VersionMismatch, errors


def test_each_sqlstate_has_one_class() -> None:
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, PgqError)]
    states = [cls.sqlstate for cls in classes if cls is not PgqError]
    assert len(states) == len(set(states))
    assert {"PQ001", "PQ002", "PQ003", "PQ004", "PQ005", "22023", "22004", "0A000", "42710"} <= set(states)


@pytest.mark.parametrize("cls", list(errors._CLASSES.values()))
def test_message_detail_and_hint_survive(db: psycopg.Connection[Any], cls: type[PgqError]) -> None:
    with pytest.raises(cls) as caught, errors.translated():
        db.execute(f"DO $$ BEGIN RAISE SQLSTATE '{cls.sqlstate}' USING MESSAGE = 'm', DETAIL = 'd', HINT = 'h'; END $$")
    error = caught.value
    assert (error.message, error.detail) == ("m", "d")
    assert error.hint
    assert str(error).startswith("m\nDETAIL:  d\nHINT:  ")
    assert isinstance(error.__cause__, psycopg.Error)


def test_a_database_without_pgq_says_how_to_install_it(bare_dsn: str) -> None:
    with Client(bare_dsn) as client, pytest.raises(SchemaMissing, match="pgqueue install"):
        client.enqueue("q")


def test_a_missing_function_is_a_version_mismatch(fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn) as connection:
        connection.execute("DROP FUNCTION pgq.promote()")
    with Client(fresh_dsn) as client, pytest.raises(VersionMismatch, match="pgqueue upgrade"):
        client.promote()


def test_a_stranger_is_told_which_grant_is_missing(dsn: str, db: psycopg.Connection[Any]) -> None:
    db.execute("DO $$ BEGIN CREATE ROLE stranger LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    stranger = Client(psycopg.conninfo.make_conninfo(dsn, user="stranger"))
    with stranger as client, pytest.raises(PermissionDenied, match="grant_producer"):
        client.enqueue("q")
