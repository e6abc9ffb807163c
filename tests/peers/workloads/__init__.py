"""What is measured, one file a subject; each measures one turn of one system in a database of its own."""

from __future__ import annotations

from ..turns import Workload
from . import around, crash, drain, enqueue, idle, life, offered, pinned

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("enqueue-single", enqueue.single, per_round=3),
        Workload("enqueue-bulk", enqueue.bulk),
        Workload("drain", drain.drain),
        Workload("offered", offered.offered, per_round=0),
        Workload("idle", idle.idle),
        Workload("pinned", pinned.pinned, per_round=0),
        Workload("unpinned", pinned.unpinned, per_round=0, only_if_named=True),
        Workload("around", around.around, per_round=0),
        Workload("crash", crash.crash, per_round=0),
        Workload("life", life.life),
    )
}
