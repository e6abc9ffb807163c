"""What can be wrong with a run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """The promises of the queue, each by the name of its breach."""

    LOST = "a job that was enqueued for certain is gone"
    GHOST = "a job exists although its enqueue failed, was rolled back, or never was"
    TORN = "a transaction took effect in part"
    ENQUEUED_TWICE = "one enqueue made two jobs, or two enqueues got the same id"
    DIRTY_READ = "a job was handed out before its transaction was committed"
    STUCK = "a job is left that nobody can claim, or that never ends"
    NOT_ONE_PLACE = "a job is in more than one place"
    DONE_TWICE = "a job was done twice"
    TWO_LEASES = "a job was handed out while another lease on it was live"
    AGAIN_AFTER_END = "a job was handed out after it had ended for good"
    AFTER_DROP = "a job was handed out after its queue was dropped"
    LEASE_TWICE = "one lease id was given out twice"
    FOREIGN_LEASE = "something was settled or extended under a lease that does not hold it"
    SETTLED_TWICE = "one attempt was settled twice"
    LATE_SETTLE = "an attempt was settled after it had ended"
    LATE_EXTEND = "a lease was extended after everything in it had ended"
    REFUSED = "a lease was refused although it was held"
    END_LOST = "an attempt was settled, but the records say otherwise"
    PHANTOM_END = "the records say that an attempt was settled, but nobody did"
    ARCHIVED_TWICE = "an attempt is in the archive twice"
    RESULT = "the result on record is not the one that was given"
    EFFECT = "what was written together with an acknowledgement is there without it, or the other way round"
    TOO_MANY_ATTEMPTS = "there were more attempts than allowed"
    ATTEMPT_NUMBERS = "attempt numbers were skipped or repeated"
    RELEASE_COUNTED = "a released job lost an attempt"
    EARLY_DEATH = "a job became a dead letter although it had attempts left"
    EARLY_RETRY = "a job was retried before its time"
    EARLY_RUN = "a job was handed out before its time"
    ORDER = "a job was overtaken by a younger one of its queue, which has one shard"
    PRIORITY = "a job was overtaken by one of lower priority"
    GROUP = "a job was handed out while another one held its group"
    AFTER = "a job was handed out before one had ended that it waits for"
    CANCELLED = "a job was handed out or done although it had been cancelled"
    UNIQUE = "two jobs with one unique key were live at once, or one that had ended held its key"
    WRONG_QUEUE = "a claim returned a job of another queue"
    CHANGED = "payload, task, headers or settings of a job have changed"
    PAUSED = "a paused queue handed out jobs"
    STATUS = "job_status or stats contradict the records"
    LEAK = "a session that does nothing holds a lock"
    ERROR = "a client got an error that nobody should see"
    CRASH = "the server crashed by itself"


@dataclass(frozen=True)
class Violation:
    """A breach, and the operations that prove it."""

    kind: Kind
    story: str

    def __str__(self) -> str:
        return f"{self.kind.name}: {self.kind.value}\n    " + self.story.replace("\n", "\n    ")
