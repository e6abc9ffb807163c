"""Example fastapi_app: a request that fails leaves no job."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from examples.fastapi_app.main import app, jobs
from pgqueue import Client
from tests.conftest import Connection
from tests.examples.conftest import StartWorker
from tests.examples.support import block
from tests.python.support import eventually

WORKER = "examples.fastapi_app.main:jobs"


class Shop:
    """The application, in an event loop of its own."""

    def __init__(self, portal: BlockingPortal, client: httpx.AsyncClient) -> None:
        self._portal = portal
        self._client = client

    def get(self, path: str) -> httpx.Response:
        answer: httpx.Response = self._portal.call(self._client.get, path)
        return answer

    def order(self, customer: str, amount: int) -> httpx.Response:
        answer: httpx.Response = self._portal.call(self._post, {"customer": customer, "amount": amount})
        return answer

    async def _post(self, content: dict[str, Any]) -> httpx.Response:
        return await self._client.post("/orders", json=content)


@asynccontextmanager
async def serving() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
    ):
        yield client


@pytest.fixture
def shop(dsn: str) -> Iterator[Shop]:
    """The application, with the test's database."""
    with (
        jobs.connected_to(dsn),
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving()) as client,
    ):
        yield Shop(portal, client)


def counts(db: Connection) -> tuple[Any, ...]:
    """How many orders there are, and how many jobs."""
    row = db.execute("SELECT (SELECT count(*) FROM orders), (SELECT sum(ready) FROM pgq.stats())").fetchone()
    assert row is not None
    return row


def test_an_order_is_there_together_with_its_job(shop: Shop, db: Connection) -> None:
    answer = shop.order("ann", 7)
    assert answer.status_code == 201
    assert answer.json() == {"order": 1, "job": 1}
    assert counts(db) == (1, 1)
    assert shop.get("/jobs/1").json()["state"] == "ready"


@pytest.mark.parametrize(
    ("customer", "amount", "code"),
    [
        pytest.param("bob", 2000, 402, id="refused by the application, after it has enqueued"),
        pytest.param("ann", 7, 500, id="refused by the database, at commit"),
        pytest.param("bob", -1, 422, id="not valid at all"),
    ],
)
def test_a_request_that_fails_leaves_no_job(shop: Shop, db: Connection, customer: str, amount: int, code: int) -> None:
    assert shop.order("ann", 7).status_code == 201
    assert shop.order(customer, amount).status_code == code
    assert counts(db) == (1, 1)


def test_the_status_of_a_job_until_it_is_done(shop: Shop, start_worker: StartWorker) -> None:
    job = shop.order("ann", 7).json()["job"]
    start_worker(WORKER)

    def state() -> Any:
        return shop.get(f"/jobs/{job}").json()

    eventually(lambda: state()["state"] == "done", "the worker has confirmed it")
    assert state()["result"] == {"confirmed to": "ann", "number": "2026-0001"}
    assert state()["finished_at"] > state()["enqueued_at"]


def test_jobs_of_others_are_not_shown(shop: Shop, client: Client) -> None:
    client.create_queue("salaries")
    job = client.enqueue("salaries", {"to": "the boss"}, task="pay")
    assert shop.get(f"/jobs/{job}").status_code == 404
    assert shop.get("/jobs/4711").status_code == 404


def test_the_answers_in_the_readme(shop: Shop, start_worker: StartWorker) -> None:
    accepted, refused, looked = block("fastapi_app", "text").splitlines()
    assert shop.order("ann", 7).text == accepted
    assert shop.order("bob", 2000).text == refused
    start_worker(WORKER, "--drain").wait(20)
    now = shop.get("/jobs/1").json()
    assert {**json.loads(looked), "enqueued_at": now["enqueued_at"], "finished_at": now["finished_at"]} == now
