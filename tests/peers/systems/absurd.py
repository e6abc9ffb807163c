"""absurd: Python, durable execution whose tasks have no steps here."""

from __future__ import annotations

from ..system import PythonSystem

SYSTEM = PythonSystem(
    name="absurd",
    language="Python",
    program="absurd_program",
    packages=("absurd-sdk==0.5.1", "absurdctl==0.5.1", "psycopg[binary]"),
    schemas=("absurd",),
    unfinished="""
        SELECT count(*) FROM absurd.r_peers WHERE state IN ('pending', 'running', 'sleeping') AND available_at <= now()
    """,
    settings={
        "workers in the process": "8",
        "concurrency": "20",
        "batch_size": "20",
        "poll_interval": "0.05 s",
        "claim_timeout": "10 s (crash)",
    },
    rate=1_000,
    bulk=100,
    recovery="their claim_timeout of 10 s has run out",
    kept=(
        """
        WITH copy AS MATERIALIZED (
            SELECT gen_random_uuid() AS task, gen_random_uuid() AS run FROM generate_series(2, {count})
        ),
        tasks AS (
            INSERT INTO absurd.t_peers (task_id, task_name, params, enqueue_at, first_started_at, state, attempts,
                last_attempt_run, completed_payload)
            SELECT copy.task, t.task_name, t.params, t.enqueue_at, t.first_started_at, t.state, t.attempts, copy.run,
                t.completed_payload
            FROM absurd.t_peers t, copy WHERE t.state = 'completed'
        )
        INSERT INTO absurd.r_peers (run_id, task_id, attempt, state, claimed_by, claim_expires_at, available_at,
            started_at, completed_at, result, created_at)
        SELECT copy.run, copy.task, r.attempt, r.state, r.claimed_by, r.claim_expires_at, r.available_at, r.started_at,
            r.completed_at, r.result, r.created_at
        FROM absurd.r_peers r, copy WHERE r.state = 'completed'
        """,
    ),
    # As a task that sleeps leaves it: a task cannot be spawned for later.
    kept_for_later=(
        """
        WITH copy AS MATERIALIZED (
            SELECT gen_random_uuid() AS task, gen_random_uuid() AS run FROM generate_series(2, {count})
        ),
        tasks AS (
            INSERT INTO absurd.t_peers (task_id, task_name, params, enqueue_at, state, attempts, last_attempt_run)
            SELECT copy.task, t.task_name, t.params, t.enqueue_at, 'sleeping', t.attempts, copy.run
            FROM absurd.t_peers t, copy WHERE t.state = 'pending'
        )
        INSERT INTO absurd.r_peers (run_id, task_id, attempt, state, available_at, created_at)
        SELECT copy.run, copy.task, r.attempt, 'sleeping', now() + interval '30 days', r.created_at
        FROM absurd.r_peers r, copy WHERE r.state = 'pending'
        """,
        "UPDATE absurd.r_peers SET available_at = now() + interval '30 days' WHERE state = 'pending'",
    ),
)
