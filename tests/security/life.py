"""A whole life of a queue through every public function, to be lived again under hostile circumstances."""

from __future__ import annotations

import json

from tests.conftest import Clock
from tests.sql.support import Connection, call, claim, enqueue, ids, leases, rows

# No operator and no function: this is looked up in the session's own search_path.
ARCHIVED = "SELECT id, lease, kind, attempt, priority, worker, payload, headers, result, error FROM pgq.archive"


def live(db: Connection, clock: Clock) -> list[object]:
    """Call every public function that does something, and say what came back."""
    seen: list[object] = []
    call(db, "create_queue", "q", lease="1 hour", shards=1, max_attempts=3, retention="1 day")
    call(db, "alter_queue", "q", backoff="1 second")
    made = [call(db, "enqueue", "q", {"n": n}, priority=n % 2) for n in range(3)]
    made += rows(db, "enqueue_many", "q", ["1", "2", "3", "4"], headers={"a": 1})
    made += [call(db, "enqueue", "q", delay="1 hour")]
    call(db, "watch", ["q"])
    call(db, "unwatch", ["q"])
    call(db, "pause", "q")
    seen.append(len(claim(db)))
    call(db, "resume", "q")
    first = claim(db)
    jobs = first + claim(db, 10, lease_for="2 hours", worker="w")
    seen.append(sorted(ids(jobs)) == made[:7])
    call(db, "ack", jobs[0].id, jobs[0].lease, {"ok": True})
    seen.append(len(rows(db, "ack_many", ids(jobs[:2]), leases(jobs[:2]))))
    seen.append(call(db, "reject", jobs[2].id, jobs[2].lease, "e"))
    seen.append(call(db, "reject", jobs[3].id, jobs[3].lease, "e", retry=False))
    seen.append(len(rows(db, "reject_many", [jobs[4].id], [jobs[4].lease], ["e"])))
    seen.append(len(rows(db, "release", [jobs[5].id], [jobs[5].lease])))
    call(db, "extend", jobs[6].lease, "3 hours")
    seen.append(len(rows(db, "extend_many", [jobs[6].lease])))
    seen.append(call(db, "redrive", "q"))
    clock.advance(7200)
    seen.append(call(db, "promote"))
    seen.append(call(db, "reap"))
    for _ in range(4):
        call(db, "rotate", seal=True)
    clock.advance(7200)
    maintained = call(db, "maintain")
    seen.append((maintained["promoted"], maintained["reaped"]))
    seen.append(len(rows(db, "job_status", jobs[0].id)))
    seen.append([row[:7] for row in db.execute("SELECT * FROM pgq.stats()")])
    seen.append(len(rows(db, "doctor")))
    seen.append(call(db, "purge", "q"))
    clock.advance(60)
    for _ in range(10):
        call(db, "rotate", seal=True)
    archived = sorted(row for row in db.execute(ARCHIVED).fetchall() if row[0] >= made[0])
    seen.append([(id - made[0], *what) for id, lease, *what in archived])
    seen.append(call(db, "version"))
    seen += _extras(db, clock)
    call(db, "drop_queue", "q", force=True)
    return seen


def _extras(db: Connection, clock: Clock) -> list[object]:
    """What a plain job does not need."""
    seen: list[object] = []
    call(db, "set_limits", "q", group_limit=2, running_limit=3, rate=100, rate_period="1 s", fair=True)
    made = rows(db, "enqueue_many", "q", ["1", "2", "3"], group_keys=["g", "g", "g"])
    jobs = claim(db, 10)
    seen.append([job.id - made[0] for job in jobs])
    call(db, "reject", jobs[0].id, jobs[0].lease, "broken")
    seen.append(len(rows(db, "ack_many", [jobs[1].id], [jobs[1].lease])))
    seen.append(call(db, "purge", "q"))
    call(db, "set_limits", "q")
    call(db, "set_unique", "q", on_repeat="replace")
    for payload in ({"n": 1}, {"n": 2}):
        seen += db.execute(
            "SELECT inserted FROM pgq.enqueue_unique('q', %s, unique_key => 'k')", [json.dumps(payload)]
        ).fetchall()
    unique_many = "SELECT inserted FROM pgq.enqueue_unique_many('q', '{1,2,3}', '{k,l,NULL}')"
    seen += db.execute(unique_many).fetchall()
    waiting, *others = sorted(ids(claim(db, 10)))
    call(db, "purge", "q")
    made = rows(db, "enqueue_many", "q", ["1", "2", "3", "4", "5"], task="t")
    seen.append(call(db, "reschedule", made[0], "2100-01-01"))
    seen.append(call(db, "set_priority", made[0], 5))
    seen.append(call(db, "cancel", made[0]))
    seen.append(call(db, "cancel", waiting))
    first, second, third, last = claim(db, 4)
    (unwanted,) = rows(db, "enqueue_many", "q", ["6"], priority=-100)
    (claimed,) = claim(db, 1)
    call(db, "cancel_claimed", claimed.id, claimed.lease, "unwanted")
    seen.append([claimed.id == unwanted, call(db, "cancel", unwanted)])
    seen.append(rows(db, "cancel_requested", [first.lease]))
    call(db, "snooze", first.id, first.lease, "1 hour")
    seen.append(len(rows(db, "snooze_many", [second.id], [second.lease], "1 hour")))
    seen.append(call(db, "cancel_many", "q"))
    seen.append(call(db, "progress", third.id, third.lease, {"done": 1}))
    seen.append([len(rows(db, function)) for function in ("queues", "workers", "activity")])
    seen.append(sorted(row[0] - made[0] for row in db.execute("SELECT id FROM pgq.jobs('q', 'running')").fetchall()))
    seen.append(len(rows(db, "failures")) > 0)
    seen.append(call(db, "job_progress", third.id))
    for job in (third, last):
        call(db, "reject", job.id, job.lease, "broken", retry=False)
    letters = db.execute("SELECT * FROM pgq.dead_letters('q', error => 'rok', before => 'infinity')").fetchall()
    seen.append([row[1:7] for row in letters])
    seen.append(len(rows(db, "attempts", third.id)))
    seen.append(call(db, "redrive_where", "q", task="t", n=1, per_second=2))
    seen.append(call(db, "discard", "q", [last.id]))
    seen.append(call(db, "discard_where", "q", error="broken", since="-infinity"))
    seen.append(call(db, "purge_state", "q", "scheduled"))
    call(db, "schedule", "s", "*/5 * * * *", "q", {"a": 1}, timezone="Europe/Berlin")
    seen.append(len(rows(db, "next_runs", "0 0 1 1 *", "UTC", 2)))
    (other,) = enqueue(db)
    last_one = call(db, "enqueue_after", [other], "q", {"n": 1}, on_dead="skip")
    rows(db, "enqueue_many_after", [other], "q", ["1", "2"])
    batch = call(db, "batch", [other], "q", {"n": 2})
    call(db, "add_to_batch", batch, [last_one])
    seen += db.execute("SELECT done, failed, pending FROM pgq.batch_status(%s)", [batch]).fetchall()
    seen.append([id - other for id in rows(db, "waits_for", batch)])
    seen.append(call(db, "watch_job", batch))
    call(db, "unwatch_job", batch)
    for _ in range(5):
        seen.append(rows(db, "ack_many", ids(jobs := claim(db, 10)), leases(jobs)) == ids(jobs))
    seen.append(rows(db, "job_status", batch) == [])
    clock.advance(600)
    seen.append(call(db, "maintain")["fired"])
    call(db, "unschedule", "s")
    seen.append(call(db, "try_exclusive", "name"))
    seen.append(len(rows(db, "exclusive_holder", "name")))
    seen.append(len(others))
    return seen
