"""Beat's side: tell the worker which entry it was, and when it is expected."""

from __future__ import annotations

import logging
import threading
import uuid
from functools import wraps
from typing import Any

from celery import signals as celery_signals

from celery_graceful.exceptions import SettingsError
from celery_graceful.monitors.registry import STAMP, Monitors, monitors_of
from celery_graceful.monitors.silent import say_what_is_silent

__all__ = ["install"]

logger = logging.getLogger(__name__)

_now = threading.local()


def install(sender: Any = None, signal: Any = None, **_: Any) -> None:
    """For ``beat_init`` and ``beat_embedded_init``: stamp what the scheduler publishes."""
    scheduler = sender.scheduler
    try:
        monitors = monitors_of(scheduler.app)
        monitors.check()
        monitors.know_entries()
    except SettingsError as exc:
        raise SystemExit(str(exc)) from None
    if signal is celery_signals.beat_init:  # else the worker that it is part of has said it
        say_what_is_silent(monitors)
    if not hasattr(scheduler.apply_async, "_stamps"):
        scheduler.apply_async = _stamping(scheduler.apply_async, monitors)
        celery_signals.before_task_publish.connect(_on_publish)


def _stamping(apply_async: Any, monitors: Monitors) -> Any:
    failed: set[str] = set()

    @wraps(apply_async)
    def stamping(entry: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            _now.stamp = stamp_of(entry, monitors)
        except Exception as exc:
            _now.stamp = None
            if entry.name not in failed:  # it fires again and again
                failed.add(entry.name)
                logger.exception("No check-in for beat entry %s: %r", entry.name, exc)
        try:
            return apply_async(entry, *args, **kwargs)
        finally:
            _now.stamp = None

    stamping._stamps = True  # type: ignore[attr-defined]
    return stamping


def _on_publish(headers: Any = None, **_: Any) -> None:
    stamp = getattr(_now, "stamp", None)
    if stamp is not None and headers is not None:
        headers[STAMP] = stamp


def stamp_of(entry: Any, monitors: Monitors) -> dict[str, Any] | None:
    """What the message of an entry has to carry, if its run is monitored."""
    task = monitors.app.tasks.get(entry.task)
    own = None if task is None else monitors.own(task)
    # One that is due now and then has its id from Celery, or always the same from the user.
    stamp: dict[str, Any] = {"run": str(uuid.uuid4())}
    if own is None:
        monitor = monitors.of_entry(str(entry.name), entry.schedule, task)
        if monitor is None:
            return None
        stamp["slug"] = monitor.slug
    elif own.schedule is None and _is_alone(entry, monitors):
        monitor = own.with_defaults(schedule=entry.schedule)
    else:
        return stamp
    config = monitors.config(monitor)
    if config is not None:
        stamp["schedule"] = dict(config["schedule"])
        stamp["timezone"] = config.get("timezone")
    return stamp


def _is_alone(entry: Any, monitors: Monitors) -> bool:
    """Whether no other entry runs the same task: else it has no one schedule."""
    entries = (monitors.app.conf.beat_schedule or {}).values()
    return bool(sum(other.get("task") == entry.task for other in entries) <= 1)
