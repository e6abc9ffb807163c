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
    settings={"concurrency": "50", "batch_size": "100", "poll_interval": "0.05 s", "claim_timeout": "10 s"},
    rate=1_000,
    bulk=100,
    recovery="their claim_timeout of 10 s has run out",
)
