"""The metrics of one worker: who counts, who asks, and what becomes of it at its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.history import journal
from celery_graceful.metrics import estate
from celery_graceful.metrics.counts import Counts, Key, Numbers, added, current
from celery_graceful.metrics.errands import Errands
from celery_graceful.metrics.moments import MomentCounter
from celery_graceful.settings import Settings
from celery_graceful.store.store import Store, StoreAway
from celery_graceful.system import native
from celery_graceful.system.log_thread import log
from celery_graceful.system.process import Owner
from celery_graceful.timeline.board import Board
from celery_graceful.timeline.tallies import REPORTERS, STATUSES, Tallies, Tally

__all__ = ["Page", "WorkerMetrics"]

logger = get_logger(__name__)

#: Makes a page that is read over HTTP: its text, and the type of that.
Page = Callable[[], tuple[str, str]]

#: Seconds for which what is observed is that of one moment.
ROUND = 0.1

#: Share of the grace that is left for what is told at the end, and seconds at most.
LAST_SHARE, LAST = 0.25, 1.0


class WorkerMetrics:
    """Those of one worker.

    Args:
        app: The Celery app.
        settings: What the user set.
        board: What its processes count together.
        pool: The kind of its pool, in a word.
        reporters: Who may report check-ins, in the order in which all processes know them.
        owner: Of what the process has from this worker.
        gauges: How the worker is just now, by name and labels.
        fleet: Reads what is known of all workers, by name; raises ``StoreAway``.
        find_store: Where what nobody has seen is left.
    """

    def __init__(
        self,
        app: Any,
        settings: Settings,
        board: Board,
        *,
        pool: str,
        reporters: Sequence[str],
        owner: Owner,
        gauges: Callable[[], Mapping[Key, float]],
        fleet: Callable[[], Mapping[str, float]],
        find_store: Callable[[], Store | None],
    ) -> None:
        self._app, self._settings, self._board, self._owner = app, settings, board, owner
        self._gauges, self._find_store = gauges, find_store
        board.tallies.begin()
        self.counts = Counts(lambda: _tallied(board.tallies, reporters))
        #: What others have left, for Prometheus: to OpenTelemetry they have sent it.
        self._inherited: Numbers = {}
        self._lock = native.Lock()
        tasks: Container[str] = app.tasks
        self._moments = MomentCounter(self.counts, pool, lambda name: name in tasks)
        self._errands = Errands(fleet, self._inherit)
        self._round: Numbers = {}
        self._round_ends_at = 0.0
        self._prometheus: Any = None
        self._otel: Any = None

    def start(self) -> Mapping[str, Page]:
        """Begin to count, and to show it; pages that are read over HTTP, by path.

        Raises:
            SettingsError: The user's registry cannot be had.
        """
        settings = self._settings
        if "prometheus" in settings.metrics:
            from celery_graceful.metrics.prometheus import Prometheus

            registry = settings.prometheus_registry
            self._prometheus = Prometheus(
                self._with_inherited,
                self._now,
                lambda: self.counts in current.values,
                self._errands.collected,
                registry,
            )
        if "otel" in settings.metrics:
            from celery_graceful.metrics.otel import OpenTelemetry

            self._otel = OpenTelemetry(self._observed, self._owner)
        self._owner.fill(current, self.counts)
        self._owner.fill(journal.counting, self._moments)
        self._errands.start()
        return {} if self._prometheus is None else {"/metrics": self._prometheus.page}

    def drained(self, took: float, left: float) -> None:
        """The worker was asked to stop, and has: say so while there is time."""
        for name, value in (("drain_seconds", took), ("grace_left_seconds", left)):
            self.counts.observe(name, max(0.0, value))
            if self._otel is not None:
                self._otel.observe(name, max(0.0, value))
        seconds = min(LAST, LAST_SHARE * (self._board.last_resort_at - time.monotonic()))
        self._tell(max(0.1, seconds))

    def end(self) -> None:
        """The worker ends, and its process may go on."""
        self._errands.end()
        if self._prometheus is not None:
            self._prometheus.end()
        for slot in (journal.counting, current):
            self._owner.leave(slot)

    # -- numbers -----------------------------------------------------------------------

    def _now(self) -> Numbers:
        return {**self._gauges(), **self._errands.known}

    def _with_inherited(self) -> Numbers:
        with self._lock:
            return added(self.counts.all(), self._inherited)

    def _observed(self) -> Numbers:
        """For one instrument after the other: those of one round see the same."""
        if time.monotonic() > self._round_ends_at:
            self._round = {**self.counts.all(), **self._now()}
            self._round_ends_at = time.monotonic() + ROUND
            self._errands.collected()
        return self._round

    # -- what nobody has seen ----------------------------------------------------------

    def _inherit(self) -> None:
        """In the errands' thread, when somebody has seen our own."""
        seen = self._prometheus is not None and self._prometheus.is_seen
        store = self._find_store() if seen and not self._board.interrupted else None
        if store is not None:
            found = estate.take(store, self._app.main or "")
            with self._lock:
                self._inherited = added(self._inherited, found)

    def _tell(self, seconds: float) -> None:
        calls: list[Callable[[], None]] = []
        if self._prometheus is not None:
            calls.append(lambda: self._leave(seconds))
        if self._otel is not None:
            calls.append(lambda: self._otel.flush(seconds))
        native.bounded_all(calls, seconds)

    def _leave(self, seconds: float) -> None:
        store, unseen = self._find_store(), self._prometheus.unseen()
        try:
            if store is not None and unseen:
                estate.leave(store, self._app.main or "", unseen, seconds)
        except StoreAway as exc:
            log(logger, logging.WARNING, "The last metrics of this worker are lost: %s", exc)


def _tallied(tallies: Tallies, reporters: Sequence[str]) -> Numbers:
    """What all processes of the worker have counted."""
    found: Numbers = {
        ("checkpoint_saves",): tallies.total(Tally.SAVES),
        ("checkpoint_saved_bytes",): tallies.total(Tally.SAVED_BYTES),
        ("resumes",): tallies.total(Tally.RESUMES),
    }
    for place, reporter in enumerate(reporters[:REPORTERS]):
        for status in STATUSES:
            number = tallies.check_ins(place, status)
            if number:
                found["check_ins", reporter, status] = number
    return found
