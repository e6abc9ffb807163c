"""A proxy that understands PostgreSQL's messages, and breaks connections at the worst moment: around a commit.

It sees the frames of both directions: a request is complete with Sync (S) or a simple query (Q), its answer with
ReadyForQuery (Z). A request that commits is COMMIT itself, or any other outside of a transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Break = Literal["cut before", "cut within", "cut after", "delay", "freeze", "freeze and cut"]
BREAKS: tuple[Break, ...] = get_args(Break)
"""cut before: the request never arrives. cut within: it does, and nobody waits for the answer. cut after: the answer
is there, and does not arrive. delay: it arrives late. freeze: nothing moves in either direction for a while, from the
moment on when the request was sent."""

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104
_HARMLESS = ("BEGIN", "SET", "SHOW", "LISTEN", "ROLLBACK", "SAVEPOINT", "RELEASE")


@dataclass
class Fault:
    """What to do at the next request that commits."""

    kind: Break
    seconds: float = 0.0


@dataclass(eq=False)
class Connection:
    """A client's connection and its counterpart to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    status: bytes = b"I"
    statements: dict[bytes, str] = field(default_factory=dict)
    text: str = ""
    executes: bool = False
    fault: Fault | None = None
    moving: asyncio.Event = field(default_factory=asyncio.Event)

    def commits(self) -> bool:
        text = self.text.lstrip().upper()
        if not self.executes:  # Parse alone, of a statement to be prepared
            return False
        if self.status == b"I":
            return not text.startswith(_HARMLESS)
        return text.startswith(("COMMIT", "PREPARE TRANSACTION"))

    def close(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()


class Proxy:
    """Listens on a Unix-domain socket and passes everything on to another one, in a thread of its own.

    Args:
        directory: where to listen; clients use it as host, and the server's port.
        server: directory of the server's socket.
        port: both use.
    """

    def __init__(self, directory: Path, server: Path, port: int = 5432) -> None:
        self.directory = directory
        self._name = f".s.PGSQL.{port}"
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._ready = threading.Event()
        self._armed: deque[Fault] = deque()
        self._connections: set[Connection] = set()
        self.done: Counter[str] = Counter()

    def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self._thread.start()
        if not self._ready.wait(30):
            raise TimeoutError("the proxy does not listen")

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(30)

    def arm(self, fault: Fault) -> None:
        """Do this to the next request of anybody that commits."""
        self._loop.call_soon_threadsafe(self._armed.append, fault)

    def cut_all(self) -> None:
        """Cut every connection."""

        def cut() -> None:
            for connection in tuple(self._connections):
                self.done["cut all"] += 1
                connection.close()

        self._loop.call_soon_threadsafe(cut)

    def disarm(self) -> None:
        """Forget the faults that have not happened, and let everything move again."""

        def calm() -> None:
            self._armed.clear()
            for connection in self._connections:
                connection.moving.set()

        self._loop.call_soon_threadsafe(calm)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_unix_server(self._accept, self.directory / self._name, backlog=200)
        )
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))  # a transport that was aborted closes its socket a turn later
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._pass_on(reader, writer)
        finally:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            startup = await _read_startup(reader, writer)
            upstream, server = await asyncio.open_unix_connection(self._server / self._name)
            connection = Connection(writer, server)
            connection.moving.set()
            self._connections.add(connection)
            try:
                server.write(startup)
                await _first(self._requests(connection, reader), self._answers(connection, upstream))
            finally:
                self._connections.discard(connection)
                connection.close()

    async def _requests(self, connection: Connection, reader: asyncio.StreamReader) -> None:
        request = bytearray()
        while True:
            kind, body = await _read_message(reader)
            request += kind + (len(body) + 4).to_bytes(4, "big") + body
            _note(connection, kind, body)
            if kind in b"PBDEC":
                continue
            await connection.moving.wait()
            if kind in b"SQ" and connection.commits() and self._armed:
                connection.fault = self._armed.popleft()
                if await self._break(connection, bytes(request)):
                    return
            else:
                connection.server.write(bytes(request))
            request.clear()
            connection.executes = False
            await connection.server.drain()

    async def _break(self, connection: Connection, request: bytes) -> bool:
        """Begin a fault; returns whether the connection is gone."""
        fault = connection.fault
        assert fault is not None
        self.done[fault.kind] += 1
        if fault.kind == "cut before":
            return True
        connection.server.write(request)
        await connection.server.drain()
        if fault.kind == "cut within":
            return True
        if fault.kind in ("freeze", "freeze and cut"):
            connection.fault = None
            connection.moving.clear()
            thaw = connection.close if fault.kind == "freeze and cut" else connection.moving.set
            self._loop.call_later(fault.seconds, thaw)
        return False

    async def _answers(self, connection: Connection, upstream: asyncio.StreamReader) -> None:
        while True:
            kind, body = await _read_message(upstream)
            await connection.moving.wait()
            if kind == b"Z":
                connection.status = body
            fault = connection.fault
            if fault is not None:
                if fault.kind == "cut after":
                    if kind == b"Z":
                        return
                    continue
                if fault.kind == "delay":
                    await asyncio.sleep(fault.seconds)
                connection.fault = None
            connection.client.write(kind + (len(body) + 4).to_bytes(4, "big") + body)
            await connection.client.drain()


def _note(connection: Connection, kind: bytes, body: bytes) -> None:
    """Remember the text of the request."""
    connection.executes |= kind in b"QE"
    if kind == b"Q":
        connection.text = body[:-1].decode(errors="replace")
    elif kind == b"P":
        name, _, rest = body.partition(b"\0")
        connection.text = connection.statements[name] = rest.partition(b"\0")[0].decode(errors="replace")
    elif kind == b"B":
        connection.text = connection.statements.get(body.split(b"\0", 2)[1], connection.text)


async def _read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], await reader.readexactly(int.from_bytes(head[1:], "big") - 4)


async def _read_startup(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The first packet, which has no type. Encryption is declined."""
    while True:
        length = await reader.readexactly(4)
        body = await reader.readexactly(int.from_bytes(length, "big") - 4)
        if int.from_bytes(body[:4], "big") not in (_SSL_REQUEST, _GSS_REQUEST):
            return length + body
        writer.write(b"N")


async def _first(*pumps: Coroutine[None, None, None]) -> None:
    """Run both directions until one of them ends."""
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
