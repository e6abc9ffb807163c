"""Consumers by name, inside of another program."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any

from pgqueue import App


class Taskmaster:
    """Starts and stops workers of an app in this process; those that are left are stopped at its end."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._consumers: dict[str, ExitStack] = {}

    def __enter__(self) -> Taskmaster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as left:  # ends all of them, even if one raises what has ended it before
            while self._consumers:
                left.push(self._consumers.popitem()[1])

    @property
    def names(self) -> list[str]:
        """The consumers that work."""
        return list(self._consumers)

    def start(self, name: str, *queues: str, **options: Any) -> None:
        """Start a consumer of some queues; options as of :class:`pgqueue.Worker`."""
        if name in self._consumers:
            raise ValueError(f"there is already a consumer {name!r}")
        consumer = ExitStack()
        consumer.enter_context(self._app.worker(queues, name=name, **options))
        self._consumers[name] = consumer

    def stop(self, name: str) -> None:
        """Stop a consumer: it finishes what it runs, and claims nothing more. Raises what has ended it before."""
        self._consumers.pop(name).close()
