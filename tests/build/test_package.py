"""The Python package: it builds, it contains the SQL, and it says the same version as everything else."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import PLAIN_SQL, ROOT

pytestmark = pytest.mark.xdist_group("package")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel made from the sdist."""
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, ROOT / "python")
    return target


def run(*command: str | Path) -> str:
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_wheel_has_the_sql_the_types_and_the_licence(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.read("pgqueue/sql/pgqueue.sql") == PLAIN_SQL.read_bytes()
    assert {"pgqueue/__init__.py", "pgqueue/py.typed", "pgqueue/embedded.py"} < set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert len(names) == len(set(names))


def test_the_sdist_has_the_sql(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"src/pgqueue/sql/pgqueue.sql", "src/pgqueue/py.typed", "LICENSE", "pyproject.toml"} < set(names)
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path)
    python = tmp_path / "bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[binary]")
    assert "enqueue" in run(tmp_path / "bin/pgqueue", "--help")
    assert "--concurrency" in run(tmp_path / "bin/pgq-worker", "--help")
    # Without the extra, the embedded server says what is missing.
    missing = run(
        python, "-c",
        "from pgqueue import embedded\ntry: embedded.binaries()\nexcept embedded.EmbeddedError as e: print(e)",
    )  # fmt: skip
    assert "pip install 'pgqueue[embedded]'" in missing


def test_the_plain_script_has_no_psql_commands_in_its_packed_form() -> None:
    assert not re.search(r"^\s*\\", PLAIN_SQL.read_text(), re.MULTILINE)


def test_there_is_one_version() -> None:
    def find(pattern: str, file: str) -> str:
        match = re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)
        assert match, f"no version in {file}"
        return match[1]

    version = find(r"^default_version = '(.+)'", "pgqueue.control")
    assert find(r'^version = "(.+)"', "python/pyproject.toml") == version
    assert find(r'^__version__ = "(.+)"', "python/src/pgqueue/__init__.py") == version
    assert find(r"^## (\d\S*)", "CHANGELOG.md") == version
