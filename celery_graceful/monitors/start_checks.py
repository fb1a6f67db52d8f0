"""Monitoring that is asked for and would report nothing: said once, at start."""

from __future__ import annotations

import difflib
import logging
import sys
from typing import Any

from celery_graceful.monitors.named_monitors import named
from celery_graceful.monitors.registry import Monitors
from celery_graceful.system.log_thread import log

__all__ = ["say_what_is_silent", "say_who_is_unknown", "sentry_monitors_beat"]

logger = logging.getLogger(__name__)

_NO_CLIENT = "no Sentry client with a DSN is active (sentry_sdk.init where the app is made)"
_NO_URL = "graceful_healthchecks_url is not set"


def say_what_is_silent(monitors: Monitors) -> None:
    """Reporters that cannot report, and who reports where two could."""
    own = [name for task in monitors.app.tasks.values() if (name := _slug(monitors, task))]
    asked = ["graceful_monitor_beat"] if monitors.settings.monitor_beat else []
    asked += [f"the monitors {', '.join(own[:5])}"] if own else []
    names = list(monitors.dispatch.names())
    if asked and not names:
        _warn("%s: nobody reports, since %s and %s", " and ".join(asked), _NO_CLIENT, _NO_URL)
    for name, why in (("sentry", _sentry_lacks()), ("healthchecks", _pings_lack(monitors))):
        if why and name in (monitors.settings.monitor_reporters or ()):
            _warn("graceful_monitor_reporters names %s, which reports nothing: %s", name, why)
    if monitors.settings.monitor_beat and sentry_monitors_beat():
        _say_who_reports(monitors, names)


def say_who_is_unknown(monitors: Monitors) -> None:
    """Monitors that were named for tasks that the worker does not have."""
    tasks = monitors.app.tasks
    for name, monitor in named(monitors.app).items():
        if name not in tasks:
            near = difflib.get_close_matches(name, tasks, 1)
            _warn(
                "Graceful.monitor(%r, %r): this worker has no task of that name%s",
                name,
                monitor.slug,
                f", did you mean {near[0]!r}?" if near else "",
            )


def _say_who_reports(monitors: Monitors, names: list[str]) -> None:
    if "sentry" in names:
        _warn(
            "Both graceful_monitor_beat and Sentry's monitor_beat_tasks are on: Sentry's "
            "integration opens the check-ins of the beat entries that it knows, under their "
            "names as they are, and celery_graceful closes them%s",
            "; graceful_monitor_exclude does not hold for those, exclude_beat_tasks of "
            "CeleryIntegration does"
            if monitors.settings.monitor_exclude
            else "",
        )
    else:
        _warn(
            "Sentry's monitor_beat_tasks is on and celery_graceful does not report to Sentry: "
            "its integration reports beat entries there by itself, celery_graceful to %s",
            ", ".join(names) or "nobody",
        )


def _slug(monitors: Monitors, task: Any) -> str | None:
    own = monitors.own(task)
    return None if own is None else own.slug


def _sentry_lacks() -> str | None:
    sdk = sys.modules.get("sentry_sdk")
    client = sdk and sdk.get_client()
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
    module = sys.modules.get("sentry_sdk.integrations.celery")
    if module is None:
        return False
    integration = sys.modules["sentry_sdk"].get_client().get_integration(module.CeleryIntegration)
    return bool(getattr(integration, "monitor_beat_tasks", False))


def _warn(message: str, *args: Any) -> None:
    log(logger, logging.WARNING, message, *args)
