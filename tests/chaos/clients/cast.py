"""Who takes part in a run."""

from __future__ import annotations

import gc
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection

from tests.chaos.clients.base import Assignment, Client
from tests.chaos.clients.keepers import Admin, Maintainer
from tests.chaos.clients.producer import Producer
from tests.chaos.clients.worker import InLine, Worker

ROLES: dict[str, type[Client]] = {
    "producer": Producer,
    "worker": Worker,
    "fifo": InLine,
    "admin": Admin,
    "maintainer": Maintainer,
}


@dataclass(frozen=True)
class Part:
    """A client: its name is its role and a number. Some connect through the proxy."""

    name: str
    through_proxy: bool = False

    @property
    def role(self) -> type[Client]:
        return ROLES[self.name.partition("-")[0]]


CAST = (
    Part("producer-1"),
    Part("producer-2", through_proxy=True),
    Part("producer-3", through_proxy=True),
    Part("worker-1"),
    Part("worker-2"),
    Part("worker-3", through_proxy=True),
    Part("worker-4", through_proxy=True),
    Part("fifo-1", through_proxy=True),
    Part("admin-1"),
    Part("maintainer-1"),
    Part("maintainer-2", through_proxy=True),
)

REAL_WORKERS = ("real-1", "real-2")
"""Processes of pgq-worker."""


def play(name: str, assignment: Assignment, orders: Connection) -> None:
    """The main function of a client's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    Part(name).role(assignment, orders).main()
