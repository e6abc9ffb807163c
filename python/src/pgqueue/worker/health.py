"""An HTTP endpoint that says whether a worker lives, and whether it can work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

# A request that is not complete after so many seconds is dropped.
PATIENCE = 5.0
LONGEST_REQUEST = 8192


class Health:
    """Answers GET /live and GET /ready with 200, or with 503 if not; Kubernetes calls these liveness and readiness.

    /live says that the event loop turns: a handler that blocks it is noticed. /ready says that the worker is not
    stopping, and that its last claim reached the database.

    Args:
        address: ``host:port``, ``[::1]:port``, or ``:port`` for all interfaces.
        ready: asked for /ready.

    Raises:
        ValueError: that is no address.
    """

    def __init__(self, address: str, ready: Callable[[], bool]) -> None:
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdigit():
            raise ValueError(f"{address!r} is no address: give host:port, as in 0.0.0.0:8080")
        self._host = host.strip("[]") or None
        self._port = int(port)
        self._ready = ready
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Several processes may share the port; one of them answers."""
        self._server = await asyncio.start_server(
            self._answer, self._host, self._port, limit=LONGEST_REQUEST, reuse_port=True
        )

    @property
    def port(self) -> int:
        """Where it listens, if the port was given as 0."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
            status = self._status(head.split(b" ", 2)[:2])
            body = f"{status}\n".encode()
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        except (asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def _status(self, request: list[bytes]) -> str:
        if request == [b"GET", b"/live"]:
            return "200 OK"
        if request == [b"GET", b"/ready"]:
            return "200 OK" if self._ready() else "503 Service Unavailable"
        return "404 Not Found"
