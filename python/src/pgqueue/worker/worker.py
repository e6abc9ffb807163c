"""Starting and stopping the parts."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from psycopg.abc import Buffer
from psycopg.adapt import Loader

from pgqueue import _calls
from pgqueue._calls import HeldJob, Interval
from pgqueue.app import App, Hook
from pgqueue.errors import QueueNotFound
from pgqueue.worker.fetch import Fetcher, Mode
from pgqueue.worker.health import Health
from pgqueue.worker.heartbeat import Heartbeat
from pgqueue.worker.leases import Leases
from pgqueue.worker.link import Connection, Link
from pgqueue.worker.listen import Listener
from pgqueue.worker.maintain import maintain
from pgqueue.worker.run import Runner
from pgqueue.worker.settle import Settler
from pgqueue.worker.wake import Wake

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("pgqueue.worker")

# What is left to write at the end gets so many seconds.
LAST_WORDS = 3.0


class Worker:
    """Runs the jobs of an app's tasks.

    Args:
        app: its tasks and its database.
        queues: where to fetch, each in its turn; a mapping says how often it is a queue's turn to be the first; None:
            the queues of the app's tasks.
        concurrency: how many jobs run at the same time.
        lease: how long claimed jobs are held (timedelta, seconds, or text), extended while they run; None: the
            queue's setting. It is also how long the jobs of a worker that was killed wait for another one.
        poll: seconds after which an idle worker looks by itself.
        listen: let the database wake an idle worker. Needs a session of its own, so not through a pooler.
        listen_dsn: connection string for that session, directly to the server if the app's own leads to a pooler;
            None takes the environment variable PGQUEUE_LISTEN_DSN, and without it the app's.
        maintain: call ``pgq.maintain()`` about every second.
        grace: seconds that running jobs get to finish when the worker stops. The others are released.
        mode: ``forever``; ``drain``: until no job is ready; ``once``: one job.
        name: shown to people; host and process id if left out.
        health: where to answer whether it lives and is ready, as in ``0.0.0.0:8080``; see :class:`Health`.

    Example:
        >>> Worker(app, ["mail"], concurrency=8).main()

        In another program:

        >>> with Worker(app, ["mail"]):
        ...     serve()
    """

    def __init__(
        self,
        app: App,
        queues: Sequence[str] | Mapping[str, int] | None = None,
        *,
        concurrency: int = 8,
        lease: Interval | None = None,
        poll: float = 1.0,
        listen: bool = True,
        listen_dsn: str | None = None,
        maintain: bool = True,
        grace: float = 25.0,
        mode: Mode = "forever",
        name: str | None = None,
        health: str | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError("concurrency must be at least 1")
        if not poll > 0:
            raise ValueError("poll must be more than 0 seconds")
        self.app = app
        weights = dict(queues) if isinstance(queues, Mapping) else dict.fromkeys(queues or (), 1)
        self.queues = list(weights or dict.fromkeys(t.queue for t in app.tasks.values()))
        if not self.queues:
            raise ValueError("the app has no tasks, and no queue is given")
        if any(not 1 <= weight <= 100 for weight in weights.values()):
            raise ValueError("a queue's weight is a number from 1 to 100")
        self._turns = _turns({name: weights.get(name, 1) for name in self.queues})
        self.concurrency = concurrency
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self._lease = lease
        self._poll = poll
        self._listen = listen
        self._listen_dsn = (os.environ.get("PGQUEUE_LISTEN_DSN") or None) if listen_dsn is None else listen_dsn
        self._maintain = maintain
        self._grace = grace
        self._mode: Mode = mode
        self.health = None if health is None else Health(health, self._is_ready)
        self._claims: Link | None = None
        self._fetcher: Fetcher | None = None
        self._runner: Runner | None = None
        self._heartbeat: Heartbeat | None = None
        self._thread: _Thread | None = None
        self._stops = 0

    def main(self) -> None:
        """Work in the main thread of a process: SIGTERM or SIGINT stops, a second one ends at once.

        Raises:
            QueueNotFound: one of the queues does not exist.
            SchemaMissing: pgq is not installed in this database.
            VersionMismatch: it is too old for this package, or too new.
        """
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            signal.signal(number, self._signalled)
        leaving = _exit_soon()

        async def work() -> None:
            try:
                await self.run()
            finally:
                leaving.start()  # as what handlers have left in asyncio.to_thread may never end

        try:
            asyncio.run(work())
        finally:
            leaving.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        log.info("%s: stopping", signal.Signals(number).name)
        self.stop()
        if self._stops > 1:
            _exit_soon().start()  # even if a handler blocks the event loop

    @property
    def alive(self) -> bool:
        """Whether it works, in a ``with`` block; if not, the end of the block raises why."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stops > 0

    def stop(self) -> None:
        """Stop claiming, finish what runs within the grace time; called again, do not wait for it.

        From any thread; ``run`` returns when it is done.
        """
        self._stops += 1
        fetcher, runner = self._fetcher, self._runner  # the worker may be ending just now
        if fetcher is not None:
            fetcher.stop()
        if runner is not None and self._stops > 1:
            runner.hurry()

    async def run(self) -> None:
        """Work until stopped or, depending on the mode, until there is nothing more to do.

        Raises:
            QueueNotFound: one of the queues does not exist.
            SchemaMissing: pgq is not installed in this database.
            VersionMismatch: it is too old for this package, or too new.
        """
        await _call_all(self.app.startup)
        try:
            if self.health is not None:
                await self.health.start()
            await self._work()
        finally:
            if self.health is not None:
                self.health.stop()
            await _call_all(reversed(self.app.shutdown))

    async def check(self) -> list[str]:
        """Look whether it could work: that the database answers, and has pgq and the queues.

        Returns:
            The queues that do not exist.

        Raises:
            SchemaMissing, VersionMismatch, psycopg.Error: it could not.
        """
        link = self._link("check")
        missing = []
        try:
            for queue in self.queues:
                try:
                    await link.call(_calls.check_queue(queue))
                except QueueNotFound:
                    missing.append(queue)
        finally:
            await link.close()
        return missing

    async def _work(self) -> None:
        wake = Wake()
        leases = Leases()
        claims = self._claims = self._link("claim", setup=_read_quickly)
        settles = self._link("settle")
        settler = Settler(settles, leases, wake.set)
        runner = self._runner = Runner(self.app, self.concurrency, settler, wake, self._overdue)
        listen_dsn = self.app.dsn if self._listen_dsn is None else self._listen_dsn
        listener = Listener(listen_dsn, self.queues, self._notified) if self._listen else None
        fetcher = self._fetcher = Fetcher(
            claims,
            listener,
            runner.slots,
            settler,
            leases,
            self.app.tasks,
            self.app.fallback_task,
            self._turns,
            lease_for=self._lease,
            poll=self._poll,
            worker=self.name,
            mode=self._mode,
            wake=wake,
        )
        heartbeat = self._heartbeat = Heartbeat(
            self._link("heartbeat"), leases, self._lease, runner.slots.lose, runner.cancel
        )
        fetching = asyncio.create_task(fetcher.run())
        settling = asyncio.create_task(settler.run())
        tasks = [fetching, settling]
        if self._maintain:
            tasks.append(asyncio.create_task(maintain(self._link("maintain"))))
        if self._stops:
            fetcher.stop()
        heartbeat.start()
        log.info("%s works on %s, %s at a time", self.name, self.queues, self.concurrency)
        try:
            await asyncio.wait([fetching, settling], return_when=asyncio.FIRST_COMPLETED)
        finally:
            fetcher.stop()
            try:
                await self._finish(fetching, settling, runner, settler)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await heartbeat.stop()
                for part in (listener, claims, settles):
                    if part is not None:
                        await part.close()
                self._fetcher = self._runner = self._heartbeat = None
        for task in (fetching, settling):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        log.info("%s stopped", self.name)

    def __enter__(self) -> Self:
        """Work in a thread of its own until the end of the ``with`` block, which waits for what runs."""
        self._thread = _Thread(lambda: asyncio.run(self.run()))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        assert self._thread is not None
        self._thread.join()
        if self._thread.error is not None and value is None:
            raise self._thread.error

    async def _finish(
        self, fetching: asyncio.Task[None], settling: asyncio.Task[None], runner: Runner, settler: Settler
    ) -> None:
        """Finish or release what was claimed."""
        await asyncio.wait([fetching], timeout=LAST_WORDS)
        if self._stops:
            await _briefly(settler.release([item.job for item in runner.slots.shed(0)]))
        unfinished = await runner.stop(self._grace if self._stops < 2 else 0)
        if unfinished:
            log.warning("releasing %s jobs that did not finish in time", len(unfinished))
            await _briefly(settler.release(unfinished))
        settler.stop()
        await asyncio.wait([settling], timeout=LAST_WORDS)

    def _notified(self, queue: str) -> None:
        if self._fetcher is not None:
            self._fetcher.notified(queue)

    def _is_ready(self) -> bool:
        claims = self._claims
        return not self._stops and claims is not None and claims.connection is not None and not claims.failing

    def _overdue(self, job: HeldJob, error: str) -> None:
        if (heartbeat := self._heartbeat) is not None:
            heartbeat.reject(job, error)

    def _link(self, name: str, **settings: Any) -> Link:
        return Link(self.app.dsn, name, prepare_threshold=self.app.prepare_threshold, **settings)


class _Thread(threading.Thread):
    """Keeps what its function raises."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(name="pgq-worker", daemon=True)
        self._function = function
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            log.error("the worker has ended: %s", error)
            self.error = error


def _exit_soon() -> threading.Timer:
    """Return what ends the process, once it is started, whatever its threads do."""
    timer = threading.Timer(LAST_WORDS, os._exit, [1])
    timer.daemon = True
    return timer


def _turns(weights: Mapping[str, int]) -> list[str]:
    """Return each name as often as it weighs, spread over the whole."""
    places = [((nth + 0.5) / weight, name) for name, weight in weights.items() for nth in range(weight)]
    return [name for _, name in sorted(places, key=lambda place: place[0])]


async def _call_all(hooks: Iterable[Hook]) -> None:
    for hook in hooks:
        result = hook()
        if inspect.isawaitable(result):
            await result


async def _read_quickly(connection: Connection, pooled: bool) -> None:
    connection.adapters.register_loader("jsonb", _JsonbLoader)


class _JsonbLoader(Loader):
    """Reads jsonb, of which json.loads would first find out that it is UTF-8 without white space around it."""

    _decode = staticmethod(json.JSONDecoder().raw_decode)

    def load(self, data: Buffer) -> Any:
        return self._decode(str(data, "utf-8"))[0]


async def _briefly(what: Any) -> None:
    """Wait for something that the database may no longer answer."""
    try:
        await asyncio.wait_for(what, LAST_WORDS)
    except asyncio.TimeoutError:
        log.warning("the database does not answer; leases will expire")
