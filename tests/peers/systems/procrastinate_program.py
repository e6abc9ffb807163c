"""procrastinate's program."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from procrastinate import App, PsycopgConnector

from tests.peers import kit

CONCURRENCY = 20

app = App(connector=PsycopgConnector(conninfo=kit.DSN, min_size=1, max_size=CONCURRENCY))
tally = kit.tally()


async def noop(**payload: Any) -> None:
    tally.note(payload)
    await tally.rest_async()


task = app.task(name="noop", queue="peers", retry=5)(noop)


async def bring_back(timestamp: int) -> None:
    """What the documentation tells to do about the jobs of workers that are no more."""
    for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=kit.SILENCE):
        await app.job_manager.retry_job(job)


class Producer:
    async def one(self, payload: kit.Payload) -> None:
        await task.defer_async(**payload)

    async def many(self, payloads: Sequence[kit.Payload], delay: float) -> None:
        later = task.configure(schedule_in={"seconds": int(delay)}) if delay else task
        await later.batch_defer_async(*payloads)


@asynccontextmanager
async def opened() -> AsyncIterator[Producer]:
    async with app.open_async():
        yield Producer()


async def prepare() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


async def work(tally: kit.Tally) -> None:
    logging.getLogger("procrastinate").setLevel(logging.WARNING)
    options: dict[str, Any] = {}
    if kit.SILENCE:
        app.periodic(cron="* * * * * */2")(app.task(name="bring_back", queue="peers", pass_context=False)(bring_back))
        options = {"update_heartbeat_interval": 2, "stalled_worker_timeout": kit.SILENCE}
    async with app.open_async():
        tally.start()
        await app.run_worker_async(queues=["peers"], concurrency=CONCURRENCY, **options)


if __name__ == "__main__":
    kit.main(prepare, opened, work)
