"""Celery's mailbox of remote control on gevent and eventlet: a stop does not wait for it.

A greenlet waits there for messages, a second at a time, and whoever stops the consumer waits until
it looks up.
"""

from __future__ import annotations

from types import CodeType
from typing import Any

from kombu.connection import Connection

from celery_graceful.system import native
from celery_graceful.worker.loop import innermost_at_work

__all__ = ["leave_at_once"]


def leave_at_once(consumer: Any) -> None:
    """Have the greenlet of a consumer's mailbox look up when the consumer stops. Before it starts.

    Args:
        consumer: Celery's.
    """
    from celery.worker.consumer.control import Control
    from celery.worker.pidbox import gPidbox

    if not native.is_green():  # a pool of greenlets where nothing is patched
        return
    for step in consumer.steps:
        if isinstance(step, Control) and isinstance(step.box, gPidbox):
            box, reader = step.box, _Reader(step.box, gPidbox.loop.__code__)
            box.loop, box.on_stop = reader.loop, reader.on_stop


class _Reader:
    """Who reads what comes to a mailbox, between its start and its stop.

    Args:
        box: Celery's.
        code: Of its loop.
    """

    def __init__(self, box: Any, code: CodeType) -> None:
        self._loop, self._on_stop, self._code = box.loop, box.on_stop, code
        self._greenlet: Any = None

    def loop(self, consumer: Any) -> None:
        """In place of the mailbox's own, in a greenlet."""
        import greenlet

        self._greenlet = greenlet.getcurrent()
        try:
            self._loop(consumer)
        finally:
            self._greenlet = None

    def on_stop(self) -> None:
        """In place of the mailbox's own, which says that it stops, and waits."""
        from celery_graceful.pools.green import in_hub

        in_hub(self._look_up)
        self._on_stop()

    def _look_up(self) -> None:
        if self._greenlet is not None and self._waits():
            self._greenlet.throw(TimeoutError("the consumer stops"))

    def _waits(self) -> bool:
        """Whether it waits for the next message, and does nothing."""
        frames = innermost_at_work(self._greenlet.gr_frame)
        at = [None if frame is None else frame.f_code for frame in frames]
        return at == [self._code, Connection.drain_events.__code__]
