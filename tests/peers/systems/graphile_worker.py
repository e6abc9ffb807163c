"""graphile-worker: Node.js, with its local queue and batched completion."""

from __future__ import annotations

from ..system import NODE, NodeSystem

SYSTEM = NodeSystem(
    name="graphile-worker",
    language="Node.js",
    program="graphile_worker.mjs",
    packages=("graphile-worker@0.18.0", NODE),
    schemas=("graphile_worker",),
    unfinished="SELECT count(*) FROM graphile_worker.jobs WHERE run_at <= now()",
    settings={
        "concurrentJobs": "24",
        "maxPoolSize": "25",
        "localQueue": "size 500",
        "completeJobBatchDelay, failJobBatchDelay": "0",
    },
    rate=30_000,
    # What is done is deleted, so that there is nothing to make more of.
    kept=("SELECT {count}",),
    recovery="they have been locked for four hours",
)
