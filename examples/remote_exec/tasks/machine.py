"""Tasks about the machine of the worker."""

from __future__ import annotations

import platform
import subprocess

from examples.remote_exec.task import RemoteTask


class Echo(RemoteTask):
    """Give back what came: for measuring."""

    type = "echo"

    def run(self, value: object) -> object:
        return value


class Where(RemoteTask):
    """What the worker runs on."""

    type = "where"

    def run(self) -> dict[str, str]:
        return {"node": platform.node(), "system": platform.system(), "python": platform.python_version()}


class Shell(RemoteTask):
    """A command and what it says. Whoever may enqueue may run anything: grant accordingly."""

    type = "shell"

    def run(self, command: str) -> str:
        return subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout
