"""The check at the end of a load run: it finds what it is there to find."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.load import database
from tests.load.check import check
from tests.load.tally import Tally
from tests.sql.support import Connection, ack, claim, create, enqueue, retire_all

IDS = [3, 70_000, 1, 200_001]


def tally(*ids: int) -> Tally:
    found = Tally()
    found.add(ids)
    return found


def test_a_clean_run_has_no_violations() -> None:
    verdict = check(tally(*IDS), tally(*reversed(IDS)), tally(*IDS), {"ready": 0})
    assert (verdict.enqueued, verdict.done, verdict.lost, verdict.doubled, verdict.violations) == (4, 4, 0, 0, [])


@pytest.mark.parametrize(
    ("enqueued", "done", "archived", "left", "lost", "doubled", "violation"),
    [
        ([3], [], [], {}, 1, 0, "1 ids were enqueued and never done: 3"),
        ([3, 5], [3], [3, 5], {}, 1, 0, "1 ids were enqueued and never done: 5"),
        ([3], [3, 3], [3], {}, 0, 1, "1 ids were acked twice with effect: 3"),
        ([3], [3], [3, 3], {}, 0, 1, "1 ids are archived as done twice: 3"),
        ([3], [3], [], {}, 1, 0, "1 ids were acked and are not in the archive: 3"),
        ([3, 5], [3, 5], [3, 6], {}, 1, 0, "1 ids were acked and are not in the archive: 5"),
        ([], [3], [3], {}, 0, 0, "1 ids were done and never enqueued: 3"),
        ([3], [3], [3, 4], {}, 0, 0, "1 ids are archived as done and were never acked: 4"),
        ([3, 3], [3], [3], {}, 0, 0, "1 ids were given out twice by enqueue: 3"),
        ([3], [3], [3], {"ready": 0, "dead": 2}, 0, 0, "2 jobs are still dead"),
    ],
)
def test_each_kind_of_violation_is_found(
    enqueued: list[int],
    done: list[int],
    archived: list[int],
    left: dict[str, int],
    lost: int,
    doubled: int,
    violation: str,
) -> None:
    verdict = check(tally(*enqueued), tally(*done), tally(*archived), left)
    assert violation in verdict.violations
    assert (verdict.lost, verdict.doubled) == (lost, doubled)


def test_a_long_list_of_ids_is_cut() -> None:
    (violation,) = check(tally(*range(1, 1001)), tally(*range(1, 1001)), tally(), {}).violations
    assert violation.startswith("1000 ids were acked and are not in the archive: 1, 2, 3")
    assert violation.endswith("20, …")


def test_tallies_of_several_processes_add_up(tmp_path: Path) -> None:
    for name, some in {"a": [1, 2], "b": [2, 100_000], "c": []}.items():
        tally(*some).save(tmp_path / name)
    total = Tally.load(tmp_path.iterdir())
    assert (total.total(), total.distinct()) == (4, 3)
    assert check(total, total, total, {}).doubled == 1


def test_a_job_that_the_archive_lost_or_doubled_is_found(db: Connection) -> None:
    create(db)
    given = tally(*enqueue(db, 50))
    done = tally(*ack(db, claim(db, 50)))
    retire_all(db)
    assert not check(given, done, database.archived(db), database.waiting(db)).violations

    db.execute("INSERT INTO pgq.archive SELECT * FROM pgq.archive WHERE id = 7")
    db.execute("DELETE FROM pgq.archive WHERE id = 9")
    verdict = check(given, done, database.archived(db), database.waiting(db))
    assert (verdict.lost, verdict.doubled) == (1, 1)


def test_a_job_that_is_left_is_found(db: Connection) -> None:
    create(db)
    given = tally(*enqueue(db, 3))
    assert len(claim(db, 1)) == 1
    assert check(given, tally(), database.archived(db), database.waiting(db)).violations == [
        "3 ids were enqueued and never done: 1, 2, 3",
        "2 jobs are still ready",
        "1 jobs are still running",
    ]
