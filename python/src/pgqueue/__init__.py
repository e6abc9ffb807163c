"""pgqueue: a job queue inside PostgreSQL. Client, tasks and worker for Python."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Imported when first used: psycopg alone takes longer to load than a short script wants to wait.
_MODULES = {
    "app": "App Job Task",
    "client": "AsyncClient BatchState ClaimedJob Client DeadLetter Enqueued Failure Finding Holder JobAttempt "
    "JobState LiveJob QueueActivity QueueSetting QueueStat WorkerStat",
    "exclusive": "AsyncExclusive Exclusive ExclusiveLost",
    "errors": "FeatureNotSupported InvalidArgument LeaseLost NotReadCommitted NotWaiting NullArgument "
    "PayloadRejected PermissionDenied PgqError QueueExists QueueNotEmpty QueueNotFound SchemaMissing "
    "VersionMismatch",
    "middleware": "Middleware",
    "outcomes": "ACK REJECT Cancel Outcome Reject Retry Snooze TimedOut",
    "worker": "Worker",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

if TYPE_CHECKING:
    from pgqueue.app import App, Job, Task
    from pgqueue.client import (
        AsyncClient,
        BatchState,
        ClaimedJob,
        Client,
        DeadLetter,
        Enqueued,
        Failure,
        Finding,
        Holder,
        JobAttempt,
        JobState,
        LiveJob,
        QueueActivity,
        QueueSetting,
        QueueStat,
        WorkerStat,
    )
    from pgqueue.errors import (
        FeatureNotSupported,
        InvalidArgument,
        LeaseLost,
        NotReadCommitted,
        NotWaiting,
        NullArgument,
        PayloadRejected,
        PermissionDenied,
        PgqError,
        QueueExists,
        QueueNotEmpty,
        QueueNotFound,
        SchemaMissing,
        VersionMismatch,
    )
    from pgqueue.exclusive import AsyncExclusive, Exclusive, ExclusiveLost
    from pgqueue.middleware import Middleware
    from pgqueue.outcomes import ACK, REJECT, Cancel, Outcome, Reject, Retry, Snooze, TimedOut
    from pgqueue.worker import Worker

__all__ = [
    "ACK",
    "REJECT",
    "App",
    "AsyncClient",
    "AsyncExclusive",
    "BatchState",
    "Cancel",
    "ClaimedJob",
    "Client",
    "DeadLetter",
    "Enqueued",
    "Exclusive",
    "ExclusiveLost",
    "Failure",
    "FeatureNotSupported",
    "Finding",
    "Holder",
    "InvalidArgument",
    "Job",
    "JobAttempt",
    "JobState",
    "LeaseLost",
    "LiveJob",
    "Middleware",
    "NotReadCommitted",
    "NotWaiting",
    "NullArgument",
    "Outcome",
    "PayloadRejected",
    "PermissionDenied",
    "PgqError",
    "QueueActivity",
    "QueueExists",
    "QueueNotEmpty",
    "QueueNotFound",
    "QueueSetting",
    "QueueStat",
    "Reject",
    "Retry",
    "SchemaMissing",
    "Snooze",
    "Task",
    "TimedOut",
    "VersionMismatch",
    "Worker",
    "WorkerStat",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"pgqueue.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
