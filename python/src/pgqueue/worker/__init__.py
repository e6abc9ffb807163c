"""The worker, made of small parts with one job each.

``fetch`` claims jobs for the free ``slots``; ``run`` calls the handlers; ``settle`` acknowledges and rejects in
batches; ``heartbeat`` extends leases from a thread of its own; ``listen`` is told when there is something to fetch;
``maintain`` looks after the queue; ``link`` is a connection that comes back; ``worker`` starts and stops them all.
"""

from pgqueue.worker.worker import Worker

__all__ = ["Worker"]
