"""A running program of one of the systems: what it reports, its CPU time, its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

TOOK_TOO_LONG = 120


class PeerError(Exception):
    """A system did not do what it was asked to."""


class Program:
    """Reads the lines of JSON that it prints; everything else that it says is kept for an error message."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], cwd: Path) -> None:
        self.reports: list[dict[str, Any]] = []
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the program)
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            start_new_session=True,
        )
        self._ready_cpu = 0.0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                report = json.loads(line)
            except ValueError:
                continue
            with self._news:
                self.reports.append(report)
                self._news.notify_all()

    @property
    def runs(self) -> int:
        """How often the handler has begun, as of the last report."""
        return next((report["runs"] for report in reversed(self.reports) if "runs" in report), 0)

    @property
    def first(self) -> float:
        """When it has begun for the first time, in seconds of the clock on the wall."""
        return next(float(report["first"]) for report in reversed(self.reports) if report.get("first"))

    def wait_ready(self) -> None:
        """Until it is about to begin; its CPU time counts from here."""
        self.wait(lambda: bool(self.reports))
        self._ready_cpu = self._used()

    def wait_runs(self, count: int, timeout: float = TOOK_TOO_LONG) -> None:
        self.wait(lambda: self.runs >= count, timeout)

    def wait(self, condition: Any, timeout: float = TOOK_TOO_LONG) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if not self._reader.is_alive() and not condition():
                raise PeerError(f"it ended with {self._process.wait()}: {self._last_words()}")
            if time.monotonic() > deadline:
                raise PeerError(f"nothing came of it in {timeout:g} s: {self.reports[-1:]} {self._last_words()}")
            with self._news:
                self._news.wait(0.05)

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def result(self, timeout: float = TOOK_TOO_LONG) -> dict[str, Any]:
        """What it has printed last, once it has ended well by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.wait(lambda: any("jobs" in report for report in self.reports), timeout)
        self.ended_well(timeout)
        self._reader.join()
        return self.reports[-1]

    def ended_well(self, timeout: float = TOOK_TOO_LONG) -> None:
        if code := self._process.wait(timeout):
            raise PeerError(f"it ended with {code}: {self._last_words()}")

    def cpu_seconds(self) -> float:
        """CPU time since it was ready, of all its processes; while it lives."""
        return self._used() - self._ready_cpu

    def _used(self) -> float:
        used = 0.0
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._process.pid)
            for process in [root, *root.children(recursive=True)]:
                times = process.cpu_times()
                used += times.user + times.system
        return used

    def kill(self) -> None:
        """End it as a crash would, with all its processes."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self, grace: float = 5) -> None:
        """Ask it to end; what has not ended then is killed. How a system shuts down is not measured."""
        self._process.terminate()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()
        finally:
            self.close()

    def close(self) -> None:
        self.kill()
        self._reader.join(5)
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _last_words(self) -> str:
        self._said.seek(0)
        return self._said.read().decode(errors="replace").strip()[-2000:]


@contextmanager
def stopping(program: Program) -> Iterator[Program]:
    """Whatever happens, it does not outlive the block."""
    try:
        yield program
    finally:
        program.stop()
