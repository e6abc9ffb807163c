"""Tasks that do nothing, for the worker to get through as many as it can."""

from __future__ import annotations

from pgqueue import App

app = App()


@app.task("sync", queue="bench")
def sync(**payload: object) -> None:
    """Return at once."""


@app.task("async", queue="bench")
async def asynchronous(**payload: object) -> None:
    """Return at once."""
