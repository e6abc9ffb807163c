"""What the files of tasks/ are made of, and where their jobs go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

QUEUE = "remote"


class RemoteTask(ABC):
    """One type of task: what is submitted as `type` with `arguments` becomes `run(**arguments)` in a worker.

    One object is made in each worker process, and used from several threads.
    """

    type: ClassVar[str]

    @abstractmethod
    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result, as JSON can carry it; subclasses name their arguments."""
