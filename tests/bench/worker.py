"""The task that the latency measurement lets a real pgq-worker run."""

from __future__ import annotations

import os
import time

from pgqueue import App

app = App()
_record = os.open(os.environ["PGQUEUE_BENCH_RECORD"], os.O_WRONLY | os.O_APPEND)


@app.task("bench", queue="bench")
def handle(n: int) -> None:
    """Note when the handler of this job began."""
    os.write(_record, b"%d %d\n" % (n, time.time_ns()))
