"""The peers' environments: a venv, or a node_modules, for each, with pinned versions, made once and reused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "peers"
INSTALL_SECONDS = 600


def venv(name: str, packages: Sequence[str]) -> Path:
    """Return the Python of a venv with these packages."""
    folder = BUILD / name
    python = folder / "bin" / "python"
    if not _is_there(folder, packages):
        _run([sys.executable, "-m", "venv", folder])
        _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
        frozen = _run([python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"])
        _note(folder, packages, {package["name"]: package["version"] for package in json.loads(frozen)})
    return python


def node_modules(name: str, packages: Sequence[str]) -> Path:
    """Return a directory in which Node.js finds these packages."""
    folder = BUILD / name
    if not _is_there(folder, packages):
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
        _run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, *packages])
        listed = json.loads(_run(["npm", "ls", "--json", "--depth=0", "--prefix", folder]))
        versions = {package: found["version"] for package, found in listed["dependencies"].items()}
        _note(folder, packages, versions)
    return folder


def versions(name: str) -> dict[str, str]:
    """What is installed there."""
    found: dict[str, str] = json.loads((BUILD / name / "installed.json").read_text())["versions"]
    return found


def _is_there(folder: Path, packages: Sequence[str]) -> bool:
    """Whether these packages are installed; an environment with others, or half of one, is removed."""
    try:
        if json.loads((folder / "installed.json").read_text())["packages"] == list(packages):
            return True
    except FileNotFoundError:
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _note(folder: Path, packages: Sequence[str], found: dict[str, str]) -> None:
    (folder / "installed.json").write_text(json.dumps({"packages": list(packages), "versions": found}, indent=2) + "\n")


def _run(command: Sequence[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
