"""A program with consumers of its own, some of which it stops for a while: `python -m examples.taskmaster`."""

from __future__ import annotations

from examples.taskmaster.shop import app, clerk, counts, labels, ship
from examples.taskmaster.taskmaster import Taskmaster
from pgqueue import Client


def main() -> None:
    """Sell things."""
    with Client(app.dsn) as client, Taskmaster(app) as master:
        for task in app.tasks.values():
            client.create_queue(task.queue, if_not_exists=True)
        master.start("packer 1", "orders", concurrency=2)
        master.start("packer 2", "orders", concurrency=2)
        master.start("office", "supplies", "labels")
        print("working:", ", ".join(master.names))
        for seller, order, thing in [("Ann", 1, "tea"), ("Bob", 2, "cups"), ("Eve", 3, "pots")]:
            clerk.set(seller)
            show(client, order, ship.enqueue(order, thing))

        master.stop("packer 1")
        master.stop("packer 2")
        print("working:", ", ".join(master.names))
        job = ship.enqueue(4, "tea")
        print("orders that wait:", sum(stat.ready for stat in client.stats() if stat.queue == ship.queue))
        master.start("packer 3", "orders")
        show(client, 4, job)
        print(f"{counts.attempts['ship']} attempts to ship, {counts.errors.total()} exceptions")
    app.close()


def show(client: Client, order: int, job: int) -> None:
    """Wait for an order, and tell what became of it and of its label."""
    client.wait(job)
    tries = ", ".join(f"{attempt.state} ({attempt.worker})" for attempt in client.attempts(job))
    state = client.wait(labels[order])
    assert state is not None
    print(f"order {order}: {tries}; label: {state.result}")


if __name__ == "__main__":
    main()
