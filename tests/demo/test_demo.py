"""The demo, on a small folder, as a stranger runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.__main__ import find_files
from tests.conftest import ROOT

pytestmark = pytest.mark.xdist_group("demo")

FILES = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every sort: empty, binary, without a final newline, with odd names; and things that are no files."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(FILES - 3):
        (folder / f"{number}.txt").write_text(f"{number}\n" * number)
    (folder / "empty").touch()
    (folder / "no newline, 'quoted' ü \\ %s").write_bytes(b"\x00\xff" * 1000)
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/large").write_bytes(os.urandom(5_000_000))
    (folder / "link").symlink_to("empty")
    (folder / "dangling").symlink_to("nothing")
    os.mkfifo(folder / "fifo")
    (folder / os.fsdecode(b"not utf-8 \xff")).touch()
    return folder


@pytest.fixture
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demo's link to its server: not the one of the developer's own demo."""
    link = tmp_path_factory.mktemp("link") / "server"
    yield link
    demo("--stop", "--link", link)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", *arguments],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def demo(*arguments: str | Path, code: int = 0) -> str:
    process = start(*arguments)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def test_every_file_is_done_although_a_worker_is_killed(folder: Path, link: Path) -> None:
    output = demo(folder, "--link", link)
    assert re.fullmatch(rf"{FILES} jobs, {FILES} done, \d+ retried, 0 lost", output.splitlines()[-1])
    assert "killed worker" in output
    assert f"{FILES} results match their file" in output
    # The server is gone, and so is its directory.
    host = re.search(r"-h (\S+)", output)
    assert host
    assert not Path(host[1]).exists()
    assert not link.is_symlink()


def test_a_second_run_starts_clean_and_the_psql_line_works(folder: Path, link: Path) -> None:
    hosts = []
    for _ in range(2):
        output = demo(folder, "--keep", "--link", link)
        assert output.splitlines()[-1].startswith(f"{FILES} jobs, {FILES} done")
        line = re.search(r"^  (.*psql -h (\S+) -U postgres demo)$", output, re.MULTILINE)
        assert line
        hosts.append(Path(line[2]))
        inside = subprocess.check_output([*line[1].split(), "-XAtc", "SELECT state FROM pgq.job_status(1)"], text=True)
        assert inside == "done\n"
    first, second = hosts
    assert not first.exists()
    assert "stopped and deleted" in demo("--stop", "--link", link)
    assert not second.exists()


def test_an_interrupted_demo_leaves_nothing_behind(folder: Path, link: Path) -> None:
    process = start(folder, "--link", link)
    deadline = time.monotonic() + 30
    while not link.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    directory = link.resolve()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not directory.exists(), said


def test_an_empty_folder_is_an_error(tmp_path: Path, link: Path) -> None:
    assert "there are no files" in demo(tmp_path, "--link", link, code=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_files_that_cannot_be_read_are_dead_letters_not_lost(tmp_path: Path, link: Path) -> None:
    (tmp_path / "secret").touch(mode=0)
    (tmp_path / "public").touch()
    output = demo(tmp_path, "--link", link)
    assert output.splitlines()[-1] == "2 jobs, 1 done, 1 retried, 0 lost"
    assert "secret" in output


def test_only_regular_files_with_storable_names_become_jobs(folder: Path) -> None:
    names = {Path(path).name for path in find_files(folder)}
    assert len(names) == FILES
    assert names.isdisjoint({"link", "dangling", "fifo"})
