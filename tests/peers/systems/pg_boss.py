"""pg-boss: Node.js, fetching and completing in batches, and woken by NOTIFY."""

from __future__ import annotations

from ..system import NODE, NodeSystem

SYSTEM = NodeSystem(
    name="pg-boss",
    language="Node.js",
    program="pg_boss.mjs",
    packages=("pg-boss@12.38.0", NODE),
    schemas=("pgboss",),
    unfinished="SELECT count(*) FROM pgboss.job WHERE state < 'completed' AND start_after <= now()",
    settings={
        "batchSize": "500",
        "burstWhenBatchFull": "true",
        "useListenNotify, notify": "true",
        "pollingIntervalSeconds, notifyPollingIntervalSeconds": "1",
        "partition": "true",
        "heartbeatSeconds": "10 (crash)",
        "superviseIntervalSeconds, monitorIntervalSeconds": "1 (crash)",
    },
    rate=25_000,
    recovery="their heartbeat is missing for 10 s, which is the least that can be set",
)
