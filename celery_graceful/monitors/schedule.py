"""Schedules as servers read them.

Servers read crontabs as cron does. Celery's differ: a day has to fit both day fields, where
cron takes either; weeks may wrap (``fri-mon``); names may be long. So what is sent is made from
the values that Celery has worked out. What cannot be said is not sent, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

__all__ = ["convert", "is_known", "is_no_time", "is_zone", "read_text", "zone_name", "zone_of"]

#: Lowest and highest value of each field.
_FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))

_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

#: Minutes of what an interval is counted in, the longest first.
_UNITS = (("week", 10080), ("day", 1440), ("hour", 60), ("minute", 1))


def is_known(schedule: Any) -> bool:
    """Whether it is a schedule at all, one that may come true."""
    from celery.schedules import BaseSchedule

    if isinstance(schedule, bool) or is_no_time(schedule):
        return False
    return isinstance(schedule, (BaseSchedule, timedelta, int, float, str))


def is_no_time(schedule: Any) -> bool:
    """Whether it is a number or ``timedelta`` that no two runs can be apart."""
    if isinstance(schedule, bool) or not isinstance(schedule, (timedelta, int, float)):
        return False
    try:
        every = schedule if isinstance(schedule, timedelta) else timedelta(seconds=schedule)
    except (ValueError, OverflowError):
        return True
    return every <= timedelta(0)


def convert(schedule: Any) -> tuple[Mapping[str, Any] | None, str]:
    """The schedule as Sentry's server takes it, or ``None`` and the reason.

    Args:
        schedule: A crontab or schedule of Celery, a ``timedelta``, seconds, or text.
    """
    from celery.schedules import crontab
    from celery.schedules import schedule as interval

    if isinstance(schedule, str):
        return {"type": "crontab", "value": read_text(schedule)}, ""
    if isinstance(schedule, crontab):
        return _crontab(schedule)
    if isinstance(schedule, interval):
        return _interval(schedule.run_every)
    if isinstance(schedule, timedelta):
        return _interval(schedule)
    if isinstance(schedule, (int, float)):
        return _interval(timedelta(seconds=schedule))
    return None, f"a server cannot know {type(schedule).__name__} schedules"


def zone_of(schedule: Any) -> str | None:
    """The time zone that the schedule itself was given."""
    zone = getattr(schedule, "tz", None)
    return None if zone is None else str(zone)


def is_zone(name: Any) -> bool:
    """Whether it names a time zone."""
    try:
        ZoneInfo(name)
    except (ValueError, LookupError, OSError, TypeError):
        return False
    return True


def zone_name(zone: str) -> str | None:
    """The name by which servers know a time zone; of ``UTC+02:00`` it is ``Etc/GMT-2``."""
    hours = re.fullmatch(r"UTC([+-])(\d\d):00", zone)
    if hours is not None:
        sign, number = hours.groups()
        zone = f"Etc/GMT{'-' if sign == '+' else '+'}{int(number)}"
    return zone if is_zone(zone) else None


def _interval(every: timedelta) -> tuple[Mapping[str, Any] | None, str]:
    minutes, rest = divmod(every, timedelta(minutes=1))
    if rest or minutes < 1:
        return None, f"servers know intervals of whole minutes, not of {every.total_seconds():g} s"
    unit, size = next((unit, size) for unit, size in _UNITS if minutes % size == 0)
    return {"type": "interval", "value": minutes // size, "unit": unit}, ""


def _crontab(schedule: Any) -> tuple[Mapping[str, Any] | None, str]:
    values = (
        schedule.minute,
        schedule.hour,
        schedule.day_of_month,
        schedule.month_of_year,
        schedule.day_of_week,
    )
    fields = [_field(set(some), *bounds) for some, bounds in zip(values, _FIELDS, strict=True)]
    if fields[2] != "*" and fields[4] != "*":
        return None, "Celery wants both day fields to fit, servers take a day that fits either"
    if min(values[2]) > max(_LONGEST[month - 1] for month in values[3]):
        return None, "it names a day that no month has"
    return {"type": "crontab", "value": " ".join(fields)}, ""


def _field(values: Collection[int], low: int, high: int) -> str:
    """The shortest text for a set of values: ``*``, ``*/5``, ``1-5,7``."""
    for step in range(1, high - low + 1):
        if values == set(range(low, high + 1, step)):
            return "*" if step == 1 else f"*/{step}"
    parts: list[list[int]] = []
    for value in sorted(values):
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ",".join(
        f"{part[0]}-{part[-1]}" if len(part) > 2 else ",".join(map(str, part)) for part in parts
    )


# -- text ----------------------------------------------------------------------------


def read_text(text: str) -> str:
    """A crontab as text, with numbers for names.

    Raises:
        ValueError: It is none. Names the field and its range.
    """
    fields = _NICKNAMES.get(text.strip().lower(), text).split()
    if len(fields) != len(_FIELDS):
        raise ValueError("give five fields: minute, hour, day of month, month, day of week")
    return " ".join(
        ",".join(_read_part(part, index) for part in field.split(","))
        for index, field in enumerate(fields)
    )


_PART = re.compile(r"(?:(\*)|(\w+)(?:-(\w+))?)(?:/(\d+))?$", re.ASCII)


def _read_part(part: str, index: int) -> str:
    low, high = _FIELDS[index]
    name = ("minute", "hour", "day of month", "month", "day of week")[index]
    match = _PART.match(part)
    mend = f"{part!r} is no {name}, give {low} to {high}, *, ranges, steps or lists of them"
    if match is None:
        raise ValueError(mend)
    star, first, last, step = match.groups()
    if step is not None and not (1 <= int(step) <= high and (star or last)):
        raise ValueError(mend)
    if star:
        return part
    numbers = [_number(word, index) for word in (first, last) if word is not None]
    top = 7 if index == 4 else high  # cron's other Sunday
    if any(number is None or not low <= number <= top for number in numbers):
        raise ValueError(mend)
    if len(numbers) == 2 and numbers[0] > numbers[1]:  # type: ignore[operator]
        raise ValueError(f"{part!r} ends before it begins")
    return "-".join(map(str, numbers)) + (f"/{step}" if step else "")


def _number(word: str, index: int) -> int | None:
    if word.isdigit():
        return int(word)
    names = _MONTHS if index == 3 else _DAYS if index == 4 else ()
    short = word.lower()[:3]
    return names.index(short) + (index == 3) if short in names else None
