"""Check-ins of scheduled runs with cron monitors: closed once, and truthfully.

Come in by `tracer` (where a task runs), `outcome` (in the main process), and `registry` (which
monitors an app has); users by `Monitor` and `checkin`.

May not know of requests: what is needed of one, `outcome` says.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from celery_graceful.system.on_demand import on_demand as _on_demand

if _TYPE_CHECKING:
    from celery_graceful.monitors.block import checkin
    from celery_graceful.monitors.monitor import Monitor

__getattr__ = _on_demand(
    __name__,
    {
        "Monitor": "celery_graceful.monitors.monitor",
        "checkin": "celery_graceful.monitors.block",
    },
)

__all__ = [
    "Monitor",
    "beat",
    "check_in",
    "checkin",
    "heartbeat",
    "monitor",
    "named_monitors",
    "outcome",
    "registry",
    "sentry",
    "setup_warnings",
    "tracer",
]
