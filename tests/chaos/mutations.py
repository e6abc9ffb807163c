"""Ways to break the engine: one promise each, taken out of the installed functions.

A mutation replaces a piece of a function's text that is looked up in the database and must be there exactly once, in
each function of the name it goes for (those of the sixteen segments are `name_0` to `name_15`). If the engine was
rewritten, this fails loudly, and the mutation has to be taught where the promise is kept now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from tests.chaos import stories
from tests.chaos.stories import Story
from tests.chaos.violations import Kind


class AnchorGone(AssertionError):
    """The text that a mutation replaces is not where it was."""


@dataclass(frozen=True)
class Patch:
    """A replacement in the text of functions: all whose names match a regular expression.

    {slot} in both texts stands for the number at the end of the function's name. copies: the function is made of copies
    of one text, and all of them are replaced.
    """

    functions: str
    text: str
    replacement: str
    copies: bool = False

    def apply(self, connection: psycopg.Connection[Any]) -> None:
        query = """
            SELECT p.proname, pg_get_functiondef(p.oid) FROM pg_proc p
            WHERE p.pronamespace = 'pgq'::regnamespace AND p.proname ~ %s
        """
        found = connection.execute(query, [f"^{self.functions}$"]).fetchall()
        if not found:
            raise AnchorGone(f"there is no function {self.functions}")
        for name, definition in found:
            text, replacement = (t.replace("{slot}", name.rpartition("_")[2]) for t in (self.text, self.replacement))
            if (count := definition.count(text)) != 1 and not (count and self.copies):
                raise AnchorGone(f"{name} contains {count} times, not once:\n{text}")
            connection.execute(definition.replace(text, replacement).encode())


@dataclass(frozen=True)
class DropIndexes:
    """Indexes that are dropped: all whose names match a regular expression."""

    indexes: str

    def apply(self, connection: psycopg.Connection[Any]) -> None:
        query = """
            SELECT format('DROP INDEX pgq.%%I', c.relname) FROM pg_class c
            WHERE c.relnamespace = 'pgq'::regnamespace AND c.relkind = 'i' AND c.relname ~ %s
        """
        found = connection.execute(query, [f"^{self.indexes}$"]).fetchall()
        if not found:
            raise AnchorGone(f"there is no index {self.indexes}")
        for (command,) in found:
            connection.execute(command.encode())


@dataclass(frozen=True)
class Mutation:
    """A broken engine, a story that shows it, and what the checker must say, among other things."""

    name: str
    story: Story
    changes: tuple[Patch | DropIndexes, ...]
    kind: Kind

    def apply(self, connection: psycopg.Connection[Any]) -> None:
        for change in self.changes:
            change.apply(connection)


_SLOT = r"\d+"

MUTATIONS = (
    Mutation(
        "no fencing in ack",
        stories.an_ack_under_the_lease_of_another_job,
        (Patch(f"_settle_{_SLOT}", "AND job = ANY (l.job_ids)", ""),),
        Kind.FOREIGN_LEASE,
    ),
    Mutation(
        "no fencing in ack_many",
        stories.a_batch_under_the_lease_of_another_job,
        (Patch(f"_settle_many_{_SLOT}", "ON held.id = u.id AND held.lease = u.lease", "ON held.lease = u.lease"),),
        Kind.FOREIGN_LEASE,
    ),
    Mutation(
        "no fencing of whole batches",
        stories.a_batch_under_the_lease_of_another_batch,
        (Patch(f"_done_{_SLOT}", "AND l.job_ids = ids ", ""),),
        Kind.FOREIGN_LEASE,
    ),
    Mutation(
        "a batch that ended as a whole does not count",
        stories.a_batch_ends_as_a_whole_and_is_settled_again,
        (
            Patch(
                f"_settle_many_{_SLOT}",
                "AND NOT EXISTS (SELECT FROM pgq.outcome_{slot} w WHERE w.lease_id = l.id AND w.job_id = 0",
                "AND NOT EXISTS (SELECT FROM pgq.outcome_{slot} w WHERE false",
            ),
        ),
        Kind.SETTLED_TWICE,
    ),
    Mutation(
        "a batch that ends in parts may end as a whole",
        stories.a_batch_ends_in_parts,
        (Patch(f"_split_{_SLOT}", "AND pgq._whole(l.job_ids)", "AND false"),),
        Kind.SETTLED_TWICE,
    ),
    Mutation(
        "no lane lock in claim",
        stories.two_claimers_at_once,
        (
            Patch(f"_take(_one)?_{_SLOT}", "IF pg_try_advisory_xact_lock(pgq._lane_key(v_lane)) THEN", "IF true THEN"),
            Patch("_in_order", "IF NOT (pg_try_advisory_xact_lock(", "IF false AND NOT (pg_try_advisory_xact_lock("),
        ),
        Kind.TWO_LEASES,
    ),
    Mutation(
        "no open transactions",
        stories.a_producer_commits_late,
        (
            Patch(
                f"_take_{_SLOT}",
                "THEN v_at.open || ARRAY(SELECT x FROM unnest(v_between) x WHERE x < a.xid)",
                "THEN v_at.open",
            ),
        ),
        Kind.STUCK,
    ),
    Mutation(
        "a late transaction forgets how far it came",
        stories.a_late_transaction_is_handed_out_in_parts,
        (
            Patch(
                f"_take_{_SLOT}",
                "CASE WHEN NOT a.fresh AND a.count = n THEN a.id",
                "CASE WHEN NOT a.fresh AND a.count = n THEN 0",
            ),
        ),
        Kind.TWO_LEASES,
    ),
    Mutation(
        "no unique outcome",
        stories.a_zombie_acknowledges_after_the_reaper,
        (DropIndexes(f"outcome_{_SLOT}_lease_id_job_id_key"),),
        Kind.LATE_SETTLE,
    ),
    Mutation(
        "the reaper ignores extensions",
        stories.a_lease_is_extended,
        (Patch(f"_expired_{_SLOT}", "AND (SELECT max(x.expires_at)", "AND true OR (SELECT max(x.expires_at)"),),
        Kind.TWO_LEASES,
    ),
    Mutation(
        "the reaper comes an hour early",
        stories.a_job_is_held,
        (
            Patch(
                "reap",
                "v_now CONSTANT timestamptz := pgq._now();",
                "v_now CONSTANT timestamptz := pgq._now() + interval '1 hour';",
            ),
        ),
        Kind.TWO_LEASES,
    ),
    Mutation(
        "an expired attempt does not count",
        stories.a_zombie_acknowledges_after_the_reaper,
        (Patch("_fail", "f.enqueued_at, v_slot, f.attempt + 1,", "f.enqueued_at, v_slot, f.attempt,"),),
        Kind.ATTEMPT_NUMBERS,
    ),
    Mutation(
        "ended leases can be extended",
        stories.an_ended_lease_is_extended,
        (Patch(f"_extend_{_SLOT}", "AND EXISTS (", "AND true OR EXISTS ("),),
        Kind.LATE_EXTEND,
    ),
    Mutation(
        "carrying drops jobs",
        stories.jobs_are_carried_to_the_next_segment,
        (Patch("_carry", "IF kind = 'carried' THEN", "IF false THEN"),),
        Kind.LOST,
    ),
    Mutation(
        "moving drops running jobs",
        stories.a_job_outlives_its_segment,
        (Patch("_move_stragglers", "ON m.id = h.id AND m.lease = h.lease", "ON m.id <> m.id"),),
        Kind.LOST,
    ),
    Mutation(
        "a segment is closed under its producers",
        stories.a_producer_sleeps_while_its_segment_is_sealed,
        (Patch("_holders", "l.granted", "NOT l.granted"),),
        Kind.LOST,
    ),
    Mutation(
        "the archive skips rows",
        stories.jobs_are_done,
        (Patch("_archive_segment", "'moved', 'split')", "'moved', 'split') AND e.id & 1 = 0"),),
        Kind.END_LOST,
    ),
    Mutation(
        "no backoff",
        stories.a_job_fails,
        (Patch("_backoff", "(0.5 + random() / 2)", "0"),),
        Kind.EARLY_RETRY,
    ),
    Mutation(
        "max_attempts is ignored",
        stories.a_job_fails_for_good,
        (Patch("_fail", "a.attempt < coalesce(a.max_attempts, q.max_attempts)", "true"),),
        Kind.TOO_MANY_ATTEMPTS,
    ),
    Mutation(
        "dead letters are thrown away",
        stories.a_job_fails_for_good,
        (Patch("_fail", "WHERE NOT f.again AND f.known", "WHERE NOT f.again AND NOT f.known"),),
        Kind.LOST,
    ),
    Mutation(
        "the last attempt is never made",
        stories.a_job_fails_for_good,
        (Patch("_fail", "a.attempt < coalesce(", "a.attempt + 1 < coalesce("),),
        Kind.EARLY_DEATH,
    ),
    Mutation(
        "a retry loses its headers",
        stories.a_job_fails,
        (Patch("promote", "g.headers, g.history", "NULL, g.history"),),
        Kind.CHANGED,
    ),
    Mutation(
        "a release counts as an attempt",
        stories.a_job_is_released,
        (Patch("release", "h.enqueued_at, v_slot, h.attempt,", "h.enqueued_at, v_slot, h.attempt + 1,"),),
        Kind.RELEASE_COUNTED,
    ),
    Mutation(
        "promoted an hour early",
        stories.a_job_is_scheduled,
        (
            Patch(
                "promote",
                "v_now CONSTANT timestamptz := pgq._now();",
                "v_now CONSTANT timestamptz := pgq._now() + interval '1 hour';",
            ),
        ),
        Kind.EARLY_RUN,
    ),
    Mutation(
        "a pause is ignored",
        stories.a_queue_is_paused,
        (Patch("claim", "NOT q.paused AND ", ""),),
        Kind.PAUSED,
    ),
    Mutation(
        "one shard is two",
        stories.jobs_wait_in_line,
        (
            Patch("enqueue", "(v_id % v_shards)::int + 1", "(v_id % 2)::int + 1"),
            Patch("claim", "(v_line & 255)::int * v_queue.lanes", "(v_line & 255)::int * 2", copies=True),
        ),
        Kind.ORDER,
    ),
    Mutation(
        "priorities are reversed",
        stories.jobs_have_priorities,
        (Patch("claim", "l.queue_id = q.id ORDER BY l.lane)", "l.queue_id = q.id ORDER BY l.lane DESC)"),),
        Kind.PRIORITY,
    ),
    Mutation(
        "a key is nobody's",
        stories.a_key_is_enqueued_again_and_again,
        (Patch("_holds", "RETURN pgq._lives(key.job_id, key.until_claimed)", "RETURN false"),),
        Kind.UNIQUE,
    ),
    Mutation(
        "a key is free while its job runs",
        stories.a_key_is_enqueued_again_and_again,
        (Patch("_lives", "f.state IN ('ready', 'running')", "f.state IN ('ready')"),),
        Kind.UNIQUE,
    ),
    Mutation(
        "a key is held for ever",
        stories.a_key_is_enqueued_again_and_again,
        (Patch("_holds", "RETURN pgq._lives(key.job_id, key.until_claimed)", "RETURN true"),),
        Kind.UNIQUE,
    ),
    Mutation(
        "a key is taken without being written down",
        stories.a_key_is_enqueued_again_and_again,
        (Patch("_take_key", "INSERT INTO pgq.unique_key SELECT wanted.* ON CONFLICT DO NOTHING", "PERFORM"),),
        Kind.UNIQUE,
    ),
    Mutation(
        "nobody counts who runs in a group",
        stories.jobs_of_a_group_wait_for_each_other,
        (
            Patch("_pick_of", "v_limit - v_held), 0)", "v_limit), 0)"),
            Patch("_pick_of", "(v_held + cardinality(v_ids) - v_waited < v_limit) IS NOT FALSE", "true"),
        ),
        Kind.GROUP,
    ),
    Mutation(
        "the last one of a group goes first",
        stories.jobs_of_a_group_wait_for_each_other,
        (
            Patch(
                "_pick_of",
                "ORDER BY p.queue_id, p.group_key, p.priority, p.id\n        LIMIT greatest",
                "ORDER BY p.id DESC\n        LIMIT greatest",
            ),
        ),
        Kind.ORDER,
    ),
    Mutation(
        "who has ended keeps his place in the group",
        stories.jobs_of_a_group_wait_for_each_other,
        (Patch("_end_permits", "m.job_id = ANY (ids)", "false"),),
        Kind.STUCK,
    ),
    Mutation(
        "who failed loses his place in the group",
        stories.a_group_waits_for_its_job_that_failed,
        (Patch("_end_permits", "WHEN again AND", "WHEN false AND"),),
        Kind.GROUP,
    ),
    Mutation(
        "nobody waits for anybody",
        stories.jobs_wait_for_others,
        (
            Patch("_let_go", "NOT EXISTS (SELECT FROM pgq.dependency d WHERE d.job_id = i OFFSET 0)", "true"),
            Patch("_look_after", "WHERE u.after_id IS NULL", "WHERE true"),
        ),
        Kind.AFTER,
    ),
    Mutation(
        "who waits is never let go",
        stories.jobs_wait_for_others,
        (Patch("_let_go", "NOT EXISTS (SELECT FROM pgq.dependency d WHERE d.job_id = i OFFSET 0)", "false"),),
        Kind.STUCK,
    ),
    Mutation(
        "nobody tells and nobody looks",
        stories.jobs_wait_for_others,
        (
            Patch(
                "_tell",
                "WHERE EXISTS (SELECT FROM pgq.dependency",
                "WHERE false AND EXISTS (SELECT FROM pgq.dependency",
            ),
            Patch("_look_after", "WHERE e.over", "WHERE false"),
        ),
        Kind.STUCK,
    ),
    Mutation(
        "who died counts as done",
        stories.a_job_waits_for_one_that_dies,
        (Patch("_take_in", "(v_done = 1 OR (SELECT", "(true OR (SELECT"),),
        Kind.AFTER,
    ),
    Mutation(
        "who is done counts as dead",
        stories.jobs_wait_for_others,
        (Patch("_take_in", "(e.kind = 'done') IS TRUE = (v_done = 1)", "v_done = 0"),),
        Kind.EARLY_DEATH,
    ),
    Mutation(
        "a cancelled job stays where it is",
        stories.a_job_is_cancelled,
        (Patch("_cancel", "IF EXISTS (SELECT FROM pgq._withdraw_job(_cancel.id, 'cancelled')) THEN", "IF true THEN"),),
        Kind.CANCELLED,
    ),
    Mutation(
        "a scheduled job that is cancelled stays where it is",
        stories.a_job_is_cancelled,
        (Patch("_cancel", "IF pgq._cancel_waiting(ARRAY[id]) > 0 THEN", "IF true THEN"),),
        Kind.CANCELLED,
    ),
    Mutation(
        "a job that was asked to stop is tried again",
        stories.a_running_job_is_cancelled,
        (Patch("_fail", "retry AND NOT c.stopped AND", "retry AND"),),
        Kind.NOT_ONE_PLACE,
    ),
    Mutation(
        "a snoozed job loses an attempt",
        stories.a_job_is_put_off,
        (Patch("snooze_many", "h.enqueued_at, h.attempt,", "h.enqueued_at, h.attempt + 1,"),),
        Kind.RELEASE_COUNTED,
    ),
    Mutation(
        "a snoozed job comes back at once",
        stories.a_job_is_put_off,
        (Patch("snooze_many", "pgq._now() + delay", "pgq._now()"),),
        Kind.EARLY_RUN,
    ),
    Mutation(
        "results are dropped",
        stories.jobs_are_done,
        (Patch(f"_settle_{_SLOT}", "'done', result", "'done', NULL"),),
        Kind.RESULT,
    ),
)
