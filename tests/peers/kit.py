"""What the programs of the Python systems share. It runs in the peers' environments, so it has only Python itself."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

DSN = os.environ.get("PEER_DSN", "")
OPTIONS: dict[str, Any] = json.loads(os.environ.get("PEER_OPTIONS", "{}"))
# After so many seconds a silent worker is to be given up. Only the crash asks for it, and the queue is prepared for it.
SILENCE: int | None = OPTIONS.get("silence")

# With the number and the time that is about 100 bytes of JSON, as a small real job has them.
TEXT = "somebody@example.org, welcome, " + "x" * 30
TICK = 0.02  # seconds between two sendings of a paced producer
MOST_AT_ONCE = 1000
REPORT_EVERY = 0.05

Payload = dict[str, Any]


class Producer(Protocol):
    """A system's public calls that enqueue; each returns when its jobs are committed."""

    async def one(self, payload: Payload) -> None: ...

    async def many(self, payloads: Sequence[Payload], delay: float) -> None: ...


Opened = Callable[[], AbstractAsyncContextManager[Producer]]


def tell(**figures: Any) -> None:
    """One line for the harness."""
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


class Tally:
    """Counts the runs of the handler, and tells the harness a few times a second from a thread of its own.

    With a record it also keeps what the harness wants of each run: how long its job has waited, or its number, which is
    written at once, as the worker may be killed at any moment.
    """

    def __init__(self, record: str | None = None, numbers: bool = False, nap: float = 0) -> None:
        self._nap = nap
        self._runs = array("b")  # handlers may run in threads; append is one step
        self._waits = array("d")
        self._written = 0
        self._first: float | None = None
        self._numbers = numbers
        self._record = None if record is None else os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(self, payload: Mapping[str, Any]) -> None:
        """A handler has begun."""
        sent = payload.get("sent")
        if sent is not None:
            self._waits.append(time.time() * 1000 - sent)
        if self._numbers and self._record is not None:
            os.write(self._record, b"%d\n" % payload["n"])
        if self._first is None:
            self._first = time.time()
        self._runs.append(0)

    def rest(self) -> None:
        """What a function does after that; a coroutine does `await rest_async()`."""
        if self._nap:
            time.sleep(self._nap)

    async def rest_async(self) -> None:
        if self._nap:
            await asyncio.sleep(self._nap)

    def report(self) -> None:
        runs = len(self._runs)
        if self._record is not None and not self._numbers:
            waits = self._waits[self._written :]
            self._written += len(waits)
            os.write(self._record, waits.tobytes())
        tell(runs=runs, first=self._first, at=time.time())

    def start(self) -> Tally:
        """Begin to report; the first report says that the worker is about to work."""

        def work() -> None:
            while True:
                self.report()
                time.sleep(REPORT_EVERY)

        threading.Thread(target=work, daemon=True).start()
        return self


@cache
def tally() -> Tally:
    """The tally that the harness has asked for, one in each process."""
    return Tally(OPTIONS.get("record"), OPTIONS.get("numbers", False), OPTIONS.get("nap", 0))


def payloads(start: int, count: int) -> list[Payload]:
    return [{"n": n, "text": TEXT} for n in range(start, start + count)]


async def flood(producer: Producer) -> tuple[int, float]:
    """As many as wanted, or as fast as it can for so long: one at a time, or many in each call."""
    batch, jobs, seconds = OPTIONS["batch"], OPTIONS.get("jobs", sys.maxsize), OPTIONS.get("seconds", 1e9)
    delay = OPTIONS.get("delay", 0)
    done, began = 0, time.perf_counter()
    while done < jobs and time.perf_counter() - began < seconds:
        if batch == 1:
            await producer.one({"n": done, "text": TEXT})
            done += 1
        else:
            chunk = payloads(done, min(batch, jobs - done))
            await producer.many(chunk, delay)
            done += len(chunk)
    return done, 0


async def pace(producer: Producer) -> tuple[int, float]:
    """At a fixed rate, whatever the system makes of it: each job has the time at which it was due."""
    rate, total = OPTIONS["rate"], int(OPTIONS["rate"] * OPTIONS["seconds"])
    began, sent, late = time.time(), 0, 0.0
    while sent < total:
        now = time.time()
        due = min(int((now - began) * rate) + 1, total)
        if due <= sent:
            await asyncio.sleep(TICK)
            continue
        late = max(late, now - began - sent / rate)
        chunk = payloads(sent, min(due - sent, MOST_AT_ONCE))
        for payload in chunk:
            payload["sent"] = (began + payload["n"] / rate) * 1000
        await producer.many(chunk, 0)
        sent += len(chunk)
        if sent >= due:
            await asyncio.sleep(TICK)
    return sent, late


async def sparse(producer: Producer) -> tuple[int, float]:
    """One job at a time, with pauses in which the worker falls idle."""
    pause = random.Random(1)
    for n in range(OPTIONS["jobs"]):
        await asyncio.sleep(pause.uniform(0.03, 0.07))
        await producer.one({"n": n, "text": TEXT, "sent": time.time() * 1000})
    return OPTIONS["jobs"], 0


async def feed(producer: Producer) -> tuple[int, float]:
    """As many as each line of the standard input says, until it ends."""
    done = 0
    async for wanted in _numbers():
        for start in range(done, done + wanted, MOST_AT_ONCE):
            chunk = payloads(start, min(MOST_AT_ONCE, done + wanted - start))
            await producer.many(chunk, 0)
        done += wanted
    return done, 0


async def _numbers() -> AsyncIterator[int]:
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield int(line)


PLANS = {"flood": flood, "pace": pace, "sparse": sparse, "feed": feed}


async def produce(opened: Opened) -> None:
    async with opened() as producer:
        tell(ready=True)
        began, cpu = time.perf_counter(), time.process_time()
        jobs, late = await PLANS[OPTIONS["plan"]](producer)
        seconds = time.perf_counter() - began
        tell(jobs=jobs, seconds=seconds, late_ms=late * 1000, cpu=time.process_time() - cpu)


def main(
    prepare: Callable[[], Awaitable[None]], opened: Opened, work: Callable[[Tally], Awaitable[None]] | None = None
) -> None:
    """The command line of a peer's program: prepare, enqueue, work."""
    verb = sys.argv[1]
    if verb == "prepare":
        asyncio.run(_await(prepare()))
    elif verb == "enqueue":
        asyncio.run(produce(opened))
    elif verb == "work" and work is not None:
        asyncio.run(_await(work(tally())))
    else:
        raise SystemExit(f"no verb {verb}")


async def _await(what: Awaitable[None]) -> None:
    await what


def waits(record: Path) -> list[float]:
    """Read a record of waits, in milliseconds."""
    found = array("d")
    found.frombytes(record.read_bytes())
    return list(found)


def numbers(record: Path) -> Iterator[int]:
    """Read a record of numbers."""
    return (int(line) for line in record.read_text().splitlines())
