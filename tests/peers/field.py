"""Who takes part, pgqueue first."""

from __future__ import annotations

from .system import System
from .systems import absurd, awa, graphile_worker, pg_boss, pgqueue, pgqueuer, procrastinate

OURS = pgqueue.SYSTEM.name
FIELD: dict[str, System] = {
    module.SYSTEM.name: module.SYSTEM
    for module in (pgqueue, pgqueuer, awa, absurd, procrastinate, graphile_worker, pg_boss)
}
