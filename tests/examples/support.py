"""What the tests of the examples share: the commands and the output that a README shows."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"


def block(example: str, language: str, nth: int = 0) -> str:
    """Return a fenced block of the README of an example."""
    text = (EXAMPLES / example / "README.md").read_text()
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return blocks[nth]


def shell(script: str, environment: Mapping[str, str]) -> str:
    """Run commands in the root of the project, as a reader does; returns what they write to standard output."""
    done = subprocess.run(
        ["sh", "-euc", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alike(text: str) -> str:
    """Return output without what differs from run to run: its numbers, and how wide they are."""
    return re.sub(r"[ \t-]+", " ", re.sub(r"\d[\d.,:]*", "#", text)).strip()
