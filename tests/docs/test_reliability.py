"""docs/reliability.md: what it names exists, and its figures come from the runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.reliability import BEGIN, END, main

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/reliability.md"

CHAOS = {
    "seed": 7,
    "minutes": 180.5,
    "jobs": 4_000_000,
    "server_crashes": 1001,
    "killed_clients": 999,
    "terminated": 12,
    "faults": {"proxy cut": 1234, "disk full": 3},
    "lost": 0,
    "doubled": 0,
    "violations": [],
}
FAILOVER = {
    "rounds": 100,
    "mode": "synchronous",
    "jobs": 5000,
    "lost": 0,
    "doubled": 1,
    "outage_seconds": [1.25, 3, 2],
}
LOAD = {
    "minutes": 60,
    "rate": 2800,
    "jobs": 10_080_000,
    "connections": 500,
    "queues": 10_000,
    "lost": 0,
    "doubled": 0,
    "violations": [],
    "flat": [
        {"what": "claim, p99", "unit": "ms", "first": 2.5, "last": 2.6, "ratio": 1.04, "flat": True},
        {"what": "dead tuples", "unit": "rows", "first": 0, "last": 12345, "ratio": None, "flat": False},
    ],
}


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """A copy of the document, with room for images beside it."""
    copy = tmp_path / "docs" / "reliability.md"
    copy.parent.mkdir()
    copy.write_text(DOCUMENT.read_text())
    return copy


def written(document: Path, build: Path, **runs: dict[str, Any]) -> str:
    """Write the figures of these runs; returns the section."""
    build.mkdir(exist_ok=True)
    for name, content in runs.items():
        (build / f"{name}.json").write_text(json.dumps(content))
    done = CliRunner().invoke(main, ["--build", str(build), "--document", str(document)])
    assert done.exit_code == 0, done.output
    return document.read_text().partition(BEGIN)[2].partition(END)[0]


def test_the_figures_of_all_runs_are_written(document: Path, tmp_path: Path) -> None:
    section = written(document, tmp_path / "build", chaos=CHAOS, failover={**FAILOVER, "violations": 1}, load=LOAD)
    for line in [
        "| **chaos** (`make chaos`) | 180.5 minutes, seed 7 | |",
        "| crashes of the server | 1,001 | ≥ 1,000 |",
        "| workers and producers killed | 999 | ≥ 1,000, **missed** |",
        "| other faults | disk full 3, proxy cut 1,234 | |",
        "| promotions | 100 | ≥ 100 |",
        "| outage for clients, median and longest | 2.0 s, 3.0 s | |",
        "| jobs done twice | 1 | 0, **missed** |",
        "| violations of any kind | 1 | 0, **missed** |",
        "| jobs | 10,080,000 | ≥ 10,000,000 |",
        "| claim, p99 | 2.5 ms | 2.6 ms | 1.04 | yes |",
        "| dead tuples | 0 rows | 12,345 rows |  | **no** |",
    ]:
        assert line in section.splitlines()


def test_a_run_that_does_not_list_violations_is_shown_too(document: Path, tmp_path: Path) -> None:
    assert "| jobs done twice | 1 | 0, **missed** |" in written(document, tmp_path / "build", failover=FAILOVER)


def test_runs_that_are_missing_are_named(document: Path, tmp_path: Path) -> None:
    section = written(document, tmp_path / "build", failover=FAILOVER)
    assert "| **chaos** (`make chaos`) | not run | |" in section
    assert "| **load** (`make load`) | not run | |" in section
    assert "flat" not in section


def test_pictures_are_shown_if_they_are_there(document: Path, tmp_path: Path) -> None:
    assert "![" not in written(document, tmp_path / "build", load=LOAD)
    (document.parent / "images").mkdir()
    (document.parent / "images/load-rate.svg").write_text("<svg/>")
    assert "![load-rate](images/load-rate.svg)" in written(document, tmp_path / "build", load=LOAD)


def test_writing_twice_changes_nothing_and_the_rest_of_the_page_stays(document: Path, tmp_path: Path) -> None:
    before = document.read_text()
    written(document, tmp_path / "build", load=LOAD)
    once = document.read_text()
    written(document, tmp_path / "build")
    assert document.read_text() == once
    assert (once.partition(BEGIN)[0], once.partition(END)[2]) == (before.partition(BEGIN)[0], before.partition(END)[2])


@pytest.mark.parametrize("marker", [BEGIN, END])
def test_a_page_without_markers_is_left_alone(document: Path, tmp_path: Path, marker: str) -> None:
    document.write_text(document.read_text().replace(marker, ""))
    before = document.read_text()
    done = CliRunner().invoke(main, ["--build", str(tmp_path), "--document", str(document)])
    assert done.exit_code != 0
    assert "no section" in done.output
    assert document.read_text() == before


def test_every_test_and_target_that_the_page_names_exists() -> None:
    text = DOCUMENT.read_text()
    makefile = (ROOT / "Makefile").read_text()
    paths = set(re.findall(r"`(tests/[\w./]+)`", text))
    assert len(paths) > 10
    missing = [path for path in sorted(paths) if not (ROOT / path).exists()]
    missing += [
        target
        for target in sorted(set(re.findall(r"`make ([\w-]+)`", text)))
        if not re.search(rf"^{target}:", makefile, re.MULTILINE)
    ]
    assert missing == []


def test_every_directory_of_tests_that_tries_a_promise_is_on_the_page() -> None:
    text = DOCUMENT.read_text()
    others = {"bench", "build", "demo", "docs", "examples", "peers", "python", "sql"}  # how it is built, and parts
    tried = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")} - others
    assert [name for name in sorted(tried) if f"`tests/{name}`" not in text] == []
