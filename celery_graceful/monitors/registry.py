"""The monitors of an app: which one a run reports to, and by whom."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from celery_graceful.exceptions import SettingsError
from celery_graceful.messages.comebacks import may_resume
from celery_graceful.messages.own_headers import MONITOR as STAMP
from celery_graceful.monitors.check_in import CheckIn
from celery_graceful.monitors.dispatch import Dispatch
from celery_graceful.monitors.entry_slugs import Entries
from celery_graceful.monitors.monitor import Monitor
from celery_graceful.monitors.named_monitors import named
from celery_graceful.monitors.schedule import is_known
from celery_graceful.settings import Settings
from celery_graceful.system.log_thread import log
from celery_graceful.system.per_app import PerApp

__all__ = ["SENTRY_SLUG", "STAMP", "Monitors", "monitors_of"]

logger = logging.getLogger(__name__)

#: Headers of sentry's own integration.
SENTRY_SLUG, SENTRY_ID, SENTRY_CONFIG = (
    "sentry-monitor-slug",
    "sentry-monitor-check-in-id",
    "sentry-monitor-config",
)

_known: PerApp[Monitors] = PerApp()


def monitors_of(app: Any) -> Monitors:
    """The monitors of an app.

    Raises:
        SettingsError: A ``graceful_*`` setting cannot be used.
    """
    found = _known.get(app)
    if found is None:
        found = _known[app] = Monitors(app)
    return found


class Monitors:
    """What is known of one app's monitors.

    Args:
        app: The Celery app.

    Raises:
        SettingsError: A ``graceful_*`` setting cannot be used.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.settings = Settings.from_conf(app.conf)
        self._own: dict[str, Monitor | None] = {}
        self.dispatch = Dispatch(app, self.settings)
        self.entries = Entries()
        self._said: set[str] = set()

    # -- which monitor ---------------------------------------------------------------

    def own(self, task: Any) -> Monitor | None:
        """The monitor that a task was given, by its class option or by ``Graceful.monitor``.

        Raises:
            SettingsError: The option is no monitor.
        """
        if task.name not in self._own:
            self._own[task.name] = self._find_own(task)
        return self._own[task.name]

    def _find_own(self, task: Any) -> Monitor | None:
        given = named(self.app).get(task.name) or getattr(task, "monitor", None)
        if given is None:
            return None
        if isinstance(given, str):
            given = Monitor(given)
        if not isinstance(given, Monitor):
            raise SettingsError(f"{task.name}.monitor", given, "give a slug or a Monitor")
        return with_limit(given, task)

    def of_entry(self, name: str, schedule: Any, task: Any, *, say: bool = True) -> Monitor | None:
        """The monitor of a beat entry, where all entries are monitored.

        Args:
            name: Of the entry.
            schedule: Of the entry.
            task: Its task, if the app knows it.
            say: Whether to say, once, what people may not expect of it.
        """
        if not self.settings.monitor_beat or self.excluded(name):
            return None
        slug = self.entries.slug(name)
        if say:
            self.entries.say(slug)
        if not is_known(schedule):
            kind = type(schedule).__name__
            if say:
                self._say(slug, f"a server cannot know {kind} schedules")
            schedule = None
        return with_limit(Monitor(slug, schedule), task)

    def excluded(self, name: str) -> bool:
        """Whether a beat entry is not to be monitored."""
        return any(fnmatchcase(name, pattern) for pattern in self.settings.monitor_exclude)

    def config(self, monitor: Monitor, *, say: bool = True) -> Mapping[str, Any] | None:
        """What Sentry's server is told; why it is told nothing is said once."""
        config, reason = monitor.config(str(self.app.timezone))
        if reason and say:
            self._say(monitor.slug, reason)
        return config

    def _say(self, slug: str, reason: str) -> None:
        if slug not in self._said:
            self._said.add(slug)
            message = "Monitor %s is reported without a schedule: %s"
            log(logger, logging.WARNING, message, slug, reason)

    def check(self) -> None:
        """Refuse what would go wrong later.

        Raises:
            SettingsError: Two tasks have monitors of one slug, or a monitor cannot be used, or
                what was asked for needs a store.
        """
        for fault in self.faults():
            raise fault

    def faults(self) -> Iterator[SettingsError]:
        """All that ``check`` refuses, one by one."""
        early = self.settings.monitor_on_interrupt is not None
        for task in self.app.tasks.values():
            try:
                own = self.own(task)
            except SettingsError as exc:
                yield exc
                continue
            if own is not None:
                owner = f"task {task.name}"
                other = self.entries.take(own.slug, owner)
                if other != owner:
                    mend = f"{other} and {owner} would both report to it, rename one of them"
                    yield SettingsError("monitor", own.slug, mend)
                early = early or own.on_interrupt is not None
        if early and self._store() is None:
            yield SettingsError(
                "on_interrupt",
                self.settings.monitor_on_interrupt or "of a Monitor",
                "it needs a store: set graceful_store to the URL of a Redis",
            )
        try:
            self.dispatch.names()
        except SettingsError as exc:
            yield exc

    def know_entries(self) -> None:
        """Beat starts: give the entries that there are their slugs."""
        if self.settings.monitor_beat:
            entries = (self.app.conf.beat_schedule or {}).items()
            self.entries.know(
                str(name)
                for name, entry in entries
                if not self.excluded(str(name)) and not self._has_own(entry)
            )

    def _has_own(self, entry: Any) -> bool:
        task = self.app.tasks.get(entry.get("task") if isinstance(entry, dict) else entry.task)
        return task is not None and self.own(task) is not None

    @property
    def closes_sentrys(self) -> bool:
        """Whether check-ins that Sentry's own integration opened are closed here."""
        return "sentry" in self.dispatch.names()

    # -- one run ---------------------------------------------------------------------

    def may_have(self, task: Any, headers: Mapping[str, Any]) -> bool:
        """Whether a delivery may have a check-in; cheap, as it is asked of each."""
        asked = self._own.get(task.name, True)
        return asked is not None or STAMP in headers or SENTRY_SLUG in headers

    def of_run(self, task: Any, task_id: str, headers: Mapping[str, Any]) -> CheckIn | None:
        """The check-in of a delivery, if it has one.

        Args:
            task: The task.
            task_id: Its id.
            headers: Of the message, or the request's dict.
        """
        stamp, opened = headers.get(STAMP), headers.get(SENTRY_SLUG)
        own = self.own(task)
        if own is None and stamp is None and opened is None:
            return None
        opened_as = None
        monitor, config, slug = own, None, None
        stamp = stamp if isinstance(stamp, Mapping) else {}
        if opened is not None and self.closes_sentrys:
            monitor = own or with_limit(Monitor(opened), task)
            config, slug = headers.get(SENTRY_CONFIG) or None, str(opened)
            opened_as = _uuid(headers.get(SENTRY_ID))
        elif own is None:
            if "slug" not in stamp:
                return None
            monitor = with_limit(Monitor(stamp["slug"]), task)
        if monitor is None:
            return None
        if config is None:
            config = self.config(monitor) or stamped_config(monitor, stamp)
        run = str(stamp.get("run") or task_id)
        return CheckIn(
            monitor,
            run,
            config=config,
            store=self._store(),
            ttl=self.settings.checkpoint_ttl,
            slug=slug,
            opened_as=opened_as,
            on_interrupt=self.settings.monitor_on_interrupt,
            name=f"{task.name}[{task_id}]",
            first=run == task_id and not may_resume(headers),
        )

    def of_block(self, monitor: Monitor) -> CheckIn:
        """A check-in of code that is no task."""
        return CheckIn(
            monitor,
            str(uuid.uuid4()),
            config=self.config(monitor),
            on_interrupt=self.settings.monitor_on_interrupt,
        )

    def _store(self) -> Any:
        from celery_graceful.store.app_stores import find_store

        return find_store(self.app)


def _uuid(text: Any) -> str | None:
    try:
        return str(uuid.UUID(str(text)))
    except ValueError:
        return None


def with_limit(monitor: Monitor, task: Any) -> Monitor:
    """With a ``max_runtime`` from the time limit of the task, if there is one."""
    limit = getattr(task, "time_limit", None) or getattr(task, "soft_time_limit", None)
    if not limit:
        return monitor
    return monitor.with_defaults(max_runtime=min(10080, max(1, math.ceil(limit / 60))))


def stamped_config(monitor: Monitor, stamp: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What beat knows of the schedule, with what the monitor says itself."""
    schedule = stamp.get("schedule")
    if not schedule:
        return None
    fields = {
        "schedule": dict(schedule),
        "timezone": monitor.timezone or stamp.get("timezone"),
        "checkin_margin": monitor.margin,
        "max_runtime": monitor.max_runtime,
        "failure_issue_threshold": monitor.failure_issue_threshold,
        "recovery_threshold": monitor.recovery_threshold,
    }
    return {name: value for name, value in fields.items() if value is not None}
