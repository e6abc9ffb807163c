"""The tasks of the worker processes. They write down when a handler begins, and what the server has acknowledged."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pgqueue import App, Job
from tests.failover.history import Writer

app = App()
_name = os.environ["FAILOVER_NAME"]
_history = Writer(Path(os.environ["FAILOVER_HISTORY"]) / f"{_name}.jsonl", _name)


class _Acknowledged(logging.Handler):
    """Takes what the worker tells at level DEBUG about acknowledged jobs."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "%s: jobs %s" and isinstance(record.args, tuple):
            what, ids = record.args
            if what == "acknowledged" and isinstance(ids, list):
                for id in ids:
                    _history.write("ack", "ok", id=id)


_log = logging.getLogger("pgqueue.worker")
_log.addHandler(_Acknowledged(logging.DEBUG))
_log.setLevel(logging.DEBUG)


@app.task("work", queue="work")
def work(job: Job, tag: str, fail: bool = False) -> str:
    """Report, and fail at the first attempt if told so."""
    _history.write("run", "ok", tag=tag, id=job.id, lease=job.lease)
    if fail and job.attempt == 1:
        raise RuntimeError("once")
    return tag
