"""The parts of the load test: nothing that goes wrong in a client stays hidden, nor that a producer is late."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.load import crew as crew_module
from tests.load import plots
from tests.load.consume import Consumer
from tests.load.crew import Crew, CrewError, Site
from tests.load.metrics import METRICS, Metric
from tests.load.plan import Plan, shares
from tests.load.plots import PICTURES, draw, spans, thinned
from tests.load.produce import Producer
from tests.load.report import trends
from tests.load.sample import Sample
from tests.sql.support import Connection, claim, create, enqueue, eventually, ids, leases, one


@dataclass(frozen=True)
class Failing:
    """A client that meets an error of the database."""

    def run(self, site: Site) -> None:
        with site.connect("failing") as db:
            db.execute("SELECT pgq.enqueue('nobody made this queue')")


@dataclass(frozen=True)
class Waiting:
    """A client that works until it is told to stop."""

    def run(self, site: Site) -> None:
        site.recorder.count("here")
        site.stopping.wait()
        site.enqueued.add([5])
        site.done.add([5, 6])


def test_an_error_of_a_client_fails_the_run(dsn: str, tmp_path: Path) -> None:
    with Crew(dsn, tmp_path, flush=0.05) as crew:
        member = crew.start("failing", [Waiting(), Failing()])
        with pytest.raises(CrewError, match="nobody made this queue"):
            crew.wait([member], 60)


def test_a_client_that_dies_fails_the_run(dsn: str, tmp_path: Path) -> None:
    with Crew(dsn, tmp_path, flush=0.05) as crew:
        member = crew.start("dying", [Waiting()])
        eventually(lambda: crew.totals["here"], "the client", timeout=60)
        member.process.kill()
        with pytest.raises(CrewError, match="dying ended without a word"):
            crew.wait([member], 60)


def test_a_client_that_does_not_stop_fails_the_run(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Crew(dsn, tmp_path, flush=0.05) as crew:
        member = crew.start("stubborn", [Waiting()])
        eventually(lambda: crew.totals["here"], "the client", timeout=60)
        assert not crew.wait([member], 0)
        with monkeypatch.context() as patch:
            patch.setattr(crew_module, "PATIENCE", 0)
            patch.setattr(member, "pipe", _Deaf())
            with pytest.raises(CrewError, match="stubborn"):
                crew.stop([member])


class _Deaf:
    """A pipe at whose other end nobody listens."""

    def send(self, message: object) -> None:
        pass


def test_what_clients_saw_is_there_when_they_have_stopped(dsn: str, tmp_path: Path) -> None:
    with Crew(dsn, tmp_path, flush=0.05) as crew:
        members = [crew.start(f"waiting-{n}", [Waiting()]) for n in range(2)]
        eventually(lambda: crew.totals["here"] == 2, "the clients", timeout=60)
        crew.stop(members)
        assert crew.take().counts == {"here": 2}
        assert (crew.enqueued().total(), crew.done().total(), crew.done().distinct()) == (2, 4, 2)


def test_a_producer_that_is_held_up_counts_as_late(
    dsn: str, db: Connection, connect: Callable[..., Connection]
) -> None:
    create(db)
    site = Site(dsn)
    blocker = connect(autocommit=False)
    blocker.execute("LOCK TABLE pgq.queue IN ACCESS EXCLUSIVE MODE")
    producer = threading.Thread(target=Producer(["q"], jobs=3, rate=1000).run, args=[site])
    producer.start()
    eventually(
        lambda: one(
            db,
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'producer' AND wait_event_type = 'Lock'",
        ),
        "the blocked producer",
        timeout=60,
    )
    began = time.monotonic()
    time.sleep(0.2)  # this is the time that must not be hidden
    held = (time.monotonic() - began) * 1000
    blocker.rollback()
    producer.join(60)
    figures = site.recorder.take()
    assert figures.counts["enqueued"] == 3
    late = list(figures.times["late"])
    latency = list(figures.times["enqueue"])
    assert min(late[1:]) > held - 10 > late[0] - held
    assert min(latency) > held - 10
    assert site.enqueued.total() == 3


@pytest.mark.parametrize("batch", [1, 100])
def test_an_ack_without_effect_does_not_count(db: Connection, batch: int) -> None:
    create(db)
    enqueue(db, batch)
    jobs = claim(db, batch)
    consumer = Consumer(["q"], batch)
    assert sorted(consumer.ack(db, ids(jobs), leases(jobs))) == sorted(ids(jobs))
    assert consumer.ack(db, ids(jobs), leases(jobs)) == []


def test_what_grows_is_not_flat() -> None:
    def sample(n: int, **figures: float) -> dict[str, object]:
        plain = dict.fromkeys(metric.key for metric in METRICS)
        return {**plain, "phase": "steady" if n else "warm-up", **figures}

    samples = [sample(n, done=100, size_live=500 + 10 * n, dead=n, ready=10**9 if n == 0 else 5) for n in range(101)]
    found = {trend.metric.key: trend for trend in trends(samples)}
    assert found["done"].flat
    assert found["size_live"].flat is False
    assert found["dead"].flat  # below the noise
    assert found["ready"].largest == 5  # the warm-up is left out
    assert "claim_p99" not in found


def test_what_goes_up_and_down_is_judged_by_its_highest() -> None:
    plain = dict.fromkeys(metric.key for metric in METRICS)
    sizes = [size for _ in range(10) for size in (10, 100, 200, 300)]
    for shift in range(4):
        samples = [{**plain, "phase": "steady", "size_live": size} for size in sizes[shift:] + sizes[:shift]]
        (trend,) = trends(samples)
        assert (trend.first, trend.last, trend.flat) == (300, 300, True)


def test_a_rate_that_falls_is_not_flat() -> None:
    metric = Metric("done", "jobs done", "jobs/s", 1.05, more_is_better=True)
    assert metric.flat(100, 96)
    assert metric.flat(100, 140)
    assert metric.flat(100, 90) is False


def test_the_hour_is_as_promised() -> None:
    plan = Plan()
    assert plan.jobs >= 10_000_000
    assert plan.queues == 10_000
    assert plan.connections == 500
    assert sum(shares(plan.jobs, 7)) == plan.jobs


def test_phases_are_marked_where_they_were() -> None:
    samples = [{"at": 60.0 * n, "phase": phase} for n, phase in enumerate("aabbba", start=1)]
    assert spans(samples) == [("a", 0.0, 2.0), ("b", 2.0, 5.0), ("a", 5.0, 6.0)]


def test_pictures_of_a_long_run_stay_small_and_show_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "PICTURES", {"latency": PICTURES["latency"]})  # the one with the most lines
    noise = random.Random(1)
    keys = [metric.key for metric in METRICS]
    samples: list[Sample] = [
        {"at": 10.0 * n, "phase": "steady", **{key: round(noise.uniform(0, 1000), 2) for key in keys}}
        for n in range(1000)
    ]
    samples[777]["maintain_max"] = 123456
    for path in draw(samples, tmp_path):
        assert path.stat().st_size < 100_000, path
    points = thinned(samples, "maintain_max")
    assert len(points) <= 120
    assert max(points, key=lambda point: point[1]) == (7770 / 60, 123456)
    assert thinned(samples[:50], "dead") == [(s["at"] / 60, s["dead"]) for s in samples[:50]]
