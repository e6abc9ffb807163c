"""The command line: who cannot be installed is told of, and what was found is written turn by turn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from tests.peers import __main__ as command
from tests.peers import environment
from tests.peers.field import FIELD, OURS
from tests.peers.plan import TINY
from tests.peers.system import System
from tests.peers.turns import Run


@dataclass(frozen=True)
class _Unreachable(System):
    def install(self) -> dict[str, str]:
        raise OSError("no such package")


BROKEN = _Unreachable("broken", "Python", "", (), (), "SELECT 0", {"batch": "1"}, 1)


def test_who_cannot_be_installed_is_told_of_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "BUILD", tmp_path)
    console = Console(record=True)
    there, about = command._install([BROKEN, FIELD[OURS]], console)
    assert there == [FIELD[OURS]]
    assert about["broken"]["error"] == "no such package"
    assert "broken cannot be installed: no such package" in console.export_text()
    assert about[OURS]["versions"]["pgqueue"]


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "new" / "peers.json"
    runs = [Run("drain", OURS, 0, {"rate": 1.0}, {"jobs": 5}), Run("drain", "broken", 0, error="PeerError: no")]
    command._write(out, {"quick": True}, {OURS: {}}, TINY, runs)
    content = json.loads(out.read_text())
    assert (content["quick"], content["plan"]["rounds"], content["systems"]) == (True, 1, {OURS: {}})
    assert [run["error"] for run in content["runs"]] == [None, "PeerError: no"]


def test_an_environment_is_made_anew_if_others_are_wanted_in_it(tmp_path: Path) -> None:
    environment._note(tmp_path, ["a==1"], {"a": "1"})
    assert environment._is_there(tmp_path, ["a==1"])
    assert not environment._is_there(tmp_path, ["a==2"])
    assert not tmp_path.exists()
