"""Times as clients of a run write them."""

from __future__ import annotations

from datetime import datetime, timedelta

_UNITS = {"ms": "milliseconds", "millisecond": "milliseconds", "s": "seconds", "min": "minutes", "day": "days"}


def microseconds(text: str) -> int:
    """Return an interval like '1.5 seconds', or a time in ISO format with its time zone, in microseconds."""
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1_000_000)
    except ValueError:
        pass
    number, unit = text.split()
    unit = _UNITS.get(unit, unit if unit.endswith("s") else unit + "s")
    return round(timedelta(**{unit: float(number)}) / timedelta(microseconds=1))
