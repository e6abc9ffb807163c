"""Mistakes that the engine does not make, and for each the few steps that the model needs to notice it.

A mutant is one word changed in one function. When that function is rewritten and the word is gone, find it a new place:
a mutant that cannot be made is a failure of its test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.model import scenarios
from tests.model.database import Connection
from tests.model.scenarios import Steps


@dataclass(frozen=True)
class Mutant:
    """In the functions whose names match, `old` becomes `new`; `steps` show that something is wrong."""

    name: str
    functions: str
    old: str
    new: str
    steps: Steps


MUTANTS = [
    Mutant("ack without fencing", "ack", "PERFORM pgq._lost(id, lease)", "NULL", scenarios.settle_twice),
    Mutant(
        "ack_many tells what it did not do",
        "ack_many",
        "SELECT s.id\n        FROM (",
        "SELECT unnest(u.ids)\n        FROM (",
        scenarios.settle_two_twice,
    ),
    Mutant(
        "a lease that has ended as a whole is open",
        r"_settle_many_\d+",
        "w.kind = 'done'",
        "w.kind = 'dead'",
        scenarios.settle_one_of_a_whole_lease,
    ),
    Mutant(
        "an extension is ignored", r"_expired_\d+", "max(x.expires_at)", "min(x.expires_at)", scenarios.extend_and_reap
    ),
    Mutant("an attempt too many", "_fail", "a.attempt < coalesce", "a.attempt <= coalesce", scenarios.fail_until_dead),
    Mutant(
        "an expiry is no failure",
        "_fail",
        "f.attempt + 1, f.max_attempts,\n            f.task",
        "f.attempt, f.max_attempts,\n            f.task",
        scenarios.let_expire_until_dead,
    ),
    Mutant(
        "last in, first out",
        r"_take_one_\d+",
        "ORDER BY j.xid, j.id",
        "ORDER BY j.xid DESC, j.id DESC",
        scenarios.claim_one_by_one,
    ),
    Mutant(
        "the last priority first", "claim", "ORDER BY l.lane)", "ORDER BY l.lane DESC)", scenarios.claim_by_priority
    ),
    Mutant(
        "release counts the attempt",
        "release",
        "h.attempt, h.max_attempts",
        "h.attempt + 1, h.max_attempts",
        scenarios.release_and_claim,
    ),
    Mutant(
        "release puts to the end",
        "release",
        "pgq._front(h.lane), pg_current",
        "h.lane, pg_current",
        scenarios.release_and_claim,
    ),
    Mutant(
        "purge forgets scheduled jobs",
        "_clear_scheduled",
        "s.lane >> 16 = _clear_scheduled.queue_id",
        "s.lane < 0",
        scenarios.purge,
    ),
    Mutant("reject forgets the error", "_fail", "left(u.error, 10000)", "NULL", scenarios.fail_until_dead),
    Mutant(
        "redrive forgets one",
        "_redrive",
        "FROM gone g WHERE per_second IS NULL AND NOT g.waits",
        "FROM gone g WHERE per_second IS NULL OFFSET 1",
        scenarios.redrive,
    ),
    Mutant(
        "a claim takes its own jobs",
        "claim",
        "IF v_queue.own IS NOT NULL",
        "IF false",
        scenarios.claim_in_the_transaction_that_enqueues,
    ),
    Mutant(
        "a late commit is overlooked",
        "claim",
        "ARRAY(SELECT pg_snapshot_xip(pg_current_snapshot()))",
        "'{}'::xid8[]",
        scenarios.commit_late,
    ),
    Mutant(
        "lanes are not locked",
        r"_take(_one)?_\d+",
        "pg_try_advisory_xact_lock(pgq._lane_key(v_lane))",
        "true",
        scenarios.claim_while_another_does,
    ),
    Mutant("pause is ignored", "claim", "NOT q.paused AND current", "current", scenarios.claim_from_a_paused_queue),
    Mutant(
        "promote does not wait", "promote", ":= pgq._now();", ":= pgq._now() + '2 minutes';", scenarios.promote_early
    ),
    Mutant(
        "the archive has no retries",
        "_archive_segment",
        "('released', ",
        "('released', 'retry', ",
        scenarios.archive_a_retry,
    ),
    Mutant("nobody is woken", "enqueue", "PERFORM pgq._wake(v_queue, queue)", "NULL", scenarios.watch_and_enqueue),
    Mutant(
        "cancel only says so",
        "_cancel",
        "IF EXISTS (SELECT FROM pgq._withdraw_job(",
        "IF true OR EXISTS (SELECT FROM pgq._withdraw_job(",
        scenarios.cancel_and_claim,
    ),
    Mutant(
        "a cancelled job is done",
        "_cancel_waiting",
        "p.places, 'cancelled')",
        "p.places, 'done')",
        scenarios.cancel_scheduled,
    ),
    Mutant(
        "reject does not stop",
        "_fail",
        "WHEN f.stopped THEN 'cancelled' WHEN f.again",
        "WHEN f.again",
        scenarios.cancel_running,
    ),
    Mutant("release does not stop", "release", "WHERE NOT h.stopped", "", scenarios.cancel_running),
    Mutant("nobody is asked to stop", r"_asked_\d+", "c.id = u.id", "c.id = 0", scenarios.cancel_running),
    Mutant(
        "an acknowledged job is asked for ever",
        "_pursue",
        "PERFORM pgq._cancel(v_id)",
        "NULL",
        scenarios.cancel_running,
    ),
    Mutant(
        "cancel_many takes every task", r"_ready_\d+", "named IS NULL OR j.task = named", "true", scenarios.cancel_many
    ),
    Mutant("cancel_many never asks", "cancel_many", "IF running THEN", "IF false THEN", scenarios.cancel_many),
    Mutant(
        "reschedule keeps the time", "_put_off", "greatest(_put_off.run_at,", "greatest(s.run_at,", scenarios.reschedule
    ),
    Mutant(
        "reschedule means now",
        "reschedule",
        "SELECT reschedule.run_at, w.id",
        "SELECT pgq._now(), w.id",
        scenarios.reschedule,
    ),
    Mutant(
        "a line counts for ever",
        "_add_line",
        " AND l.until >= v_open",
        "",
        scenarios.use_a_priority_now_and_then,
    ),
    Mutant(
        "a line is forgotten too early",
        "rotate",
        "l.until < (SELECT min(s.generation)",
        "l.until <= (SELECT max(s.generation)",
        scenarios.use_a_priority_now_and_then,
    ),
    Mutant(
        "the priority stays",
        "set_priority",
        "v_queue.shards, set_priority.priority, w.id",
        "v_queue.shards, 0, w.id",
        scenarios.set_priority,
    ),
    Mutant("a tick is fired twice", "_fire_one", "SET next_at = v_next", "SET next_at = v_tick", scenarios.fire),
    Mutant("missed ticks are not skipped", "_fire_one", "v_tick < now - v_minute", "false", scenarios.fire),
    Mutant("one job for all missed ticks", "_fire_one", "schedule.catch_up <> 'all'", "true", scenarios.fire),
    Mutant(
        "progress at any pace",
        "progress",
        "    IF FOUND THEN\n        RETURN false",
        "    IF false THEN\n        RETURN false",
        scenarios.tell_progress,
    ),
    Mutant(
        "progress of the dead",
        r"_running_since_\d+",
        "AND NOT EXISTS (",
        "AND true OR EXISTS (",
        scenarios.tell_progress,
    ),
    Mutant(
        "attempts are told twice",
        "attempts",
        "k.attempt = f.attempt",
        "k.attempt < f.attempt",
        scenarios.fail_in_many_ways,
    ),
    Mutant(
        "attempts are forgotten",
        "_failures",
        "'{scheduled,parked,dead,straggler}'",
        "'{parked,straggler}'",
        scenarios.fail_in_many_ways,
    ),
    Mutant(
        "dead letters of the first page",
        "dead_letters",
        "d.id > after_id)",
        "d.id > after_id) AND d.attempt = 1",
        scenarios.fail_until_dead,
    ),
    Mutant(
        "what has ended is pending",
        "_take_in",
        "done = t.done + c.jobs * v_done",
        "done = t.done",
        scenarios.wait_for_others,
    ),
    Mutant(
        "everybody is exclusive",
        "try_exclusive",
        "RETURN pg_try_advisory_xact_lock(pgq._exclusive_key(name))",
        "RETURN true",
        scenarios.be_exclusive,
    ),
    Mutant(
        "one state is all",
        "_clear_scheduled",
        "pgq._state_of(s.run_at, s.attempt) = state",
        "true",
        scenarios.purge_one_state,
    ),
    Mutant(
        "set_unique is forgotten",
        "set_unique",
        "SET unique_until = set_unique.unique_until",
        "SET unique_until = q.unique_until",
        scenarios.set_rules,
    ),
    Mutant("everything is valid", "_validate", "v_valid IS NOT TRUE", "false", scenarios.set_rules),
    Mutant(
        "nothing is added to a batch",
        "add_to_batch",
        "unnest(ids) i ON CONFLICT",
        "unnest(ids[1:0]) i ON CONFLICT",
        scenarios.add_to_batch,
    ),
    Mutant(
        "one too many of a group",
        "_pick_of",
        "v_limit - v_held), 0)",
        "v_limit - v_held + 1), 0)",
        scenarios.one_of_a_group,
    ),
    Mutant(
        "last in, first out of a group",
        "_pick_of",
        "p.priority, p.id\n        LIMIT greatest",
        "p.priority, p.id DESC\n        LIMIT greatest",
        scenarios.one_of_a_group,
    ),
    Mutant(
        "a permit is not given back", "_end_permits", "ELSE 'ended' END", "ELSE m.state END", scenarios.one_of_a_group
    ),
    Mutant(
        "a failed job loses its place", "_end_permits", "WHEN again AND", "WHEN false AND", scenarios.keep_its_place
    ),
    Mutant(
        "any number may start",
        "_room",
        "greatest(rate - coalesce(v_last - v_before",
        "greatest(rate - coalesce(0",
        scenarios.start_so_many,
    ),
    Mutant(
        "a rate lasts for ever", "_room", "pgq._now() - period", "'-infinity'::timestamptz", scenarios.start_so_many
    ),
    Mutant(
        "a place is kept for ever",
        "_pick_of",
        "DELETE FROM pgq.permit m WHERE",
        "DELETE FROM pgq.permit m WHERE false AND",
        scenarios.lose_its_limit,
    ),
    Mutant("a group has no rate", "_pick_of", "IF v_rate IS NOT NULL", "IF false", scenarios.start_so_many_of_a_group),
    Mutant(
        "a group rests for ever",
        "_pick_of",
        "v_ready_at := pgq._room_at(",
        "PERFORM pgq._room_at(",
        scenarios.start_so_many_of_a_group,
    ),
    Mutant(
        "no group takes turns",
        "_pick_of",
        "WHEN queue.fair THEN nextval",
        "WHEN false THEN nextval",
        scenarios.take_turns,
    ),
    Mutant(
        "no group begins to take turns", "set_limits", "IF v_fair <> fair", "IF false", scenarios.begin_to_take_turns
    ),
    Mutant("nobody knows why it stopped", "cancel_claimed", "ARRAY[reason]", "ARRAY[NULL]", scenarios.cancel_claimed),
    Mutant("pgq.work keeps no results", "work", "CASE WHEN v_kept THEN v_results END", "NULL", scenarios.work_in_sql),
    Mutant("pgq.wait has no result", "wait", "s.state, s.result,", "s.state, NULL,", scenarios.wait_without_patience),
    Mutant("a change of a row is lost", "enqueue_row", "pgq._keep(v_new, v_columns)", "NULL", scenarios.change_rows),
    Mutant(
        "changes of rows are old",
        "enqueue_rows",
        "ELSE 'new' END, v_columns",
        "ELSE 'old' END, v_columns",
        scenarios.change_rows,
    ),
    Mutant("a consumer cannot claim", "grant_consumer", "pgq.claim, ", "", scenarios.grant),
    Mutant("jobs to come are not listed", "jobs", "retrying,scheduled,waiting}'", "retrying,waiting}'", scenarios.look),
    Mutant("jobs are listed as run by nobody", "_list_running", "a.worker, a.lease", "NULL, a.lease", scenarios.look),
    Mutant("workers have one lease more", "workers", "count(*), sum", "count(*) + 1, sum", scenarios.look),
    Mutant("nothing goes on", "activity", "coalesce(h.running, 0)", "0::bigint", scenarios.look),
    Mutant("dead letters are to be tried again", "failures", "'dead', d.died_at", "'retry', d.died_at", scenarios.look),
    Mutant("a queue has no limit", "_claim_limited", "AND m.state = 'running'", "AND false", scenarios.limit_a_queue),
    Mutant(
        "the next run is tomorrow",
        "next_runs",
        "coalesce(after, pgq._now())",
        "coalesce(after, pgq._now() + '1 day')",
        scenarios.fire,
    ),
    Mutant(
        "nobody hears of the end",
        "_tell",
        "WHERE pgq._is_watched(pgq._wait_key(i))",
        "WHERE false",
        scenarios.wait_for_the_end,
    ),
    Mutant("a full queue is dropped", "drop_queue", "force IS NOT TRUE", "false", scenarios.drop_what_is_not_empty),
]

SCENARIOS: list[Steps] = list(
    dict.fromkeys(
        [
            *(mutant.steps for mutant in MUTANTS),
            scenarios.settle_while_another_does,
            scenarios.lose_a_commit,
            scenarios.claim_while_a_rotation_is_open,
            scenarios.carry_forward_in_order,
            scenarios.redrive_and_look,
            scenarios.redrive_in_an_older_transaction,
        ]
    )
)


@contextmanager
def applied(mutant: Mutant, db: Connection) -> Iterator[None]:
    """The database with a mistake in it."""
    query = """
        SELECT pg_get_functiondef(oid) FROM pg_proc
        WHERE pronamespace = 'pgq'::regnamespace AND proname ~ ('^' || %s || '$')
    """
    originals = [row[0] for row in db.execute(query, [mutant.functions])]
    assert originals, f"there is no function {mutant.functions} any more"
    assert all(mutant.old in text for text in originals), f"{mutant.functions} does not say {mutant.old!r} any more"
    try:
        for text in originals:
            db.execute(text.replace(mutant.old, mutant.new).encode())
        yield
    finally:
        for text in originals:
            db.execute(text.encode())
