"""What the tests of the Python package share."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

import psutil
from click.testing import Result

from pgqueue import AsyncClient, Client

Run = Callable[..., Result]
"""Runs the command line."""
Until = Callable[[int, str], None]
"""Waits until a job is in a state."""


def eventually(condition: Callable[[], object], what: str = "it", timeout: float = 15) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} seconds: {what}"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether there is such a process, which has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def status(client: Client, job: int) -> Any:
    """The state of a job that exists."""
    state = client.job_status(job)
    assert state is not None
    return state


class Face:
    """A client of either kind, whose methods are called without await."""

    def __init__(self, client: Client | AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        self.client = client
        self._loop = loop

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            return self._loop.run_until_complete(result) if inspect.iscoroutine(result) else result

        return call
