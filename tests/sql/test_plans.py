"""One long-lived session keeps its plans: they are index scans for ever, and touch the tables of one segment only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from tests.conftest import Clock
from tests.sql.support import (
    Connect,
    Connection,
    ack,
    call,
    claim,
    column,
    create,
    enqueue,
    flush_counts,
    ids,
    leases,
    one,
    retire_all,
    rotate,
)

pytestmark = pytest.mark.direct("plans are cached in a session, under its settings")

BIG = re.compile(r"^(job|lease|outcome)(_\d+)?$")


@dataclass
class Node:
    """A node of a plan as debug_print_plan shows it."""

    type: str
    fields: dict[str, Any] = field(default_factory=dict)

    def walk(self) -> Iterator[Node]:
        yield self
        for value in self.fields.values():
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, Node):
                    yield from child.walk()


def parse(text: str) -> Node:
    """Read `{TYPE :field value :field (value value) :field {NODE} …}`."""
    tokens = iter(re.findall(r'"(?:[^"\\]|\\.)*"|(?:[^\s(){}\\]|\\.)+|[(){}]', text))

    def value(token: str) -> Any:
        if token == "{":
            node = Node(next(tokens))
            name = ""
            for token in tokens:
                if token == "}":
                    break
                if token.startswith(":"):
                    name = token[1:]
                else:
                    node.fields.setdefault(name, value(token))
            return node
        if token == "(":
            items = []
            for token in tokens:
                if token == ")":
                    break
                items.append(value(token))
            return items
        return token

    node = value(next(tokens))
    assert isinstance(node, Node)
    return node


@dataclass
class Session:
    """A connection of which we see every plan that it makes, those within functions, too, and all that it reads."""

    db: Connection
    watcher: Connection
    plans: list[tuple[str, Node]]
    made: int = 0

    def faults(self) -> set[str]:
        """Plans since the last call that read a whole table of a segment, or that claim or ack other than in order."""
        names: dict[int, str] = dict(self.watcher.execute("SELECT oid::bigint, relname FROM pg_class").fetchall())
        found = {
            f"{kind} of {', '.join(tables)} in {place}"
            for place, plan in self.plans
            for kind, tables in self._faults(plan, names)
            if kind == "SEQSCAN" or place.startswith(("claim.", "ack."))
        }
        self.made += len(self.plans)
        self.plans.clear()
        return found

    @staticmethod
    def _faults(plan: Node, names: dict[int, str]) -> Iterator[tuple[str, list[str]]]:
        relations = plan.fields["rtable"]

        def tables(node: Node) -> list[str]:
            scans = (int(n.fields.get("scan.scanrelid") or n.fields.get("scanrelid") or 0) for n in node.walk())
            oids = (int(relations[n - 1].fields.get("relid", 0)) for n in scans if n)
            return [name for name in (names.get(oid, "") for oid in oids) if BIG.match(name)]

        for root in (plan.fields["planTree"], *(s for s in plan.fields["subplans"] if isinstance(s, Node))):
            for node in root.walk():
                if node.type in ("SEQSCAN", "BITMAPHEAPSCAN", "SORT", "INCREMENTALSORT", "MEMOIZE") and tables(node):
                    yield node.type, tables(node)

    def scans(self) -> int:
        """Sequential scans of the tables of segments, so far."""
        return int(
            one(
                self.watcher,
                "SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE schemaname = 'pgq' AND relname ~ %s",
                BIG.pattern,
            )
        )

    def entries(self) -> int:
        """Index entries of segments that were read, so far."""
        return int(
            one(
                self.watcher,
                "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE schemaname = 'pgq' AND relname ~ %s",
                BIG.pattern,
            )
        )


@pytest.fixture
def session(connect: Connect) -> Session:
    db = connect()
    plans: list[tuple[str, Node]] = []

    def hear(diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.message_primary == "plan:":
            places = re.findall(r"function pgq\.(\w+)", diagnostic.context or "")
            plans.append((".".join(reversed(places)), parse(diagnostic.message_detail or "")))

    db.add_notice_handler(hear)
    # Not auto_explain, which not every installation has.
    db.execute("SET debug_print_plan = on; SET debug_pretty_print = off; SET client_min_messages = log")
    return Session(db, connect(), plans)


def use(session: Session) -> int:
    """Everything that a worker and its maintenance do, on whatever is there. Returns how many jobs were claimed."""
    db = session.db
    jobs = claim(db, 1) + claim(db, 1) + claim(db, 5) + claim(db, 20)
    done, batch, extended, failed, released, left = jobs[:1], jobs[1:4], jobs[4:6], jobs[6:8], jobs[8:9], jobs[9:]
    for job in done:
        call(db, "ack", job.id, job.lease)
    ack(db, batch)
    for job in extended:
        call(db, "extend", job.lease)
    for job in failed[:1]:
        call(db, "reject", job.id, job.lease, "error")
    for name, some in (("reject_many", failed[1:]), ("release", released), ("ack_many", left + extended)):
        db.execute(f"SELECT pgq.{name}(%s::bigint[], %s::bigint[])".encode(), [ids(some), leases(some)])
    call(db, "reap")
    return len(jobs)


def fill(session: Session, count: int) -> None:
    session.watcher.execute("SELECT count(*) FROM pgq.enqueue_many('q', array_fill('{}'::jsonb, ARRAY[%s]))", [count])


def drain(session: Session, batch: int = 5000, most: int = 1000) -> None:
    """Claim and acknowledge everything, or this many batches, in another session."""
    for _ in range(most):
        done = column(
            session.watcher,
            "SELECT count(s) FROM (SELECT array_agg(id) AS ids, array_agg(lease) AS leases FROM pgq.claim('q', %s)) c "
            "CROSS JOIN LATERAL pgq.ack_many(c.ids, c.leases) s WHERE c.ids IS NOT NULL",
            batch,
        )
        if done == [0]:
            break


def check(session: Session, most: int = 250) -> None:
    """Use it once more: nothing is scanned or sorted, and no more is read than belongs to the jobs."""
    flush(session)
    scans, entries = session.scans(), session.entries()
    used = use(session)
    flush(session)
    assert session.faults() == set()
    assert session.made > 10, "the server showed no plans"
    assert session.scans() == scans
    assert session.entries() - entries < most
    assert used in (0, 27)


def flush(session: Session) -> None:
    """Have the server count what both sessions have done."""
    flush_counts(session.db)
    flush_counts(session.watcher)


# The plans are made while the tables are empty, or while they are small and analysed.
@pytest.fixture(params=["empty", "small", "analysed"])
def warm(request: pytest.FixtureRequest, session: Session) -> Session:
    create(session.db)
    if request.param != "empty":
        enqueue(session.db, 30)
    if request.param == "analysed":
        for _ in range(2):
            use(session)
            session.db.execute("ANALYZE")
    for _ in range(7):
        use(session)
    return session


def test_plans_made_early_are_index_scans_and_stay_so(warm: Session) -> None:
    for turn in range(8):
        enqueue(warm.db, 100)
        if turn == 4:
            warm.db.execute("ANALYZE")
        check(warm)


def test_plans_survive_truncation_and_refill_without_analyze(warm: Session) -> None:
    for _ in range(2):
        drain(warm)
        retire_all(warm.watcher)
        fill(warm, 20_000)
        rotate(warm.watcher)
        fill(warm, 1000)
        for _ in range(3):
            check(warm)


def test_plans_survive_statistics_that_are_wrong(warm: Session) -> None:
    """ANALYZE of a small segment, which is then filled, and the other way round."""
    db = warm.db
    enqueue(db, 40)
    db.execute("ANALYZE")
    check(warm)
    fill(warm, 20_000)
    check(warm)
    db.execute("ANALYZE")
    check(warm)
    drain(warm)
    check(warm)


def test_jobs_of_several_leases_are_settled_without_reading_the_others(session: Session) -> None:
    """Planned when there were two leases, and the table was known to be small."""
    db = session.db
    create(db, shards=4)

    def settle_two_leases() -> None:
        fill(session, 80)
        jobs = claim(db, 8) + claim(db, 8)
        assert sorted(ack(db, jobs)) == sorted(ids(jobs))
        drain(session)

    for _ in range(7):
        settle_two_leases()
        db.execute("ANALYZE")
    fill(session, 4000)
    drain(session, batch=8)
    fill(session, 16)
    jobs = claim(db, 8) + claim(db, 8)
    flush(session)
    entries = session.entries()
    assert sorted(ack(db, jobs)) == sorted(ids(jobs))
    flush(session)
    assert session.entries() - entries < 150


def test_what_is_archived_is_looked_up_one_by_one(session: Session) -> None:
    """Whatever is planned while a segment is small: nothing but the outcomes is read from end to end."""
    db = session.db
    create(db)
    enqueue(db, 100)
    for _ in range(5):
        ack(db, claim(db, 10) + claim(db, 10))
    for _ in range(6):
        rotate(db)
    assert one(db, "SELECT count(*) FROM pgq.archive") == 100
    names: dict[int, str] = dict(session.watcher.execute("SELECT oid::bigint, relname FROM pg_class").fetchall())
    seen = set()
    for place, plan in session.plans:
        if not place.endswith("_archive_segment"):
            continue
        for root in (plan.fields["planTree"], *(s for s in plan.fields["subplans"] if isinstance(s, Node))):
            for node in root.walk():
                assert node.type != "MEMOIZE", "each job is hashed together with the array of all jobs of its lease"
                scanned = int(node.fields.get("scan.scanrelid") or node.fields.get("scanrelid") or 0)
                name = names.get(int(plan.fields["rtable"][scanned - 1].fields.get("relid", 0)), "") if scanned else ""
                if BIG.match(name):
                    seen.add(name.split("_")[0])
                    searched = node.fields.get("indexqual", "<>") != "<>" or node.type == "TIDRANGESCAN"
                    assert searched, f"{node.type} of {name} in {place}"
    assert seen == {"job", "lease", "outcome"}


def test_plans_go_with_many_shards_and_lines(session: Session) -> None:
    db = session.db
    create(db, shards=64)
    for priority in range(-5, 5):
        enqueue(db, 64, priority=priority)
    for _ in range(5):
        use(session)
    for _ in range(3):
        check(session, 2000)


def test_expired_leases_are_found_through_an_index(session: Session, clock: Clock) -> None:
    db = session.db
    create(db)
    enqueue(db, 3000)
    for _ in range(100):
        ack(db, claim(db, 20))
    call(db, "reap")
    clock.advance(600)
    assert call(db, "reap") == 0
    claim(db, 5)
    clock.advance(120)
    flush(session)
    scans, entries = session.scans(), session.entries()
    assert call(db, "reap") == 5
    flush(session)
    assert (session.scans(), session.faults()) == (scans, set())
    assert session.entries() - entries < 200, "it walks over leases that it has dealt with"


@pytest.mark.parametrize("batch", [1, 5])
def test_a_quiet_queue_beside_a_busy_one_does_not_walk_over_its_leases(session: Session, batch: int) -> None:
    db = session.db
    create(db)
    create(db, "quiet", shards=1)
    enqueue(db, 1000)
    for _ in range(500):
        ack(db, claim(db, 2))
    db.execute("ANALYZE")
    for _ in range(3):
        flush(session)
        entries = session.entries()
        assert claim(db, batch, "quiet") == []
        enqueue(db, queue="quiet")
        assert len(claim(db, batch, "quiet")) == 1
        flush(session)
        assert session.entries() - entries < 50


def test_the_state_of_a_job_is_found_through_an_index(session: Session) -> None:
    db = session.db
    create(db)
    enqueue(db, 2000)
    jobs = claim(db, 500)
    ack(db, jobs[:300])
    db.execute("ANALYZE")
    db.execute("SELECT * FROM pgq.job_status(1)")
    flush(session)
    scans = session.scans()
    for id in (jobs[0].id, jobs[400].id, 1900):
        db.execute("SELECT * FROM pgq.job_status(%s)", [id])
    flush(session)
    assert session.scans() == scans
    assert session.faults() == set()


@pytest.mark.slow
def test_plans_are_good_for_a_million_jobs(session: Session) -> None:
    db = session.db
    create(db)
    for _ in range(7):
        use(session)
    for _ in range(50):
        fill(session, 20_000)
    drain(session, most=20)
    for _ in range(3):
        check(session)
    db.execute("ANALYZE")
    for _ in range(3):
        check(session)
    (ready,) = column(session.watcher, "SELECT ready FROM pgq.stats()")
    assert ready > 899_000


# Locks ----------------------------------------------------------------------------------------------------------------


def segments(db: Connection) -> set[str]:
    """Tables and indexes of segments that this transaction has locked; not the parents, to read their bounds."""
    return {
        name
        for (name,) in db.execute(
            """
            SELECT c.relname FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
            WHERE l.pid = pg_backend_pid() AND c.relnamespace = 'pgq'::regnamespace
                AND (c.relkind <> 'p' OR l.mode <> 'AccessShareLock')
            """
        )
        if re.match(r"(job|lease|outcome)(_\d|$)", name)
    }


def settle(db: Connection, batch: int) -> None:
    jobs = claim(db, batch)
    assert len(jobs) == batch
    if batch == 1:
        call(db, "ack", jobs[0].id, jobs[0].lease)
    else:
        ack(db, jobs)


def extend(db: Connection, batch: int) -> None:
    for job in claim(db, batch):
        call(db, "extend", job.lease)


@pytest.mark.parametrize("batch", [1, 10])
@pytest.mark.parametrize("action", [settle, extend])
def test_only_the_tables_of_one_segment_are_locked(
    db: Connection, connect: Connect, batch: int, action: Callable[[Connection, int], None]
) -> None:
    """With more, a backend's sixteen fast-path slots overflow, and it waits for truncations that do not concern it."""
    create(db, shards=1)
    session = connect(autocommit=False)
    for slot in (0, 1):
        for _ in range(8):  # more than it takes to get a generic plan
            enqueue(db, batch)
            action(session, batch)
            locked = segments(session)
            assert locked
            assert {re.sub(r"^[a-z]+_(\d+).*", r"\1", name) for name in locked} == {str(slot)}
            session.commit()
        db.execute(
            """
            SELECT pgq.ack_many(job_ids, array_fill(id, ARRAY[cardinality(job_ids)]))
            FROM pgq.lease WHERE lane IS NOT NULL
            """
        )
        rotate(db, 4)


def test_a_producer_locks_the_parent_and_the_open_segment_only(db: Connection, connect: Connect) -> None:
    create(db)
    session = connect(autocommit=False)
    for enqueuing in ("enqueue('q')", "enqueue_many('q', '{1,2}')"):
        for _ in range(8):
            session.execute(f"SELECT pgq.{enqueuing}".encode())
            assert {name for name in segments(session) if "idx" not in name} == {"job", "job_0"}
            session.commit()


def test_failing_a_job_locks_the_segment_of_its_lease_and_the_open_one(db: Connection, connect: Connect) -> None:
    create(db)
    enqueue(db, 8)
    jobs = claim(db, 8)
    rotate(db)
    session = connect(autocommit=False)
    for job in jobs:
        call(session, "reject", job.id, job.lease)
        assert {name for name in segments(session) if re.search(r"_\d+$", name)} <= {
            "job_0", "lease_0", "outcome_0", "job_1",
        }  # fmt: skip
        session.commit()


SETTLE = "(array_agg(id), array_agg(lease)) FROM"


@pytest.mark.parametrize(
    "hot",
    [
        "enqueue('q')",
        "enqueue_many('q', '{1,2}')",
        "ack(id, lease) FROM pgq.claim('q')",
        f"ack_many{SETTLE} pgq.claim('q', 5)",
        f"ack_many{SETTLE} (SELECT (pgq.claim('q')).* FROM generate_series(1, 2)) two_leases",
        "reject(id, lease) FROM pgq.claim('q')",
        f"reject_many{SETTLE} pgq.claim('q', 5)",
        f"release{SETTLE} pgq.claim('q', 5)",
        "extend(lease, '1 hour') FROM pgq.claim('q')",
        "watch('{q}')",
        "claim('empty')",
    ],
)
def test_no_hot_function_calls_another_one_in_sql(db: Connection, connect: Connect, hot: str) -> None:
    """If such a one is not inlined, it is planned anew at each call."""

    def calls(session: Connection) -> dict[str, int]:
        return dict(
            session.execute(
                """
                SELECT p.oid::regprocedure::text, s.calls
                FROM pg_stat_xact_user_functions s
                JOIN pg_proc p ON p.oid = s.funcid JOIN pg_language l ON l.oid = p.prolang
                WHERE l.lanname = 'sql'
                """
            ).fetchall()
        )

    create(db, "empty")
    create(db)
    enqueue(db, 60)
    rotate(db)  # so that there are two segments to look at
    enqueue(db, 60)
    session = connect(autocommit=False)
    session.execute("SET track_functions = 'all'")
    for turn in range(12):
        session.execute(f"SELECT pgq.{hot}".encode())
        if turn == 8:  # all that is planned once is planned now
            before = calls(session)
    assert calls(session) == before
