"""Every workload once, in its smallest form, with pgqueue alone: the peers need the network to be installed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import find_binaries
from tests.peers.field import FIELD, OURS
from tests.peers.figures import FIGURES
from tests.peers.plan import TINY
from tests.peers.program import PeerError
from tests.peers.server import Server
from tests.peers.turns import Bench, Workload, enqueuing, take, working
from tests.peers.workloads import WORKLOADS


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    patch = pytest.MonkeyPatch()
    patch.setattr(tempfile, "tempdir", str(run_dir))
    with Server.start(find_binaries(request.config.getoption("--pg"))) as server:
        patch.undo()
        # As if the drain had come first: the tests may be split among processes.
        yield Bench(server, TINY, tmp_path_factory.mktemp("records"), {OURS: FIELD[OURS].rate})


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_turn_has_every_figure_of_its_workload(bench: Bench, name: str) -> None:
    run = take(bench, WORKLOADS[name], 0, FIELD[OURS])
    assert run.error is None
    wanted = {figure.key for figure in FIGURES if figure.workload == name}
    assert wanted == run.figures.keys()
    assert None not in run.figures.values()


def test_what_goes_wrong_is_part_of_the_result(bench: Bench) -> None:
    def broken(bench: Bench, system: object) -> tuple[dict[str, float], dict[str, float]]:
        raise PeerError("nothing works")

    run = take(bench, Workload("drain", broken), 2, FIELD[OURS])
    assert (run.round, run.error, run.figures) == (2, "PeerError: nothing works", {})


def test_a_program_that_fails_is_quoted(bench: Bench) -> None:
    system = FIELD[OURS]
    with (
        bench.database(system) as database,
        pytest.raises(PeerError, match="KeyError: 'no such plan'"),
        enqueuing(system, database, plan="no such plan") as producer,
    ):
        producer.result()


def test_a_killed_worker_leaves_no_process(bench: Bench) -> None:
    system = FIELD[OURS]
    with bench.database(system) as database, working(system, database) as worker:
        worker.kill()
        with pytest.raises(PeerError, match="it ended with -9"):
            worker.wait_runs(1)
