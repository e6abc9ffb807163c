"""Why a system is ahead of pgqueue, where a run shows that it is; by hand, by workload, figure and system.

An empty figure stands for all of a workload. A remark is printed only beside the figures that show it.
"""

from __future__ import annotations

REMARKS: dict[tuple[str, str, str], str] = {}


def remark(workload: str, key: str, system: str) -> str | None:
    return REMARKS.get((workload, key, system)) or REMARKS.get((workload, "", system))
