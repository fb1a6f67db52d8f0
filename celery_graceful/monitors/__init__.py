"""Check-ins of scheduled runs with cron monitors: closed once, and truthfully."""

from celery_graceful.monitors.block import checkin
from celery_graceful.monitors.monitor import Monitor

__all__ = ["Monitor", "checkin"]
