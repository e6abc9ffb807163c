"""The application of the demo: one task, run by `pgq-worker examples.demo.app:app --queue files`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypedDict

from pgqueue import App

app = App()


class Checksum(TypedDict):
    """What is stored as the result of a job."""

    sha256: str
    size: int
    lines: int


@app.task("checksum", queue="files")
def checksum(path: str) -> Checksum:
    """Compute SHA-256, size in bytes and number of lines of a file, however large."""
    sha256 = hashlib.sha256()
    size = lines = 0
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            size += len(block)
            lines += block.count(b"\n")
    return {"sha256": sha256.hexdigest(), "size": size, "lines": lines}
