"""What servers are told of schedules, against Sentry's own parser and against Celery itself."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import BaseSchedule, crontab, schedule
from cronsim import CronSim

from celery_graceful import Monitor, SettingsError
from celery_graceful.monitors.registry import monitors_of
from celery_graceful.monitors.schedule import convert, read_text

MINUTES = ["*", "0", "*/5", "*/7", "3-57/6", "1,2,30", "10-20", "59", "*/15,7", "0-58/2", [0, 30]]
HOURS = ["*", "0", "*/2", "8-18", "8-18/3", "0,12,23", "*/5", 4, "22,23,0", {1, 2, 3}]
DAYS = ["*", "1", "*/2", "31", "1-7", "15,30", "*/10", "29-31", "2-30/4"]
MONTHS = ["*", "1", "*/3", "jan,jul", "feb", "4-9", "january-march", "*/5", "12"]
WEEKDAYS = ["*", "0", "mon-fri", "sat,sun", "sunday", "fri-mon", "*/2", "1,3,5", "saturday", "6"]

#: Celery refuses them.
NEVER = {("31", "feb")}

FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")


def crontabs() -> list[dict[str, Any]]:
    """200 crontabs that cover the syntax: each field in all its ways, and a mixture."""
    rare = {"minute": 7, "hour": 4}
    found = [
        {**rare, name: one} for name, values in zip(FIELDS, ways(), strict=True) for one in values
    ]
    mixed = itertools.zip_longest(*(itertools.islice(itertools.cycle(w), 180) for w in ways()))
    for number, values in enumerate(mixed):
        one = dict(zip(FIELDS, values, strict=True))
        one["day_of_month" if number % 2 else "day_of_week"] = "*"
        if (one["day_of_month"], one["month_of_year"]) not in NEVER:
            found.append(one)
    return found[:200]


def ways() -> list[list[Any]]:
    return [MINUTES, HOURS, DAYS, MONTHS, WEEKDAYS]


CRONTABS = crontabs()


def firings(one: crontab, year: int) -> Any:
    """All moments of a year at which Celery's crontab is due, by the sets that Celery made."""
    day = datetime(year, 1, 1)
    while day.year == year:
        if (
            day.month in one.month_of_year
            and day.day in one.day_of_month
            and day.isoweekday() % 7 in one.day_of_week
        ):
            for hour in sorted(one.hour):
                for minute in sorted(one.minute):
                    yield day.replace(hour=hour, minute=minute)
        day += timedelta(days=1)


def test_there_are_two_hundred() -> None:
    assert len(CRONTABS) == 200


@pytest.mark.parametrize("index", range(len(CRONTABS)))
def test_a_server_expects_what_celery_fires(index: int) -> None:
    one = crontab(**CRONTABS[index])
    sent, reason = convert(one)
    expected = list(firings(one, 2028))  # with a 29th of February
    assert sent is not None, reason
    assert sent["type"] == "crontab"
    read = CronSim(sent["value"], datetime(2027, 12, 31, 23, 59))
    assert list(itertools.takewhile(lambda moment: moment.year == 2028, read)) == expected


@pytest.mark.parametrize("index", range(0, len(CRONTABS), 20))
def test_celery_itself_agrees(index: int) -> None:
    """``remaining_estimate``, which beat goes by, step by step."""
    app = Celery("schedules", broker="memory://", set_as_current=False)
    app.conf.update(timezone="UTC", enable_utc=True)
    now = datetime(2027, 12, 31, 23, 59, tzinfo=timezone.utc)
    one = crontab(**CRONTABS[index], nowfun=lambda: now, app=app)
    for moment in itertools.islice(firings(one, 2028), 50):
        now = now + one.remaining_estimate(now)
        assert now.replace(tzinfo=None) == moment


def never() -> crontab:
    """Celery 5.7 refuses it at once."""
    one = crontab(minute=0, day_of_month="31")
    one.month_of_year = {4, 6}
    return one


class Sunset(BaseSchedule):
    """As Celery's solar schedule, which wants a library of its own."""


def both_days() -> crontab:
    return crontab(minute=0, hour=4, day_of_month="1", day_of_week="mon")


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (schedule(60.0), {"type": "interval", "value": 1, "unit": "minute"}),
        (timedelta(hours=36), {"type": "interval", "value": 36, "unit": "hour"}),
        (timedelta(days=2), {"type": "interval", "value": 2, "unit": "day"}),
        (timedelta(weeks=2), {"type": "interval", "value": 2, "unit": "week"}),
        (600, {"type": "interval", "value": 10, "unit": "minute"}),
        ("@daily", {"type": "crontab", "value": "0 0 * * *"}),
        ("5 4 * jan-MAR sat,Sunday", {"type": "crontab", "value": "5 4 * 1-3 6,0"}),
        ("*/15 8-18/2 1,15 * 7", {"type": "crontab", "value": "*/15 8-18/2 1,15 * 7"}),
    ],
)
def test_converted(given: Any, sent: dict[str, Any]) -> None:
    assert convert(given) == (sent, "")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (schedule(30.0), "whole minutes, not of 30 s"),
        (timedelta(seconds=90), "whole minutes, not of 90 s"),
        (timedelta(0), "whole minutes, not of 0 s"),
        (Sunset(), "cannot know Sunset schedules"),
        (both_days(), "both day fields"),
        (never(), "no month has"),
    ],
)
def test_sent_without_a_schedule(given: Any, reason: str) -> None:
    sent, why = convert(given)
    assert sent is None
    assert reason in why


@pytest.mark.parametrize(
    "text", ["", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8",
             "*/0 * * * *", "5/10 * * * *", "9-5 * * * *", "* * * foo *", "a * * * *", "@never",
             "0 0 * * \u00b2", "*/\u0663 * * * *"]
)  # fmt: skip
def test_text_that_is_no_crontab(text: str) -> None:
    with pytest.raises(ValueError, match=r"give|ends before"):
        read_text(text)


# -- monitors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slug": ""}, r"Monitor\.slug = ''"),
        ({"slug": "...!"}, r"Monitor\.slug"),
        ({"slug": 3}, r"Monitor\.slug = 3"),
        ({"margin": 0}, r"Monitor\.margin = 0 .* 1 to 40320"),
        ({"margin": 40321}, r"minutes 1 to 40320"),
        ({"max_runtime": 10081}, r"Monitor\.max_runtime = 10081 .* minutes 1 to 10080"),
        ({"max_runtime": 1.5}, r"Monitor\.max_runtime = 1.5"),
        ({"max_runtime": True}, r"Monitor\.max_runtime = True"),
        ({"failure_issue_threshold": 0}, r"whole number of 1 to 720"),
        ({"recovery_threshold": "2"}, r"Monitor\.recovery_threshold = '2'"),
        ({"timezone": "Mars/Olympus"}, r"Monitor\.timezone = 'Mars/Olympus'"),
        ({"on_interrupt": "fine"}, r"Monitor\.on_interrupt = 'fine'"),
        ({"schedule": "often"}, r"Monitor\.schedule = 'often'"),
        ({"schedule": object}, r"Monitor\.schedule"),
        ({"schedule": float("nan")}, r"Monitor\.schedule = nan .* more than 0"),
        ({"schedule": float("inf")}, r"Monitor\.schedule = inf .* more than 0"),
        ({"schedule": 1e20}, r"Monitor\.schedule = 1e\+20 .* a timedelta can hold"),
        ({"schedule": 0}, r"Monitor\.schedule = 0 .* more than 0"),
        ({"schedule": -60}, r"Monitor\.schedule = -60 .* more than 0"),
        ({"schedule": timedelta(0)}, r"Monitor\.schedule = datetime\.timedelta\(0\) .*than 0"),
        ({"ping_url": "hc-ping.com/x"}, r"Monitor\.ping_url"),
    ],
)
def test_refused_where_it_is_written(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Monitor(**{"slug": "nightly", **fields})


@pytest.mark.parametrize("given", [0, float("nan"), timedelta(0)])
def test_a_beat_entry_is_no_error(given: Any) -> None:
    with Celery("beat", broker="memory://", set_as_current=False) as app:
        app.conf.graceful_monitor_beat = True
        monitor = monitors_of(app).of_entry("often", given, None)
    assert monitor == Monitor("often")


def test_the_whole_config() -> None:
    monitor = Monitor(
        "nightly",
        schedule=crontab(minute=0, hour=4),
        margin=5,
        max_runtime=60,
        timezone="Europe/Vienna",
        failure_issue_threshold=2,
        recovery_threshold=3,
    )
    assert monitor.config("UTC") == (
        {
            "schedule": {"type": "crontab", "value": "0 4 * * *"},
            "timezone": "Europe/Vienna",
            "checkin_margin": 5,
            "max_runtime": 60,
            "failure_issue_threshold": 2,
            "recovery_threshold": 3,
        },
        "",
    )


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (timezone(timedelta(hours=2)), "Etc/GMT-2"),
        (timezone(timedelta(hours=-11)), "Etc/GMT+11"),
        (timezone(timedelta(hours=14)), "Etc/GMT-14"),
        (ZoneInfo("Asia/Tokyo"), "Asia/Tokyo"),
        (timezone.utc, "UTC"),
    ],
)
def test_the_name_of_a_zone(given: tzinfo, named: str) -> None:
    config, _ = Monitor("nightly", "0 4 * * *").config(str(given))
    assert config is not None
    assert config["timezone"] == named
    with Celery("zone", broker="memory://", set_as_current=False, timezone=given) as app:
        one = crontab(minute=0, hour=4, app=app)
        assert Monitor("nightly", one).config("Europe/Vienna") == (config, "")


@pytest.mark.parametrize(
    "given",
    [
        timezone(timedelta(hours=5, minutes=30)),
        timezone(timedelta(hours=-13)),
        timezone(timedelta(hours=2), "here"),
    ],
)
def test_a_zone_without_a_name(given: tzinfo) -> None:
    """Sentry would take the hours of a crontab for UTC's."""
    config, reason = Monitor("nightly", "0 4 * * *").config(str(given))
    assert config is None
    assert f"not {str(given)!r}" in reason
    assert "Europe/Vienna" in reason, "the mend"
    config, _ = Monitor("hourly", timedelta(hours=1)).config(str(given))
    assert config == {"schedule": {"type": "interval", "value": 1, "unit": "hour"}}


def test_a_config_needs_a_schedule() -> None:
    assert Monitor("nightly", margin=5).config("UTC") == (None, "")
