"""Why a system is ahead of pgqueue, where a run shows that it is; by hand, by workload, figure and system.

An empty figure stands for all of a workload. A remark is printed only beside the figures that show it.
"""

from __future__ import annotations

REMARKS: dict[tuple[str, str, str], str] = {
    ("life", "wal", "awa"): """
        awa keeps nothing of a finished job but a count; pgqueue writes each into its archive, which is nearly half of
        its WAL. A queue with `retention => '0'` has none: that is `pgqueue-unarchived`, below.
    """,
    ("enqueue-single", "rate", "pgqueuer"): """
        `pgq.enqueue` finds the open segment, a shard and sleeping workers: it takes a third more than the bare INSERT
        of the same row (`make bench`), which is what pgqueuer sends.
    """,
    ("crash", "seconds", "absurd"): """
        Both give a silent worker ten seconds. pgqueue looks for leases that ran out about once a second, in
        `pgq.maintain`; absurd in each claim.
    """,
    ("crash", "twice", "awa"): """
        With pgqueue the jobs that were running in the killed worker, one for each of its eight slots, had begun, and
        begin once more.
    """,
}


def remark(workload: str, key: str, system: str) -> str | None:
    found = REMARKS.get((workload, key, system)) or REMARKS.get((workload, "", system))
    return " ".join(found.split()) if found else None
