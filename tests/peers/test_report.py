"""The page: everything in it comes from the JSON, and where a peer is ahead it says so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.peers import remarks, report
from tests.peers.__main__ import main
from tests.peers.field import FIELD
from tests.peers.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]


def run(workload: str, system: str, figures: dict[str, float | None], **raw: Any) -> dict[str, Any]:
    return {"workload": workload, "system": system, "round": 0, "figures": figures, "raw": raw, "error": None}


@pytest.fixture
def content() -> dict[str, Any]:
    about = {"language": "Python", "settings": {"batch": "500"}, "recovery": "its lease has run out"}
    step = {"rate": 100, "p50": 1.0, "p99": 10.0, "late_ms": 1.0, "error": None}
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "took_seconds": 600,
        "quick": True,
        "plan": {"around": 1000, "pinned_seconds": 12},
        "cpus": 2,
        "cpu": "a CPU",
        "memory_gb": 8.0,
        "postgres": "PostgreSQL 16.1 on some machine",
        "fdatasync_us": 150.0,
        "settings": {"fsync": "on"},
        "systems": {
            "pgqueue": {**about, "versions": {"python": "3.11", "pgqueue": "1.0"}},
            "awa": {**about, "versions": {"awa-pg": "0.6", "other": "7"}},
            "absurd": {**about, "error": "no such package"},
        },
        "runs": [
            run("drain", "pgqueue", {"rate": 1000.0}),
            run("drain", "awa", {"rate": 500.0}),
            {**run("drain", "absurd", {}), "error": "PeerError: it\nended"},
            run("enqueue-bulk", "pgqueue", {"rate": 10.0}),
            run("enqueue-bulk", "awa", {"rate": 20.0}),
            run(
                "pinned", "pgqueue", {"first": 4.0, "last": 2.0, "ratio": 0.5}, **{"from": -1, "per_second": [4, 4, 2]}
            ),
            run("offered", "pgqueue", {"rate": 100}, steps=[step], open=True),
            run("crash", "awa", {"seconds": None, "twice": 0}, left=3, jobs=10, patience=60),
            run("life", "pgqueue", {"wal": 100.0, "versions": 0.0}),
        ],
    }


def test_the_page_shows_what_was_found(content: dict[str, Any]) -> None:
    lines = report.text(content).splitlines()
    for line in [
        "| drain: drained | 1,000 jobs/s | awa: 500 jobs/s | 2 | ≥ 4 | **no** |",
        "| enqueue-bulk: many in each call | 10 jobs/s | awa: 20 jobs/s | 0.5 | not behind | **no** |",
        "| pinned: last : first, by itself | 0.50 |  |  | ≥ 0.9 | **no** |",
        "| pgqueue | **1,000** |",
        "| awa | 500 |",
        "- drain, absurd: failed with `PeerError: it ended`",
        "- awa: after 60 s 3 of 10 jobs were not done; they come back when its lease has run out.",
        "- pgqueue: the highest rate that was tried was still sustained.",
        "| pgqueue | Python | python 3.11, pgqueue 1.0 | batch: 500 |",
        "| awa | Python | awa-pg 0.6 | batch: 500 |",
        "| absurd | Python | not installed: no such package | batch: 500 |",
    ]:
        assert line in lines


def test_a_remark_is_shown_only_where_the_figures_show_it(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        remarks, "REMARKS", {("enqueue-bulk", "", "awa"): "It uses COPY.", ("drain", "rate", "awa"): "It is in Rust."}
    )
    page = report.text(content)
    assert "- **enqueue-bulk, many in each call: awa** 20 jobs/s, pgqueue 10 jobs/s. It uses COPY." in page
    assert "It is in Rust." not in page


def test_page_and_pictures_are_the_same_for_the_same_figures(content: dict[str, Any], tmp_path: Path) -> None:
    written = [report.write(content, tmp_path / name / "benchmarks.md") for name in ("a", "b")]
    assert [path.name for path in written[0]] == [
        "benchmarks.md", "peers-pinned.png", "peers-offered.png", "peers-drain.png", "peers-life.png"
    ]  # fmt: skip
    assert [path.read_bytes() for path in written[0]] == [path.read_bytes() for path in written[1]]


def test_only_pictures_that_are_there_are_shown(content: dict[str, Any], tmp_path: Path) -> None:
    page, *pictures = report.write(content, tmp_path / "benchmarks.md")
    shown = re.findall(r"!\[.*\]\(images/(.*)\)", page.read_text())
    assert sorted(shown) == sorted(path.name for path in pictures)


def test_remarks_are_about_what_there_is() -> None:
    for workload, _, system in remarks.REMARKS:
        assert workload in WORKLOADS
        assert system in FIELD


def test_every_command_on_the_page_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make ([\w-]+)", report.HEAD, re.MULTILINE)
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_command_line_knows_every_workload_and_refuses_an_unknown_peer() -> None:
    shown = CliRunner().invoke(main, ["--help"], terminal_width=200)
    assert all(name in shown.output for name in WORKLOADS)
    refused = CliRunner().invoke(main, ["--peers", "celery"])
    assert "celery; there are pgqueue, " in refused.output
