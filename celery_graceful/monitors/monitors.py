"""The monitors of an app: which one a run reports to, and by whom."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

from celery_graceful.exceptions import SettingsError
from celery_graceful.log_thread import log
from celery_graceful.monitors.checkin import CheckIn
from celery_graceful.monitors.dispatch import Dispatch
from celery_graceful.monitors.monitor import NAMED, Monitor, slugify
from celery_graceful.settings import Settings

__all__ = ["SENTRY_SLUG", "STAMP", "Monitors", "monitors_of"]

logger = logging.getLogger(__name__)

#: Header in which beat says which entry it was.
STAMP = "graceful_monitor"

#: Headers of sentry's own integration.
SENTRY_SLUG, SENTRY_ID, SENTRY_CONFIG = (
    "sentry-monitor-slug",
    "sentry-monitor-check-in-id",
    "sentry-monitor-config",
)

_known: WeakKeyDictionary[Any, Monitors] = WeakKeyDictionary()


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
        given = NAMED.get((self.app.main, task.name)) or getattr(task, "monitor", None)
        if given is None:
            return None
        if isinstance(given, str):
            given = Monitor(given)
        if not isinstance(given, Monitor):
            raise SettingsError(f"{task.name}.monitor", given, "give a slug or a Monitor")
        return with_limit(given, task)

    def of_entry(self, name: str, schedule: Any, task: Any) -> Monitor | None:
        """The monitor of a beat entry, where all entries are monitored.

        Args:
            name: Of the entry.
            schedule: Of the entry.
            task: Its task, if the app knows it.
        """
        if not self.settings.monitor_beat or self.excluded(name):
            return None
        return with_limit(Monitor(name, schedule), task)

    def excluded(self, name: str) -> bool:
        """Whether a beat entry is not to be monitored."""
        return any(fnmatchcase(name, pattern) for pattern in self.settings.monitor_exclude)

    def config(self, monitor: Monitor) -> Mapping[str, Any] | None:
        """What Sentry's server is told; why it is told nothing is said once."""
        config, reason = monitor.config(str(self.app.timezone))
        if reason and monitor.slug not in self._said:
            self._said.add(monitor.slug)
            log(
                logger,
                logging.WARNING,
                "Monitor %s is reported without a schedule: %s",
                monitor.slug,
                reason,
            )
        return config

    def check(self) -> None:
        """Refuse what would go wrong later.

        Raises:
            SettingsError: Two monitors have one slug, or a monitor cannot be used, or what was
                asked for needs a store.
        """
        seen: dict[str, str] = {}

        def claim(slug: str, owner: str) -> None:
            if seen.setdefault(slug, owner) != owner:
                raise SettingsError(
                    "monitor",
                    slug,
                    f"{seen[slug]} and {owner} would both report to it, rename one of them",
                )

        early = self.settings.monitor_on_interrupt is not None
        for task in self.app.tasks.values():
            own = self.own(task)
            if own is not None:
                claim(own.slug, f"task {task.name}")
                early = early or own.on_interrupt is not None
        if self.settings.monitor_beat:
            for name, entry in (self.app.conf.beat_schedule or {}).items():
                task = self.app.tasks.get(entry.get("task"))
                if self.excluded(name) or (task is not None and self.own(task) is not None):
                    continue
                if not slugify(name):
                    mend = "give it a name with letters or digits in it, or exclude it"
                    raise SettingsError("beat_schedule", name, mend)
                claim(slugify(name), f"beat entry {name!r}")
        if early and self._store() is None:
            raise SettingsError(
                "on_interrupt",
                self.settings.monitor_on_interrupt or "of a Monitor",
                "it needs a store: set graceful_store to the URL of a Redis",
            )
        self.dispatch.names()

    # -- one run ---------------------------------------------------------------------

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
        if opened is not None and "sentry" in self.dispatch.names():
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
        return CheckIn(
            monitor,
            str(stamp.get("run") or task_id),
            config=config,
            store=self._store(),
            ttl=self.settings.checkpoint_ttl,
            slug=slug,
            opened_as=opened_as,
            on_interrupt=self.settings.monitor_on_interrupt,
            name=f"{task.name}[{task_id}]",
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
        from celery_graceful.store import find_store

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
