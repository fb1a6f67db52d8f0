"""Ends of tasks that could be told to nobody: their messages are kept, and they run again.

While the Redis that is the broker takes no writes, or is gone for longer than Celery tries, neither
a result can be stored nor a retry or the rest of a chain be sent. If the message were acknowledged
then, all of that would be lost; if it went back at once, its task might run again and again. So it
stays claimed until Redis takes writes, and goes back then; or when the worker stops.

Other brokers have given the message back by themselves, when the connection was lost. If it has not
come again yet, it will; if it has, it goes back: the broker is there.
"""

from __future__ import annotations

import logging
import time

from celery.exceptions import BackendError, Reject, TaskError
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from celery_graceful.deliveries.duplicates import Duplicates
from celery_graceful.deliveries.handler_errors import let_go
from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.stage import Stage
from celery_graceful.store.answers import is_of_redis
from celery_graceful.store.rights import why_no_writes
from celery_graceful.store.store import Store, StoreAway
from celery_graceful.system import native
from celery_graceful.system.describe import describe
from celery_graceful.system.log_thread import log
from celery_graceful.system.repeating import Repeating

__all__ = ["UntoldEnds", "takes_no_writes"]

logger = get_logger(__name__)

#: Why their messages go back.
WHY = "its end could not be stored"

#: Seconds between looks whether Redis takes writes again.
LOOK_AGAIN = 1.0

#: Seconds for which an outage that is over is taken for the reason; Celery tries for 19 by default.
LATELY = 60.0


class UntoldEnds:
    """Of the tasks of one worker.

    Args:
        ledger: What it holds.
        duplicates: Know when the connection was lost.
    """

    def __init__(self, ledger: Ledger, duplicates: Duplicates) -> None:
        self._ledger, self._duplicates = ledger, duplicates
        self._lock = native.Lock()
        self._kept: list[tuple[HeldMessage, Store]] = []
        self._looking = Repeating(self._look, LOOK_AGAIN, "graceful-untold-ends")

    def keep(self, request: HeldMessage, ended_by: BaseException, *, beside_task: bool) -> bool:
        """Keep its message, if its end could not be told. From any thread.

        Args:
            request: Its delivery.
            ended_by: What was raised at its end.
            beside_task: It was not the task that raised it, but who ran it.

        Returns:
            Whether it is kept. If not, it has ended like any other.
        """
        claim = request.claim
        if request.acknowledged or request.stage is not Stage.RUNNING:
            return False
        if not (_was_not_sent(ended_by) or (beside_task and _is_of_a_server(ended_by))):
            return False
        # A loop that has no broker hears of the ends in a pool's children when it has one again.
        began, lately = request.started_at or 0.0, time.monotonic() - LATELY
        if claim is None:
            return self._duplicates.lost_at > began and self._goes_back(request, ended_by)
        was_away = claim.book.store.was_away_since(max(began, lately))
        if not (was_away or self._takes_no_writes(claim.book.store)):
            return False
        self._ledger.put_down(request)
        let_go(request)
        text = "%s[%s] has ended, and that can be told to nobody: it runs again when Redis takes "
        told = describe(ended_by)
        log(logger, logging.ERROR, f"{text}writes: %s", request.name, request.id, told)
        with self._lock:
            self._kept.append((request, claim.book.store))
        self._looking.begin()
        return True

    def _goes_back(self, request: HeldMessage, ended_by: BaseException) -> bool:
        self._ledger.put_down(request)
        let_go(request)
        text = "%s[%s] has ended, and that can be told to nobody: it runs again: %s"
        log(logger, logging.ERROR, text, request.name, request.id, describe(ended_by))
        self._release([request])
        return True

    def _release(self, requests: list[HeldMessage]) -> None:
        try:
            self._ledger.release(requests, WHY)
        except Exception as exc:
            self._ledger.note_failure(exc)
            text = "Could not give %d tasks back: %s"
            log(logger, logging.ERROR, text, len(requests), describe(exc))

    def _takes_no_writes(self, store: Store) -> bool:
        with self._lock:
            if any(store is other for _, other in self._kept):  # known until the next look
                return True
        return takes_no_writes(store)

    def _look(self) -> bool:
        with self._lock:
            stores = {id(store): store for _, store in self._kept}
        full = {place for place, store in stores.items() if takes_no_writes(store)}
        with self._lock:
            # A stop, a lost connection or a rescue may have given some of them back.
            kept = [one for one in self._kept if one[0].stage is Stage.RECEIVED]
            self._kept = [one for one in kept if id(one[1]) in full or id(one[1]) not in stores]
            due = [one for one in kept if one not in self._kept]
            looks_again = bool(self._kept)
        self._release([request for request, _ in due])
        return looks_again


def takes_no_writes(store: Store) -> bool:
    """Whether a Redis is away, full, or else not to be written to."""
    try:
        return why_no_writes(store) is not None
    except StoreAway:
        return True


def _was_not_sent(ended_by: BaseException) -> bool:
    """Whether it is a retry that the broker has not taken."""
    return (
        isinstance(ended_by, Reject)
        and not ended_by.requeue
        and isinstance(ended_by.reason, OperationalError)
    )


def _is_of_a_server(ended_by: BaseException) -> bool:
    # Of a thread or a greenlet it is what the task is said to have been left by.
    left_by = ended_by.__cause__ if isinstance(ended_by, TaskError) else None
    found = left_by or ended_by
    return isinstance(found, (OperationalError, BackendError)) or is_of_redis(found)
