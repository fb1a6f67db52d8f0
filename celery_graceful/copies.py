"""Second deliveries of what this worker runs already, or has run.

When the connection is lost, RabbitMQ delivers again all that was not acknowledged, while the
tasks go on here. A copy that comes back to this worker is not started: the run takes it over,
and acknowledges it when it ends. A run that ended while there was no connection acknowledges
its copy when that comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger

from celery_graceful import native

if TYPE_CHECKING:
    from celery_graceful.ledger import Ledger
    from celery_graceful.request import GracefulRequest

__all__ = ["Copies"]

logger = get_logger(__name__)

#: Ends whose copies have not come; they may have gone to another worker.
OWED = 1000


class Copies:
    """The copies of one worker's deliveries.

    Args:
        ledger: What the worker holds.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._lock = native.Lock()
        self._orphans: dict[Any, GracefulRequest] = {}
        #: Oldest first.
        self._owed: dict[Any, None] = {}

    def connection_lost(self) -> None:
        """What is running, and is not acknowledged, is back at the broker."""
        for request in self.ledger.active():
            if request.started_at is not None and not request.acknowledged:
                request.orphaned = True
                self._orphans[_key(request)] = request

    def owe(self, request: GracefulRequest) -> bool:
        """An orphan has ended; its copy, when it comes, is acknowledged. False: it has come."""
        with self._lock:
            if not request.orphaned:
                return False
            self._orphans.pop(_key(request), None)
            self._owed[_key(request)] = None
            while len(self._owed) > OWED:
                del self._owed[next(iter(self._owed))]
            return True

    def settle(self, copy: GracefulRequest) -> bool:
        """Whether ``copy`` is of something that runs here or has run; it is seen to then."""
        if not (self._orphans or self._owed) or not copy.delivery_info.get("redelivered"):
            return False
        key = _key(copy)
        with self._lock:
            ended = key in self._owed
            self._owed.pop(key, None)
            run = self._orphans.pop(key, None)
            if run is not None and id(run) not in self.ledger.held:
                run = None
            if run is not None:
                run.take_over(copy)
        if ended:
            logger.info("%s has ended here already: acknowledged", copy.humaninfo())
            copy.drop()
        elif run is not None:
            logger.info("%s was delivered again and still runs: it goes on", copy.humaninfo())
            copy.leave_to(run)
        return ended or run is not None


def _key(request: GracefulRequest) -> Any:
    return request.id, request.request_dict.get("retries")
