"""A shop: `uvicorn examples.fastapi_app.main:app`, and its worker: `pgq-worker examples.fastapi_app.main:jobs`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import psycopg
from fastapi import Depends, FastAPI, HTTPException, Request, status
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, Field

import pgqueue

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

jobs = pgqueue.App()


@jobs.task("order.confirm", queue="orders")
async def confirm(order: int, customer: str) -> dict[str, str]:
    """What takes longer than a request should."""
    return {"confirmed to": customer, "number": f"2026-{order:04}"}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool, and make what is needed."""
    async with AsyncConnectionPool(jobs.dsn, open=False) as pool:
        async with pool.connection() as connection:
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS orders (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, customer text,"
                " amount int, CONSTRAINT orders_customer_key UNIQUE (customer) DEFERRABLE INITIALLY DEFERRED)"
            )
            await jobs.async_client.create_queue("orders", if_not_exists=True, connection=connection)
        app.state.pool = pool
        yield
    await jobs.aclose()


app = FastAPI(lifespan=lifespan)


async def transaction(request: Request) -> AsyncIterator[Connection]:
    """Give a request its connection: what it does there is committed if it succeeds, and rolled back if it raises."""
    async with request.app.state.pool.connection() as connection:
        yield connection


# The scope has it committed before the response is sent: whoever reads 201 finds the order, and the job.
Transaction = Annotated[Connection, Depends(transaction, scope="function")]


class Order(BaseModel):
    """What a customer sends."""

    customer: str
    amount: int = Field(gt=0)


class Accepted(BaseModel):
    """What the customer gets: the order's number, and the job to ask for."""

    order: int
    job: int


class Status(BaseModel):
    """Where a job stands."""

    state: str
    attempt: int
    enqueued_at: datetime
    finished_at: datetime | None
    result: Any


@app.post("/orders", status_code=status.HTTP_201_CREATED)
async def place(order: Order, connection: Transaction) -> Accepted:
    """Take an order, one for each customer, and enqueue its confirmation: both or neither."""
    cursor = await connection.execute(
        "INSERT INTO orders (customer, amount) VALUES (%s, %s) RETURNING id", [order.customer, order.amount]
    )
    row = await cursor.fetchone()
    assert row is not None
    (number,) = row
    job = await confirm.using(connection=connection).enqueue_async(number, order.customer)
    if order.amount > 1000:
        raise HTTPException(status.HTTP_402_PAYMENT_REQUIRED, "pay your last order first")
    return Accepted(order=number, job=job)


@app.get("/jobs/{job}")
async def look(job: int) -> Status:
    """Tell how a job stands."""
    state = await jobs.async_client.job_status(job)
    if state is None or state.task != confirm.name:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "there is no such job")
    return Status.model_validate(state, from_attributes=True)
