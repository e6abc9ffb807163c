"""Why a system is ahead of pgqueue, where a run shows that it is; by hand, by workload, figure and system.

An empty figure stands for all of a workload. A remark is printed only beside the figures that show it.
"""

from __future__ import annotations

REMARKS: dict[tuple[str, str, str], str] = {
    ("life", "wal", "awa"): """
        awa keeps nothing of a finished job but a count; pgqueue writes each into its archive, too. A queue with
        `retention => '0'` has none.
    """,
}


def remark(workload: str, key: str, system: str) -> str | None:
    found = REMARKS.get((workload, key, system)) or REMARKS.get((workload, "", system))
    return " ".join(found.split()) if found else None
