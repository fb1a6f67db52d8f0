"""Whether a worker lives, and whether it takes tasks.

It is **live** while its event loop goes round, through a drain as well; and while it has none: it
starts, or looks for its broker, which no new start brings nearer, or ends, within its deadlines.
A task that runs in the thread of the loop (solo) may keep it for as long as it likes. So may a
broker that does not answer: Celery waits there for it, with each heartbeat that it publishes.

It is **ready** when it is live, connected, and nobody has asked it to be quiet or to stop. A broker
that is away for less than the lease is no reason: what is claimed stays claimed for as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from celery_graceful.phases import Phase
from celery_graceful.settings import Settings
from celery_graceful.timeline.board import Board

__all__ = ["Health", "LoopView"]


class LoopView(Protocol):
    """An event loop, as far as can be seen from outside."""

    @property
    def alive(self) -> bool:
        """A consumer is connected, and its loop goes round."""

    @property
    def left_at(self) -> float | None:
        """When it was not alive any more, on the monotonic clock; ``None``: it never was."""

    @property
    def turned_at(self) -> float:
        """When it went round last."""

    @property
    def pause(self) -> float:
        """Seconds in which it need not go round, though somebody has rung."""

    def ring(self) -> None:
        """Have it go round."""


class Health:
    """That of one worker. Asked from any thread.

    Args:
        settings: What the user set.
        board: Where the worker stands on its way to a stop.
        loop: Its loop.
        busy: Whether a task runs that may keep the loop.
        heard: Whether its broker has heard it within the lease; true where it cannot say.
        cut_off: Whether its broker does not answer, or where else its lease is; no where there is
            none.
        running: How many tasks run.
        silent: Seconds for which its broker has not heard it, where that is known.
    """

    def __init__(
        self,
        settings: Settings,
        board: Board,
        loop: LoopView,
        *,
        busy: Callable[[], bool],
        heard: Callable[[], bool],
        cut_off: Callable[[], bool],
        running: Callable[[], int],
        silent: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.stale = settings.probe_stale
        self._lease = settings.lease_ttl
        self._board, self._loop = board, loop
        self._busy, self._heard, self._cut_off, self._running = busy, heard, cut_off, running
        self._silent = silent
        #: When the loop had an excuse, last.
        self._excused_at = 0.0

    def ring(self) -> None:
        """Have the loop show that it goes round."""
        self._loop.ring()

    def not_live(self) -> str:
        """Why it is not live; empty if it is."""
        if not self._loop.alive or self._busy() or self._cut_off():
            self._excused_at = time.monotonic()
            return ""
        since = time.monotonic() - max(self._loop.turned_at, self._excused_at)
        if since <= self.stale + self._loop.pause:
            return ""
        return f"its event loop has not turned for {since:.0f} s, of {self.stale:g}"

    def not_ready(self) -> str:
        """Why it is not ready; empty if it is."""
        phase, left_at = self._board.phase, self._loop.left_at
        if phase is not Phase.RUNNING:
            return "it stops" if self._board.interrupted else "it is quiet"
        if not self._loop.alive:
            if left_at is None:
                return "it has not connected to its broker yet"
            away = time.monotonic() - left_at
            return f"its broker has been away for {away:.0f} s" if away > self._lease else ""
        if not self._heard():
            return f"its broker has not answered for {self._silent() or self._lease:.0f} s"
        return self.not_live()

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._board.interrupted

    def status(self) -> str:
        """Where it stands, in one line for people."""
        if not self.stopping:
            not_ready = self.not_ready()
            return f"Not ready: {not_ready}" if not_ready else "Ready"
        left = max(0.0, self._board.hard_at - time.monotonic())
        return f"Stopping: {self._running()} tasks run, {left:.0f} s until they are given up"
