"""Tasks for worker processes. Each reports in the table `started` that it runs; gates are advisory locks."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import Any

import psycopg

from pgqueue import App, Job

app = App(os.environ.get("HANDLERS_DSN"))
REPORT = "INSERT INTO started VALUES (%s, %s, %s)"
_local = threading.local()


def _report(job: Job) -> psycopg.Connection[Any]:
    connection = getattr(_local, "connection", None)
    if connection is None or connection.closed:
        connection = _local.connection = psycopg.connect(app.dsn, autocommit=True, prepare_threshold=None)
    connection.execute(REPORT, [job.id, job.attempt, os.getpid()])
    return connection


def _pass(connection: psycopg.Connection[Any], gate: int) -> None:
    connection.execute("SELECT pg_advisory_lock_shared(%s)", [gate])
    connection.execute("SELECT pg_advisory_unlock_shared(%s)", [gate])


@app.task("add", queue="q")
def add(x: int, y: int) -> int:
    return x + y


@app.task("wait", queue="q")
def wait(job: Job, gate: int) -> str:
    """Report and wait until nobody holds the gate, in a thread."""
    _pass(_report(job), gate)
    return "passed"


@app.task("wait_async", queue="q")
async def wait_async(job: Job, gate: int) -> str:
    """Report and wait until nobody holds the gate, without blocking the event loop."""
    async with await psycopg.AsyncConnection.connect(app.dsn, autocommit=True) as connection:
        await connection.execute(REPORT, [job.id, job.attempt, os.getpid()])
        await connection.execute("SELECT pg_advisory_lock_shared(%s)", [gate])
    return "passed"


@app.task("block", queue="q")
async def block(job: Job, gate: int) -> str:
    """Report and wait until nobody holds the gate, and block the event loop meanwhile."""
    _pass(_report(job), gate)
    return "passed"


@app.task("elsewhere", queue="q")
async def elsewhere(job: Job, gate: int) -> None:
    """Report and wait until nobody holds the gate, in a thread that belongs to the event loop."""
    await asyncio.to_thread(lambda: _pass(_report(job), gate))


@app.task("die", queue="q")
def die(job: Job) -> None:
    """Report and take the whole process along."""
    _report(job)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task("count", queue="q")
def count(job: Job) -> int:
    """Report."""
    _report(job)
    return job.attempt
