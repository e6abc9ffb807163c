"""What the pages of SQL in docs/ show works as shown."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.cluster import Cluster

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["features.md", "operations.md"])
def test_the_examples_run_in_their_order(cluster: Cluster, dsn: str, page: str) -> None:
    """Each block of SQL prints what the block of text after it says; those without one only have to work."""
    text = (DOCS / page).read_text()
    blocks = re.findall(r"^```sql\n(.*?)^```$(?:\n+^```text\n(.*?)^```$)?", text, re.DOTALL | re.MULTILINE)
    assert blocks
    script = "\n".join(f"{sql}\n\\echo end of block" for sql, _ in blocks)
    command = [str(cluster.program("psql")), "-XAtq", "-v", "ON_ERROR_STOP=1", "-f", "-", dsn]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split("end of block\n")
    for (sql, expected), found in zip(blocks, printed, strict=False):
        assert not expected or [line for line in found.splitlines() if line] == expected.splitlines(), sql
