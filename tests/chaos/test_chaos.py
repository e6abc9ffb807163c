"""A short run with a fixed seed, and the schedule that makes a run repeatable."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.schedule import EVERY, FAULTS, schedule
from tests.conftest import ROOT

# Until the end, the drain and the check included, on a machine that does a lot of other things.
PATIENCE = 240
# All that need no rights and little time.
SHORT = "kill,stop,terminate,cancel,crash,proxy,clock,snapshot,timeouts,prepared,rollback"


@pytest.mark.timeout(PATIENCE + 30)
def test_nothing_is_lost_or_doubled_under_fire(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--minutes", "0.2", "--seed", "7", "--output", str(tmp_path)]
    command += ["--faults", SHORT]
    process = subprocess.Popen(
        [*command, "--pg", request.config.getoption("--pg")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # it cleans up
            process.wait(60)
    assert process.returncode == 0, output
    figures = json.loads((tmp_path / "chaos.json").read_text())
    assert (figures["lost"], figures["doubled"], figures["violations"]) == (0, 0, {}), output
    assert min(figures[name] for name in ("jobs", "server_crashes", "killed_clients", "terminated")) > 0, output
    assert any(name.startswith("proxy") for name in figures["faults"]), output


def test_the_same_seed_makes_the_same_schedule() -> None:
    assert schedule("1", 60, FAULTS) == schedule("1", 60, FAULTS)
    assert schedule("1", 60, FAULTS) != schedule("2", 60, FAULTS)


@pytest.mark.parametrize("fault", EVERY)
def test_each_fault_happens_at_least_once_and_none_that_was_not_asked_for(fault: str) -> None:
    assert {event.fault for event in schedule("1", 12, {fault})} == {fault}


def test_a_fault_does_not_depend_on_the_others() -> None:
    alone = schedule("1", 60, {"kill"})
    assert [event for event in schedule("1", 60, FAULTS) if event.fault == "kill"] == alone
