"""Why a system is ahead of pgqueue, where a run shows that it is; by hand, by workload, figure and system.

An empty figure stands for all of a workload. A remark is printed only beside the figures that show it.
"""

from __future__ import annotations

ARCHIVE = """
    pgqueue writes what is done into its archive later, from half a minute after the first jobs on, which at such rates
    takes a good part of two cores. It is not the snapshot: the same minutes without one went from 43,962 to 34,650
    jobs/s (0.79), and those that began after a minute of work from 40,389 to 32,346 (0.80).
"""

REMARKS: dict[tuple[str, str, str], str] = {
    ("life", "wal", "awa"): """
        awa keeps nothing of a finished job but a count; pgqueue writes each into its archive, which is nearly half of
        its WAL. A queue with `retention => '0'` has none: that is `pgqueue-unarchived`, below.
    """,
    ("enqueue-single", "rate", "pgqueuer"): """
        `pgq.enqueue` finds the open segment, a shard and sleeping workers: it takes a third more than the bare INSERT
        of the same row (`make bench`), which is what pgqueuer sends.
    """,
    ("pinned", "ratio", "awa"): ARCHIVE,
    ("pinned", "ratio", "absurd"): ARCHIVE,
    ("crash", "twice", "awa"): """
        With pgqueue the jobs that were running in the killed worker, one for each of its eight slots, had begun, and
        begin once more.
    """,
}


def remark(workload: str, key: str, system: str) -> str | None:
    found = REMARKS.get((workload, key, system)) or REMARKS.get((workload, "", system))
    return " ".join(found.split()) if found else None
