"""Each check accepts what is legal and finds its breach, in twins of histories that differ in one detail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.script import SECOND, Script
from tests.chaos.violations import Kind

Twins = Callable[[bool], Script]
TWINS: list[tuple[Kind, Twins]] = []


def twins(kind: Kind) -> Callable[[Twins], Twins]:
    """Register a pair of histories: of `wrong` False nothing may be found, of True exactly this."""

    def register(twin: Twins) -> Twins:
        TWINS.append((kind, twin))
        return twin

    return register


@pytest.mark.parametrize(("kind", "twin"), TWINS, ids=[twin.__name__ for _, twin in TWINS])
def test_the_legal_twin_is_accepted(kind: Kind, twin: Twins) -> None:
    assert twin(False).found() == set()


@pytest.mark.parametrize(("kind", "twin"), TWINS, ids=[twin.__name__ for _, twin in TWINS])
def test_the_wrong_twin_is_caught(kind: Kind, twin: Twins) -> None:
    assert kind in twin(True).found()


def test_every_kind_of_violation_has_its_twins() -> None:
    assert {kind for kind, _ in TWINS} == set(Kind)


# Enqueue --------------------------------------------------------------------------------------------------------------


@twins(Kind.LOST)
def an_acknowledged_job_is_gone(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1, lost=not wrong)
    return script


@twins(Kind.LOST)
def a_committed_transaction_is_gone(wrong: bool) -> Script:
    script = Script()
    script.command("producer", "begin")
    script.enqueue(1)
    script.command("producer", "commit", lost=not wrong)
    return script


@twins(Kind.LOST)
def a_prepared_transaction_is_gone(wrong: bool) -> Script:
    script = Script()
    script.command("producer", "begin")
    script.enqueue(1)
    script.command("producer", "prepare", gid="g", lost=True)
    script.command("resolver", "commit_prepared" if wrong else "rollback_prepared", gid="g")
    return script


@twins(Kind.LOST)
def a_failed_job_has_no_further_attempt(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    lease = script.claim(1)
    script.reject(1, lease)
    script.archived(1, lease, "retry")
    if not wrong:
        script.wait(60)
        script.done(1, attempt=2)
    return script


@twins(Kind.GHOST)
def a_failed_enqueue_exists(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1, lost=not wrong, error="57014" if wrong else None)
    script.done(1)
    return script


@twins(Kind.GHOST)
def a_rolled_back_job_exists(wrong: bool) -> Script:
    script = Script()
    script.command("producer", "begin")
    script.enqueue(1)
    script.command("producer", "savepoint", name="s")
    script.enqueue(2)
    script.command("producer", "rollback_to", name="s")
    script.command("producer", "commit")
    script.done(1)
    if wrong:
        script.done(2)
    return script


@twins(Kind.GHOST)
def a_transaction_whose_session_was_lost_exists(wrong: bool) -> Script:
    script = Script()
    script.command("producer", "begin")
    script.enqueue(1)
    if not wrong:
        script.command("producer", "commit", lost=True)
    script.call("producer", "session", {"alone": False})
    script.done(1)
    return script


@twins(Kind.GHOST)
def a_job_that_nobody_enqueued_exists(wrong: bool) -> Script:
    script = Script()
    if not wrong:
        script.enqueue(1)
    script.done(1)
    return script


@twins(Kind.TORN)
def half_of_an_unknown_transaction_exists(wrong: bool) -> Script:
    script = Script()
    script.command("producer", "begin")
    script.enqueue(1)
    script.enqueue(2)
    script.command("producer", "commit", lost=True)
    script.done(1)
    if not wrong:
        script.done(2)
    return script


@twins(Kind.ENQUEUED_TWICE)
def one_enqueue_makes_two_jobs(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.enqueue(2)
    script.done(1)
    lease = script.claim(2, payload={"k": "j1" if wrong else "j2"})
    script.ack(2, lease)
    script.archived(2, lease, payload={"k": "j1" if wrong else "j2"})
    return script


@twins(Kind.ENQUEUED_TWICE)
def two_enqueues_get_the_same_id(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1, "j1")
    script.enqueue(1 if wrong else 2, "j2")
    script.done(1)
    script.done(2)
    return script


@twins(Kind.DIRTY_READ)
def a_job_is_handed_out_before_its_commit(wrong: bool) -> Script:
    script = Script()
    script.command("producer", "begin")
    script.enqueue(1)
    if not wrong:
        script.call("producer", "look", {})
        script.command("producer", "commit")
    script.done(1)
    if wrong:
        script.call("producer", "look", {})
        script.command("producer", "commit")
    return script


@twins(Kind.WRONG_QUEUE)
def a_claim_returns_a_job_of_another_queue(wrong: bool) -> Script:
    script = Script()
    script.call("admin", "create_queue", {"queue": "other"})
    script.enqueue(1, queue="other" if wrong else "q")
    script.done(1)
    return script


@twins(Kind.CHANGED)
def a_payload_changes(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    lease = script.claim(1, payload={"k": "j1", "more": 1} if wrong else {"k": "j1"})
    script.ack(1, lease)
    script.archived(1, lease)
    return script


@twins(Kind.CHANGED)
def the_headers_of_a_dead_letter_change(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1, headers={"trace": 1})
    lease = script.claim(1, headers={"trace": 1})
    script.reject(1, lease, "dead", retry=False)
    script.archived(1, lease, "dead", headers={"trace": 1})
    script.buried(1, 1, headers=None if wrong else {"trace": 1})
    return script


# Leases ---------------------------------------------------------------------------------------------------------------


@twins(Kind.TWO_LEASES)
def a_job_is_handed_out_while_it_is_held(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    first = script.claim(1)
    script.wait(10 if wrong else 60)
    script.done(1, "second", attempt=2)
    script.archived(1, first, "expired")
    return script


@twins(Kind.TWO_LEASES)
def an_extension_is_ignored(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    first = script.claim(1)
    script.extend(first, 300, lost=not wrong)
    script.wait(60)
    script.done(1, "second", attempt=2)
    script.archived(1, first, "expired")
    return script


@twins(Kind.TWO_LEASES)
def a_jump_of_the_clock_does_not_excuse_what_came_before(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    first = script.claim(1)
    if not wrong:
        script.jump(100)
        script.jump(0)
    script.done(1, "second", attempt=2)
    script.archived(1, first, "expired")
    if wrong:
        script.jump(100)
    return script


@twins(Kind.TWO_LEASES)
def only_a_crash_may_undo_a_claim(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.claim(1)
    if not wrong:
        script.call("conductor", "crash", {})
    script.done(1, "second")
    return script


@twins(Kind.TWO_LEASES)
def a_crash_does_not_undo_what_has_reached_the_disk(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.claim(1)
    if wrong:
        script.call("worker", "look", {})
        script.enqueue(2)
    script.call("conductor", "crash", {})
    script.done(1, "second")
    if wrong:
        script.done(2)
    return script


@twins(Kind.TWO_LEASES)
def only_a_claim_that_overlaps_may_have_come_first_and_been_undone(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    began = script.now
    lease = script.claim(1) if wrong else 0
    script.command("unknown", "begin")
    script.claim(1, client="unknown")
    script.command("unknown", "commit", lost=True)
    script.call("unknown", "session", {"alone": False})
    if not wrong:
        lease = script.claim(1, durable=True)
        times = script.clients["worker"][-1]["t"]
        times[0] = times[2] = began  # it waited for the lane all the while
    script.ack(1, lease)
    script.archived(1, lease)
    return script


@twins(Kind.AGAIN_AFTER_END)
def a_finished_job_is_handed_out_again(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.done(1)
    if wrong:
        script.wait(100)
        script.claim(1, client="second")
    return script


@twins(Kind.AFTER_DROP)
def a_job_outlives_its_queue(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.call("producer", "look", {})
    if not wrong:
        script.done(1)
        script.archive.clear()
    script.call("admin", "drop_queue", {"queue": "q"})
    script.call("admin", "create_queue", {"queue": "q"})
    if wrong:
        script.done(1)
    return script


@twins(Kind.LEASE_TWICE)
def a_lease_is_given_out_twice(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.enqueue(2)
    first = script.claim(1)
    second = script.claim(2, client="second", lease=first if wrong else None)
    for id, lease in ((1, first), (2, second)):
        script.ack(id, lease)
        script.archived(id, lease)
    return script


@twins(Kind.FOREIGN_LEASE)
def an_ack_under_the_lease_of_another_job_is_accepted(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.enqueue(2)
    first = script.claim(1)
    script.ack(2, first, error=None if wrong else "PQ001")
    if wrong:
        script.archived(2, first)
    else:
        script.done(2)
    script.ack(1, first)
    script.archived(1, first)
    return script


@twins(Kind.FOREIGN_LEASE)
def an_unknown_lease_is_extended(wrong: bool) -> Script:
    script = Script()
    script.extend(12345, 60, error=None if wrong else "PQ001")
    return script


@twins(Kind.LATE_EXTEND)
def an_ended_lease_is_extended(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    lease = script.claim(1)
    script.ack(1, lease)
    script.archived(1, lease)
    script.call("worker", "look", {})
    script.extend(lease, 60, error=None if wrong else "PQ001")
    return script


@twins(Kind.REFUSED)
def a_held_lease_is_refused(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    first = script.claim(1)
    script.wait(10 if wrong else 60)
    script.ack(1, first, error="PQ001")
    script.call("worker", "look", {})
    script.wait(60)
    script.done(1, "second", attempt=2)
    script.archived(1, first, "expired")
    return script


@twins(Kind.REFUSED)
def a_held_lease_is_left_out_of_a_batch(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.enqueue(2)
    lease = script.claim(1, 2)
    script.ack_many([1, 2], lease, [1] if wrong else [1, 2])
    script.archived(1, lease)
    if wrong:
        script.wait(60)
        script.archived(2, lease, "expired")
        script.done(2, "second", attempt=2)
    else:
        script.archived(2, lease)
    return script


@twins(Kind.REFUSED)
def the_extension_of_a_held_lease_is_refused(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    lease = script.claim(1)
    script.wait(10 if wrong else 60)
    script.extend(lease, 60, error="PQ001")
    script.call("worker", "look", {})
    script.wait(60)
    script.archived(1, lease, "expired")
    script.done(1, "second", attempt=2)
    return script


# Settle ---------------------------------------------------------------------------------------------------------------


@twins(Kind.SETTLED_TWICE)
def both_ends_of_an_attempt_are_accepted(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    lease = script.claim(1)
    script.ack(1, lease)
    script.reject(1, lease, error=None if wrong else "PQ001")
    script.archived(1, lease)
    return script


@twins(Kind.LATE_SETTLE)
def a_zombie_acknowledges(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    first = script.claim(1)
    script.wait(60)
    second = script.claim(1, attempt=2, client="second")
    script.ack(1, first, error=None if wrong else "PQ001")
    script.archived(1, first, "expired")
    script.ack(1, second, client="second")
    script.archived(1, second, attempt=2)
    return script


@twins(Kind.LATE_SETTLE)
def a_zombie_of_before_the_crash_acknowledges(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    first = script.claim(1)
    script.call("conductor", "crash", {})
    second = script.claim(1, client="second")
    script.ack(1, first, error=None if wrong else "PQ001")
    if not wrong:
        script.ack(1, second, client="second")
    script.archived(1, first if wrong else second)
    return script


@twins(Kind.END_LOST)
def an_acknowledgement_is_lost(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    first = script.claim(1)
    script.ack(1, first, lost=not wrong)
    script.wait(60)
    script.archived(1, first, "expired")
    script.done(1, "second", attempt=2)
    return script


@twins(Kind.END_LOST)
def a_rolled_back_acknowledgement_does_not_count(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    first = script.claim(1)
    script.command("worker", "begin")
    script.ack(1, first)
    script.command("worker", "commit" if wrong else "rollback")
    script.wait(60)
    script.archived(1, first, "expired")
    script.done(1, "second", attempt=2)
    return script


@twins(Kind.PHANTOM_END)
def a_refused_acknowledgement_has_taken_effect(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    first = script.claim(1)
    script.wait(60)
    script.ack(1, first, error="PQ001" if wrong else None)
    script.archived(1, first)
    return script


@twins(Kind.PHANTOM_END)
def a_job_is_done_by_nobody(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    if wrong:
        script.claim(1)
        script.archived(1, 101)
    else:
        script.done(1)
    return script


@twins(Kind.ARCHIVED_TWICE)
def an_attempt_is_archived_twice(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.done(1)
    if wrong:
        script.archived(1, 101)
    return script


@twins(Kind.RESULT)
def a_result_is_replaced(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    lease = script.claim(1)
    script.ack(1, lease, result={"sum": 3})
    script.archived(1, lease, result=None if wrong else {"sum": 3})
    return script


@twins(Kind.RESULT)
def a_real_worker_stores_the_result_of_another_job(wrong: bool) -> Script:
    script = Script()
    script.call("conductor", "unrecorded", {"queue": "q"})
    script.enqueue(1)
    script.archived(1, 101, result={"k": "j2" if wrong else "j1"})
    return script


@twins(Kind.EFFECT)
def an_effect_stays_although_the_acknowledgement_was_rolled_back(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    first = script.claim(1)
    script.command("worker", "begin")
    script.call("worker", "effect", {"id": 1, "lease": first}, timed=False)
    script.ack(1, first)
    script.command("worker", "commit", lost=True)
    script.wait(60)
    script.archived(1, first, "expired")
    script.done(1, "second", attempt=2)
    script.effects = [(1, first)] if wrong else []
    return script


@twins(Kind.EFFECT)
def an_effect_is_missing(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    first = script.claim(1)
    script.command("worker", "begin")
    script.call("worker", "effect", {"id": 1, "lease": first}, timed=False)
    script.ack(1, first)
    script.command("worker", "commit")
    script.archived(1, first)
    script.effects = [] if wrong else [(1, first)]
    return script


# Attempts -------------------------------------------------------------------------------------------------------------


@twins(Kind.TOO_MANY_ATTEMPTS)
def there_is_a_fourth_attempt_of_three(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    for attempt in range(1, 5 if wrong else 4):
        lease = script.claim(1, attempt=attempt)
        script.wait(60)
        script.archived(1, lease, "expired", attempt)
    script.buried(1, attempt)
    return script


@twins(Kind.ATTEMPT_NUMBERS)
def an_attempt_is_skipped(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    first = script.claim(1)
    script.wait(60)
    script.archived(1, first, "expired")
    script.done(1, attempt=3 if wrong else 2)
    return script


@twins(Kind.ATTEMPT_NUMBERS)
def an_attempt_is_repeated(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    first = script.claim(1)
    script.wait(60)
    script.archived(1, first, "expired")
    script.done(1, attempt=1 if wrong else 2)
    return script


@twins(Kind.ATTEMPT_NUMBERS)
def only_a_redrive_begins_anew(wrong: bool) -> Script:
    script = Script(max_attempts=1)
    script.enqueue(1)
    first = script.claim(1, max_attempts=1)
    script.reject(1, first, "dead")
    script.archived(1, first, "dead")
    if not wrong:
        script.call("admin", "redrive", {"queue": "q"}, [1])
    second = script.claim(1, max_attempts=1)
    script.ack(1, second)
    script.archived(1, second)
    return script


@twins(Kind.RELEASE_COUNTED)
def a_release_costs_an_attempt(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.release(1, script.claim(1))
    script.done(1, attempt=2 if wrong else 1)
    return script


@twins(Kind.EARLY_DEATH)
def a_job_dies_although_it_has_attempts_left(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    lease = script.claim(1)
    script.reject(1, lease, "dead", retry=wrong)
    script.archived(1, lease, "dead")
    script.buried(1, 1)
    return script


@twins(Kind.EARLY_RETRY)
def a_retry_comes_before_retry_in(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    lease = script.claim(1)
    script.reject(1, lease, retry_in="30 seconds")
    script.archived(1, lease, "retry")
    script.wait(20 if wrong else 30)
    script.done(1, attempt=2)
    return script


@twins(Kind.EARLY_RETRY)
def a_retry_comes_before_the_backoff(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    lease = script.claim(1)
    script.reject(1, lease)
    script.archived(1, lease, "retry")
    script.wait(0 if wrong else 5)
    script.done(1, attempt=2)
    return script


@twins(Kind.EARLY_RUN)
def a_delayed_job_runs_at_once(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1, delay="30 seconds")
    script.wait(0 if wrong else 30)
    script.done(1)
    return script


@twins(Kind.EARLY_RUN)
def a_job_runs_before_its_time(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1, run_at="1970-01-01T00:18:00+00:00")
    script.wait(0 if wrong else 1080 - script.now / SECOND)
    script.done(1)
    return script


# Order ----------------------------------------------------------------------------------------------------------------


@twins(Kind.ORDER)
def an_older_job_is_overtaken(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.call("producer", "look", {})
    script.enqueue(2)
    for id in [2, 1] if wrong else [1, 2]:
        script.done(id)
    return script


@twins(Kind.ORDER)
def an_older_job_is_overtaken_within_its_transaction(wrong: bool) -> Script:
    script = Script()
    script.call("producer", "enqueue_many", {"queue": "q", "payloads": [{"k": "j1"}, {"k": "j2"}]}, [1, 2])
    for id in [2, 1] if wrong else [1, 2]:
        script.done(id)
    return script


@twins(Kind.ORDER)
def whose_transaction_began_before_may_come_first(wrong: bool) -> Script:
    script = Script()
    script.command("late", "begin")
    if not wrong:
        script.enqueue(3, client="late")
    script.enqueue(1)
    script.call("producer", "look", {})
    if wrong:
        script.command("late", "rollback")
    script.enqueue(2, client="late")
    if not wrong:
        script.command("late", "commit")
    for id in [2, 1] if wrong else [3, 2, 1]:
        script.done(id)
    return script


@twins(Kind.ORDER)
def a_crash_may_undo_an_order_that_nobody_saw(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.call("producer", "look", {})
    script.enqueue(2)
    if not wrong:
        script.claim(1, lost=True)
        script.call("worker", "session", {"alone": True})
    script.claim(2)
    if not wrong:
        script.call("conductor", "crash", {})
    script.done(1)
    script.wait(100)
    script.done(2)
    return script


@twins(Kind.PRIORITY)
def a_more_urgent_job_is_overtaken(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1, priority=-5)
    script.call("producer", "look", {})
    script.enqueue(2)
    for id in [2, 1] if wrong else [1, 2]:
        lease = script.claim(id, priority={1: -5, 2: 0}[id])
        script.ack(id, lease)
        script.archived(id, lease, priority={1: -5, 2: 0}[id])
    return script


@twins(Kind.PAUSED)
def a_paused_queue_hands_out_a_job(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.call("admin", "pause", {"queue": "q"}, [None])
    script.call("admin", "look", {})
    if not wrong:
        script.call("admin", "resume", {"queue": "q"}, [None], lost=True)
    script.done(1)
    return script


# The end --------------------------------------------------------------------------------------------------------------


@twins(Kind.STUCK)
def a_job_is_left(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    if wrong:
        script.remains(1)
    else:
        script.done(1)
    return script


@twins(Kind.NOT_ONE_PLACE)
def a_job_is_done_and_dead(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.done(1)
    if wrong:
        script.buried(1, 3)
    return script


@twins(Kind.DONE_TWICE)
def a_job_is_done_twice(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    first = script.claim(1)
    script.wait(60)
    script.ack(1, first, lost=True)
    script.archived(1, first, "done" if wrong else "expired")
    script.done(1, "second", attempt=2)
    return script


@twins(Kind.STATUS)
def job_status_is_wrong(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.done(1)
    script.states = {1: "ready" if wrong else "done"}
    return script


@twins(Kind.STATUS)
def stats_count_what_is_not_there(wrong: bool) -> Script:
    script = Script()
    script.counts = {("q", "running"): 1} if wrong else {}
    return script


@twins(Kind.ERROR)
def somebody_gets_an_internal_error(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1, error="XX000" if wrong else "57014")
    return script


@twins(Kind.LEAK)
def a_session_keeps_a_lock(wrong: bool) -> Script:
    script = Script()
    script.call("conductor", "leak" if wrong else "look", {})
    return script


@twins(Kind.CRASH)
def the_server_crashes_by_itself(wrong: bool) -> Script:
    script = Script()
    script.call("conductor", "crashed_by_itself" if wrong else "crash", {})
    return script


# Unique keys ----------------------------------------------------------------------------------------------------------


@twins(Kind.UNIQUE)
def two_jobs_of_a_key_are_live_at_once(wrong: bool) -> Script:
    script = Script()
    script.unique(1, "key")
    if not wrong:
        script.done(1)
    script.unique(2, "key")
    if wrong:
        script.done(1)
    script.done(2)
    return script


@twins(Kind.UNIQUE)
def a_job_that_has_ended_holds_its_key(wrong: bool) -> Script:
    script = Script()
    script.unique(1, "key")
    if wrong:
        script.done(1)
        script.call("worker", "look", {})  # so that the commit of its ack is known
    script.unique(1, "key", token="again", inserted=False)
    if not wrong:
        script.done(1)
    return script


@twins(Kind.UNIQUE)
def a_repeat_is_told_of_a_job_with_another_key(wrong: bool) -> Script:
    script = Script()
    script.unique(1, "key")
    script.unique(1, "other" if wrong else "key", token="again", inserted=False)
    script.done(1)
    return script


# Groups ---------------------------------------------------------------------------------------------------------------


@twins(Kind.GROUP)
def two_jobs_of_a_group_run_at_once(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1, group_key="g")
    script.enqueue(2, group_key="g" if wrong else "h")
    first = script.claim(1)
    script.call("worker", "look", {})  # so that the commit of its claim is known
    second = script.claim(2)
    for id, lease in ((1, first), (2, second)):
        script.ack(id, lease)
        script.archived(id, lease)
    return script


@twins(Kind.GROUP)
def a_group_goes_on_while_its_job_waits_for_another_attempt(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1, group_key="g")
    script.enqueue(2, group_key="g" if wrong else "h")
    first = script.claim(1)
    script.reject(1, first)
    script.archived(1, first, kind="retry")
    script.done(2)
    script.wait(11)
    script.done(1, attempt=2)
    return script


@twins(Kind.ORDER)
def a_job_is_overtaken_within_its_group(wrong: bool) -> Script:
    script = Script(shards=4)
    script.enqueue(1, group_key="g")
    script.enqueue(2, group_key="g" if wrong else "h")
    script.done(2)
    script.done(1)
    return script


@twins(Kind.AFTER)
def a_job_runs_before_the_one_it_waits_for(wrong: bool) -> Script:
    script = Script(shards=4)
    script.enqueue(1)
    script.enqueue(2, after=[1])
    for id in (2, 1) if wrong else (1, 2):
        script.done(id)
    return script


@twins(Kind.AFTER)
def a_job_runs_although_the_one_it_waits_for_is_dead(wrong: bool) -> Script:
    script = Script(shards=4)
    script.enqueue(1)
    script.enqueue(2, after=[1], **({} if wrong else {"on_dead": "run"}))
    lease = script.claim(1)
    script.reject(1, lease, "dead", retry=False)
    script.archived(1, lease, kind="dead")
    script.buried(1, attempt=1)
    more: dict[str, Any] = {} if wrong else {"headers": {"after": {"done": 0, "failed": 1}}}
    lease = script.claim(2, **more)
    script.ack(2, lease)
    script.archived(2, lease, **more)
    return script


@twins(Kind.AFTER)
def a_job_runs_before_the_last_attempt_of_the_one_it_waits_for(wrong: bool) -> Script:
    """Legal if nobody was told of that attempt, and its lease has run out."""
    script = Script(shards=4)
    script.enqueue(1, max_attempts=2)
    script.enqueue(2, after=[1], on_dead="run")
    first = script.claim(1, max_attempts=2)
    script.reject(1, first, retry_in="1 second")
    script.archived(1, first, "retry")
    script.wait(60)
    if not wrong:
        last = script.claim(1, attempt=2, max_attempts=2, lost=True)
        script.wait(60)
        script.archived(1, last, "expired", attempt=2)
        script.buried(1, attempt=2)
    more: dict[str, Any] = {"headers": {"after": {"done": 0, "failed": 1}}}
    lease = script.claim(2, **more)
    script.ack(2, lease)
    script.archived(2, lease, **more)
    if wrong:
        last = script.claim(1, attempt=2, max_attempts=2)
        script.ack(1, last)
        script.archived(1, last, attempt=2)
    return script


@twins(Kind.EARLY_DEATH)
def a_job_dies_although_the_one_it_waits_for_is_done(wrong: bool) -> Script:
    script = Script(shards=4)
    script.enqueue(1)
    script.enqueue(2, after=[1])
    script.done(1)
    if wrong:
        script.buried(2, attempt=0)
    else:
        script.done(2)
    return script


@twins(Kind.CANCELLED)
def a_cancelled_job_is_handed_out(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    script.call("producer", "cancel", {"id": 1}, ["cancelled" if wrong else "finished"])
    script.call("producer", "look", {})
    script.done(1)
    return script


@twins(Kind.END_LOST)
def a_released_job_is_cancelled(wrong: bool) -> Script:
    """Legal if somebody asked for it."""
    script = Script()
    script.enqueue(1)
    lease = script.claim(1)
    if not wrong:
        script.call("producer", "cancel", {"id": 1}, ["requested"])
    script.release(1, lease)
    script.archived(1, lease, kind="cancelled")
    return script


@twins(Kind.EARLY_RUN)
def a_snoozed_job_comes_back_too_early(wrong: bool) -> Script:
    script = Script()
    script.enqueue(1)
    lease = script.claim(1)
    script.call("worker", "snooze", {"id": 1, "lease": lease, "delay": "1 hour" if wrong else "1 second"}, [None])
    script.done(1)
    return script


@twins(Kind.GHOST)
def a_job_that_was_not_added_is_there(wrong: bool) -> Script:
    script = Script()
    script.unique(1, "key")
    script.unique(1, "key", token="j2", inserted=False)
    script.done(1)
    if wrong:
        script.done(2)
    return script
