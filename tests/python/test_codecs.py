"""Arguments and results that JSON does not have."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pydantic
import pytest

import pgqueue
from pgqueue import App, Client, InvalidArgument, Job
from pgqueue.codecs import by_annotations
from tests.python.conftest import Running
from tests.python.support import Until

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


class Color(Enum):
    RED = "red"


class Address(pydantic.BaseModel):
    """A model."""

    street: str
    number: int = 1


@dataclass
class Order:
    """A dataclass with a model in it."""

    to: Address
    at: datetime
    colors: list[Color] = field(default_factory=list)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_models_and_dataclasses_come_as_what_they_were(
    app: App, client: Client, running: Running, until: Until, kind: str
) -> None:
    seen: list[Any] = []

    def work(job: Job, order: Order, more: list[Address], price: Decimal, note: str | None = None) -> Order:
        seen.append((order, more, price, note, job.payload["price"]))
        return order

    async def work_async(job: Job, order: Order, more: list[Address], price: Decimal, note: str | None = None) -> Order:
        return work(job, order, more, price, note)

    task = app.task("t", queue="q")(work if kind == "sync" else work_async)
    order = Order(Address(street="Main"), NOON, [Color.RED])
    job = task.enqueue(order, more=[Address(street="x", number=2)], price=Decimal("1.10"))
    task.enqueue_many([{"order": order, "more": [], "price": 1}])
    with running():
        until(job, "done")
        until(job + 1, "done")
    assert (order, [Address(street="x", number=2)], Decimal("1.10"), None, "1.10") in seen
    with pytest.raises(pydantic.ValidationError):
        task.enqueue(order=7, more=[], price=1)  # type: ignore[call-overload]
    state = client.job_status(job)
    assert state is not None
    assert state.result == {"to": {"street": "Main", "number": 1}, "at": "2026-01-01T12:00:00Z", "colors": ["red"]}


def test_arguments_are_checked_when_they_arrive(app: App, client: Client, running: Running, until: Until) -> None:
    @app.task("t", queue="q", retry=False)
    def t(address: Address) -> None: ...

    job = client.enqueue("q", {"address": {"street": 7}}, task="t")
    other = client.enqueue("q", {"address": {"street": "x"}}, task="t")
    with running():
        until(job, "dead")
        until(other, "done")
    state = client.job_status(job)
    assert state is not None
    assert state.error is not None
    assert "Input should be a valid string" in state.error


def plain(a: int, b: str, c: list[dict[str, Any]], d: float | None, **rest: Order) -> None: ...
def not_known(job: Job, app: App) -> None: ...
def unresolved(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("function", [plain, not_known, unresolved, lambda x: x])
def test_what_json_has_and_what_nobody_knows_is_left_alone(function: Any) -> None:
    assert by_annotations(function) is None


@pytest.mark.parametrize(
    ("hint", "value", "text"),
    [
        (datetime, NOON, "2026-01-01T12:00:00Z"),
        (timedelta, timedelta(minutes=1), "PT1M"),
        (UUID, UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Color, Color.RED, "red"),
        (tuple[int, str], (1, "a"), [1, "a"]),
        (set[int], {1}, [1]),
        (bytes, b"a", "a"),
        (dict[str, datetime] | None, {"a": NOON}, {"a": "2026-01-01T12:00:00Z"}),
    ],
)
def test_types(hint: Any, value: Any, text: Any) -> None:
    def function(value: Any) -> Any: ...

    function.__annotations__ = {"value": hint, "return": hint}
    codec = by_annotations(function)
    assert codec is not None
    assert codec.dump({"value": value, "other": 1}) == {"value": text, "other": 1}
    assert codec.load({"value": text, "other": 1}) == {"value": value, "other": 1}
    assert codec.dump_result(value) == text


class Shouting:
    """A codec of one's own."""

    def dump(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"shouted": {name: value.upper() for name, value in arguments.items()}}

    def load(self, payload: dict[str, Any]) -> dict[str, Any]:
        return {name: value.lower() for name, value in payload["shouted"].items()}

    def dump_result(self, result: Any) -> Any:
        return {"result": result}


def test_a_codec_of_ones_own(dsn: str, client: Client, until: Until) -> None:
    app = App(dsn, codec=lambda function: Shouting())

    @app.task("t", queue="q")
    def t(word: str) -> str:
        return word + "!"

    job = t.enqueue("hello")
    with app.worker(["q"]):
        until(job, "done")
    state = client.job_status(job)
    assert state is not None
    assert state.result == {"result": "hello!"}
    (payload,) = [a.result for a in client.attempts(job)]
    assert payload == {"result": "hello!"}
    app.close()


def test_without_pydantic_an_argument_that_is_no_json_is_refused(app: App, client: Client) -> None:
    app.codec = lambda function: None

    @app.task("t", queue="q")
    def t(at: datetime) -> None: ...

    with pytest.raises(InvalidArgument, match="datetime"):
        t.enqueue(at=NOON)


def test_pydantic_is_imported_only_when_it_is_needed() -> None:
    program = """
        import sys, pgqueue
        app = pgqueue.App()
        @app.task("t")
        def t(job: pgqueue.Job, a: int, b: list[str]) -> dict[str, int]: ...
        print("pydantic" in sys.modules)
        """
    lines = "\n".join(line[8:] for line in program.splitlines())
    package = str(Path(pgqueue.__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True, cwd=package)
    assert done.stdout == "False\n"
