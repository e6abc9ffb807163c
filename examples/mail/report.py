"""When each attempt began and ended, and whether the workers keep up: `python -m examples.mail.report`."""

from __future__ import annotations

from datetime import datetime, timedelta

import psycopg

from examples.mail.app import app
from pgqueue import Client


def report(client: Client) -> None:
    """Print a line for each attempt, and what they tell about the load.

    The average number of letters that wait, divided by that of letters that are being sent, is the time they wait
    divided by the time that takes (Little's law). More than one: letters come faster than they leave.
    """
    waited = ran = timedelta()
    print(f"{'address':24}{'attempt':8}{'state':10}{'began':14}{'ended':14}{'waited':>9}{'ran':>9}")
    for job, address in _letters():
        state = client.job_status(job)
        if state is None:
            continue  # its retention is over
        for attempt in client.attempts(job):
            wait = run = None
            if attempt.started_at is not None and attempt.attempt == 1:
                wait = attempt.started_at - state.enqueued_at
                waited += wait
            if attempt.started_at is not None and attempt.finished_at is not None:
                run = attempt.finished_at - attempt.started_at
                ran += run
            print(
                f"{address:24}{attempt.attempt:<8}{attempt.state:10}"
                f"{_time(attempt.started_at):14}{_time(attempt.finished_at):14}{_ms(wait):>9}{_ms(run):>9}"
            )
            if attempt.error:
                print(f"    {attempt.error.splitlines()[-1]}")
    if ran:
        ratio = waited / ran
        verdict = "the workers keep up" if ratio <= 1 else "the workers are OVERLOADED, start more of them"
        print(f"{ratio:.1f} letters wait for each one that is being sent: {verdict}")


def _letters() -> list[tuple[int, str]]:
    with psycopg.connect(app.dsn) as connection:
        return connection.execute("SELECT job, address FROM letter ORDER BY job").fetchall()


def _time(time: datetime | None) -> str:
    return "" if time is None else f"{time:%H:%M:%S.%f}"[:-3]


def _ms(time: timedelta | None) -> str:
    return "" if time is None else f"{time / timedelta(milliseconds=1):.0f} ms"


if __name__ == "__main__":
    with Client(app.dsn) as client:
        report(client)
