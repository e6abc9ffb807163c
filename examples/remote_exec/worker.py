"""Runs whatever types of tasks lie in a folder: `pgq-worker examples.remote_exec.worker:app`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from examples.remote_exec.task import QUEUE, RemoteTask
from pgqueue import App

FOLDER = Path(os.environ.get("REMOTE_TASKS") or Path(__file__).with_name("tasks"))

app = App()


def load(folder: Path) -> Iterator[type[RemoteTask]]:
    """Import all Python files of a folder; yield the task classes that are defined there."""
    for file in sorted(folder.glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"remote_tasks.{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for found in vars(module).values():
            if isinstance(found, type) and issubclass(found, RemoteTask) and found.__module__ == module.__name__:
                yield found


for task in load(FOLDER):
    # What raises is not run again: the client wants to know now. A task whose worker died is.
    app.task(task.type, queue=QUEUE, retry=False)(task().run)
