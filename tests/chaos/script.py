"""Histories written by hand: what clients might have seen, a line each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.chaos.checker import check
from tests.chaos.dump import Dead, Dump, Ended, Left
from tests.chaos.history import combine
from tests.chaos.violations import Kind

SECOND = 1_000_000


class Script:
    """Writes the history of a run in which a second passes with each call. Queue `q`, leases of a minute.

    A call that was not answered is `lost=True`; one that failed has the `error`.
    """

    def __init__(self, **settings: Any) -> None:
        self.clients: dict[str, list[dict[str, Any]]] = {}
        self.archive: list[Ended] = []
        self.dead: list[Dead] = []
        self.left: list[Left] = []
        self.effects: list[tuple[int, int]] = []
        self.states: dict[int, str | None] = {}
        self.counts: dict[tuple[str, str], int] = {}
        self.now = 1000 * SECOND
        self.ahead = 0
        self._leases = 100
        defaults = {"queue": "q", "max_attempts": 3, "shards": 1, "backoff": "10 seconds", "backoff_max": "1 hour"}
        self.call("admin", "create_queue", {**defaults, **settings})

    def call(
        self,
        client: str,
        name: str,
        args: dict[str, Any],
        result: Any = None,
        *,
        error: str | None = None,
        lost: bool = False,
        timed: bool = True,
    ) -> None:
        lines = self.clients.setdefault(client, [])
        number = len(lines) + 1
        lines.append({"n": number, "op": name, "args": args})
        self.now += SECOND
        began = self.now
        self.now += SECOND
        if error:
            lines.append({"a": number, "err": error})
        elif not lost:
            times = [began, self.now, began + self.ahead, self.now + self.ahead]
            lines.append({"a": number, "ok": result, "t": times if timed else None})

    def command(self, client: str, what: str, /, lost: bool = False, error: str | None = None, **args: Any) -> None:
        """begin, commit, savepoint … which tell no time."""
        self.call(client, what, args, lost=lost, error=error, timed=False)

    def enqueue(
        self, id: int, token: str | None = None, client: str = "producer", queue: str = "q", **more: Any
    ) -> None:
        """The token is `j<id>`, unless given."""
        outcome = {key: more.pop(key) for key in ("error", "lost") if key in more}
        self.call(client, "enqueue", {"queue": queue, "payload": {"k": token or f"j{id}"}, **more}, [id], **outcome)

    def unique(self, id: int, key: str, token: str | None = None, *, inserted: bool = True) -> None:
        """Enqueue with a unique key; not inserted: the id is that of the job that holds it."""
        args = {"queue": "q", "payload": {"k": token or f"j{id}"}, "unique_key": key}
        self.call("producer", "enqueue_unique", args, [[id, inserted]])

    def claim(self, *ids: int, attempt: int = 1, client: str = "worker", lease: int | None = None, **more: Any) -> int:
        """Claim these; returns the lease."""
        self._leases += 1
        lease = lease or self._leases
        outcome = {key: more.pop(key) for key in ("error", "lost") if key in more}
        durable = more.pop("durable", None)
        expires_at = self.now + self.ahead + 60 * SECOND
        rows = []
        for id in ids:
            row = {"id": id, "lease": lease, "queue": "q", "task": None, "payload": {"k": f"j{id}"}, "attempt": attempt}
            row |= {"max_attempts": 3, "priority": 0, "expires_at": expires_at, "headers": None}
            rows.append(list((row | more).values()))
        args = {"queue": "q", "batch": max(len(ids), 1)} | ({} if durable is None else {"durable": durable})
        self.call(client, "claim", args, rows, **outcome)
        return lease

    def ack(self, id: int, lease: int, client: str = "worker", result: Any = None, **outcome: Any) -> None:
        args = {"id": id, "lease": lease} | ({} if result is None else {"result": result})
        self.call(client, "ack", args, [None], **outcome)

    def ack_many(self, ids: Sequence[int], lease: int, accepted: Sequence[int], client: str = "worker") -> None:
        self.call(client, "ack_many", {"ids": ids, "leases": [lease] * len(ids)}, list(accepted))

    def reject(self, id: int, lease: int, kind: str = "retry", client: str = "worker", **more: Any) -> None:
        outcome = {key: more.pop(key) for key in ("error", "lost") if key in more}
        self.call(client, "reject", {"id": id, "lease": lease, **more}, [kind], **outcome)

    def release(self, id: int, lease: int, client: str = "worker", **outcome: Any) -> None:
        self.call(client, "release", {"ids": [id], "leases": [lease]}, [id], **outcome)

    def extend(self, lease: int, seconds: int, client: str = "worker", **outcome: Any) -> None:
        until = self.now + self.ahead + seconds * SECOND
        self.call(client, "extend", {"lease": lease}, [until], **outcome)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += round(seconds * SECOND)

    def jump(self, seconds: int) -> None:
        """Let the clock of the queue be so much ahead."""
        self.call("conductor", "clock", {"ahead": seconds * SECOND})
        self.call("conductor", "look", {})
        self.ahead = seconds * SECOND

    # The end ----------------------------------------------------------------------------------------------------------

    def archived(self, id: int, lease: int, kind: str = "done", attempt: int = 1, **more: Any) -> None:
        row: dict[str, Any] = {
            "id": id,
            "lease": lease,
            "kind": kind,
            "attempt": attempt,
            "queue": "q",
            "priority": 0,
            "task": None,
        }
        row |= {"payload": {"k": f"j{id}"}, "headers": None, "result": None, "error": None}
        self.archive.append(Ended(**(row | more)))

    def buried(self, id: int, attempt: int, **more: Any) -> None:
        row: dict[str, Any] = {"id": id, "queue": "q", "attempt": attempt, "max_attempts": None, "task": None}
        row |= {"payload": {"k": f"j{id}"}, "headers": None}
        self.dead.append(Dead(**(row | more)))

    def remains(self, id: int, place: str = "scheduled") -> None:
        self.left.append(Left(id, place, {"k": f"j{id}"}))

    def done(self, id: int, client: str = "worker", attempt: int = 1) -> None:
        """Claim and acknowledge."""
        lease = self.claim(id, client=client, attempt=attempt)
        self.ack(id, lease, client=client)
        self.archived(id, lease, attempt=attempt)

    def found(self) -> set[Kind]:
        """What the checker says."""
        dump = Dump(self.archive, self.dead, self.left, self.effects, self.states, self.counts)
        return {violation.kind for violation in check(combine(self.clients), dump)}
