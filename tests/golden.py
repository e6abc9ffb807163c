"""Comparing with a file that is checked in, because people review it."""

from __future__ import annotations

from difflib import unified_diff
from pathlib import Path

ROOT = Path(__file__).parent.parent


def compare(found: str, golden: Path) -> None:
    """Fail if the text is not that of the file, and say how to accept it."""
    expected = golden.read_text() if golden.exists() else ""
    if found == expected:
        return
    fresh = ROOT / "build" / golden.name
    fresh.write_text(found)
    changes = "\n".join(unified_diff(expected.splitlines(), found.splitlines(), "golden", "found", lineterm="", n=1))
    accept = f"cp {fresh.relative_to(ROOT)} {golden.relative_to(ROOT)}"
    raise AssertionError(f"{golden.name} is not what was found. If the change is meant: {accept}\n{changes}")
