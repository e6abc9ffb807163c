"""What a handler can say about its job, other than by returning a result or raising just any exception."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import Enum
from typing import Final, Literal, TypeAlias, TypeGuard

from pgqueue._calls import Interval

RetryPolicy: TypeAlias = (
    Literal[False] | Interval | Sequence[Interval] | Callable[[int, BaseException], Interval | Literal[False] | None]
)
"""When to try again: see the argument ``retry`` of :meth:`pgqueue.App.task`."""


class Outcome(Exception):
    """Raised by a handler to say what becomes of its job. A message is kept as the error of the attempt."""


class Retry(Outcome):
    """The attempt has failed; try again at a time of the handler's choice.

    Args:
        error: what went wrong, for people.
        in_: when to try again (timedelta, seconds, or text); None: after the backoff of the task or the queue.

    It counts as an attempt: after the last one the job is a dead letter.

    Example:
        >>> raise Retry("mailbox full", in_=3600)
    """

    def __init__(self, error: str = "", *, in_: Interval | None = None) -> None:
        super().__init__(error)
        self.in_ = in_


class Snooze(Outcome):
    """Put the job off. It does not count as an attempt.

    Args:
        delay: for how long (timedelta, seconds, or text).

    Example:
        >>> raise Snooze(60)
    """

    def __init__(self, delay: Interval) -> None:
        super().__init__(f"snoozed for {delay}")
        self.delay = delay


class Reject(Outcome):
    """The attempt has failed.

    Args:
        error: what went wrong, for people.
        final: do not try again, the job becomes a dead letter.

    Example:
        >>> raise Reject("there is no such address", final=True)
    """

    def __init__(self, error: str = "", *, final: bool = False) -> None:
        super().__init__(error)
        self.final = final


class Cancel(Outcome):
    """End the job as cancelled: nobody wants it any more. There is neither another attempt nor a dead letter.

    Args:
        reason: for people.

    Example:
        >>> raise Cancel("the order was withdrawn")
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)


class TimedOut(TimeoutError):
    """Raised in a handler that has run for longer than the ``timeout`` of its task."""


class Verdict(Enum):
    """What a handler may return instead of a result."""

    ACK = "ack"
    REJECT = "reject"


ACK: Final = Verdict.ACK
"""Return it from a handler: the job is done, and has no result."""
REJECT: Final = Verdict.REJECT
"""Return it from a handler: the attempt has failed, and is tried again as after an exception."""


def _is_delay(value: object) -> TypeGuard[Interval]:
    return isinstance(value, (timedelta, float, int, str)) and not isinstance(value, bool)


def checked(policy: RetryPolicy | None) -> RetryPolicy | None:
    """Return the policy, if it is one.

    Raises:
        TypeError: it is not.
    """
    if policy is None or policy is False or callable(policy) or _is_delay(policy):
        return policy
    if isinstance(policy, Sequence) and policy and all(map(_is_delay, policy)):
        return policy
    raise TypeError(f"retry is a delay, delays, a function or False, not {policy!r}")


def retry_in(policy: RetryPolicy | None, attempt: int, error: BaseException) -> Interval | Literal[False] | None:
    """Return when to try again.

    Args:
        policy: of the task.
        attempt: the attempt that has failed, from 1.
        error: why.

    Returns:
        The delay; None: the backoff of the queue; False: not again.
    """
    if policy is None or policy is False or _is_delay(policy):
        return policy
    if callable(policy):
        return policy(attempt, error)
    assert isinstance(policy, Sequence)
    return policy[min(attempt, len(policy)) - 1]
