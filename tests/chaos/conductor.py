"""One round: clients at work, faults by the schedule, and at the end the proof."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from tests.chaos import background, dump
from tests.chaos.checker import check
from tests.chaos.clients.cast import CAST, REAL_WORKERS
from tests.chaos.clients.queues import QUEUES, SETTINGS
from tests.chaos.drain import drain, retire
from tests.chaos.history import Effect, Operation, Recorder, added, load
from tests.chaos.install import ROLE, install
from tests.chaos.processes import Actor, Performer, RealWorker
from tests.chaos.proxy import BREAKS, Fault, Proxy
from tests.chaos.schedule import HABITS, Event
from tests.chaos.server import Server
from tests.chaos.session import ConnectionLost, Session
from tests.chaos.violations import Kind, Violation

TICK = 0.02
PATIENCE = 60
LOOKED_AT = 300
"""So many jobs job_status is asked about."""


@dataclass
class Result:
    """The figures of one or many rounds."""

    jobs: int = 0
    server_crashes: int = 0
    killed_clients: int = 0
    terminated: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)

    def add(self, other: Result) -> None:
        self.jobs += other.jobs
        self.server_crashes += other.server_crashes
        self.killed_clients += other.killed_clients
        self.terminated += other.terminated
        self.faults += other.faults
        self.violations += other.violations


class Round:
    """A database, clients, faults, and the check.

    Args:
        server: where.
        name: of the database and of the history's folder.
        folder: of the history; a subfolder of that name is made.
        seed: of all decisions.
        events: the schedule.
        faults: which are wanted; those that clients commit themselves are in no schedule.
        pace: of the clients.
    """

    def __init__(
        self, server: Server, name: str, folder: Path, seed: str, events: Sequence[Event], faults: set[str], pace: float
    ) -> None:
        self.server = server
        self.dbname = name
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        self.result = Result()
        self._seed = seed
        self._events = events
        self._ahead = 0.0
        self._recorder = Recorder(self.folder, "conductor")
        # A socket's path is short, so the proxy lives beside the server.
        self._proxy = Proxy(server.cluster.path / f"p{name}", server.cluster.socket_dir, server.cluster.port)
        self._nuisances: list[background.Nuisance] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._stops: dict[str, float] = {}
        self._disk_full_since: int | None = None
        self._disk_empty_at = 0.0
        habits = frozenset(faults & HABITS)
        self._parts = {part.name: part for part in CAST}
        self._performers: dict[str, Performer] = {part.name: Actor(part, pace, habits) for part in CAST}
        self._performers |= {name: RealWorker(name) for name in REAL_WORKERS}

    # The performance --------------------------------------------------------------------------------------------------

    def play(self, seconds: float) -> Result:
        """Run it all; the result says what was found."""
        try:
            self._set_up()
            self._proxy.start()
            for performer in self._performers.values():
                self._start(performer)
            self._conduct(seconds)
            self._look_for_leaks()
            self._calm_down()
            self._judge()
        except (psycopg.Error, ConnectionLost, TimeoutError):
            self.result.violations.append(Violation(Kind.ERROR, traceback.format_exc()))
        finally:
            self._clean_up()
        return self.result

    def _set_up(self) -> None:
        with self.server.connect() as connection:
            connection.execute(f"CREATE DATABASE {self.dbname}".encode())
        with self.server.connect(self.dbname) as connection:
            install(connection)
        session = self._session()
        for queue, own in QUEUES.items():
            session.create_queue(queue, **{**SETTINGS, **own})
        session.close()
        self._note("unrecorded", queue="real")

    def _session(self) -> Session:
        return Session(self._recorder, self.server.cluster.dsn(self.dbname), "conductor")

    def _note(self, name: str, began: int | None = None, **args: object) -> None:
        """Put on record what the conductor knows."""
        now = time.time_ns() // 1000
        self._recorder.ok(self._recorder.invoke(name, args), None, [began or now, now, 0, 0])

    def _start(self, performer: Performer) -> None:
        dsn = self.server.cluster.dsn(self.dbname, user=ROLE)
        part = self._parts.get(performer.name)
        if part is not None and part.through_proxy:
            dsn = make_conninfo(dsn, host=str(self._proxy.directory))
        performer.start(dsn, self.folder, self._seed)

    def _conduct(self, seconds: float) -> None:
        began = time.monotonic()
        for event in self._events:
            self._at(began + event.at, lambda event=event: self._do(event))  # type: ignore[misc]
        while time.monotonic() < began + seconds or (self._agenda and self._agenda[0][0] < began + seconds):
            while self._agenda and self._agenda[0][0] <= time.monotonic():
                heapq.heappop(self._agenda)[2]()
            for performer in self._performers.values():
                if performer.stopped_itself():
                    self._goes_on(performer)
                if not performer.alive:
                    if failure := performer.failure:
                        self.result.violations.append(Violation(Kind.ERROR, failure))
                    self._start(performer)
            time.sleep(TICK)

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._numbers), action))

    def _do(self, event: Event) -> None:
        with contextlib.suppress(psycopg.OperationalError, ConnectionLost):  # no connection: somebody else's fault
            _DEEDS[event.fault](self, event)

    # Faults -----------------------------------------------------------------------------------------------------------

    def _kill(self, event: Event) -> None:
        self._performers[event.target].order("kill", event.detail)
        self.result.killed_clients += 1
        self.result.faults[f"kill {event.detail}"] += 1

    def _stop(self, event: Event) -> None:
        performer = self._performers[event.target]
        performer.order("stop", event.detail)
        self._stops[event.target] = event.seconds
        if event.detail == "any":
            self._goes_on(performer)

    def _goes_on(self, performer: Performer) -> None:
        """It has been stopped; let it go on after a while."""
        self.result.faults["stop"] += 1
        self._at(time.monotonic() + self._stops[performer.name], performer.proceed)

    def _signal_backends(self, event: Event) -> None:
        function = f"pg_{event.fault}_backend"
        query = f"""
            SELECT count(*) FILTER (WHERE {function}(pid)) FROM pg_stat_activity
            WHERE application_name = %s AND datname = current_database()
        """
        with self.server.connect(self.dbname) as connection:
            ((count,),) = connection.execute(query.encode(), [event.target]).fetchall()
        self.result.faults[event.fault] += count
        self.result.terminated += count if event.fault == "terminate" else 0

    def _crash(self, event: Event) -> None:
        if self._disk_full_since is not None:  # it would not come back
            self._at(self._disk_empty_at, lambda: self._do(event))
            return
        began = time.time_ns() // 1000
        self.server.crash(event.target)
        self._note("crash", began, how=event.target)
        self.result.server_crashes += 1
        self.result.faults[f"crash {event.target}"] += 1

    def _break_connection(self, event: Event) -> None:
        if event.target == "cut all":
            self._proxy.cut_all()
        else:
            self._proxy.arm(Fault(next(b for b in BREAKS if b == event.target), event.seconds))

    def _fill_disk(self, event: Event) -> None:
        if self._disk_full_since is None and self.server.can_fill_the_disk:
            self._disk_full_since = time.time_ns() // 1000
            self.server.fill_disk()
            self.result.faults["disk"] += 1
            self._disk_empty_at = time.monotonic() + event.seconds
            self._at(self._disk_empty_at, self._empty_disk)

    def _empty_disk(self) -> None:
        if self._disk_full_since is None:
            return
        self.server.empty_disk()
        if (unexpected := self.server.recoveries() - self.server.expected) > 0:
            # Without space for WAL it cannot go on.
            self.server.expected += unexpected
            self.result.server_crashes += unexpected
            self.result.faults["crash for want of space"] += unexpected
            self._note("crash", self._disk_full_since, how="disk")
        self._disk_full_since = None

    def _jump(self, event: Event) -> None:
        self._ahead = float(event.target)
        session = self._session()
        session.set_clock(self._ahead)
        session.tick()  # and nothing that a stopped client may have locked
        session.close()
        self.result.faults["clock"] += 1

    def _annoy(self, event: Event) -> None:
        if event.fault == "notify" and not self.server.can_fill_the_notify_queue:
            return
        make = {
            "snapshot": background.snapshot,
            "dump": background.dump,
            "connections": background.connections,
            "notify": background.notify,
        }[event.fault]
        nuisance = background.Nuisance(make(self.server, self.dbname, event.seconds))
        nuisance.start()
        self._nuisances.append(nuisance)
        self.result.faults[event.fault] += 1

    # The end ----------------------------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        """End all faults, then all clients, then whatever sessions they have left behind."""
        self._agenda.clear()
        self._proxy.disarm()
        self._end_nuisances()
        self._empty_disk()
        self.server.await_connection()
        for performer in self._performers.values():
            performer.proceed()
            performer.quit()
        for performer in self._performers.values():
            if not performer.end(PATIENCE):
                self.result.faults["did not quit"] += 1
        self._proxy.stop()
        for kind, count in self._proxy.done.items():
            self.result.faults[f"proxy: {kind}"] += count
        with self.server.connect(self.dbname) as connection:
            deadline = time.monotonic() + PATIENCE
            while connection.execute(_OTHERS).fetchall():
                if time.monotonic() > deadline:
                    raise TimeoutError("sessions do not end although they were terminated")
                time.sleep(0.05)

    def _look_for_leaks(self) -> None:
        """While everybody is still connected: nobody who has nothing to do may hold a lock in exclusive mode.

        A session was idle all the time that the locks were read if its state has not changed in between.
        """
        with contextlib.suppress(psycopg.OperationalError), self.server.connect(self.dbname) as connection:
            before = connection.execute(_IDLE).fetchall()
            locks = connection.execute(_LOCKS).fetchall()
            after = connection.execute(_IDLE).fetchall()
            idle = {pid: name for pid, name, _ in set(before) & set(after)}
            for pid, key in locks:
                if pid in idle:
                    self._note("leak", session=idle[pid], lock=key)

    def _end_nuisances(self) -> None:
        for nuisance in self._nuisances:
            nuisance.stop()
        for nuisance in self._nuisances:
            nuisance.join(PATIENCE)

    def _judge(self) -> None:
        session = self._session()
        session.quiet()
        for (gid,) in session.connection.execute(_PREPARED).fetchall():
            if zlib.crc32(gid.encode()) % 2:
                session.commit_prepared(gid)
            else:
                session.rollback_prepared(gid)
        if (unexpected := self.server.recoveries() - self.server.expected) > 0:
            self.server.expected += unexpected
            self._note("crashed_by_itself", times=unexpected)
        for queue, own in QUEUES.items():  # one may have been dropped
            session.create_queue(queue, **{**SETTINGS, **own}, if_not_exists=True)
        ahead = drain(session, list(QUEUES), self._ahead)
        retire(session, ahead)
        history = load(self.folder)
        sure = [id for operation in history if operation.effect is Effect.YES for id in added(operation)]
        self.result.jobs = len(sure)
        state = dump.read(session.connection, sure[:: max(len(sure) // LOOKED_AT, 1)])
        session.close()
        self.result.violations += check(history, state)
        self.result.faults += _habits(history)

    def _clean_up(self) -> None:
        self._end_nuisances()
        for performer in self._performers.values():
            performer.end(0)
        self._proxy.stop()
        self._recorder.close()
        with contextlib.suppress(psycopg.Error):
            self.server.await_connection()
            with self.server.connect() as connection:
                connection.execute(f"DROP DATABASE IF EXISTS {self.dbname} WITH (FORCE)".encode())


_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND datname = current_database() AND pid <> pg_backend_pid()
"""
_IDLE = "SELECT pid, application_name, state_change FROM pg_stat_activity WHERE state = 'idle'"
_LOCKS = """
SELECT pid, (classid::bigint << 32) | objid::bigint FROM pg_locks
WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock' AND pid IS NOT NULL
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_PREPARED = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY gid"

_DEEDS: dict[str, Callable[[Round, Event], None]] = {
    "kill": Round._kill,
    "stop": Round._stop,
    "terminate": Round._signal_backends,
    "cancel": Round._signal_backends,
    "crash": Round._crash,
    "proxy": Round._break_connection,
    "disk": Round._fill_disk,
    "clock": Round._jump,
    "connections": Round._annoy,
    "snapshot": Round._annoy,
    "dump": Round._annoy,
    "notify": Round._annoy,
}


def _habits(history: Sequence[Operation]) -> Counter[str]:
    """What clients have done to themselves."""
    states = {
        "57014": "query_canceled",
        "55P03": "lock_not_available",
        "40P01": "deadlock_detected",
        "53100": "disk_full",
    }
    found: Counter[str] = Counter()
    for operation in history:
        if operation.error in states:
            found[f"error: {states[operation.error]}"] += 1
        elif operation.name == "prepare" and operation.ok:
            found["prepared"] += 1
    return found
