"""docs/reference is what the code says of itself."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.golden import compare
from tests.reference import FOLDER, pages


def test_the_reference_is_up_to_date(db: psycopg.Connection[Any]) -> None:
    """`make reference` writes it anew."""
    for name, text in pages(db).items():
        compare(text, FOLDER / name)


def test_everything_public_is_described(db: psycopg.Connection[Any]) -> None:
    for name, text in pages(db).items():
        for entry in text.split("\n##")[1:]:
            title, *lines = entry.splitlines()
            is_module = name == "python.md" and title.lstrip("# ").startswith("pgqueue")
            assert is_module or any(line.strip() for line in lines), f"{name}: {title} says nothing"
