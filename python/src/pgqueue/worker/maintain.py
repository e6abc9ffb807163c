"""Looking after the queue."""

from __future__ import annotations

import asyncio
import logging
import random

import psycopg

from pgqueue import _calls
from pgqueue.errors import PermissionDenied, PgqError
from pgqueue.worker.link import Link, is_transient

log = logging.getLogger("pgqueue.worker")


async def maintain(link: Link, interval: float = 1.0) -> None:
    """Call ``pgq.maintain()`` for ever.

    While it says that there is more to do, the pauses are short.

    Args:
        link: autocommit connection of its own, as it may take a while.
        interval: seconds between two calls, on average; no two workers keep step.
    """
    try:
        while True:
            pause = interval * random.uniform(0.5, 1.5)
            try:
                done = await link.call(_calls.maintain())
                log.debug("maintain: %s", done)
                if done["more"]:
                    pause /= 20
            except PermissionDenied as error:
                log.warning("maintain: %s; somebody else has to do it", error.message)
                return
            except (psycopg.Error, PgqError) as error:
                if not is_transient(error):
                    log.exception("maintain failed")
                pause = max(pause, link.pause)
            await asyncio.sleep(pause)
    finally:
        await link.close()
