"""What a monitor is called and what its server has to expect: checked where it is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from celery_graceful.exceptions import SettingsError
from celery_graceful.monitors import schedule as schedules
from celery_graceful.monitors.slug import slugify

__all__ = ["STATUSES", "Monitor"]

#: What an interrupted run can be closed as.
STATUSES = ("ok", "error")

#: Ranges of Sentry's server; the first two in minutes.
_RANGES = {
    "margin": (1, 40320),
    "max_runtime": (1, 10080),
    "failure_issue_threshold": (1, 720),
    "recovery_threshold": (1, 720),
}


@dataclass(frozen=True)
class Monitor:
    """A monitor: runs report to it, and its server says when one is missing.

    Args:
        slug: Its name; sent as ``slugify`` writes it.
        schedule: When runs are expected: a ``crontab``, a ``schedule``, a ``timedelta``, or the
            text of a crontab, such as ``"0 4 * * *"``. Without one, the server keeps what it
            has.
        margin: Minutes that a run may be late.
        max_runtime: Minutes that a run may take; from the task's time limit when not given.
        timezone: Of the schedule, such as ``"Europe/Vienna"``; the schedule's own, or the
            app's, when not given.
        failure_issue_threshold: Failures in a row until the server opens an issue.
        recovery_threshold: Successes in a row until it closes the issue.
        on_interrupt: ``"ok"`` or ``"error"``: close the check-in when the run is interrupted,
            and open another when it goes on. ``None``: ``graceful_monitor_on_interrupt``.
        ping_url: Of this monitor at Healthchecks, instead of one made from the slug.

    Raises:
        SettingsError: A field cannot be used. It names the field, its value and its range.
    """

    slug: str
    schedule: Any = None
    margin: int | None = None
    max_runtime: int | None = None
    timezone: str | None = None
    failure_issue_threshold: int | None = None
    recovery_threshold: int | None = None
    on_interrupt: str | None = None
    ping_url: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.slug, str) or not slugify(self.slug):
            raise _unfit("slug", self.slug, "give a name with letters or digits in it")
        object.__setattr__(self, "slug", slugify(self.slug))
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                unit = " minutes" if name in ("margin", "max_runtime") else ""
                raise _unfit(name, value, f"give a whole number of{unit or ''} {low} to {high}")
        if self.on_interrupt not in (None, *STATUSES):
            raise _unfit("on_interrupt", self.on_interrupt, "give 'ok', 'error' or None")
        if self.timezone is not None and not schedules.is_zone(self.timezone):
            raise _unfit("timezone", self.timezone, "give a name such as 'Europe/Vienna'")
        if self.ping_url is not None and not is_url(self.ping_url):
            raise _unfit("ping_url", self.ping_url, "give a URL that begins with http or https")
        if isinstance(self.schedule, str):
            try:
                schedules.read_text(self.schedule)
            except ValueError as exc:
                raise _unfit("schedule", self.schedule, str(exc)) from None
        elif schedules.is_no_time(self.schedule):
            mend = "give more than 0 seconds, and no more than a timedelta can hold"
            raise _unfit("schedule", self.schedule, mend)
        elif self.schedule is not None and not schedules.is_known(self.schedule):
            raise _unfit(
                "schedule",
                self.schedule,
                "give a crontab, a schedule, a timedelta, or text such as '0 4 * * *'",
            )

    def with_defaults(self, **defaults: Any) -> Monitor:
        """A copy with those of ``defaults`` that it does not say itself."""
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return replace(self, **missing)

    def config(self, timezone: str | None) -> tuple[Mapping[str, Any] | None, str]:
        """The configuration that Sentry's server gets, or ``None`` and why not.

        Args:
            timezone: Of schedules that have none.
        """
        if self.schedule is None:
            return None, ""
        schedule, reason = schedules.convert(self.schedule)
        if schedule is None:
            return None, reason
        zone = self.timezone or schedules.zone_of(self.schedule) or timezone
        name = None if zone is None else schedules.zone_name(zone)
        if schedule["type"] == "crontab" and zone is not None and name is None:
            reason = f"servers know time zones by name, as 'Europe/Vienna', not {zone!r}"
            return None, f"{reason}: set timezone to such a name, in app.conf or the Monitor"
        fields = {
            "schedule": schedule,
            "timezone": name,
            "checkin_margin": self.margin,
            "max_runtime": self.max_runtime,
            "failure_issue_threshold": self.failure_issue_threshold,
            "recovery_threshold": self.recovery_threshold,
        }
        return {name: value for name, value in fields.items() if value is not None}, ""


def is_url(value: Any) -> bool:
    """Whether it can be sent to."""
    return isinstance(value, str) and re.match(r"https?://[^/\s]+", value) is not None


def _unfit(field: str, value: Any, mend: str) -> SettingsError:
    return SettingsError(f"Monitor.{field}", value, mend)
