"""The load test in small: the same run with fewer of everything."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.cluster import find_binaries
from tests.load.__main__ import main
from tests.load.metrics import METRICS
from tests.load.phases import Outcome, Run
from tests.load.plan import Plan
from tests.load.plots import PICTURES
from tests.load.report import read_samples, summary, write
from tests.load.sample import Sample
from tests.load.server import Server

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("load")]

SMALL = Plan(
    minutes=0.06,
    rate=3000,
    queues=200,
    connections=40,
    sample_seconds=0.5,
    wide_minutes=0.03,
    hold_seconds=0,
    bulk=4,
    processes=1,
    maintainers=2,
)


@dataclass(frozen=True)
class Small:
    """A run that has ended, and what it left in build/."""

    outcome: Outcome
    samples: list[Sample]
    summary: Path
    content: dict[str, Any]


@pytest.fixture(scope="module")
def small(request: pytest.FixtureRequest, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("load")
    lines = folder / "load.jsonl"
    bin = find_binaries(request.config.getoption("--pg"))
    with Server.start(run_dir / "load", bin, SMALL.connections, {"shared_buffers": "128MB"}) as server:
        outcome = Run(SMALL, server, folder, lines, print)()
        content = summary(SMALL, outcome, server.facts())
    write(folder / "load.json", content)
    return Small(outcome, read_samples(lines), folder / "load.json", content)


def test_every_job_is_done_exactly_once(small: Small) -> None:
    assert small.content["violations"] == []
    assert (small.content["lost"], small.content["doubled"]) == (0, 0)
    assert small.outcome.verdict.enqueued == small.content["jobs"] >= 20_000


def test_the_ring_turned_and_the_archive_was_dropped(small: Small) -> None:
    assert small.outcome.events["truncated"] > 0
    assert small.outcome.archive["bytes"] > 0


def test_every_figure_is_sampled(small: Small) -> None:
    phases = {sample["phase"] for sample in small.samples}
    assert {"warm-up", "steady", "pinned", "wide: pile", "wide: flow", "retire"} <= phases
    for metric in METRICS:
        assert any(sample[metric.key] is not None for sample in small.samples), metric
    for key in ("enqueued", "done", "claim_p99", "rss_max", "private_sum", "size_live", "size_archive", "wal_per_job"):
        assert any(sample[key] for sample in small.samples), key
    assert max(sample["backends"] for sample in small.samples) >= SMALL.connections - 10  # not all at once


def test_the_many_queues_are_measured(small: Small) -> None:
    assert small.content["wide"]["lanes"] == 8 * SMALL.queues
    assert all(small.content["wide"][key] > 0 for key in ("create_seconds", "stats_ms", "doctor_ms", "rotate_ms"))


def test_the_report_shows_the_run_and_draws_it(small: Small, tmp_path: Path) -> None:
    arguments = ["--report", "--out", str(small.summary), "--images", str(tmp_path / "images")]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    assert "jobs done" in shown.output
    assert f"{small.content['jobs']:,} jobs, 0 lost, 0 doubled" in shown.output
    pictures = {path.name: path.stat().st_size for path in (tmp_path / "images").iterdir()}
    assert set(pictures) == {f"load-{name}.svg" for name in PICTURES}
    assert all(1_000 < size < 100_000 for size in pictures.values()), pictures


def test_the_summary_is_json_with_the_agreed_names(small: Small) -> None:
    content = json.loads(small.summary.read_text())
    assert {"minutes", "jobs", "rate", "lost", "doubled", "violations", "flat", "wide"} <= set(content)
