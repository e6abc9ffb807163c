"""Example mail: an SMTP server that is busy, slow, or does not know somebody."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from examples.mail.app import app
from pgqueue import Client, InvalidArgument
from pgqueue.testing import Clock
from tests.cluster import free_port
from tests.conftest import Connection
from tests.examples.conftest import StartWorker
from tests.examples.support import alike, block, shell
from tests.python.support import eventually

WORKER = "examples.mail.app:app"
Write = Callable[..., list[int]]


class Server:
    """Refuses busy@ the first time and nobody@ for good; takes `seconds` for each letter."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.refusals = 0
        self.letters: list[EmailMessage] = []

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("nobody@"):
            return "550 No such mailbox"
        if address.startswith("busy@") and self.refusals == 0:
            self.refusals += 1
            return "451 Try again later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        await asyncio.sleep(self.seconds)
        assert isinstance(envelope.content, bytes)
        letter: Any = BytesParser(policy=default).parsebytes(envelope.content)
        self.letters.append(letter)
        return "250 Taken"


@pytest.fixture
def server(environment: dict[str, str]) -> Iterator[Server]:
    """An SMTP server, in a thread, which the workers know."""
    server = Server()
    controller = Controller(server, hostname="127.0.0.1", port=free_port())
    controller.start()
    environment["SMTP_SERVER"] = f"127.0.0.1:{controller.port}"
    yield server
    controller.stop()


@pytest.fixture
def write(dsn: str) -> Iterator[Write]:
    """Write letters to addresses, as `python -m examples.mail.write` does."""
    from examples.mail.write import write

    with app.connected_to(dsn):
        yield lambda *addresses: write(addresses)


def test_4xx_is_tried_again_and_5xx_is_a_dead_letter(
    server: Server, write: Write, start_worker: StartWorker, client: Client, clock: Clock
) -> None:
    ann, busy, nobody = write("ann@example.org", "busy@example.org", "nobody@example.org")
    start_worker(WORKER)

    def states() -> list[str]:
        return [state.state for job in (ann, busy, nobody) if (state := client.job_status(job))]

    eventually(lambda: states() == ["done", "retrying", "dead"], "one letter is sent, one refused, one is busy")
    assert [(letter.id, letter.attempt, letter.error) for letter in client.dead_letters("mail")] == [
        (nobody, 1, "550 No such mailbox")
    ]
    state = client.job_status(busy)
    assert state is not None
    assert state.error == "451 Try again later"
    assert state.run_at is not None
    assert 5 < (state.run_at - clock.now()).total_seconds() <= 10

    clock.advance(10)
    eventually(lambda: states() == ["done", "done", "dead"], "the busy one is sent")
    assert [attempt.state for attempt in client.attempts(busy)] == ["retry", "done"]
    assert [(letter["To"], letter["Message-ID"]) for letter in server.letters] == [
        ("ann@example.org", f"<pgqueue-{ann}@example.org>"),
        ("busy@example.org", f"<pgqueue-{busy}@example.org>"),
    ]


def test_an_address_may_have_a_name(server: Server, write: Write, start_worker: StartWorker, client: Client) -> None:
    (job,) = write("No Body <nobody@example.org>")
    start_worker(WORKER, "--drain").wait(20)
    state = client.job_status(job)
    assert state is not None
    assert (state.state, state.error) == ("dead", "550 No such mailbox")


def test_letters_that_are_not_all_written_are_not_sent(write: Write, client: Client) -> None:
    with pytest.raises(InvalidArgument):
        write("ann@example.org", object())
    assert client.stats() == []


def test_no_server_is_no_reason_to_give_up(
    write: Write, start_worker: StartWorker, client: Client, environment: dict[str, str]
) -> None:
    (job,) = write("ann@example.org")
    start_worker(WORKER, "--drain", SMTP_SERVER=f"127.0.0.1:{free_port()}").wait(20)
    state = client.job_status(job)
    assert state is not None
    assert state.state == "retrying"
    assert "ConnectionRefusedError" in str(state.error)


@pytest.mark.parametrize(("concurrency", "verdict"), [("1", "OVERLOADED"), ("12", "keep up")])
def test_the_report_tells_whether_workers_keep_up(
    server: Server,
    write: Write,
    start_worker: StartWorker,
    environment: dict[str, str],
    db: Connection,
    concurrency: str,
    verdict: str,
) -> None:
    write("first@example.org")
    started = start_worker(WORKER, "--concurrency", concurrency)
    eventually(lambda: len(server.letters) == 1, "the worker works")
    db.execute("TRUNCATE letter")  # that one had to wait for the worker to start

    server.seconds = 0.25
    write(*(f"{number}@example.org" for number in range(12)))
    eventually(lambda: len(server.letters) == 13, "all letters are sent")
    started.terminate()
    started.wait(20)
    *lines, last = shell("python -m examples.mail.report", environment).splitlines()
    assert verdict in last
    runs = [int(match[1]) for line in lines if (match := re.search(r"(\d+) ms$", line))]
    assert len(runs) == 12
    assert min(runs) >= 250


def test_the_readme(server: Server, environment: dict[str, str]) -> None:
    script = re.sub(r"^(python -m aiosmtpd|export SMTP_SERVER).*\n", "", block("mail", "sh"), flags=re.MULTILINE)
    assert alike(shell(script, environment)) == alike(block("mail", "text"))
