"""awa: its runtime is in Rust, its handlers here in Python."""

from __future__ import annotations

from ..system import PythonSystem

SYSTEM = PythonSystem(
    name="awa",
    language="Python on Rust",
    program="awa_program",
    packages=("awa-pg==0.6.9",),
    schemas=("awa",),
    unfinished="SELECT 0",
    settings={"max_workers": "200", "poll_interval_ms": "50"},
    rate=6_000,
    recovery="the heartbeat of their worker is stale, set to 10 s",
)
