"""Workers for other languages: each job goes to a command, or to a URL, and needs no library there."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

from pgqueue._calls import to_json
from pgqueue.app import App, Job, checked_limits
from pgqueue.outcomes import Cancel, Reject, Snooze

if TYPE_CHECKING:
    import httpx

EX_TEMPFAIL = 75
DELAY = 60.0
# Seconds after which a command that was asked to end is killed.
PATIENCE = 10.0
# The same if the worker is about to end: its grace time is over, and what still runs then is released a second later.
LAST_PATIENCE = 0.5
# Seconds between two looks whether it is wanted at all.
LOOK = 0.5
# As much of what it wrote, or a server, is kept as the error.
LONGEST_OUTPUT = 15_000


def command_app(dsn: str | None, command: str, timeout: float | None = None) -> App:
    """Return an app that runs a shell command for each job, whatever its task.

    The command gets the payload as a line of JSON on its standard input, and in its environment PGQ_ID, PGQ_QUEUE,
    PGQ_TASK, PGQ_ATTEMPT, PGQ_MAX_ATTEMPTS, PGQ_HEADERS (JSON), and each header as PGQ_HEADER_<NAME>. If it exits with
    0, the job is done and what it wrote is the result: as JSON if it is JSON, else as text. 75 puts the job off, for
    the number of seconds that it wrote, or a minute. Anything else rejects it with what it wrote to standard error.

    A command whose time is over, or whose job is cancelled, gets SIGTERM with all that it has started; after ten
    seconds what is left is killed. It keeps its job until then, and its exit code no longer matters.

    Args:
        dsn: connection string; None: see :class:`App`.
        command: for the shell.
        timeout: seconds after which it is ended.

    Raises:
        ValueError: the timeout is not positive.
    """
    app = App(dsn)
    # Not the timeout of the fallback, as that takes the job away from what does not end within a second.
    ends_after = checked_limits(None, timeout).timeout or float("inf")

    @app.fallback()
    async def run(job: Job) -> Any:
        ends_at = monotonic() + ends_after
        process = await asyncio.create_subprocess_shell(
            command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # so that all of it can be ended
            env={**os.environ, **_environment(job)},
        )
        talk = asyncio.ensure_future(process.communicate(f"{to_json(job.payload)}\n".encode()))
        try:
            while not talk.done():
                if job.cancelled:
                    await _end(process, talk, PATIENCE)
                    raise Cancel("the command was ended, as the job is cancelled")
                if (left := ends_at - monotonic()) <= 0:
                    errors = await _end(process, talk, PATIENCE)
                    raise Reject(f"TimedOut: after {timeout:g} seconds\n{errors}".strip())
                await asyncio.wait({talk}, timeout=min(LOOK, left))
        except asyncio.CancelledError:
            await _end(process, talk, LAST_PATIENCE)
            raise
        out, errors = map(_text, await talk)
        return _outcome(process.returncode or 0, out, errors)

    return app


def _environment(job: Job) -> dict[str, str]:
    values = {
        "PGQ_ID": job.id,
        "PGQ_QUEUE": job.queue,
        "PGQ_TASK": job.task or "",
        "PGQ_ATTEMPT": job.attempt,
        "PGQ_MAX_ATTEMPTS": job.max_attempts,
        "PGQ_HEADERS": to_json(job.headers),
    }
    headers = job.headers if isinstance(job.headers, dict) else {}
    for name, value in headers.items():
        key = "".join(c if c.isascii() and c.isalnum() else "_" for c in name).upper()
        values[f"PGQ_HEADER_{key}"] = value if isinstance(value, str) else to_json(value)
    return {name: str(value) for name, value in values.items()}


def _outcome(code: int, out: str, errors: str) -> Any:
    if code == EX_TEMPFAIL:
        raise Snooze(_seconds(out.strip()))
    if code != 0:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise Reject(f"{how}\n{errors[-LONGEST_OUTPUT:]}".strip())
    return _value(out)


def _seconds(text: str) -> float:
    try:
        return max(float(text), 0.0)
    except ValueError:
        return DELAY


def _value(text: str) -> Any:
    """Return the result that a text stands for."""
    if not text.strip():
        return None
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text.rstrip("\n").replace("\0", "\\0")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


async def _end(process: asyncio.subprocess.Process, talk: asyncio.Future[tuple[bytes, bytes]], patience: float) -> str:
    """End a command and all that it has started, and return the end of what it has written to standard error."""
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, LAST_PATIENCE)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        await asyncio.wait({talk}, timeout=seconds)
    if talk.done():
        return _text(talk.result()[1])[-LONGEST_OUTPUT:]
    talk.cancel()
    return ""


def _text(output: bytes) -> str:
    return output.decode(errors="backslashreplace")


def http_app(
    dsn: str | None,
    url: str,
    timeout: float | None = None,
    *,
    concurrency: int = 8,
    transport: httpx.AsyncBaseTransport | None = None,
) -> App:
    """Return an app that posts each job to a URL, whatever its task.

    The body is the payload as JSON. The request has the headers Pgq-Id, Pgq-Queue, Pgq-Task, Pgq-Attempt,
    Pgq-Max-Attempts, Pgq-Headers (JSON), Idempotency-Key (the id), and traceparent and tracestate if the job has them.
    An answer of 2xx acknowledges the job, with the body as its result; 429 and 503 with Retry-After put it off;
    anything else, and no answer, rejects it.

    Args:
        dsn: connection string; None: see :class:`App`.
        url: where to.
        timeout: seconds for the whole exchange.
        concurrency: how many connections are kept.
        transport: of httpx, for tests.

    Raises:
        ImportError: ``pgqueue[http]`` is not installed.
    """
    import httpx

    app = App(dsn)

    @app.on_startup
    def connect() -> None:
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        app.state.http = httpx.AsyncClient(timeout=None, limits=limits, transport=transport)

    @app.on_shutdown
    async def disconnect() -> None:
        await app.state.http.aclose()

    @app.fallback(timeout=timeout)
    async def post(job: Job) -> Any:
        try:
            answer = await app.state.http.post(url, content=to_json(job.payload).encode(), headers=_headers(job))
        except httpx.HTTPError as error:
            raise Reject(f"{type(error).__name__}: {error}") from None
        if answer.is_success:
            return _value(answer.text)
        after = answer.headers.get("Retry-After")
        if answer.status_code in (429, 503) and after is not None:
            raise Snooze(_until(after))
        raise Reject(f"{answer.status_code} {answer.reason_phrase}\n{answer.text[:LONGEST_OUTPUT]}".strip())

    return app


def _headers(job: Job) -> dict[str, str]:
    headers: Mapping[str, Any] = job.headers if isinstance(job.headers, dict) else {}
    return {
        "Content-Type": "application/json",
        "Idempotency-Key": str(job.id),
        "Pgq-Id": str(job.id),
        "Pgq-Queue": _ascii(job.queue),
        "Pgq-Task": _ascii(job.task or ""),
        "Pgq-Attempt": str(job.attempt),
        "Pgq-Max-Attempts": str(job.max_attempts),
        "Pgq-Headers": json.dumps(job.headers),
        **{name: _ascii(str(headers[name])) for name in ("traceparent", "tracestate") if name in headers},
    }


def _ascii(text: str) -> str:
    """Return a text as a header can have it: others are percent-encoded."""
    from urllib.parse import quote

    return quote(text, safe=" !#$&'()*+,/:;=?@[]-._~\"<>\\^`{|}")


def _until(after: str) -> float:
    """Return the seconds that Retry-After means."""
    try:
        return max((parsedate_to_datetime(after) - datetime.now(timezone.utc)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return _seconds(after)
