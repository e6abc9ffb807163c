"""pgqueuer: Python, asynchronous, through asyncpg."""

from __future__ import annotations

from ..system import PythonSystem

SYSTEM = PythonSystem(
    name="pgqueuer",
    language="Python",
    program="pgqueuer_program",
    packages=("pgqueuer[asyncpg]==1.6.0", "uvloop"),
    schemas=("public",),
    unfinished="SELECT count(*) FROM pgqueuer WHERE status IN ('queued', 'picked') AND execute_after <= now()",
    settings={
        "batch_size": "500",
        "dequeue_timeout": "1 s",
        "autovacuum": "as `pgq autovac` sets it",
        "driver": "asyncpg, with uvloop",
        "heartbeat_timeout": "10 s (crash)",
    },
    rate=12_000,
    recovery="their heartbeat is 10 s old, as heartbeat_timeout says",
    kept=(
        """
        INSERT INTO pgqueuer_log (created, job_id, status, priority, entrypoint, aggregated)
        SELECT created, job_id, status, priority, entrypoint, true FROM pgqueuer_log, generate_series(2, {count})
        """,
    ),
)
