"""Single keys of a terminal, without Enter."""

from __future__ import annotations

import os
import select
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def single_keys(stream: TextIO) -> Iterator[None]:
    """Let a terminal pass on each key at once, and not show it; anything else stays as it is."""
    if not stream.isatty():
        yield
        return
    before = termios.tcgetattr(stream)
    try:
        tty.setcbreak(stream)
        yield
    finally:
        termios.tcsetattr(stream, termios.TCSADRAIN, before)


def pressed(stream: TextIO, keys: str, timeout: float) -> bool:
    """Wait for one of some keys; returns False if none was pressed in time. Without a terminal it only waits."""
    deadline = time.monotonic() + timeout
    watched = [stream] if stream.isatty() else []
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select(watched, [], [], left)
        if ready:
            read = os.read(stream.fileno(), 1024).decode(errors="replace")
            if not read:
                return True  # the terminal has gone
            if any(key in keys for key in read):
                return True
    return False
