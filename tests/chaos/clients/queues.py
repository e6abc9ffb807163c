"""The queues of a run, and what each is for."""

from __future__ import annotations

QUEUES: dict[str, dict[str, object]] = {
    "main": {"shards": 4, "max_attempts": 4},
    "twophase": {"shards": 2, "max_attempts": 4, "notify": False},
    "fifo": {"shards": 1, "max_attempts": 6},
    "keyed": {"shards": 2, "max_attempts": 4},
    "grouped": {"shards": 2, "max_attempts": 4},
    "called off": {"shards": 2, "max_attempts": 4},
    "chained": {"shards": 2, "max_attempts": 2},
    "real": {"shards": 2, "max_attempts": 5},
    "passing": {"shards": 2, "max_attempts": 3},
    "scratch": {"shards": 2, "max_attempts": 3},
}
SETTINGS: dict[str, object] = {"lease": "2 seconds", "backoff": "200 ms", "backoff_max": "2 seconds"}
