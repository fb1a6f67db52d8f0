"""Results that could not be stored, as the result backend was away: they are stored later.

What a task came to is kept here, and its message held, until the backend takes it: then the task
ends as ever. A message that leaves before, when the worker stops or dies, runs again. What was
acknowledged at its start ends at once: its result alone is kept, for as long as the worker lives.
So it is where a backend refuses what it is given, as one that is full may do for days: a worker
that holds its messages for that long takes no new ones.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from copy import copy
from typing import Any, NamedTuple

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import states
from celery.exceptions import BackendStoreError
from celery.result import result_from_tuple
from celery.utils.log import get_logger

from celery_graceful.deliveries.handler_errors import let_go
from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.stage import Stage
from celery_graceful.deliveries.untold_ends import takes_no_writes
from celery_graceful.results.outlasting import is_outage
from celery_graceful.runs.unstored import HERE, Here, Unstored
from celery_graceful.store.app_stores import results_store
from celery_graceful.store.connections import has_celerys_client
from celery_graceful.store.rights import why_no_writes
from celery_graceful.store.store import Store, StoreAway, StoreIsReplica, fork_gate
from celery_graceful.system import native
from celery_graceful.system.describe import describe
from celery_graceful.system.log_thread import log
from celery_graceful.system.repeating import Repeating

__all__ = ["LateResults"]

logger = get_logger(__name__)

#: Seconds between looks whether the backend is there.
LOOK_AGAIN = 1.0

#: How often it may not be stored in a backend that takes others.
TRIES = 10

#: Results of tasks whose messages are not held, so that nothing else limits their number.
MOST = 1000

#: What is said of what cannot be stored.
_WAITS = "its message is held until it is"
_ENDS = "it is stored later, if this worker lives as long"
_LOST = "it is lost, there are too many"


#: What is nowhere else in the log while it is kept.
_DEATHS = (WorkerLostError, TimeLimitExceeded)


class _Kept(NamedTuple):
    request: HeldMessage
    unstored: Unstored
    #: Ends it; without, it has ended.
    end: Callable[[], None] | None
    #: How often it was not stored though the backend is there, and what had been stored by then.
    tries: int = 0
    after: int = 0

    @property
    def waits(self) -> bool:
        """A stop, or a rescue, may have given its message back."""
        return self.end is None or self.request.stage is Stage.RECEIVED


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
        self._count = 0  # of what was stored
        self._looking = Repeating(self._look, LOOK_AGAIN, "graceful-late-results")
        self._store: Store | None = None
        self._refuses: bool | None = None  # as it was when it was asked last, and when that was
        self._asked_at = 0.0
        self._ends = False

    def keep(self, request: HeldMessage, unstored: Unstored, end: Callable[[], None]) -> bool:
        """Keep what a task came to until it can be stored. From any thread.

        Args:
            request: Its delivery.
            unstored: What it came to.
            end: Ends it, when that is stored. In the loop.

        Returns:
            Whether ``end`` is called. If not, it ends now.
        """
        return bool(self.keep_if(request, unstored, end, (Stage.RUNNING,)))

    def refuses(self, app: Any) -> bool | None:
        """Whether the result backend takes nothing; ``None`` if it does, or cannot be asked.

        Where it does not, whether the server itself says so: else it is away.
        """
        is_known = self._kept or time.monotonic() < self._asked_at + LOOK_AGAIN
        if is_known and self._refuses is not None:
            return self._refuses  # until the next look
        self._takes_writes(app)
        return self._refuses

    def keep_if(
        self,
        request: HeldMessage,
        unstored: Unstored,
        end: Callable[[], None],
        only: Collection[Stage],
    ) -> bool | None:
        """As ``keep``, if it stands at one of ``only``; ``None`` if not: nothing is kept then."""
        if request.lost or request.stage not in only:
            return None
        may_end = unstored.refused and len(self._kept) < MOST
        waits = not request.acknowledged and not (may_end and _is_answered(request))
        if waits:
            if not self._ledger.hold(request, only):
                return None
            let_go(request)
        self._append(_Kept(request, unstored, end if waits else None))
        return waits

    def keep_result(self, request: HeldMessage, unstored: Unstored) -> bool:
        """Keep what a task came to that ends now. From any thread; whether it is kept."""
        return self._append(_Kept(request, unstored, None))

    def _append(self, kept: _Kept) -> bool:
        request, ends = kept.request, kept.end is None
        with self._lock:
            is_lost = ends and len(self._kept) >= MOST
            if not is_lost:
                self._kept.append(kept)
        text = "%s[%s] has ended (%s), and that cannot be stored: %s"
        told = _LOST if is_lost else _ENDS if ends else _WAITS
        log(logger, logging.WARNING, text, request.name, request.id, _what(kept), told)
        if not is_lost:
            self._looking.begin()
        return not is_lost

    def end(self, seconds: float) -> None:
        """The worker ends: store what can be, in up to ``seconds``."""
        self._ends = True
        self._looking.end(seconds)
        self.on_loop()  # which does not go round any more
        lost = [kept for kept in list(self._kept) if kept.waits]
        if lost:
            text = "What %d tasks came to could not be stored, and is lost with this worker"
            log(logger, logging.ERROR, text, len(lost))

    def on_loop(self) -> None:
        """What is stored ends."""
        while self._stored:
            kept = self._stored.popleft()
            if kept.end is not None:
                kept.request.tell_now()
                kept.end()

    def _look(self) -> bool:
        """Store what can be, each once at most; whether something is left."""
        for _ in range(len(self._kept)):
            kept = self._kept[0]
            left = None
            if kept.waits:
                if not self._takes_writes(kept.request.task.app):
                    break
                left = self._try(kept)
            with self._lock:  # the next one begins, if this cannot be stored
                self._kept.popleft()
                self._kept.extend([left] if left is not None else [])
            if left is not None and self._store is None and not self._ends:
                break  # if the backend is away after all, each takes Celery's time
        return bool(self._kept)

    def _try(self, kept: _Kept) -> _Kept | None:
        """Store it; what is to be tried again."""
        with fork_gate:
            why = _store(kept)
            if why is None:
                self._count += 1
            elif (left := self._left(kept, why)) is not None:
                return left
        self._stored.append(kept)
        self._ring_loop()
        return None

    def _left(self, kept: _Kept, why: str) -> _Kept | None:
        """What is to be tried again of what could not be stored."""
        takes_others = self._store is not None or self._count > kept.after
        if takes_others or _state_of(kept.request) is not None:  # the backend is there
            kept = kept._replace(tries=kept.tries + 1, after=self._count)
        if kept.tries < TRIES:
            return kept
        if not takes_others and _store(kept) is None:
            return None
        if _store_instead(kept, why):
            return None
        if not takes_others:  # what can be read may be a copy, that takes nothing
            return kept._replace(tries=0)
        _say_lost(kept, why)
        return None

    def _takes_writes(self, app: Any) -> bool:
        """Whether it is worth trying: Celery would wait for 19 s, and log twenty lines."""
        store = self._find(app)
        self._refuses = None if store is None else self._ask(store)
        self._asked_at = time.monotonic()
        return self._refuses is None

    def _find(self, app: Any) -> Store | None:
        if self._store is None and has_celerys_client(app.backend):
            self._store = results_store(app)
        return self._store

    def _ask(self, store: Store) -> bool | None:
        try:
            refusal = why_no_writes(store)
        except StoreAway:
            return False
        return None if refusal is None else not isinstance(refusal, StoreIsReplica)


def _is_answered(request: HeldMessage) -> bool:
    """Whether its message can be acknowledged, as far as Redis is concerned."""
    return request.claim is None or not takes_no_writes(request.claim.book.store)


def _store(kept: _Kept) -> str | None:
    """Why it could not be stored; ``None`` where it is, or never will be."""
    request, unstored = kept.request, kept.unstored
    backend = request.task.backend
    here: Here | None = getattr(request.context, HERE, None)
    try:
        context = _context(request)
        context.children[:] = [
            result_from_tuple(one, request.task.app) for one in unstored.children
        ]
        if here is not None:
            here.is_stored()  # as far as is known
        if isinstance(unstored.result, WorkerLostError) and request.has_succeeded():
            return None  # the child had stored that before it died
        if unstored.state == states.REVOKED:
            (reason,) = unstored.result.args
            backend.mark_as_revoked(request.id, reason, context, unstored.stores)
        elif unstored.state == states.SUCCESS:
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
            if here is not None:
                here.is_kept_for_later()
            return describe(exc)
        if not _store_instead(kept, describe(exc)):
            _say_lost(kept, describe(exc))
    else:
        text = "What %s[%s] came to (%s) is stored: the result backend is there again"
        log(logger, logging.WARNING, text, request.name, request.id, unstored.state)
    return None


def _store_instead(kept: _Kept, why: str) -> bool:
    """It cannot be stored: that is, once, so that errbacks and those who wait hear of it.

    Returns:
        Whether something is stored.
    """
    request, unstored = kept.request, kept.unstored
    if _state_of(request) == unstored.state:
        text = "What %s[%s] came to (%s) is stored, and what follows that could not be sent: %s"
        log(logger, logging.ERROR, text, request.name, request.id, unstored.state, why)
        return True
    instead = BackendStoreError(why, state=unstored.state, task_id=request.id)
    backend, stores = request.task.backend, unstored.stores
    try:
        backend.mark_as_failure(request.id, instead, request=_context(request), store_result=stores)
    except Exception:
        if _state_of(request) != states.FAILURE:
            return False
    text = "What %s[%s] came to (%s) cannot be stored, a FAILURE is in its place: %s"
    log(logger, logging.ERROR, text, request.name, request.id, unstored.state, why)
    return True


def _state_of(request: HeldMessage) -> str | None:
    """What is stored of it; ``None`` where that cannot be read."""
    try:
        return str(request.task.backend.get_task_meta(request.id, cache=False)["status"])
    except Exception:
        return None


def _context(request: HeldMessage) -> Any:
    """That of its task, as of one whose end is stored for the first time."""
    context = copy(request.context)
    context.__dict__.pop(HERE, None)
    return context


def _what(kept: _Kept) -> str:
    state, result = kept.unstored.state, kept.unstored.result
    return f"{state}: {result!r}" if isinstance(result, _DEATHS) else state


def _say_lost(kept: _Kept, why: str) -> None:
    request, state = kept.request, kept.unstored.state
    text = "What %s[%s] came to (%s) could not be stored, and is lost: %s"
    log(logger, logging.ERROR, text, request.name, request.id, state, why)
