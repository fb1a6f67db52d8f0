"""The check-in of one run.

A run is the chain of deliveries of one task: its interruptions, rescues and retries. Its id is
computed, so that any process can close it for one that died: from the monitor, the run, and how
many check-ins of the run were closed before its end. The latter, and when the run began, are in
the store; without one the number is 0, and each delivery counts its own time.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celery_graceful.monitors.monitor import Monitor
from celery_graceful.monitors.report import IN_PROGRESS, Report

if TYPE_CHECKING:
    from celery_graceful.store.store import Store

__all__ = ["CheckIn"]

_NAMESPACE = uuid.UUID("8f0b4a5e-6f5c-4d53-9a0e-5a3c4f1f7c11")


class CheckIn:
    """One run's check-in, as one process sees it. What asks the store is for threads that may wait.

    Args:
        monitor: The monitor.
        run: Id of the run.
        config: What Sentry's server is told of the monitor.
        store: Where the run is remembered; ``None`` for a run that this process sees whole.
        ttl: Seconds that it is remembered.
        slug: As somebody else opened it, who did not write it as we do.
        opened_as: Id of the check-in that somebody else opened for this run.
        on_interrupt: What an interruption closes it as; ``None`` leaves it open.
        name: What people read.
        first: Nobody has begun with the run before.
    """

    def __init__(
        self,
        monitor: Monitor,
        run: str,
        *,
        config: Mapping[str, Any] | None = None,
        store: Store | None = None,
        ttl: float = 86400.0,
        slug: str | None = None,
        opened_as: str | None = None,
        on_interrupt: str | None = None,
        name: str = "",
        first: bool = False,
    ) -> None:
        self.monitor = monitor
        self.run = run
        self.config = config
        self.slug = slug or monitor.slug
        self.on_interrupt = monitor.on_interrupt or on_interrupt
        self.name = name
        self.number = 0
        #: Of the process that runs it, where another one sends its heartbeats.
        self.pid: int | None = None
        self._store = store
        self._ttl = int(ttl)
        self._opened_as = opened_as
        self._began_at = time.time()
        self._began = time.monotonic()
        self._began_before = 0.0
        self._known = store is None
        #: This process sees it whole, unless the store is told of it.
        self._first, self._begins_here = first, False
        self._ids: dict[int, str] = {}
        #: Its last report is made; what the store had of it is gone.
        self._has_ended = self._forgotten = False

    @property
    def id(self) -> str:
        """A UUID with dashes."""
        number = self.number
        if self._opened_as is not None and number == 0:
            return str(uuid.UUID(self._opened_as))
        if number not in self._ids:  # a report asks twice
            name = f"{self.slug}\n{self.run}\n{number}"
            self._ids[number] = str(uuid.uuid5(_NAMESPACE, name))
        return self._ids[number]

    def report(self, status: str, text: str = "") -> Report:
        """What is to be sent, made now. Does not ask the store: see ``complete``."""
        return Report(
            self.slug,
            self.id,
            status,
            None if status == IN_PROGRESS else time.monotonic() - self._began,
            self.monitor,
            self.config,
            self.run,
            f"{self.name} {text}".strip(),
        )

    def complete(self, report: Report, *, begins: bool = False) -> Report:
        """A report with what the store knows of the run. May wait for the store.

        Args:
            report: Made by ``report``.
            begins: As for ``look_up``.
        """
        self.look_up(begins=begins)
        duration = report.duration
        if duration is not None:
            duration += self._began_before
        return replace(report, check_in_id=self.id, duration=duration)

    def runs_in(self, pid: int | None) -> None:
        """Another process than this one runs it, if one does; this one sends its heartbeats."""
        self.pid = pid

    def begins(self) -> None:
        """The run begins, or goes on, in this process."""
        self._begins_here = True

    def ends(self) -> None:
        """The run has ended, and that is about to be reported."""
        self._has_ended = True

    # -- the store -------------------------------------------------------------------

    @property
    def _key(self) -> str:
        return f"graceful:run:{self.slug}:{self.run}"

    def look_up(self, *, begins: bool = False, timeout: float = 1.0) -> None:
        """Ask the store, once, for the number and when the run began.

        Args:
            begins: The caller runs the task: note that it has begun, unless it has ended by now.
            timeout: Seconds that the store may take.
        """
        if self._known or self._store is None:
            return
        if self._first and self._begins_here and self._has_ended:  # nobody was told, nor will be
            self._known = self._forgotten = True
            return
        from celery_graceful.store.store import StoreAway

        try:
            if begins:
                ended = int(self._has_ended)
                args = [int(self._began_at * 1000), self._ttl, ended]
                *found, forgotten = self._store.run(
                    "checkin_open", [self._key], args, timeout=timeout
                )
                self._forgotten = bool(forgotten)
            else:
                found = self._store.execute(
                    "HMGET", [self._key], ["began", "closed"], timeout=timeout
                )
        except StoreAway:
            self._known = True
            return
        if self._known:  # somebody has asked meanwhile, and may have closed it since
            return
        began, closed = found
        self.number = int(closed or 0)
        if began is not None:
            self._began_before = max(0.0, self._began_at - int(began) / 1000)
        self._known = True

    def close_early(self, timeout: float = 1.0) -> None:
        """It is closed although the run goes on: whoever goes on with it opens another.

        To be done before anybody can go on.
        """
        self.look_up(timeout=timeout)
        if self._store is not None:
            from celery_graceful.store.store import StoreAway

            try:
                self._store.run(
                    "checkin_close", [self._key], [self.number, self._ttl], timeout=timeout
                )
            except StoreAway:
                pass

    def forget(self) -> None:
        """The run has ended."""
        if self._store is not None and not self._forgotten:
            from celery_graceful.store.store import StoreAway

            try:
                self._store.execute("UNLINK", [self._key])
            except StoreAway:
                pass
