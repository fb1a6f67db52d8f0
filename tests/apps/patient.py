"""The tasks of `lifecycle`; who waits for remote control, a second at a time, waits ten minutes."""

from __future__ import annotations

from kombu import Connection

from tests.apps.lifecycle import app

__all__ = ["app"]

_drain_events = Connection.drain_events


def drain_events(self, *, timeout=None, **options):
    """As kombu's."""
    return _drain_events(self, timeout=600.0 if timeout == 1.0 else timeout, **options)


Connection.drain_events = drain_events
