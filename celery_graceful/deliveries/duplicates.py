"""Second deliveries of what this worker runs already, or has run.

When the connection is lost, RabbitMQ delivers again all that was not acknowledged, while the
tasks go on here. A copy that comes back to this worker is not started: the run takes it over,
and acknowledges it when it ends. A run that ended while there was no connection, or so short a
time before that it may have been acknowledged to nobody, acknowledges its copy when that comes.
Where there is a store, other workers learn of it there.
"""

from __future__ import annotations

from collections import deque
from time import monotonic

from celery.utils.log import get_logger
from celery.worker import state

from celery_graceful.deliveries.handler_errors import let_go
from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.stage import OPEN, Stage
from celery_graceful.messages.fingerprint import Fingerprint, fingerprint, fingerprint_as_text
from celery_graceful.system import native

__all__ = ["Duplicates"]

logger = get_logger(__name__)

#: Acknowledgements that are remembered, in case that their connection is lost, and ends whose
#: copies have not come; they may have gone to another worker.
ANSWERED, OWED = 1000, 1000

#: Seconds before the loss of a connection in which it may have been lost already; and those
#: after it for which copies may come.
IN_DOUBT, COMING = 10.0, 300.0


class Duplicates:
    """The copies of one worker's deliveries.

    Args:
        ledger: What the worker holds.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        #: When the connection was lost last, on the monotonic clock.
        self.lost_at = 0.0
        self._lock = native.Lock()
        self._orphans: dict[Fingerprint, HeldMessage] = {}
        #: Runs that have ended, and until when their copies may come; oldest first.
        self._owed: dict[Fingerprint, float] = {}
        #: When what was acknowledged: its key, its task, its note.
        self._answered: deque[tuple[float, Fingerprint, str | None]] = deque(maxlen=ANSWERED)

    def answered(self, request: HeldMessage) -> None:
        """It is being acknowledged; whether that arrives nobody says."""
        self._answered.append((monotonic(), fingerprint(request), request.note))

    def connection_lost(self, *, heard: bool) -> None:
        """What is running, and is not acknowledged, is back at the broker.

        Args:
            heard: The broker has heard what was said to it: the connection is being closed.
        """
        now = monotonic()
        since = now - IN_DOUBT
        if heard:
            self._answered.clear()
        else:
            self.lost_at = now
        while self._answered:
            at, key, note = self._answered.popleft()
            if at >= since:
                self._owes(key, note)
        for request in self.ledger.open_requests():
            may_come = request.tells_later or request.stage is not Stage.RECEIVED
            if may_come and request.mark_orphaned():
                self._orphans[fingerprint(request)] = request

    def owe(self, request: HeldMessage) -> bool:
        """An orphan has ended; its copy, when it comes, is acknowledged. False: it has come."""
        key = fingerprint(request)
        with self._lock:
            if not request.orphaned:
                return False
            if self._orphans.get(key) is request:
                del self._orphans[key]
        self._owes(key, request.note)
        return True

    def _owes(self, key: Fingerprint, note: str | None) -> None:
        with self._lock:
            self._owed[key] = monotonic() + COMING
            while len(self._owed) > OWED:
                del self._owed[next(iter(self._owed))]
        self.ledger.post_mortems.remember(key[0], note, fingerprint_as_text(key))

    def settle(self, copy: HeldMessage) -> bool:
        """Whether ``copy`` is of something that runs here or has run; it is seen to then."""
        if not (self._orphans or self._owed) or not copy.delivery_info.get("redelivered"):
            return False
        key = fingerprint(copy)
        with self._lock:
            run = self._orphans.pop(key, None)
            if run is not None and id(run) not in self.ledger.held:
                run = None
            if run is not None:  # first: one like it, sent under the same id, may have ended
                run.take_over(copy)
            ended = run is None and self._owed.pop(key, 0.0) > monotonic()
        if ended:
            logger.info("%s has ended here already: acknowledged", copy.humaninfo())
            self.ledger.drop(copy)
        elif run is not None:
            logger.info("%s was delivered again and still runs: it goes on", copy.humaninfo())
            if self.ledger.close(copy, Stage.RELEASED, only=OPEN):
                let_go(copy)
                state.requests[run.id] = run
        return ended or run is not None
