"""Beat's side: tell the worker which entry it was, and when it is expected."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Set as AbstractSet
from functools import partial, wraps
from typing import Any

from celery import signals as celery_signals

from celery_graceful.exceptions import SettingsError
from celery_graceful.monitors.registry import SENTRY_SLUG, STAMP, Monitors, monitors_of
from celery_graceful.monitors.setup_warnings import say_what_is_silent, sentry_monitors_beat
from celery_graceful.system import fatal

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
        fatal.end(exc)
    if not (monitors.closes_sentrys and sentry_monitors_beat()):  # else each when it fires
        monitors.entries.say()
    if signal is celery_signals.beat_init:  # else the worker that it is part of has said it
        say_what_is_silent(monitors)
    if not hasattr(scheduler.apply_async, "_stamps"):
        scheduler.apply_async = _stamping(scheduler.apply_async, monitors)
        celery_signals.before_task_publish.connect(_on_publish)


def _stamping(apply_async: Any, monitors: Monitors) -> Any:
    failed: set[str] = set()
    #: Names of the first two entries of each task that have fired.
    fired: dict[str, set[str]] = {}

    def stamp(entry: Any, headers: dict[str, Any]) -> None:
        try:
            names = fired.setdefault(entry.task, set())
            if len(names) < 2:
                names.add(str(entry.name))
            opened = monitors.closes_sentrys and SENTRY_SLUG in headers
            found = stamp_of(entry, monitors, names, say=not opened)
        except Exception as exc:
            if entry.name not in failed:  # it fires again and again
                failed.add(entry.name)
                logger.exception("No check-in for beat entry %s: %r", entry.name, exc)
        else:
            if found is not None:
                headers[STAMP] = found

    @wraps(apply_async)
    def stamping(entry: Any, *args: Any, **kwargs: Any) -> Any:
        _now.stamp = partial(stamp, entry)
        try:
            return apply_async(entry, *args, **kwargs)
        finally:
            _now.stamp = None

    stamping._stamps = True  # type: ignore[attr-defined]
    return stamping


def _on_publish(headers: Any = None, **_: Any) -> None:
    # Not before: with RedBeat Sentry's integration has its say inside of apply_async.
    stamp = getattr(_now, "stamp", None)
    if stamp is not None and headers is not None:
        stamp(headers)


def stamp_of(
    entry: Any, monitors: Monitors, fired: AbstractSet[str], *, say: bool = True
) -> dict[str, Any] | None:
    """What the message of an entry has to carry, if its run is monitored.

    Args:
        entry: The entry.
        monitors: Of its app.
        fired: Names of entries of its task that have fired.
        say: Whether to say what people may not expect of its monitor: not where Sentry's own
            integration has opened the check-in, with a name and a schedule of its own.
    """
    task = monitors.app.tasks.get(entry.task)
    own = None if task is None else monitors.own(task)
    # One that is due now and then has its id from Celery, or always the same from the user.
    stamp: dict[str, Any] = {"run": str(uuid.uuid4())}
    if own is None:
        monitor = monitors.of_entry(str(entry.name), entry.schedule, task, say=say)
        if monitor is None:
            return None
        stamp["slug"] = monitor.slug
    elif own.schedule is None and _is_alone(entry, monitors, fired):
        monitor = own.with_defaults(schedule=entry.schedule)
    else:
        return stamp
    config = monitors.config(monitor, say=say)
    if config is not None:
        stamp["schedule"] = dict(config["schedule"])
        stamp["timezone"] = config.get("timezone")
    return stamp


def _is_alone(entry: Any, monitors: Monitors, fired: AbstractSet[str]) -> bool:
    """Whether no other entry runs the same task, as far as is known: else it has no one schedule.

    Those of a database, or of RedBeat, are known when they have fired: not every scheduler has all
    of them at hand.
    """
    entries = (monitors.app.conf.beat_schedule or {}).items()
    names = {str(name) for name, other in entries if other.get("task") == entry.task}
    return len(names | fired | {str(entry.name)}) == 1
