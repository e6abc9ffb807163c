"""Tasks: defining and enqueuing."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from pgqueue import App, Client, InvalidArgument, Job, QueueNotFound


def test_a_task_enqueues_its_arguments_by_name(app: App, client: Client) -> None:
    @app.task("send", queue="q", priority=5, max_attempts=3)
    def send(to: str, subject: str = "hello", **more: int) -> None: ...

    job = send.enqueue("ann", copies=2)
    (claimed,) = client.claim("q")
    assert (claimed.id, claimed.task, claimed.payload) == (job, "send", {"to": "ann", "copies": 2})
    assert (claimed.priority, claimed.max_attempts) == (5, 3)


def test_using_changes_the_options_of_one_call(app: App, client: Client) -> None:
    client.create_queue("other")

    @app.task("send", queue="q")
    async def send(job: Job, to: str) -> None: ...

    send.using(queue="other", priority=-1, headers={"a": 1}, max_attempts=7).enqueue(to="ann")
    send.using(delay=3600).enqueue(to="bob")
    assert client.claim("q") == []
    (claimed,) = client.claim("other")
    assert (claimed.priority, claimed.headers, claimed.max_attempts) == (-1, {"a": 1}, 7)
    assert send.queue == "q"


def test_a_task_after_another_one(app: App, client: Client) -> None:
    @app.task("send", queue="q")
    def send(to: str) -> None: ...

    first = send.enqueue(to="ann")
    ids = send.using(after=[first], on_dead="skip").enqueue_many({"to": name} for name in ("bob", "cid"))
    ids.append(send.using(after=iter(ids)).enqueue(to="dan"))
    assert [client.job_status(id).state for id in ids] == ["waiting"] * 3  # type: ignore[union-attr]
    assert client.waits_for(ids[-1]) == ids[:-1]


def test_enqueue_many(app: App, client: Client) -> None:
    @app.task("send", queue="q")
    def send(to: str) -> None: ...

    ids = send.enqueue_many({"to": name} for name in ("ann", "bob"))
    assert {job.id: job.payload["to"] for job in client.claim("q", 5)} == dict(zip(ids, ("ann", "bob"), strict=True))
    with pytest.raises(TypeError):
        send.enqueue_many([{"to": "ann"}, {"too": "bob"}])


def test_enqueue_from_asyncio(app: App, client: Client) -> None:
    @app.task("send", queue="q")
    def send(to: str) -> None: ...

    async def main() -> None:
        await send.enqueue_async(to="ann")
        await send.enqueue_many_async([{"to": "bob"}])
        await app.aclose()

    asyncio.run(main())
    assert len(client.claim("q", 5)) == 2


def test_another_database_is_used_from_asyncio_too(app: App, client: Client, fresh_dsn: str) -> None:
    app.task("send", queue="q")(lambda: None)
    with Client(fresh_dsn) as other:
        other.create_queue("q")

        async def main() -> None:
            send = app.tasks["send"]
            await send.enqueue_async()
            with app.connected_to(fresh_dsn):
                await send.enqueue_many_async([{}, {}])
            await send.enqueue_async()
            await app.aclose()

        asyncio.run(main())
        assert [stat.ready for stat in client.stats()] == [2]
        assert [stat.ready for stat in other.stats()] == [2]


def test_other_options_cost_no_other_look_at_the_function(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    @app.task("send", queue="q")
    def send(to: str) -> None: ...

    monkeypatch.setattr(app, "codec", None)
    other = send.using(priority=1)
    assert (other.options.priority, send.options.priority) == (1, None)
    assert (other.name, other.function, other.job_parameter) == ("send", send.function, None)


def test_enqueue_joins_the_transaction_of_the_caller(app: App, client: Client, connect: Any) -> None:
    @app.task("send", queue="q")
    def send(to: str) -> None: ...

    connection = connect(autocommit=False)
    send.enqueue(to="ann", connection=connection)
    send.using(connection=connection).enqueue(to="bob")
    assert client.claim("q", 5) == []
    connection.commit()
    assert len(client.claim("q", 5)) == 2


def test_a_wrong_call_fails_where_it_is_made(app: App, client: Client) -> None:
    @app.task("send", queue="q")
    def send(to: str) -> None: ...

    with pytest.raises(TypeError, match="subject"):
        send.enqueue(to="ann", subject="x")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="to"):
        send.enqueue()  # type: ignore[call-overload]
    with pytest.raises(InvalidArgument):
        send.enqueue(to=object())  # type: ignore[call-overload]


def test_a_task_is_still_a_function(app: App) -> None:
    @app.task()
    def double(n: int) -> int:
        """Twice as much."""
        return 2 * n

    assert double(4) == 8
    assert double.__doc__ == "Twice as much."
    assert double.name == f"{__name__}.test_a_task_is_still_a_function.<locals>.double"
    assert double.queue == "default"


def test_names_are_unique(app: App) -> None:
    app.task("a")(lambda: None)
    with pytest.raises(ValueError, match="'a'"):
        app.task("a")(lambda: None)


def test_parameters_that_a_payload_cannot_fill_are_refused(app: App) -> None:
    with pytest.raises(TypeError, match=r"\*args"):

        @app.task("a")
        def variadic(*args: int) -> None: ...

    with pytest.raises(TypeError, match="x"):

        @app.task("b")
        def positional(x: int, /) -> None: ...


def test_an_unknown_queue_is_an_error(app: App, client: Client) -> None:
    @app.task("send", queue="nowhere")
    def send() -> None: ...

    with pytest.raises(QueueNotFound):
        send.enqueue()


def test_the_dsn_comes_from_the_environment(dsn: str, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    app = App()
    app.task("send", queue="q")(lambda: None).enqueue()
    assert client.claim("q")[0].task == "send"
    app.close()

    monkeypatch.delenv("PGQUEUE_DSN")
    for name, value in psycopg.conninfo.conninfo_to_dict(dsn).items():
        monkeypatch.setenv({"dbname": "PGDATABASE"}.get(name, f"PG{name.upper()}"), str(value))
    app.task("send2", queue="q")(lambda: None).enqueue()
    assert client.claim("q")[0].task == "send2"
    app.close()
