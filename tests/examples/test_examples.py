"""Every example is in the table, has a README, and a test."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from tests.examples.support import EXAMPLES

FOLDERS = {path.parent.name for path in EXAMPLES.glob("*/README.md")}


def test_the_table_has_every_example() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in listed} == {link for _, link in listed} == FOLDERS
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"} == FOLDERS


def test_every_example_has_a_test() -> None:
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("*/test_*.py")}
    assert tests >= FOLDERS
