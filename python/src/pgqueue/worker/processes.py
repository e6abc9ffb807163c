"""Several worker processes under one parent."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

log = logging.getLogger("pgqueue.worker")

PARENT = "PGQUEUE_PARENT"
"""The environment variable that names the pipe whose end tells a child that its parent has died."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
# A child that has lived for so many seconds may be started again at once.
STABLE = 60.0


class Processes:
    """Runs a command several times, and again when one of them dies.

    Signals are passed on, so that SIGTERM lets all of them finish. A child that ends with 0 by itself has finished its
    work (``--drain``). When the parent is killed, the children stop as after SIGTERM.

    Args:
        command: what each of them runs.
        count: how many.
    """

    def __init__(self, command: Sequence[str], count: int) -> None:
        self._command = command
        self._count = count
        self._children: dict[int, _Child] = {}
        self._stopping = False

    def main(self) -> int:
        """Run until all have ended. In the main thread.

        Returns:
            0 if all have ended with 0, else the code of one that has not.
        """
        reading, writing = os.pipe()
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        environment = {**os.environ, PARENT: str(reading)}
        worst = 0
        try:
            for number in range(self._count):
                if self._stopping:
                    break
                self._children[number] = _Child(self._command, environment, reading)
            while self._children:
                time.sleep(0.1)
                for number, child in list(self._children.items()):
                    code = child.poll(self._stopping)
                    if code is not None:
                        worst = worst or code
                        del self._children[number]
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reading)
            os.close(writing)
        return worst

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        for child in self._children.values():
            child.signal(number)


class _Child:
    """One place among the processes, and who has it."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], pipe: int) -> None:
        self._start: Callable[[], subprocess.Popen[bytes]] = lambda: subprocess.Popen(
            command,
            env=environment,
            pass_fds=[pipe],
            start_new_session=True,  # Ctrl-C in a terminal reaches it through the parent, once
        )
        self._process: subprocess.Popen[bytes] | None = self._start()
        self._started_at = time.monotonic()
        self._pause = FIRST_PAUSE
        self._told = False

    def poll(self, stopping: bool) -> int | None:
        """See whether it lives, and start it again if not; returns how it has ended, if for good."""
        if self._process is None:
            if stopping:
                return 0
            if time.monotonic() >= self._started_at + self._pause:
                self._process = self._start()
                self._started_at = time.monotonic()
            return None
        if stopping and not self._told:  # the signal came while it was being started
            self.signal(signal.SIGTERM)
        code = self._process.poll()
        if code is None:
            return None
        if stopping and code in (-signal.SIGTERM, -signal.SIGINT):
            return 0  # it had not begun to work: a worker ends by itself then
        if stopping or code == 0:
            return code if code >= 0 else 128 - code
        lived = time.monotonic() - self._started_at
        self._pause = FIRST_PAUSE if lived > STABLE else min(self._pause * 2, LONGEST_PAUSE)
        log.error("worker process %s has ended with %s; another one starts", self._process.pid, code)
        self._process, self._started_at = None, time.monotonic()
        return None

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._told = True
            self._process.send_signal(number)


def stop_with_the_parent(stop: Callable[[], object]) -> None:
    """In a child: call this when the parent has died."""
    if pipe := os.environ.pop(PARENT, None):

        def watch() -> None:
            os.read(int(pipe), 1)
            log.warning("the parent process has died: stopping")
            stop()

        threading.Thread(target=watch, name="pgq-parent", daemon=True).start()
