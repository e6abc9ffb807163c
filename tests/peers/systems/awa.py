"""awa: its runtime is in Rust, its handlers here in Python."""

from __future__ import annotations

from ..system import PythonSystem

SYSTEM = PythonSystem(
    name="awa",
    language="Python on Rust",
    program="awa_program",
    packages=("awa-pg==0.6.9",),
    schemas=("awa",),
    # Its view of all jobs takes seconds when there are thousands. All that ever were, but for those for later and the
    # done ones, which it counts when it throws them away:
    unfinished="""
        SELECT (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM awa.job_id_seq)
            - (SELECT count(*) FROM awa.deferred_jobs WHERE run_at > now())
            - (SELECT coalesce(sum(completed_count), 0) FROM awa.receipt_completion_batches)
            - (SELECT coalesce(sum(pruned_completed_count), 0) FROM awa.queue_terminal_rollups)
            - (SELECT count(*) FROM awa.done_entries)
    """,
    settings={
        "storage": "queue storage, installed as such",
        "max_workers": "200",
        "claimers, claim_batch_size": "2, 500",
        "deadline_duration_ms": "0",
        "poll_interval_ms": "50",
        "heartbeat, rescue, staleness": "2 s, 2 s, 10 s (crash)",
    },
    rate=6_000,
    # What is done is soon no more than a number, so that there is nothing to make more of.
    kept=("SELECT {count}",),
    recovery="the heartbeat of their worker is stale, set to 10 s",
)
