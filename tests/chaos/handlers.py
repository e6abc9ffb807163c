"""The task of the real workers. It writes down that it ran, and returns the job's token."""

from __future__ import annotations

import asyncio
import os
import zlib
from pathlib import Path
from typing import Any

from pgqueue import App, Job
from tests.chaos.history import Recorder

app = App()
_recorder = Recorder(Path(os.environ["CHAOS_HISTORY"]), os.environ["CHAOS_CLIENT"])


@app.task("work", queue="real")
async def work(job: Job, k: str, **_: Any) -> dict[str, str]:
    """Take some milliseconds, and fail at the first attempt of one in eight."""
    row = [job.id, job.lease, job.queue, job.task, job.payload, job.attempt, job.max_attempts, 0, None, job.headers]
    _recorder.ok(_recorder.invoke("ran", {"row": row}))
    chance = zlib.crc32(k.encode())
    await asyncio.sleep(chance % 10 / 1000)
    if chance % 8 == 0 and job.attempt == 1:
        raise RuntimeError("the first attempt fails")
    return {"k": k}
