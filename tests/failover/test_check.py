"""The comparison itself: a true story passes, and each single flaw is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from tests.failover.check import Done, Final, Losses, Verdict, compare
from tests.failover.history import Event


@dataclass(frozen=True)
class Story:
    """Two jobs of a producer in transactions, one of a simple producer; the consumer did one, a worker the others."""

    events: tuple[Event, ...] = (
        Event("enqueue", "ok", "producer", 1.0, "a", 1, txn=(1, 10)),
        Event("enqueue", "ok", "producer", 2.0, "b", 2, txn=(1, 11)),
        Event("enqueue", "ok", "simple", 3.0, "c", 3),
        Event("enqueue", "undone", "producer", 3.0, "x", 4, txn=(1, 12)),
        Event("enqueue", "unknown", "producer", 3.0, "y"),
        Event("run", "ok", "worker", 4.0, "b", 2, 200),
        Event("run", "ok", "worker", 4.0, "c", 3, 200),
        Event("ack", "ok", "worker", 5.0, id=2),
        Event("ack", "ok", "worker", 5.0, id=3),
        Event("ack", "ok", "consumer", 6.0, id=1, lease=100, txn=(1, 13)),
        Event("ack", "undone", "consumer", 6.0, id=2, lease=101),
    )
    done: tuple[Done, ...] = (Done(1, 100, "consumer", "a"), Done(2, 200, "worker", "b"), Done(3, 200, "worker", "c"))
    requests: frozenset[str] = frozenset("ab")
    effects: tuple[tuple[int, int], ...] = ((1, 100),)
    losses: Losses = field(default_factory=Losses)

    def told(self, *more: Event) -> Story:
        return replace(self, events=(*self.events, *more))

    def without(self, id: int) -> Story:
        """The same, but the database knows nothing of this job."""
        done = tuple(done for done in self.done if done.id != id)
        gone = {done.tag for done in self.done if done.id == id}
        effects = tuple(effect for effect in self.effects if effect[0] != id)
        return replace(self, done=done, requests=self.requests - gone, effects=effects)

    def losing(self, *txns: int, spans: tuple[tuple[float, float], ...] = ()) -> Story:
        return replace(self, losses=Losses(frozenset((1, xid) for xid in txns), spans))

    def compare(self) -> Verdict:
        return compare(self.events, Final(self.done, self.requests, self.effects), self.losses)


def test_a_true_story_passes() -> None:
    verdict = Story().compare()
    assert verdict == Verdict(jobs=3, acks=3)


def test_an_unknown_enqueue_may_have_happened() -> None:
    story = Story()
    assert not replace(story, done=(*story.done, Done(9, 900, "worker", "y"))).compare().broken


def test_what_was_not_on_the_standby_may_be_lost_and_must_be() -> None:
    assert Story().without(1).compare().lost == 1
    verdict = Story().without(1).losing(10, 13).compare()
    assert (verdict.lost, verdict.broken) == (1, [])
    verdict = Story().without(3).losing(spans=((2.5, 9.0),)).compare()
    assert (verdict.lost, verdict.broken) == (1, [])
    assert "its transaction is lost, but the job is there" in Story().losing(10).compare().broken[0]


def test_an_id_may_come_back_for_another_job_if_its_first_job_is_lost() -> None:
    again = Story().without(1).told(Event("enqueue", "ok", "producer", 7.0, "d", 1, txn=(2, 10)))
    again = replace(again, done=(*again.done, Done(1, 300, "worker", "d")), requests=again.requests | {"d"})
    assert again.losing(10, 13).compare().broken == []
    assert again.compare().broken


@pytest.mark.parametrize(
    ("tell", "finding"),
    [
        (lambda s: s.without(1), "job lost"),
        (lambda s: s.without(3), "job lost"),
        (lambda s: replace(s, requests=s.requests - {"a"}), "half of a transaction"),
        (lambda s: replace(s, done=(*s.done, Done(4, 400, "worker", "x"))), "rolled back, but there"),
        (lambda s: replace(s, done=(*s.done, Done(9, 900, "worker", "b"))), "2 jobs were done for b"),
        (lambda s: replace(s, done=(*s.done, Done(9, 900, "worker", "z"))), "nobody has enqueued z"),
        (lambda s: s.told(Event("enqueue", "ok", "simple", 7.0, "y", 3)), "id 3 was given to 2 jobs"),
        (
            lambda s: replace(s, done=(Done(1, 100, "consumer", "b"), Done(2, 200, "worker", "a"), s.done[2])),
            "id 1 is b",
        ),
        (lambda s: replace(s, done=(Done(1, 101, "consumer", "a"), *s.done[1:]), effects=((1, 101),)), "ack lost"),
        (lambda s: replace(s, done=(*s.done[:2], Done(3, 300, "other", "c"))), "ack lost"),
        (lambda s: s.losing(13), "its transaction is lost, but the ack is there"),
        (lambda s: replace(s, done=(*s.done, Done(2, 201, "worker", "b"))), "job 2 was done 2 times"),
        (lambda s: s.told(Event("ack", "ok", "other", 7.0, id=2)), "job 2 was done 1 times, acknowledged 2 times"),
        (lambda s: replace(s, effects=()), "acks and effects do not go together"),
        (lambda s: replace(s, effects=(*s.effects, (2, 101))), "acks and effects do not go together"),
        (lambda s: s.told(Event("run", "ok", "other", 7.0, "b", 2, 200)), "lease 200 was given to"),
    ],
)
def test_each_flaw_is_found(tell: Callable[[Story], Story], finding: str) -> None:
    broken = tell(Story()).compare().broken
    assert any(finding in flaw for flaw in broken), broken
