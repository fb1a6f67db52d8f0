"""Ends that the main process stores: of what never began, or did not live to store its own.

Its loop does nothing else meanwhile, and Celery tries for 19 s where the result backend is away. So
that is asked first: then the end is kept, as those of other tasks are (``late_results.py``), with
its message, and it is told when it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from billiard.exceptions import Terminated
from celery import states
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError
from celery.worker import state
from celery.worker.request import Request

from celery_graceful.deliveries.delivery import Delivery
from celery_graceful.deliveries.handler_errors import LOST, requeues
from celery_graceful.deliveries.stage import OPEN, Stage
from celery_graceful.results.outlasting import Outlasting
from celery_graceful.runs.unstored import HERE, Here, Unstored

__all__ = ["StoredHere"]

#: Celery stores since 5.7 that a task has rejected its message for good.
_STORES_REJECTED = hasattr(Request, "_success_was_stored")


class StoredHere(Delivery):
    """A delivery that may end in the main process."""

    #: What else was said of its end while that is kept: a hard time limit is told twice.
    _also: Callable[[], None] | None = None

    def keeps_end(
        self,
        came_to: BaseException | None,
        again: Callable[[], None],
        only: Iterable[Stage] = OPEN,
    ) -> bool:
        """Whether its end cannot be stored now, and is told ``again`` when it is.

        Args:
            came_to: What it ends by; ``None``: that is stored already, or never will be.
            again: Ends it. In the loop.
            only: Where it has to stand.
        """
        if came_to is None:
            return False
        try:
            context, late = self.context, self.host.late_results
        except Exception:  # what can be in a message can raise anything
            return False
        if hasattr(context, HERE):
            return False
        if not (self.store_errors or context.chord):
            return False
        if not isinstance(self.task.backend, Outlasting):
            return False
        here = Here(partial(late.keep_result, self))
        setattr(context, HERE, here)
        refused = late.refuses(self.task.app)
        if refused is None or self.by_others or self.lost:
            return False
        is_revoked = isinstance(came_to, TaskRevokedError)
        end = states.REVOKED if is_revoked else states.FAILURE
        unstored = Unstored(end, came_to, None, [], self.store_errors, refused)
        # Of what comes again, the next run is what counts.
        if self.stage is Stage.FINISHED and (self.goes_on or late.keep_result(self, unstored)):
            here.is_kept_for_later()
            return False
        # What a pool has been handed cannot be held: nobody knows whether it has begun.
        only = set(only) - {Stage.HANDED_OVER}
        here.is_kept_for_later()
        waits = late.keep_if(self, unstored, partial(self._tell, here, again), only)
        if waits is None:
            delattr(context, HERE)  # it has begun meanwhile, for one
        return bool(waits)

    def _tell(self, here: Here, again: Callable[[], None]) -> None:
        here.is_stored()
        also, self._also = self._also, None
        again()
        if also is not None:
            also()

    @property
    def asks_nothing(self) -> bool:
        """Whether it ends while the result backend is away."""
        here: Here | None = getattr(self.context, HERE, None)
        return here is not None and here.is_away

    def stored_for(self, exc: BaseException, return_ok: bool) -> BaseException | None:
        """What Celery stores here of a task that has ended by an exception.

        Args:
            exc: What it was.
            return_ok: Who has run it has stored what it raised.
        """
        if self._already_revoked or self._already_cancelled or state.should_terminate:
            return None
        if isinstance(exc, Terminated):
            revoked: BaseException = TaskRevokedError("terminated")
            return revoked
        if isinstance(exc, Reject):
            is_stored = _STORES_REJECTED and not exc.requeue
        elif isinstance(exc, (Ignore, Retry, MemoryError)) or requeues(self, exc):
            is_stored = False
        elif isinstance(exc, LOST):
            is_stored = not getattr(self.task, "retry_on_worker_lost", False)
        else:
            is_stored = not return_ok
        return exc if is_stored else None
