"""Results that could not be stored, as the result backend was away: they are stored later.

What a task came to is kept here, and its message held, until the backend takes it: then the task
ends as ever. A message that leaves before, when the worker stops or dies, runs again. What was
acknowledged at its start ends at once: its result alone is kept, for as long as the worker lives.
So it is where a backend refuses what it is given, as one that is full may do for days: a worker
that holds its messages for that long takes no new ones.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from celery import states
from celery.result import result_from_tuple
from celery.utils.log import get_logger

from celery_graceful.deliveries.handler_errors import let_go
from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.stage import Stage
from celery_graceful.deliveries.untold_ends import takes_no_writes
from celery_graceful.results.outlasting import is_outage
from celery_graceful.runs.unstored import Unstored
from celery_graceful.store.app_stores import results_store
from celery_graceful.store.store import Store
from celery_graceful.system import native
from celery_graceful.system.describe import describe
from celery_graceful.system.log_thread import log

__all__ = ["LateResults"]

logger = get_logger(__name__)

#: Seconds between looks whether the backend is there.
LOOK_AGAIN = 1.0

#: Results of tasks whose messages are not held, so that nothing else limits their number.
MOST = 1000

#: What is said of what cannot be stored.
_WAITS = "its message is held until it is"
_ENDS = "it is stored later, if this worker lives as long"
_LOST = "it is lost, there are too many"


class _Kept(NamedTuple):
    request: HeldMessage
    unstored: Unstored
    #: Ends it; without, it has ended.
    end: Callable[[], None] | None


class LateResults:
    """Of the tasks of one worker.

    Args:
        ledger: What it holds.
        ring_loop: Makes the loop call ``on_loop``.
    """

    def __init__(self, ledger: Ledger, ring_loop: Callable[[], None]) -> None:
        self._ledger = ledger
        self._ring_loop = ring_loop
        self._lock = native.Lock()
        self._kept: deque[_Kept] = deque()
        self._stored: deque[_Kept] = deque()
        self._looks = False
        self._store: Store | None = None

    def keep(self, request: HeldMessage, unstored: Unstored, end: Callable[[], None]) -> bool:
        """Keep what a task came to until it can be stored. From any thread.

        Args:
            request: Its delivery.
            unstored: What it came to.
            end: Ends it, when that is stored. In the loop.

        Returns:
            Whether ``end`` is called. If not, it ends now.
        """
        if request.lost or request.stage is not Stage.RUNNING:
            return False
        waits = not request.acknowledged and not (unstored.refused and _is_answered(request))
        if waits:
            request.tells_later = True
            self._ledger.put_down(request)
            let_go(request)
        with self._lock:
            is_lost = not waits and len(self._kept) >= MOST
            if not is_lost:
                self._kept.append(_Kept(request, unstored, end if waits else None))
            begins = not (self._looks or is_lost)
            self._looks = self._looks or begins
        later = _WAITS if waits else _ENDS
        text = "%s[%s] has ended (%s), and that cannot be stored: %s"
        told = _LOST if is_lost else later
        log(logger, logging.WARNING, text, request.name, request.id, unstored.state, told)
        if begins:
            self._look_later()
        return waits

    def on_loop(self) -> None:
        """What is stored ends."""
        while self._stored:
            kept = self._stored.popleft()
            if kept.end is not None:
                kept.request.tells_later = False
                kept.end()

    def _look_later(self) -> None:
        timer = threading.Timer(LOOK_AGAIN, self._look)
        timer.daemon = True
        timer.start()

    def _look(self) -> None:
        try:
            while self._kept and self._takes_writes(self._kept[0].request.task.app):
                kept = self._kept[0]
                # A stop, or a rescue, may have given its message back.
                if kept.end is None or kept.request.stage is Stage.RECEIVED:
                    if not _store(kept):
                        break
                    self._stored.append(kept)
                    self._ring_loop()
                with self._lock:
                    self._kept.popleft()
        finally:
            with self._lock:
                self._looks = bool(self._kept)
            if self._looks:
                self._look_later()

    def _takes_writes(self, app: Any) -> bool:
        """Whether it is worth trying: Celery would wait for 19 s, and log twenty lines."""
        self._store = self._store or results_store(app)
        return self._store is None or not takes_no_writes(self._store)


def _is_answered(request: HeldMessage) -> bool:
    """Whether its message can be acknowledged, as far as Redis is concerned."""
    return request.claim is None or not takes_no_writes(request.claim.book.store)


def _store(kept: _Kept) -> bool:
    """Whether it is stored, or never will be."""
    request, unstored = kept.request, kept.unstored
    backend = request.task.backend
    try:
        context = request.context
        context.children[:] = [
            result_from_tuple(one, request.task.app) for one in unstored.children
        ]
        if unstored.state == states.SUCCESS:
            backend.mark_as_done(request.id, unstored.result, context, unstored.stores)
        else:
            backend.mark_as_failure(
                request.id,
                unstored.result,
                unstored.traceback,
                request=context,
                store_result=unstored.stores,
            )
    except Exception as exc:
        if is_outage(backend, exc):
            return False
        text = "What %s[%s] came to (%s) could not be stored, and is lost: %s"
        told = describe(exc)
        log(logger, logging.ERROR, text, request.name, request.id, unstored.state, told)
    else:
        text = "What %s[%s] came to (%s) is stored: the result backend is there again"
        log(logger, logging.WARNING, text, request.name, request.id, unstored.state)
    return True
