"""Under many producers and claimers at once, every committed job is claimed exactly once."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

Connect = Callable[..., "psycopg.Connection[tuple[Any, ...]]"]

ROLL_BACK = 0.1


class Shop:
    """Producers that dawdle, roll back and use savepoints; claimers with random batches; segments that rotate."""

    def __init__(self, connect: Connect, seed: int, *, shards: int) -> None:
        self.connect = connect
        self.seed = seed
        connect().execute("SELECT pgq.create_queue('q', shards => %s, lease => '1 hour')", [shards])
        self.committed: list[int] = []
        self.claimed: list[int] = []
        self.refused: list[BaseException] = []
        self.stop = threading.Event()

    def run(self, producers: int, claimers: int, rounds: int, *, rotate: bool) -> None:
        work = [threading.Thread(target=self._guard, args=(self._produce, n, rounds)) for n in range(producers)]
        take = [threading.Thread(target=self._guard, args=(self._claim, 1000 + n)) for n in range(claimers)]
        turn = [threading.Thread(target=self._guard, args=(self._rotate, 0))] if rotate else []
        for thread in work + take + turn:
            thread.start()
        for thread in work:
            thread.join()
        self.stop.set()
        for thread in take + turn:
            thread.join()
        self._drain()
        if self.refused:
            raise self.refused[0]

    def _guard(self, job: Callable[..., None], *args: Any) -> None:
        try:
            job(*args)
        except BaseException as error:
            self.refused.append(error)
            self.stop.set()

    def _produce(self, number: int, rounds: int) -> None:
        dice = random.Random(self.seed * 1000 + number)
        db = self.connect(autocommit=False)
        for _ in range(rounds):
            ids = []
            db.execute("SELECT 1")  # begin: a savepoint must not be the whole transaction
            for _ in range(dice.randint(1, 4)):
                if dice.random() < 0.2:  # a savepoint, half of them rolled back
                    with db.transaction(force_rollback=dice.random() < 0.5) as savepoint:
                        inner = self._enqueue(db, dice)
                    if not savepoint.force_rollback:
                        ids += inner
                else:
                    ids += self._enqueue(db, dice)
                time.sleep(dice.choice([0, 0, 0.001, 0.02]))
            if dice.random() < ROLL_BACK:
                db.rollback()
            else:
                db.commit()
                self.committed += ids

    @staticmethod
    def _enqueue(db: psycopg.Connection[tuple[Any, ...]], dice: random.Random) -> list[int]:
        count = dice.choice([1, 1, 1, 30])
        if count == 1:
            rows = db.execute(
                "SELECT pgq.enqueue('q', priority => %s)", [dice.choice([0, 0, 0, 0, 0, -1, -1, dice.randint(-9, 9)])]
            )
        else:
            rows = db.execute("SELECT pgq.enqueue_many('q', array_fill('{}'::jsonb, ARRAY[%s]))", [count])
        return [id for (id,) in rows]

    def _claim(self, number: int) -> None:
        dice = random.Random(self.seed * 1000 + number)
        db = self.connect(autocommit=False)
        while not self.stop.is_set():
            db.execute("SET LOCAL synchronous_commit = off")
            jobs = db.execute("SELECT id, lease FROM pgq.claim('q', %s)", [dice.choice([1, 1, 2, 7, 50])]).fetchall()
            if dice.random() < ROLL_BACK:
                db.rollback()
                continue
            db.commit()
            self.claimed += [id for id, _ in jobs]
            done = dice.sample(jobs, k=len(jobs) // 2) if dice.random() < 0.2 else jobs
            db.execute("SELECT pgq.ack_many(%s, %s)", [[id for id, _ in done], [lease for _, lease in done]])
            db.commit()

    def _rotate(self, _: int) -> None:
        db = self.connect()
        while not self.stop.is_set():
            db.execute("DELETE FROM pgq.mark WHERE kind = 'tidy'")  # or lines would be forgotten once in a minute
            db.execute("SELECT pgq.rotate(seal => true)")
            time.sleep(0.02)

    def _drain(self) -> None:
        db = self.connect()
        while jobs := db.execute("SELECT id FROM pgq.claim('q', 1000)").fetchall():
            self.claimed += [id for (id,) in jobs]

    def check(self) -> None:
        times = Counter(self.claimed)
        assert not [id for id in self.committed if times[id] == 0], "lost"
        assert not [id for id, n in times.items() if n > 1], "claimed twice"
        assert set(times) == set(self.committed), "claimed, but never committed"


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("rotate", [False, True], ids=["still", "rotating"])
def test_every_committed_job_is_claimed_exactly_once(connect: Connect, shards: int, rotate: bool) -> None:
    shop = Shop(connect, seed=shards, shards=shards)
    shop.run(producers=12, claimers=6, rounds=60, rotate=rotate)
    assert len(shop.committed) > 5000
    shop.check()


def test_a_writing_transaction_that_stays_open_hides_nothing(connect: Connect) -> None:
    shop = Shop(connect, seed=7, shards=2)
    slow = connect(autocommit=False)
    ids = [row[0] for row in slow.execute("SELECT pgq.enqueue_many('q', array_fill('{}'::jsonb, ARRAY[10]))")]
    shop.run(producers=6, claimers=4, rounds=30, rotate=True)
    assert not set(ids) & set(shop.claimed), "claimed before it was committed"
    shop.check()
    slow.commit()
    shop.committed += ids
    shop._drain()
    shop.check()


def test_a_producer_paused_across_a_whole_turn_of_the_ring_loses_nothing(connect: Connect) -> None:
    connect().execute("SELECT pgq.create_queue('q', shards => 2)")
    slow = connect(autocommit=False)
    ids = [row[0] for row in slow.execute("SELECT pgq.enqueue('q')")]
    db = connect()
    opened = set()
    for _ in range(200):  # the segment that it holds cannot be retired; the others turn around it
        db.execute("SELECT pgq.ack_many(array_agg(id), array_agg(lease)) FROM pgq.claim('q', 100) HAVING count(*) > 0")
        db.execute("SELECT pgq.enqueue('q')")
        opened.add(db.execute("SELECT max(generation) FROM pgq.segment").fetchone()[0])  # type: ignore[index]
        db.execute("SELECT pgq.rotate(seal => true)")
        if len(opened) > 40:
            break
    assert len(opened) > 40, "the ring did not turn"
    ids += [row[0] for row in slow.execute("SELECT pgq.enqueue('q')")]
    slow.commit()
    claimed = [id for (id,) in db.execute("SELECT id FROM pgq.claim('q', 100)")]
    assert set(ids) <= set(claimed)
    assert len(claimed) == len(set(claimed))
