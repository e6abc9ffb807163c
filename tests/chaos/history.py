"""What the clients of a run did: written down by each as it happens, put together afterwards.

A client writes one line when it invokes something and one when it knows what came of it, into a file of its own and
without a buffer, so what it did survives its sudden death. An invocation without an answer is *unknown*: it may have
taken effect or not, at any time since. What happens in a transaction is decided by its commit.

Time is the database's. Each answer contains clock_timestamp() and pgq._now() from before and after the call, in
microseconds, read in the same statement; the clocks of clients are not looked at. Since a client does one thing after
the other, what has no time of its own happened after the last time and, if it was answered, before the next one that
this client has seen.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

NEVER = 1 << 62
"""Later than everything, in microseconds."""


class Effect(Enum):
    """Whether something took effect."""

    YES = "yes"
    NO = "no"
    MAYBE = "maybe"


@dataclass(eq=False, slots=True)
class Transaction:
    """A transaction of several operations: all or none of them take effect."""

    client: str
    began: int
    operations: list[Operation] = field(default_factory=list)
    gid: str | None = None


@dataclass(eq=False, slots=True)
class Operation:
    """One call of one client.

    began, ended: database time between which it was executed; lower and upper bounds if there was no answer.
    now, then: pgq._now() at these moments, None if there was no answer.
    done_by: database time by which its effect was committed for certain; NEVER if nobody can tell.
    """

    client: str
    number: int
    name: str
    args: Mapping[str, Any]
    answered: bool = False
    result: Any = None
    error: str | None = None
    effect: Effect = Effect.MAYBE
    began: int = 0
    ended: int = NEVER
    now: int | None = None
    then: int | None = None
    done_by: int = NEVER
    commit_began: int = 0
    transaction: Transaction | None = None

    @property
    def ok(self) -> bool:
        return self.answered and self.error is None

    def __str__(self) -> str:
        what = ", ".join(f"{key}={_short(value)}" for key, value in self.args.items() if value is not None)
        if self.ok:
            answer = f"-> {_short(self.result)}"
        else:
            answer = f"-> error {self.error}" if self.answered else "-> no answer"
        return (
            f"[{self.client} #{self.number} at {self.began}] {self.name}({what}) {answer}, effect: {self.effect.value}"
        )


def added(operation: Operation) -> list[int]:
    """The ids of the jobs that a call has added, if it was answered."""
    if not operation.ok:
        return []
    if operation.name == "enqueue_unique":
        return [id for id, inserted in operation.result if inserted]
    return list(operation.result) if operation.name in ("enqueue", "enqueue_many") else []


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 160 else text[:157] + "…"


class Recorder:
    """Appends what one client does to its file."""

    def __init__(self, folder: Path, client: str) -> None:
        self.client = client
        self._file = os.open(folder / f"{client}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._count = 0

    def invoke(self, name: str, args: Mapping[str, Any]) -> int:
        """Write down that something is about to be called; returns its number."""
        self._count += 1
        self._write({"n": self._count, "op": name, "args": args})
        return self._count

    def ok(self, number: int, result: Any = None, times: Iterable[int] | None = None) -> None:
        """Write down a result, with clock_timestamp() and pgq._now() from before and after."""
        self._write({"a": number, "ok": result, "t": times and list(times)})

    def failed(self, number: int, sqlstate: str) -> None:
        """Write down an error: it has not taken effect."""
        self._write({"a": number, "err": sqlstate})

    def _write(self, line: Mapping[str, Any]) -> None:
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def load(folder: Path) -> list[Operation]:
    """Read the files of all clients."""
    return combine({path.stem: read_lines(path) for path in sorted(folder.glob("*.jsonl"))})


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the file of a client. Its last line may be torn: then it was killed in the midst of it."""
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


def combine(clients: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[Operation]:
    """Put together what the clients wrote down, and find out what took effect."""
    prepared: dict[str, list[Transaction]] = {}
    operations: list[Operation] = []
    for client, lines in clients.items():
        own = _operations(client, lines)
        _decide(client, own, prepared)
        operations += own
    _decide_prepared(prepared, operations)
    _bound(operations)
    return operations


def identity(client: str) -> str:
    """`worker-1` for `worker-1.3`, its third process."""
    return client.rpartition(".")[0] or client


def _bound(operations: list[Operation]) -> None:
    """A session that began alone, after all earlier ones of its kind had ended: none of them does anything later."""
    open_ended: dict[str, list[Operation]] = {}
    for operation in sorted(operations, key=lambda o: (o.client.rpartition(".")[0], _incarnation(o.client), o.number)):
        earlier = open_ended.setdefault(identity(operation.client), [])
        if operation.name == "session" and operation.args.get("alone") and operation.ok:
            for other in earlier:
                other.done_by = operation.began
                other.ended = min(other.ended, operation.began)
            earlier.clear()
        elif operation.done_by == NEVER:
            earlier.append(operation)
    for quiet in operations:
        if quiet.name == "quiet" and quiet.ok:  # nobody else was left
            for other in operations:
                if other.client != quiet.client and other.done_by == NEVER:
                    other.done_by = quiet.began
                    other.ended = min(other.ended, quiet.began)


def _incarnation(client: str) -> int:
    number = client.rpartition(".")[2]
    return int(number) if number.isdigit() else 0


def _operations(client: str, lines: Iterable[Mapping[str, Any]]) -> list[Operation]:
    """The operations of a client, with their answers and times."""
    operations: list[Operation] = []
    by_number: dict[int, Operation] = {}
    last = 0
    for line in lines:
        if "op" in line:
            operation = Operation(client, line["n"], line["op"], line["args"], began=last, commit_began=last)
            operations.append(operation)
            by_number[operation.number] = operation
            continue
        operation = by_number[line["a"]]
        operation.answered = True
        if "err" in line:
            operation.error = line["err"]
        else:
            operation.result = line["ok"]
        if line.get("t"):
            operation.began, operation.ended, operation.now, operation.then = line["t"]
            operation.commit_began = last = operation.ended
    following = NEVER
    for operation in reversed(operations):
        if operation.answered:
            operation.done_by = following
            if operation.ended == NEVER:
                operation.ended = following
            if operation.now is not None:
                following = operation.began
    return operations


def _decide(client: str, operations: list[Operation], prepared: dict[str, list[Transaction]]) -> None:
    """Find the effect of each operation of a client."""
    transaction: Transaction | None = None
    savepoints: list[tuple[str, int]] = []
    for operation in operations:
        name = operation.name
        if name in ("begin", "session"):
            # Whatever was open has not been committed; a new session means that the old one is lost.
            opened = name == "begin" and _effect(operation) is not Effect.NO
            transaction, savepoints = (Transaction(client, operation.began) if opened else None), []
        elif transaction is None:
            operation.effect = _effect(operation)
        elif name == "savepoint":
            savepoints.append((operation.args["name"], len(transaction.operations)))
        elif name == "rollback_to":
            while savepoints[-1][0] != operation.args["name"]:
                savepoints.pop()
            del transaction.operations[savepoints[-1][1] :]
        elif name in ("commit", "rollback", "prepare"):
            if name == "prepare" and _effect(operation) is not Effect.NO:
                transaction.gid = operation.args["gid"]
                prepared.setdefault(operation.args["gid"], []).append(transaction)
            elif name == "commit":
                _end(transaction, operation, _effect(operation))
            transaction, savepoints = None, []
        else:
            operation.effect = Effect.NO  # until it is committed
            operation.transaction = transaction
            if operation.ok:
                transaction.operations.append(operation)


def _effect(operation: Operation) -> Effect:
    if not operation.answered:
        return Effect.MAYBE
    return Effect.YES if operation.ok else Effect.NO


def _end(transaction: Transaction, by: Operation, effect: Effect) -> None:
    for operation in transaction.operations:
        operation.effect = effect
        operation.commit_began = max(operation.ended, by.began)
        operation.done_by = by.done_by


def _decide_prepared(prepared: Mapping[str, list[Transaction]], operations: list[Operation]) -> None:
    """Find the effect of prepared transactions, which anybody may commit later."""
    ends: dict[str, list[Operation]] = {}
    for operation in operations:
        if operation.name in ("commit_prepared", "rollback_prepared"):
            ends.setdefault(operation.args["gid"], []).append(operation)
    for gid, transactions in prepared.items():
        possible = [end for end in ends.get(gid, []) if end.effect is not Effect.NO]
        sure = [end for end in possible if end.effect is Effect.YES]
        commits = [end for end in sure or possible if end.name == "commit_prepared"]
        for transaction in transactions:
            if commits:
                _end(transaction, commits[0], Effect.YES if sure else Effect.MAYBE)
