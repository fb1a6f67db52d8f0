"""Monitoring that is asked for and would report nothing: said once, at start, and by the doctor."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from typing import Any

from celery_graceful.monitors.named_monitors import named
from celery_graceful.monitors.registry import Monitors
from celery_graceful.system.loaded import loaded
from celery_graceful.system.log_thread import log

__all__ = [
    "say_what_is_silent",
    "say_who_is_unknown",
    "sentry_monitors_beat",
    "what_is_silent",
    "who_is_unknown",
    "who_reports",
]

logger = logging.getLogger(__name__)

_NO_CLIENT = "no Sentry client with a DSN is active (sentry_sdk.init where the app is made)"
_NO_URL = "graceful_healthchecks_url is not set"


def say_what_is_silent(monitors: Monitors) -> None:
    """Reporters that cannot report, and who reports where two could."""
    for thing, why in (*what_is_silent(monitors), *who_reports(monitors)):
        log(logger, logging.WARNING, "%s: %s", thing, why)


def say_who_is_unknown(monitors: Monitors) -> None:
    """Monitors that were named for tasks that the worker does not have."""
    for thing, why in who_is_unknown(monitors):
        log(logger, logging.WARNING, "%s: %s", thing, why)


def what_is_silent(monitors: Monitors) -> Iterator[tuple[str, str]]:
    """Reporters that cannot report, each with the reason."""
    own = [name for task in monitors.app.tasks.values() if (name := _slug(monitors, task))]
    asked = ["graceful_monitor_beat"] if monitors.settings.monitor_beat else []
    asked += [f"the monitors {', '.join(own[:5])}"] if own else []
    if asked and not list(monitors.dispatch.names()):
        yield " and ".join(asked), f"nobody reports, since {_NO_CLIENT} and {_NO_URL}"
    for name, why in (("sentry", _sentry_lacks()), ("healthchecks", _pings_lack(monitors))):
        if why and name in (monitors.settings.monitor_reporters or ()):
            yield f"graceful_monitor_reporters names {name}, which reports nothing", why


def who_is_unknown(monitors: Monitors) -> Iterator[tuple[str, str]]:
    """Monitors that were named for tasks that there are not, each with the reason."""
    tasks = monitors.app.tasks
    for name, monitor in named(monitors.app).items():
        if name not in tasks:
            near = difflib.get_close_matches(name, tasks, 1)
            yield (
                f"Graceful.monitor({name!r}, {monitor.slug!r})",
                "this worker has no task of that name"
                + (f", did you mean {near[0]!r}?" if near else ""),
            )


def who_reports(monitors: Monitors) -> Iterator[tuple[str, str]]:
    """Who reports what of beat's entries, where two could."""
    if not (monitors.settings.monitor_beat and sentry_monitors_beat()):
        return
    names = list(monitors.dispatch.names())
    if "sentry" in names:
        yield (
            "Both graceful_monitor_beat and Sentry's monitor_beat_tasks are on",
            "Sentry's integration opens the check-ins of the beat entries that it knows, under "
            "their names as they are, and celery_graceful closes them"
            + (
                "; graceful_monitor_exclude does not hold for those, exclude_beat_tasks of "
                "CeleryIntegration does"
                if monitors.settings.monitor_exclude
                else ""
            ),
        )
    else:
        yield (
            "Sentry's monitor_beat_tasks is on and celery_graceful does not report to Sentry",
            "its integration reports beat entries there by itself, celery_graceful to "
            + (", ".join(names) or "nobody"),
        )


def _slug(monitors: Monitors, task: Any) -> str | None:
    own = monitors.own(task)
    return None if own is None else own.slug


def _sentry_lacks() -> str | None:
    get_client = loaded("sentry_sdk", "get_client")
    client = get_client and get_client()
    return None if client and client.is_active() and client.transport is not None else _NO_CLIENT


def _pings_lack(monitors: Monitors) -> str | None:
    tasks = monitors.app.tasks.values()
    if monitors.settings.healthchecks_url or any(
        own.ping_url for task in tasks if (own := monitors.own(task)) is not None
    ):
        return None
    return f"{_NO_URL}, and no monitor has a ping_url"


def sentry_monitors_beat() -> bool:
    """Whether Sentry's own integration opens check-ins of beat entries."""
    celerys = loaded("sentry_sdk.integrations.celery", "CeleryIntegration")
    get_client = loaded("sentry_sdk", "get_client")
    if celerys is None or get_client is None:
        return False
    integration = get_client().get_integration(celerys)
    return bool(getattr(integration, "monitor_beat_tasks", False))
