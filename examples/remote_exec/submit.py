"""Has a worker run a task, and prints the result: `python -m examples.remote_exec.submit factors '{"number": 91}'`."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from examples.remote_exec.task import QUEUE
from pgqueue import Client


class Failed(Exception):
    """The task has failed; the text is the traceback of the worker."""


def run(client: Client, type: str, timeout: float = 30, **arguments: Any) -> Any:
    """Run a task in one of the workers and return its result."""
    state = client.wait(client.enqueue(QUEUE, arguments, task=type), timeout)
    assert state is not None
    if state.state != "done":
        raise Failed(state.error)
    return state.result


def main() -> None:
    """Submit one task."""
    with Client(os.environ["PGQUEUE_DSN"]) as client:
        client.create_queue(QUEUE, max_attempts=3, backoff=0.2, if_not_exists=True)
        try:
            print(json.dumps(run(client, sys.argv[1], **json.loads("".join(sys.argv[2:]) or "{}"))))
        except Failed as error:
            sys.exit(f"failed: {error}")


if __name__ == "__main__":
    main()
