"""What is measured, one file a subject; each measures one turn of one system in a database of its own."""

from __future__ import annotations

from ..turns import Workload
from . import around, crash, drain, enqueue, idle, life, offered, pinned

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("enqueue-single", enqueue.single),
        Workload("enqueue-bulk", enqueue.bulk),
        Workload("drain", drain.drain),
        Workload("offered", offered.offered, every_round=False),
        Workload("idle", idle.idle),
        Workload("pinned", pinned.pinned, every_round=False),
        Workload("unpinned", pinned.unpinned, every_round=False, only_if_named=True),
        Workload("around", around.around, every_round=False),
        Workload("crash", crash.crash, every_round=False),
        Workload("life", life.life),
    )
}
