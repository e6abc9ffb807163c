"""Running programs, and the project's own make."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PGQ_WORKER = [sys.executable, "-c", "from pgqueue.cli import worker; worker(prog_name='pgq-worker')"]
"""The command of a worker, without a script that somebody would have to install."""


def run(*command: str | Path, cwd: Path = ROOT, fails: bool = False, **environment: str) -> str:
    """Run a program that succeeds, or fails if it is to; returns what it printed."""
    # MAKEFLAGS would hand down the outer make's jobs and variables.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env=inherited | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def make(*arguments: str, cwd: Path = ROOT, fails: bool = False) -> str:
    return run("make", "--silent", *arguments, cwd=cwd, fails=fails)
