"""The run, from warm-up to the last check."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.background import pinned_snapshot

from . import database
from .check import Verdict, check
from .consume import Consumer
from .crew import PATIENCE, Crew, Member, Task
from .idle import Crowd
from .keep import Maintainer, Probe
from .plan import MAIN, PROBE, Plan, shares
from .produce import Pile, Producer
from .sample import Sample, Sampler
from .server import Connection, Server

SHARDS = 8
IDLE_QUEUES = [f"idle-{n}" for n in range(10)]
# Sessions of the parent: it runs the phases, samples, and pins a snapshot.
OWN_SESSIONS = 3
RETENTION_DAYS = 7
# Threads of each process that consume from the many queues.
WIDE_CONSUMERS = 2


class StuckError(RuntimeError):
    """Nothing more happens, and not everything has happened."""


@dataclass
class Outcome:
    """What a run found, beside its samples."""

    samples: list[Sample] = field(default_factory=list)
    verdict: Verdict = field(default_factory=lambda: Verdict(0, 0, 0, 0))
    events: dict[str, int] = field(default_factory=dict)
    wide: dict[str, Any] = field(default_factory=dict)
    pinned: dict[str, Any] = field(default_factory=dict)
    other_endings: dict[str, int] = field(default_factory=dict)
    archive: dict[str, Any] = field(default_factory=dict)


class Run:
    """One run of a plan on a server. `lines` takes a line of JSON for each sample."""

    def __init__(self, plan: Plan, server: Server, folder: Path, lines: Path, tell: Callable[[str], None]) -> None:
        self._plan, self._server, self._tell = plan, server, tell
        self._lines = lines
        self._phase = "start"
        self._outcome = Outcome()
        self._sampling = threading.RLock()
        self._sampler_failure: BaseException | None = None
        self._crew = Crew(server.dsn, folder, flush=min(0.5, plan.sample_seconds / 4))

    def __call__(self) -> Outcome:
        with self._server.connect("phases") as db, self._server.connect("sampler") as eye, self._crew:
            self._sampler = Sampler(self._server, eye)
            with self._lines.open("w") as self._file, self._samples():
                self._create(db)
                self._steady(db)
                if self._plan.queues:
                    self._wide(db)
                self._enter("retire")
                self._crew.stop(self._crew.members)
                self._retire(db)
                self._enter("check")
            self._outcome.events = dict(self._crew.totals)
            self._outcome.verdict = check(
                self._crew.enqueued(), self._crew.done(), database.archived(db), database.waiting(db)
            )
            self._outcome.other_endings = database.other_endings(db)
            self._drop_archive(db)
        return self._outcome

    # Samples ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def _samples(self) -> Iterator[None]:
        """Take a sample about each `sample_seconds`, and one at the end of each phase."""
        ended = threading.Event()

        def take() -> None:
            try:
                due = time.monotonic() + self._plan.sample_seconds
                while not ended.wait(max(due - time.monotonic(), 0)):
                    self._take()
                    due = max(due, time.monotonic() - self._plan.sample_seconds) + self._plan.sample_seconds
            except BaseException as error:
                self._sampler_failure = error

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(PATIENCE)

    def _take(self) -> None:
        with self._sampling:
            sample = self._sampler.take(self._phase, self._crew.take())
            self._outcome.samples.append(sample)
            self._file.write(json.dumps(sample) + "\n")
            self._file.flush()
        self._tell(
            f"{sample['at']:7.0f} s  {sample['phase']:<11}"
            f"  {sample['enqueued']:7,.0f} in/s  {sample['done']:7,.0f} done/s"
            f"  {sample['ready']:7,} ready  claim p99 {sample['claim_p99'] or 0:6.1f} ms"
            f"  {sample['free_segments']:2} free  {sample['dead']:6,} dead  {sample['private_sum']:5,.0f} MB"
        )

    def _enter(self, phase: str) -> None:
        with self._sampling:
            self._take()
            self._phase = phase

    def _check(self) -> None:
        self._crew.check()
        if self._sampler_failure:
            raise self._sampler_failure

    def _until(self, condition: Callable[[], object], what: str, progress: Callable[[], object]) -> None:
        """Wait for a condition for as long as there is progress."""
        last, since = progress(), time.monotonic()
        while not condition():
            self._check()
            if (now := progress()) != last:
                last, since = now, time.monotonic()
            elif time.monotonic() > since + PATIENCE:
                raise StuckError(f"{what}: no progress for {PATIENCE} s at {last}")
            time.sleep(0.05)

    def _wait(self, seconds: float, members: Sequence[Member] = ()) -> None:
        """Let this much time pass, or less if these processes end before."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not (members and all(m.ended.is_set() for m in members)):
            self._check()
            time.sleep(min(0.2, max(until - time.monotonic(), 0)))

    # Phases ----------------------------------------------------------------------------------------------------------

    def _create(self, db: Connection) -> None:
        for queue in (MAIN, PROBE, *IDLE_QUEUES):
            db.execute("SELECT pgq.create_queue(%s, lease => %s::interval)", [queue, self._plan.lease])

    def _steady(self, db: Connection) -> None:
        plan, crew = self._plan, self._crew
        consumers: list[Task] = [*[Consumer([MAIN], 100)] * 3, Consumer([MAIN], 1)]
        active = OWN_SESSIONS + plan.maintainers + 2 + plan.processes * (2 * len(consumers) + 4 + 2 * WIDE_CONSUMERS)
        idle = max(plan.connections - active, 0)
        crew.start("keeper", [*[Maintainer()] * plan.maintainers, Probe()])
        crew.start("idle", [Crowd(IDLE_QUEUES, idle)])
        self._until(lambda: crew.totals["idle sessions"] == idle, "idle sessions", lambda: None)
        for n in range(plan.processes):
            crew.start(f"consumers-{n}", consumers)
        began = time.monotonic()
        producers = [crew.start(f"producers-{n}", tasks) for n, tasks in enumerate(self._producers())]

        # One turn of the ring, so that every session has seen every segment and its caches are full.
        self._enter("warm-up")
        until = database.ring(db).generation + 17
        while database.ring(db).generation < until and not all(p.ended.is_set() for p in producers):
            db.execute("SELECT pgq.rotate(seal => true)")
            self._wait(plan.turn_seconds)

        self._enter("steady")
        self._wait(began + plan.pinned_from - time.monotonic(), producers)
        with pinned_snapshot(self._server.connect("pinned snapshot")):
            self._enter("pinned")
            self._wait(began + plan.pinned_from + plan.pinned_seconds - time.monotonic(), producers)
            counted = database.count_dead_tuples(db)
            self._outcome.pinned = {"seconds": plan.pinned_seconds, "dead": sum(counted.values()), "tables": counted}
        self._enter("steady")
        self._wait(began + plan.minutes * 60 - time.monotonic(), producers)
        self._enter("late")  # what producers that could not keep their rate still owe
        self._until(lambda: all(p.ended.is_set() for p in producers), "producers", lambda: crew.totals["enqueued"])
        self._drain("drain")

    def _producers(self) -> Iterator[list[Task]]:
        """Three sessions of each process enqueue twenty jobs at a time, one enqueues single ones."""
        plan = self._plan
        single = shares(plan.single_jobs, plan.processes)
        many = shares(plan.jobs - plan.single_jobs, 3 * plan.processes)
        seconds = plan.minutes * 60
        for n in range(plan.processes):
            yield [
                Producer([MAIN], single[n], 1, single[n] / seconds),
                *[Producer([MAIN], jobs, 20, jobs / seconds) for jobs in many[3 * n : 3 * n + 3]],
            ]

    def _drain(self, phase: str) -> None:
        """Wait until the consumers have done all that was enqueued."""
        self._enter(phase)
        totals = self._crew.totals
        self._until(lambda: totals["done"] >= totals["enqueued"], phase, lambda: totals["done"])

    def _wide(self, db: Connection) -> None:
        plan, crew, wide = self._plan, self._crew, self._outcome.wide
        names = plan.wide_names
        lanes = SHARDS * len(names)
        self._enter("wide: pile")
        wide["queues"], wide["lanes"] = len(names), lanes
        create = "SELECT pgq.create_queue(name, lease => %s::interval) FROM unnest(%s::text[]) AS n (name)"
        wide["create_seconds"] = _timed(lambda: db.execute(create, [plan.lease, names]))

        # A job in every lane; and so many others in the same segment that the waiting ones are few, by comparison.
        db.execute("SELECT pgq.rotate(seal => true)")
        bulk = [Producer([MAIN], jobs, 1000) for jobs in shares(plan.bulk * lanes, 4)]
        self._finish(crew.start("bulk", bulk))
        self._finish(crew.start("pile", [Pile(names, SHARDS)]))
        wide["stats_ms"] = 1000 * _timed(lambda: db.execute("SELECT * FROM pgq.stats()"))
        wide["doctor_ms"] = 1000 * _timed(lambda: db.execute("SELECT * FROM pgq.doctor()"))

        # Nobody consumes them; a minute later the ring carries them forward, all in one call of maintain().
        self._enter("wide: hold")
        carried = crew.totals["carried"]
        wide["rotate_ms"] = 1000 * _timed(lambda: db.execute("SELECT pgq.rotate(seal => true)"))
        self._wait(plan.hold_seconds)
        wide["carried"] = crew.totals["carried"] - carried

        self._enter("wide: flow")
        for n in range(plan.processes):
            hand = [
                names[k :: plan.processes * WIDE_CONSUMERS]
                for k in range(n, plan.processes * WIDE_CONSUMERS, plan.processes)
            ]
            crew.start(f"wide-consumers-{n}", [Consumer(part, 100) for part in hand])
        jobs = round(plan.wide_rate * plan.wide_seconds)
        flow = [Producer(names[n::4], part, SHARDS, part / plan.wide_seconds) for n, part in enumerate(shares(jobs, 4))]
        self._finish(crew.start("wide-producers", flow))
        self._drain("wide: drain")
        samples = [s for s in self._outcome.samples if s["phase"].startswith("wide")]
        wide["maintain_max_ms"] = max((s["maintain_max"] or 0 for s in samples), default=None)
        wide["stats_max_ms"] = max((s["stats_ms"] for s in samples), default=None)

    def _finish(self, member: Member) -> None:
        self._until(member.ended.is_set, member.process.name, lambda: self._crew.totals["enqueued"])

    def _retire(self, db: Connection) -> None:
        """Turn the ring until all is in the archive."""

        def turn() -> bool:
            db.execute("SELECT pgq.rotate(seal => true)")
            return database.ring(db).retired and database.empty(db)

        self._until(turn, "retiring the last segments", lambda: database.space(db))

    def _drop_archive(self, db: Connection) -> None:
        """Let the retention pass, and see the archive go. Its partitions are days: no run of an hour sees that."""
        before = database.space(db)
        began = time.monotonic()
        for days in range(RETENTION_DAYS + 2, RETENTION_DAYS + 30):
            db.execute(
                f"""
                CREATE OR REPLACE FUNCTION pgq._now() RETURNS timestamptz LANGUAGE sql VOLATILE
                AS 'SELECT pg_catalog.clock_timestamp() + interval ''{days} days'''
                """.encode()
            )
            db.execute("SELECT pgq.rotate()")
            after = database.space(db)
            if after.archive == 0:
                break
        else:
            self._outcome.verdict.violations.append(f"the archive was not dropped: {after}")
        self._outcome.archive = {
            "bytes": before.archive,
            "dropped_in_seconds": round(time.monotonic() - began, 3),
            "live_bytes": after.live,
        }


def _timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.monotonic()
    call()
    return round(time.monotonic() - began, 3)
