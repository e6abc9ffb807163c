"""Who takes part, pgqueue first."""

from __future__ import annotations

from .system import System
from .systems import absurd, awa, graphile_worker, pg_boss, pgqueue, pgqueuer, procrastinate

OURS = pgqueue.SYSTEM.name
FIELD: dict[str, System] = {
    system.name: system
    for system in (
        pgqueue.SYSTEM,
        pgqueue.UNARCHIVED,
        pgqueuer.SYSTEM,
        awa.SYSTEM,
        absurd.SYSTEM,
        procrastinate.SYSTEM,
        graphile_worker.SYSTEM,
        pg_boss.SYSTEM,
    )
}
