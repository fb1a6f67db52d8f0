"""What has to be asked of Redis for a page of metrics: for the next one, by a thread of its own.

Whoever collects is answered at once, whatever Redis does.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping

from celery.utils.log import get_logger

from celery_graceful.metrics.counts import Numbers
from celery_graceful.store.store import StoreAway
from celery_graceful.system import native
from celery_graceful.system.log_thread import log

__all__ = ["Errands"]

logger = get_logger(__name__)

#: Seconds between two of them, at least; and that the last one gets at the end.
PAUSE, LAST = 1.0, 0.5


class Errands:
    """Of one worker.

    Args:
        fleet: Reads what is known of the fleet: numbers by name of the metric.
        inherit: Counts in what others have left; not before somebody has seen our own.
    """

    def __init__(
        self, fleet: Callable[[], Mapping[str, float]], inherit: Callable[[], None]
    ) -> None:
        self._fleet, self._inherit = fleet, inherit
        #: As of the last errand; empty while Redis is away.
        self.known: Numbers = {}
        self._bell: native.Doorbell = native.SILENT
        self._over: native.Doorbell = native.SILENT
        self._thread: native.Thread | None = None
        self._ended = False
        self._said = ""

    def start(self) -> None:
        """Go for the first time: whoever collects first finds something."""
        self._bell, self._over = native.Doorbell(), native.Doorbell()
        self._thread = native.start_thread(self._run, "graceful-metrics")
        self._bell.ring()

    def collected(self) -> None:
        """Somebody has collected: go for the next one. Waits for nothing."""
        self._bell.ring()

    def end(self) -> None:
        """The worker ends."""
        thread, self._thread = self._thread, None
        self._ended = True
        self._bell.ring()
        self._over.ring()
        if thread is not None:
            thread.wait(LAST)
        self._bell = self._over = native.SILENT

    def _run(self) -> None:
        while not self._ended:
            self._bell.wait(None)
            if self._ended:
                return
            trouble = ""
            for errand in (self._read, self._inherit):
                try:
                    errand()
                except StoreAway:
                    pass  # said there
                except Exception:
                    trouble = traceback.format_exc()
            self._say(trouble)
            self._over.wait(PAUSE)

    def _read(self) -> None:
        known: Numbers = {}
        try:
            known = {(name,): number for name, number in self._fleet().items()}
        finally:  # not before: who collects meanwhile would miss them
            self.known = known

    def _say(self, trouble: str) -> None:
        said, self._said = self._said, trouble
        if trouble and trouble != said:
            log(logger, logging.ERROR, "Metrics of the fleet failed: %s", trouble)
