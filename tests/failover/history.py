"""What the clients know: each appends to a file of its own what it did and what the server confirmed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """One thing that a client did.

    Attributes:
        what: enqueue, run (a handler began) or ack.
        outcome: ok: confirmed by the server; unknown: the connection broke before the answer came, both is possible;
            undone: rolled back or refused, so that nothing may be seen of it.
        by: the client.
        at: monotonic seconds, the same in all processes.
        tag: which job it is, in the words of the application; an enqueue that is tried again has a new one.
        id: the job.
        lease: under which it was held; None where the client is not told.
        txn: timeline and xid of the transaction; None where the client is not told.
    """

    what: str
    outcome: str
    by: str
    at: float = 0.0
    tag: str | None = None
    id: int | None = None
    lease: int | None = None
    txn: tuple[int, int] | None = None


class Writer:
    """Appends events to a file, each at once and as a whole."""

    def __init__(self, path: Path, by: str) -> None:
        self.by = by
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(
        self,
        what: str,
        outcome: str,
        *,
        tag: str | None = None,
        id: int | None = None,
        lease: int | None = None,
        txn: tuple[int, int] | None = None,
    ) -> None:
        event = Event(what, outcome, self.by, time.monotonic(), tag, id, lease, txn)
        os.write(self._file, json.dumps(asdict(event)).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


class Reader:
    """Reads what all clients have written into a directory, while they write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets: dict[Path, int] = {}
        self.events: list[Event] = []

    def refresh(self) -> list[Event]:
        """Read what is new, and return everything."""
        for path in sorted(self._path.glob("*.jsonl")):
            self.events.extend(self._new(path))
        return self.events

    def _new(self, path: Path) -> Iterator[Event]:
        with path.open("rb") as file:
            file.seek(self._offsets.get(path, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offsets[path] = self._offsets.get(path, 0) + len(line)
                fields = json.loads(line)
                fields["txn"] = fields["txn"] and tuple(fields["txn"])
                yield Event(**fields)
