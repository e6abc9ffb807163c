"""What a cron line means: by runs worked out by hand, on days of 23 and 25 hours, and against brute force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cluster import Cluster
from tests.conftest import fresh_database
from tests.sql.support import Connection, column, refused

UTC = timezone.utc
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def db(cluster: Cluster, template: str) -> Iterator[Connection]:
    """Nothing here changes anything, so one database does for all."""
    for dsn in fresh_database(cluster, template):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("SET timezone = 'Pacific/Marquesas'")  # which must not matter
            yield connection


def next_runs(db: Connection, line: str, zone: str, after: datetime, n: int = 5) -> list[datetime]:
    return column(db, "SELECT pgq.next_runs(%s, %s, %s, %s)", line, zone, n, after)


def local(zone: str, text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def on_the_wall(zone: str, runs: list[datetime]) -> list[str]:
    """The times that the clocks of a zone show, with their distance from UTC."""
    return [run.astimezone(ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M:%S%z") for run in runs]


# Lines ----------------------------------------------------------------------------------------------------------------

# After Thursday, 1 January 2026, 00:00:00 UTC.
LINES = {
    "* * * * *": "2026-01-01 00:01, 2026-01-01 00:02, 2026-01-01 00:03",
    "* * * * * *": "2026-01-01 00:00:01, 2026-01-01 00:00:02",
    "*/20 59 23 * * *": "2026-01-01 23:59, 2026-01-01 23:59:20, 2026-01-01 23:59:40, 2026-01-02 23:59",
    "30 0 12 * * *": "2026-01-01 12:00:30, 2026-01-02 12:00:30",
    "  0\t0 * *  * ": "2026-01-02 00:00, 2026-01-03 00:00",
    "00 09 * * *": "2026-01-01 09:00",
    "*/25 * * * *": "2026-01-01 00:25, 2026-01-01 00:50, 2026-01-01 01:00",
    "5/25 * * * *": "2026-01-01 00:05, 2026-01-01 00:30, 2026-01-01 00:55, 2026-01-01 01:05",
    "*/60 * * * *": "2026-01-01 01:00, 2026-01-01 02:00",
    "10-30/10 3,1 * * *": "2026-01-01 01:10, 2026-01-01 01:20, 2026-01-01 01:30, 2026-01-01 03:10",
    "0-1,5-5,1 8 * * *": "2026-01-01 08:00, 2026-01-01 08:01, 2026-01-01 08:05, 2026-01-02 08:00",
    "59 23 31 12 *": "2026-12-31 23:59, 2027-12-31 23:59",
    "0 0 31 * *": "2026-01-31 00:00, 2026-03-31 00:00, 2026-05-31 00:00",
    "0 0 1 jan,JUL *": "2026-07-01 00:00, 2027-01-01 00:00",
    "0 0 15 Feb-apr *": "2026-02-15 00:00, 2026-03-15 00:00, 2026-04-15 00:00, 2027-02-15 00:00",
    "0 0 1 */5 *": "2026-06-01 00:00, 2026-11-01 00:00, 2027-01-01 00:00",
    "0 0 * * 0": "2026-01-04 00:00, 2026-01-11 00:00",
    "0 0 * * 7": "2026-01-04 00:00, 2026-01-11 00:00",
    "0 0 * * Sun": "2026-01-04 00:00, 2026-01-11 00:00",
    "0 0 * * MON-FRI": "2026-01-02 00:00, 2026-01-05 00:00",
    "0 0 * * 5-7": "2026-01-02 00:00, 2026-01-03 00:00, 2026-01-04 00:00, 2026-01-09 00:00",
    "0 0 * * fri-sun": "2026-01-02 00:00, 2026-01-03 00:00, 2026-01-04 00:00, 2026-01-09 00:00",
    "0 0 * * 1/2": "2026-01-02 00:00, 2026-01-05 00:00, 2026-01-07 00:00",
    # Both fields for days are restricted: either of them is enough.
    "0 0 13 * 5": "2026-01-02 00:00, 2026-01-09 00:00, 2026-01-13 00:00, 2026-01-16 00:00",
    "0 0 30 2 1": "2026-02-02 00:00, 2026-02-09 00:00",
    # One of them begins with a star: both must match. The first Monday of a month; the 13th if on Friday or Sunday.
    "0 0 */31,1-7 * MON": "2026-01-05 00:00, 2026-02-02 00:00, 2026-03-02 00:00",
    "0 0 13 * */7,5": "2026-02-13 00:00, 2026-03-13 00:00, 2026-09-13 00:00",
    # Rare days.
    "0 0 29 2 *": "2028-02-29 00:00, 2032-02-29 00:00",
    "0 0 29 2 */7": "2032-02-29 00:00, 2060-02-29 00:00, 2088-02-29 00:00, 2128-02-29 00:00",
    "@yearly": "2027-01-01 00:00, 2028-01-01 00:00",
    "@annually": "2027-01-01 00:00, 2028-01-01 00:00",
    "@monthly": "2026-02-01 00:00, 2026-03-01 00:00",
    "@weekly": "2026-01-04 00:00, 2026-01-11 00:00",
    "@daily": "2026-01-02 00:00, 2026-01-03 00:00",
    " @Midnight ": "2026-01-02 00:00, 2026-01-03 00:00",
    "@HOURLY": "2026-01-01 01:00, 2026-01-01 02:00",
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_runs_at_the_times_worked_out_by_hand(db: Connection, line: str) -> None:
    expected = [datetime.fromisoformat(time).replace(tzinfo=UTC) for time in LINES[line].split(", ")]
    assert next_runs(db, line, "UTC", datetime(2026, 1, 1, tzinfo=UTC), len(expected)) == expected


def test_a_run_is_later_than_the_time_asked_for_even_if_by_less_than_a_second(db: Connection) -> None:
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC)
    for after in [noon - DAY, noon - MINUTE, noon - timedelta(microseconds=1)]:
        assert next_runs(db, "0 12 * * *", "UTC", after, 1) == [noon]
    for after in [noon, noon + timedelta(microseconds=1), noon + MINUTE]:
        assert next_runs(db, "0 12 * * *", "UTC", after, 1) == [noon + DAY]


def test_the_time_is_now_unless_another_one_is_given(db: Connection) -> None:
    query = "SELECT n - now() FROM pgq.next_runs('* * * * *') n"
    assert timedelta(0) < column(db, query)[0] < timedelta(seconds=80)
    assert len(column(db, query)) == 5
    assert len(column(db, "SELECT pgq.next_runs('* * * * *', n => 1000)")) == 1000


# Errors ---------------------------------------------------------------------------------------------------------------

NEVER = "none of the months has such a day, so it would never run."
WRONG = {
    "60 * * * *": 'Field 1 (minute), character 1: "60" is not 0 to 59.',
    "* 24 * * *": 'Field 2 (hour), character 3: "24" is not 0 to 23.',
    "* * 0 * *": 'Field 3 (day of month), character 5: "0" is not 1 to 31.',
    "* * 32 * *": 'Field 3 (day of month), character 5: "32" is not 1 to 31.',
    "* * * 13 *": 'Field 4 (month), character 7: "13" is not 1 to 12, or jan to dec.',
    "* * * * 8": 'Field 5 (day of week), character 9: "8" is not 0 to 7, or sun to sat.',
    "60 * * * * *": 'Field 1 (second), character 1: "60" is not 0 to 59.',
    "0 0 24 * * *": 'Field 3 (hour), character 5: "24" is not 0 to 23.',
    "* * * MON *": 'Field 4 (month), character 7: "mon" is not 1 to 12, or jan to dec.',
    "* * * * MON,TOE": 'Field 5 (day of week), character 13: "toe" is not 0 to 7, or sun to sat.',
    "*  *\t * * monday": 'Field 5 (day of week), character 11: "monday" is not 0 to 7, or sun to sat.',
    "1,2,99 * * * *": 'Field 1 (minute), character 5: "99" is not 0 to 59.',
    "1-60 * * * *": 'Field 1 (minute), character 3: "60" is not 0 to 59.',
    "1-5,30-20/2 * * * *": 'Field 1 (minute), character 8: "20" comes before the beginning of the range.',
    "* 22-2 * * *": 'Field 2 (hour), character 6: "2" comes before the beginning of the range.',
    "*/0 * * * *": "Field 1 (minute), character 3: a step of 0 is not 1 to 60.",
    "*/90 * * * *": "Field 1 (minute), character 3: a step of 90 is not 1 to 60.",
    "0 0-12/25 * * *": "Field 2 (hour), character 8: a step of 25 is not 1 to 24.",
    "*/99999999999999999999 * * * *": "Field 1 (minute), character 3: a step of 99999999999999999999 is not 1 to 60.",
    "99999999999999999999 * * * *": 'Field 1 (minute), character 1: "99999999999999999999" is not 0 to 59.',
    "*/ * * * *": "Field 1 (minute), character 3: something is missing.",
    "1- * * * *": "Field 1 (minute), character 3: something is missing.",
    "1, * * * *": "Field 1 (minute), character 3: something is missing.",
    "* ,1 * * *": 'Field 2 (hour), character 3: "," is not expected here.',
    "*-5 * * * *": 'Field 1 (minute), character 2: "-" is not expected here.',
    "1-2-3 * * * *": 'Field 1 (minute), character 4: "-" is not expected here.',
    "*/2/2 * * * *": 'Field 1 (minute), character 4: "/" is not expected here.',
    "-1 * * * *": 'Field 1 (minute), character 1: "-" is not expected here.',
    "1.5 * * * *": 'Field 1 (minute), character 2: "." is not expected here.',
    "0 0 ? * *": 'Field 3 (day of month), character 5: "?" is not expected here.',
    "0 0 L * *": 'Field 3 (day of month), character 5: "l" is not 1 to 31.',
    "0 0 * * 5#2": 'Field 5 (day of week), character 10: "#" is not expected here.',
    "0 0 * * *\n": 'Field 5 (day of week), character 10: "\n" is not expected here.',
    "0 0 ٣ * *": 'Field 3 (day of month), character 5: "٣" is not expected here.',
    "": "Field 1, character 1: the line ends after 0 fields.",
    " \t": "Field 1, character 3: the line ends after 0 fields.",
    "* * * *": "Field 5, character 8: the line ends after 4 fields.",
    "* * * * * * *": "Field 7, character 13: there are at most six fields.",
    "@every 5m": 'Field 1, character 1: "@every" is no name of a cron line.',
    " @reboot": 'Field 1, character 2: "@reboot" is no name of a cron line.',
    # What would never run.
    "0 0 30 2 *": "Field 3 (day of month), character 5: " + NEVER,
    "0 0 0 31 4,6,SEP *": "Field 4 (day of month), character 7: " + NEVER,
    "0 0 30,31 feb */2": "Field 3 (day of month), character 5: " + NEVER,
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_with_a_line_is_said_with_its_place(db: Connection, line: str) -> None:
    with refused("22023") as caught:
        next_runs(db, line, "UTC", datetime(2026, 1, 1, tzinfo=UTC))
    assert caught.value.diag.message_detail == WRONG[line]
    with refused("22023") as caught:
        db.execute("SELECT pgq.schedule('s', %s, 'no such queue')", [line])
    assert caught.value.diag.message_detail == WRONG[line]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (
            "* 24 * * *",
            "Allowed for the hour: 0 to 23, *, ranges as in a-b, steps as in */2 or a-b/2 (1 to 24), and lists",
        ),
        ("* * * x *", "Allowed for the month: 1 to 12, or jan to dec, *, "),
        ("* 22-2 * * *", "Write two ranges: 22-23,0-2."),
        ("0 0 30 2 *", "February has 29 days at most, April, June, September and November have 30."),
        (
            "1 2 3",
            "Five fields: minute, hour, day of month, month, day of week; six: a second before them; or one of @y",
        ),
    ],
)
def test_the_hint_says_what_is_allowed(db: Connection, line: str, hint: str) -> None:
    with refused("22023") as caught:
        next_runs(db, line, "UTC", datetime(2026, 1, 1, tzinfo=UTC))
    assert (caught.value.diag.message_hint or "").startswith(hint)


@pytest.mark.parametrize(
    "arguments",
    ["repeat('0,', 500) || '0 * * * *'"]
    + [f"'* * * * *', n => {n}" for n in ["0", "-1", "1001"]]
    + [
        f"'* * * * *', after => '{time}'"
        for time in ["infinity", "-infinity", "1899-12-31", "10000-01-01", "4713-01-01 BC"]
    ]
    + [
        f"'* * * * *', '{zone}'"
        for zone in ["", "Nowhere/Gone", "Europe", "europe/berlin ", "CET", "EST", "PST", "BST"]
    ]
    + [f"'* * * * *', '{zone}'" for zone in ["UTC+3", "<+03>-3", "+3", "Foo3", "posixrules/../UTC"]],
)
def test_bad_arguments_are_refused(db: Connection, arguments: str) -> None:
    with refused("22023"):
        column(db, f"SELECT pgq.next_runs({arguments})")


@pytest.mark.parametrize("arguments", ["NULL", "'* * * * *', NULL", "'* * * * *', n => NULL"])
def test_null_is_refused(db: Connection, arguments: str) -> None:
    with refused("22004"):
        column(db, f"SELECT pgq.next_runs({arguments})")


@pytest.mark.parametrize("zone", ["utc", "GMT", "europe/BERLIN", "Etc/GMT+3", "US/Eastern", "EST5EDT"])
def test_time_zones_are_known_by_their_full_names_in_any_case(db: Connection, zone: str) -> None:
    assert next_runs(db, "* * * * *", zone, datetime(2026, 1, 1, tzinfo=UTC))


# Days on which the clocks are put forward or back ---------------------------------------------------------------------

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"

DAYS = [
    # There is no 02:30: just after the gap, once for all times in it.
    (BERLIN, "30 2 * * *", "2026-03-28 03:00", ["2026-03-29 03:00:00+0200", "2026-03-30 02:30:00+0200"]),
    (BERLIN, "*/10 2 * * *", "2026-03-28 03:00", ["2026-03-29 03:00:00+0200", "2026-03-30 02:00:00+0200"]),
    (BERLIN, "0 1-4 * * *", "2026-03-29 00:00", [f"2026-03-29 {t}:00:00+{o}" for t, o in
        [("01", "0100"), ("03", "0200"), ("04", "0200")]]),
    (BERLIN, "30 2 29 3 *", "2026-01-01 00:00", ["2026-03-29 03:00:00+0200", "2027-03-29 02:30:00+0200"]),
    (NEW_YORK, "30 2 * * *", "2026-03-07 03:00", ["2026-03-08 03:00:00-0400", "2026-03-09 02:30:00-0400"]),
    (LORD_HOWE, "15 2 * * *", "2026-10-03 03:00", ["2026-10-04 02:30:00+1100", "2026-10-05 02:15:00+1100"]),
    (LORD_HOWE, "10,20,30 2 * * *", "2026-10-04 00:00", ["2026-10-04 02:30:00+1100", "2026-10-05 02:10:00+1100"]),
    # There is 02:30 twice: the first time.
    (BERLIN, "30 2 * * *", "2026-10-24 03:00", ["2026-10-25 02:30:00+0200", "2026-10-26 02:30:00+0100"]),
    (BERLIN, "0 2,3 * * *", "2026-10-25 00:00", ["2026-10-25 02:00:00+0200", "2026-10-25 03:00:00+0100"]),
    (NEW_YORK, "*/30 1 * * *", "2026-10-31 03:00", ["2026-11-01 01:00:00-0400", "2026-11-01 01:30:00-0400",
        "2026-11-02 01:00:00-0500"]),
    (LORD_HOWE, "45 1 * * *", "2026-04-04 03:00", ["2026-04-05 01:45:00+1100", "2026-04-06 01:45:00+1030"]),
    # Hours begin with a star: both hours, and no run for a time that is left out.
    (BERLIN, "*/30 * * * *", "2026-10-25 01:30", [f"2026-10-25 {t}:00{o}" for t, o in
        [("02:00", "+0200"), ("02:30", "+0200"), ("02:00", "+0100"), ("02:30", "+0100"), ("03:00", "+0100")]]),
    (BERLIN, "30 * * * *", "2026-03-29 01:00", ["2026-03-29 01:30:00+0100", "2026-03-29 03:30:00+0200"]),
    (BERLIN, "0 */2 * * *", "2026-03-28 23:00", ["2026-03-29 00:00:00+0100", "2026-03-29 04:00:00+0200"]),
    (LORD_HOWE, "*/20 * * * *", "2026-04-05 01:35", [f"2026-04-05 {t}:00{o}" for t, o in
        [("01:40", "+1100"), ("01:40", "+1030"), ("02:00", "+1030")]]),
    (LORD_HOWE, "*/20 * * * *", "2026-10-04 01:35", [f"2026-10-04 {t}:00{o}" for t, o in
        [("01:40", "+1030"), ("02:40", "+1100"), ("03:00", "+1100")]]),
    # The hour before midnight comes twice, and belongs to the day that the line is about.
    ("America/Santiago", "*/30 * 4 4 *", "2026-04-04 22:45", [f"2026-04-04 23:{t}:00{o}" for t, o in
        [("00", "-0300"), ("30", "-0300"), ("00", "-0400"), ("30", "-0400")]] + ["2027-04-04 00:00:00-0400"]),
    # Midnight is left out.
    ("America/Santiago", "0 0 * * *", "2026-09-05 01:00", ["2026-09-06 01:00:00-0300", "2026-09-07 00:00:00-0300"]),
    # A whole day is left out.
    ("Pacific/Apia", "0 12 * * *", "2011-12-29 13:00", ["2011-12-31 00:00:00+1400", "2011-12-31 12:00:00+1400"]),
    # Offsets that are not whole hours.
    ("Asia/Kathmandu", "0 0 * * *", "2026-05-01 12:00", ["2026-05-02 00:00:00+0545"]),
    ("Asia/Kolkata", "0 */6 * * *", "2026-05-01 13:00", ["2026-05-01 18:00:00+0530"]),
    ("Pacific/Chatham", "0 3 * * *", "2026-04-04 12:00", ["2026-04-05 03:00:00+1345", "2026-04-06 03:00:00+1245"]),
]  # fmt: skip


@pytest.mark.parametrize(("zone", "line", "after", "expected"), DAYS)
def test_lines_on_days_that_have_not_24_hours(
    db: Connection, zone: str, line: str, after: str, expected: list[str]
) -> None:
    assert on_the_wall(zone, next_runs(db, line, zone, local(zone, after), len(expected))) == expected


def test_who_asks_in_the_second_of_two_equal_hours_is_not_told_of_the_first(db: Connection) -> None:
    second = local(BERLIN, "2026-10-25 02:10").replace(fold=1)
    assert on_the_wall(BERLIN, next_runs(db, "30 2 * * *", BERLIN, second, 1)) == ["2026-10-26 02:30:00+0100"]
    assert on_the_wall(BERLIN, next_runs(db, "0 3 * * *", BERLIN, second, 1)) == ["2026-10-25 03:00:00+0100"]
    assert on_the_wall(BERLIN, next_runs(db, "30 * * * *", BERLIN, second, 1)) == ["2026-10-25 02:30:00+0100"]


# Against brute force --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line as a text, and what it means, which nobody had to read from it."""

    text: str
    fields: tuple[frozenset[int], ...]  # from seconds to weekdays, Sunday is 0
    either: bool
    any_hour: bool

    def matches(self, wall: datetime) -> bool:
        seconds, minutes, hours, days, months, weekdays = self.fields
        day, weekday = wall.day in days, wall.isoweekday() % 7 in weekdays
        return (
            wall.minute in minutes
            and wall.hour in hours
            and wall.second in seconds
            and wall.month in months
            and ((day or weekday) if self.either else (day and weekday))
        )


def reference(line: Line, zone: str, start: datetime, end: datetime, step: timedelta) -> list[datetime]:
    """Step by step along the clock on the wall: what it shows now, or for the first time, or has jumped over."""
    there = ZoneInfo(zone)
    runs = []
    at = start - timedelta(hours=3)  # no clock was ever put back further
    shown = at.astimezone(there).replace(tzinfo=None, fold=0)
    while at < end:
        at += step
        wall = at.astimezone(there).replace(tzinfo=None, fold=0)
        if line.any_hour:
            hit = line.matches(wall)
        else:
            hit = False
            while shown < wall:
                shown += step
                hit = hit or line.matches(shown)
        if hit and start < at <= end:
            runs.append(at)
    return runs


NAMES = {
    4: ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    5: ["SUN", "Mon", "tue", "WED", "thu", "fri", "Sat"],
}
RANGES = [(0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]


@st.composite
def items(draw: st.DrawFn, kind: int) -> tuple[str, set[int]]:
    low, high = RANGES[kind]
    last = 6 if kind == 5 else high
    names = NAMES.get(kind, [])

    def word(value: int) -> str:
        named = value - low < len(names) and draw(st.booleans())
        return names[value - low] if named else str(value)

    form = draw(st.sampled_from(["one", "one", "range", "range/step", "from/step"]))
    first = draw(st.integers(low, high))
    second = draw(st.integers(first, high))
    step = draw(st.integers(1, last - low + 1))
    if form == "one":
        return word(first), {first}
    if form == "range":
        return f"{word(first)}-{word(second)}", set(range(first, second + 1))
    if form == "range/step":
        return f"{word(first)}-{word(second)}/{step}", set(range(first, second + 1, step))
    return f"{word(first)}/{step}", set(range(first, max(first, last) + 1, step))


@st.composite
def fields(draw: st.DrawFn, kind: int, stars: int) -> tuple[str, frozenset[int]]:
    low, high = RANGES[kind]
    high = 6 if kind == 5 else high
    parts: list[tuple[str, set[int]]] = []
    if draw(st.integers(0, 9)) < stars:
        step = draw(st.sampled_from([1, 1, 2, 3, 7]))
        parts.append((f"*/{step}" if step > 1 else "*", set(range(low, high + 1, step))))
    more = st.lists(items(kind), min_size=0 if parts else 1, max_size=3 if not parts else 1)
    parts += draw(more)
    values = {value % 7 if kind == 5 else value for _, part in parts for value in part}
    return ",".join(text for text, _ in parts), frozenset(values)


@st.composite
def lines(draw: st.DrawFn, seconds: bool) -> Line:
    drawn = [draw(fields(kind, stars)) for kind, stars in enumerate([3, 5, 4, 7, 8, 7])]
    if not seconds:
        drawn[0] = ("", frozenset({0}))
    texts = [text for text, _ in drawn]
    return Line(
        " ".join(texts).strip(),
        tuple(values for _, values in drawn),
        either=not texts[3].startswith("*") and not texts[5].startswith("*"),
        any_hour=texts[2].startswith("*"),
    )


# Instants near which the clocks are put forward or back, or some day.
NEAR = [
    (BERLIN, "2026-03-29T01:00"),
    (BERLIN, "2026-10-25T01:00"),
    (NEW_YORK, "2026-03-08T07:00"),
    (NEW_YORK, "2026-11-01T06:00"),
    (LORD_HOWE, "2026-04-04T15:00"),
    (LORD_HOWE, "2026-10-03T15:30"),
    ("America/Santiago", "2026-04-05T03:00"),
    ("America/Santiago", "2026-09-06T04:00"),
    ("Pacific/Chatham", "2026-04-04T14:00"),
    ("Asia/Kathmandu", "2026-02-28T12:00"),
    ("Pacific/Apia", "2011-12-30T10:00"),
    ("Antarctica/Troll", "2026-03-29T01:00"),
    ("Antarctica/Troll", "2026-10-25T01:00"),
    ("UTC", "2028-02-28T12:00"),
]


@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), seconds=st.booleans())
def test_any_line_runs_when_the_clock_on_the_wall_shows_it(db: Connection, data: st.DataObject, seconds: bool) -> None:
    zone, instant = data.draw(st.sampled_from(NEAR))
    line = data.draw(lines(seconds))
    before = data.draw(st.integers(0, 3 * 60 if seconds else 3 * 24 * 60))
    start = datetime.fromisoformat(instant).replace(tzinfo=UTC) - before * MINUTE
    step = timedelta(seconds=1) if seconds else MINUTE
    end = start + (timedelta(hours=4) if seconds else 6 * DAY)
    expected = reference(line, zone, start, end, step)[:150]
    try:
        runs = next_runs(db, line.text, zone, start, 150)
    except psycopg.errors.InvalidParameterValue as error:
        if NEVER not in str(error):
            raise
        runs = []
    assert all(early < late for early, late in pairwise(runs))
    assert [run for run in runs if run <= end] == expected, line.text
