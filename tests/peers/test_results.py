"""The arithmetic: rates, medians, ratios, and who is behind whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.peers import kit, results
from tests.peers.field import FIELD
from tests.peers.figures import FIGURES, WANTED, Figure, Wanted
from tests.peers.plan import FULL
from tests.peers.turns import turns
from tests.peers.workloads import WORKLOADS, pinned


def run(workload: str, system: str, number: int = 0, **figures: float | None) -> dict[str, Any]:
    return {"workload": workload, "system": system, "round": number, "figures": figures, "raw": {}, "error": None}


def content(*runs: dict[str, Any]) -> dict[str, Any]:
    return {"systems": {"pgqueue": {}, "awa": {}}, "runs": list(runs)}


DRAIN = next(figure for figure in FIGURES if figure.workload == "drain")


def test_a_rate_is_read_between_the_reports() -> None:
    points = [(0.0, 0), (1.0, 100), (2.0, 300)]
    assert pinned.rate(points, 0.5, 1.5) == 150
    assert pinned.rate(points, -1, 0.5) == pytest.approx(50 / 1.5)
    assert pinned.rate(points, 2, 4) == 0


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    runs = [run("drain", "pgqueue", n, rate=rate) for n, rate in enumerate([100, 50, 90])]
    runs += [run("drain", "awa", n, rate=rate) for n, rate in enumerate([50, 5, 30])]
    assert results.ratio(content(*runs), "drain", "rate", "awa") == 3
    assert results.value(content(*runs), DRAIN, "pgqueue") == 90


def test_rounds_that_only_one_has_do_not_count() -> None:
    runs = [run("drain", "pgqueue", 0, rate=100), run("drain", "awa", 1, rate=1), run("drain", "awa", 0, rate=None)]
    assert results.ratio(content(*runs), "drain", "rate", "awa") is None


@pytest.mark.parametrize(("theirs", "reached"), [(50, True), (51, False)])
def test_a_wanted_ratio_is_met_or_not(theirs: float, reached: bool) -> None:
    runs = content(run("drain", "pgqueue", rate=100), run("drain", "awa", rate=theirs))
    assert results.met(runs, Wanted("drain", "rate", ("awa",), 2), "awa") is reached


@pytest.mark.parametrize(
    ("figure", "ours", "other", "behind"),
    [
        (Figure("drain", "rate", "", "", more_is_better=True, noise=0.03), 97, 100, False),
        (Figure("drain", "rate", "", "", more_is_better=True, noise=0.03), 96, 100, True),
        (Figure("idle", "p50", "", "", level=1), 2.9, 2.0, False),
        (Figure("idle", "p50", "", "", level=1), 3.1, 2.0, True),
        (Figure("life", "wal", "", ""), 100, 200, False),
        (Figure("pinned", "ratio", "", "", more_is_better=True, enough=1), 1.1, 1.4, False),
        (Figure("pinned", "ratio", "", "", more_is_better=True, enough=1), 0.9, 1.4, True),
    ],
)
def test_behind_is_more_than_noise(figure: Figure, ours: float, other: float, behind: bool) -> None:
    assert figure.behind(ours, other) is behind


def test_pgqueue_with_other_settings_is_not_ahead_of_itself() -> None:
    runs = content(run("life", "pgqueue", wal=700), run("life", "pgqueue-unarchived", wal=400))
    runs["systems"] |= {"pgqueue-unarchived": {}, "pgqueuer": {}}
    assert results.lost(runs) == []
    runs["runs"].append(run("life", "pgqueuer", wal=500))
    assert [system for _, system, _, _ in results.lost(runs)] == ["pgqueuer"]


def test_who_is_ahead_is_told() -> None:
    runs = content(run("drain", "pgqueue", rate=100), run("drain", "awa", rate=200))
    assert [(figure.key, system, ours, theirs) for figure, system, ours, theirs in results.lost(runs)] == [
        ("rate", "awa", 100, 200)
    ]


def test_every_second_round_goes_the_other_way_round() -> None:
    systems = list(FIELD.values())[:2]
    order = [(number, system.name) for number, system in turns(systems, 2)]
    a, b = (system.name for system in systems)
    assert order == [(0, a), (0, b), (1, b), (1, a)]


def test_what_is_wanted_is_measured() -> None:
    known = {(figure.workload, figure.key) for figure in FIGURES}
    assert {(wanted.workload, wanted.key) for wanted in WANTED} <= known
    assert {system for wanted in WANTED for system in wanted.against} <= FIELD.keys()
    assert {workload for workload, _ in known} == set(WORKLOADS)
    assert FULL.edge_seconds == 30


def test_a_record_of_waits_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "record"
    tally = kit.Tally(str(record))
    tally.note({"n": 1, "sent": 0})
    tally.note({"n": 2})
    tally.report()
    tally.report()
    assert len(kit.waits(record)) == 1
    assert [json.loads(line)["runs"] for line in capsys.readouterr().out.splitlines()] == [2, 2]


def test_a_record_of_numbers_is_written_at_once(tmp_path: Path) -> None:
    record = tmp_path / "record"
    tally = kit.Tally(str(record), numbers=True)
    for number in (3, 1, 3):
        tally.note({"n": number})
    assert list(kit.numbers(record)) == [3, 1, 3]


def test_a_payload_is_about_a_hundred_bytes() -> None:
    (payload,) = kit.payloads(500, 1)
    assert 80 < len(json.dumps({**payload, "sent": 1790000000000.0})) < 120
