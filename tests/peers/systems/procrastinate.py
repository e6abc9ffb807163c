"""procrastinate: Python, asynchronous, through psycopg."""

from __future__ import annotations

from ..system import PythonSystem

SYSTEM = PythonSystem(
    name="procrastinate",
    language="Python",
    program="procrastinate_program",
    packages=("procrastinate==3.10.0", "psycopg[binary,pool]"),
    schemas=("public",),
    unfinished="""
        SELECT count(*) FROM procrastinate_jobs
        WHERE status IN ('todo', 'doing') AND (scheduled_at IS NULL OR scheduled_at <= now())
    """,
    settings={
        "concurrency": "20",
        "pool": "20 connections",
        "heartbeat, stalled": "each 2 s, 10 s, with a periodic task that brings stalled jobs back (crash)",
    },
    rate=700,
    recovery="a periodic task of the user finds them stalled, here after 10 s",
    kept=(
        """
        INSERT INTO procrastinate_jobs (queue_name, task_name, priority, args, status, scheduled_at, attempts)
        SELECT queue_name, task_name, priority, args, status, scheduled_at, attempts
        FROM procrastinate_jobs, generate_series(2, {count}) WHERE status = 'succeeded'
        """,
        """
        INSERT INTO procrastinate_events (job_id, type)
        SELECT id, type::procrastinate_job_event_type
        FROM procrastinate_jobs, unnest(ARRAY['deferred', 'started', 'succeeded']) type
        WHERE id <> (SELECT min(id) FROM procrastinate_jobs)
        """,
    ),
)
