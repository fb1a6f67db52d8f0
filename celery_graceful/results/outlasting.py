"""A result backend may be away: what a task comes to is not changed by that.

Celery's tracer takes an error of storing for one of the task's: what has succeeded fails by a
``ConnectionError``, which is stored when the backend is there again. Here what cannot be stored is
left to the main process, which stores it later (``deliveries/late_results.py``), and the run ends
as it has. So it is with what the main process stores itself (``deliveries/stored_here.py``). That
it has begun, or is tried again, is not worth that: it is left out.
"""

from __future__ import annotations

import pickle
import sys
from types import FrameType
from typing import Any

from celery._state import get_current_task
from celery.exceptions import (
    BackendGetMetaError,
    BackendStoreError,
    SoftTimeLimitExceeded,
    TaskRevokedError,
)
from celery.states import FAILURE, RETRY, REVOKED, STARTED, SUCCESS
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from celery_graceful.claims.fence import CLAIM, DELIVERY, may_store
from celery_graceful.phases import INTERRUPTED
from celery_graceful.runs.unstored import HERE, TRACER, Here, Unstored, is_tracers, leave
from celery_graceful.store.answers import is_answer, is_demoted, is_of_redis
from celery_graceful.system.describe import describe
from celery_graceful.system.exception_chain import chain
from celery_graceful.system.loaded import is_instance, loaded
from celery_graceful.timeline import worker_state

__all__ = ["Outlasting", "is_outage", "outlasting"]

logger = get_logger(__name__)

#: States that others follow.
_PASSING = (STARTED, RETRY)

#: Raised by who waits for a backend, in the place of what it says.
_INSTEAD = (BackendStoreError, SoftTimeLimitExceeded)

#: Under this name the context of a run keeps what its end could not be stored by.
_UNTOLD = "graceful_untold"

_classes: dict[type, type] = {}


class Outlasting:
    """Mixed into Celery's result backends."""

    def on_task_call(self, producer: Any, task_id: Any) -> Any:
        """As Celery does: where tasks may wait for others, it listens for what they send.

        That cannot be done now: it is done when somebody waits.
        """
        try:
            return super().on_task_call(producer, task_id)  # type: ignore[misc]
        except Exception as exc:
            in_worker = worker_state.board.value is not None
            if not in_worker or not any(is_outage(self, one) for one in chain(exc)):
                raise
            logger.warning("Nobody listens for the end of %s yet: %s", task_id, describe(exc))
            consumer = getattr(self, "result_consumer", None)
            if consumer and is_instance(consumer, "celery.backends.redis", "ResultConsumer"):
                consumer.subscribed_to.discard(consumer._get_key_for_task(task_id))
            return None

    def get_task_meta(self, task_id: Any, cache: bool = True) -> Any:
        """As Celery does; for its tracer, which asks whether a task that comes again has succeeded.

        Raises:
            BackendGetMetaError: It is not known: then the task runs, as the tracer has it.
        """
        try:
            return super().get_task_meta(task_id, cache)  # type: ignore[misc]
        except Exception as exc:
            if get_current_task() is not None or not is_outage(self, exc) or not _goes_along():
                raise
            raise BackendGetMetaError(describe(exc), task_id=task_id) from exc

    def store_result(
        self,
        task_id: Any,
        result: Any,
        state: Any,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As Celery does; of what only has begun, or is tried again, it need not succeed.

        Not what somebody stores in a run that does not count any more, as ``update_state`` does.
        """
        if state != INTERRUPTED and not _may_store(task_id):
            return result
        try:
            return super().store_result(  # type: ignore[misc]
                task_id, result, state, traceback=traceback, request=request, **kwargs
            )
        except Exception as exc:
            if state not in _PASSING or not _ends_run(self, exc, request):
                raise
            logger.warning("%s of %s could not be stored: %s", state, task_id, describe(exc))
            return result

    def mark_as_done(
        self,
        task_id: Any,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: Any = SUCCESS,
    ) -> Any:
        """As Celery does, or later."""
        try:
            return super().mark_as_done(  # type: ignore[misc]
                task_id, result, request, store_result, state
            )
        except Exception as exc:
            if not _ends_run(self, exc, request):
                raise
            said = _is_refused(exc)
            kept = Unstored(state, result, None, _children(request), store_result, said)
            if not _is_kept(kept, task_id):
                raise
            return None

    def mark_as_failure(
        self,
        task_id: Any,
        exc: Any,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: Any = FAILURE,
    ) -> Any:
        """As Celery does, or later.

        What it sends when it has ended could not be sent, as the broker is the same Redis: then
        its end is told to nobody, and it runs again (``deliveries/untold_ends.py``).
        """
        untold = getattr(request, _UNTOLD, None)
        if untold is not None:
            raise untold
        here: Here | None = getattr(request, HERE, None)
        if here is not None and here.is_kept:
            return None
        try:
            return super().mark_as_failure(  # type: ignore[misc]
                task_id, exc, traceback, request, store_result, call_errbacks, state
            )
        except Exception as error:
            if here is not None and is_outage(self, error):
                kept = Unstored(state, exc, traceback, [], store_result, _is_refused(error))
                if here.keep(kept):
                    return None
            if not _ends_run(self, error, request):
                raise
            is_unsent = isinstance(exc, OperationalError) and is_tracers(exc)
            if is_unsent and hasattr(request, CLAIM):
                setattr(request, _UNTOLD, error)
                raise
            said = _is_refused(error)
            kept = Unstored(state, exc, traceback, _children(request), store_result, said)
            if not call_errbacks or not _is_kept(kept, task_id):
                raise
            return None

    def mark_as_revoked(
        self,
        task_id: Any,
        reason: Any = "",
        request: Any = None,
        store_result: bool = True,
        state: Any = REVOKED,
    ) -> Any:
        """As Celery does, or later."""
        here: Here | None = getattr(request, HERE, None)
        if here is not None and here.is_kept:
            return None
        try:
            return super().mark_as_revoked(  # type: ignore[misc]
                task_id, reason, request, store_result, state
            )
        except Exception as error:
            if here is None or not is_outage(self, error):
                raise
            exc, said = TaskRevokedError(reason), _is_refused(error)
            if not here.keep(Unstored(state, exc, None, [], store_result, said)):
                raise
            return None


def _may_store(task_id: Any) -> bool:
    task = get_current_task()
    context = None if task is None else task.request_stack.top
    return context is None or context.id != task_id or may_store(task, context)


class _Outlasting(Outlasting):
    """A class of its own, that nobody finds by its name."""

    plain: type

    def __reduce__(self, *args: Any, **kwargs: Any) -> Any:
        reduced: Any = super().__reduce__(*args, **kwargs)
        return reduced[0], (self.plain, *reduced[1][1:])


def outlasting(backend_class: type) -> type:
    """A class of backends like Celery's, where that knows its outages; else the class itself."""
    from celery.backends.base import Backend

    asks = getattr(backend_class, "exception_safe_to_retry", None)
    if asks is None or asks is Backend.exception_safe_to_retry:
        return backend_class
    if backend_class not in _classes:
        names: dict[str, Any] = {"plain": backend_class, "__module__": backend_class.__module__}
        consumer = loaded("celery.backends.redis", "ResultConsumer")
        if consumer is not None and getattr(backend_class, "ResultConsumer", None) is consumer:
            from celery_graceful.results.subscriptions import ResultConsumer

            names["ResultConsumer"] = ResultConsumer  # with Sentinel, for instance
        made = type(backend_class.__name__, (_Outlasting, backend_class), names)
        _classes[backend_class] = made
    return _classes[backend_class]


def is_outage(backend: Any, exc: BaseException) -> bool:
    """Whether the server of a result backend is away, or takes nothing.

    Args:
        backend: Which.
        exc: What was raised when something was to be stored.
    """
    found = chain(exc) if isinstance(exc, _INSTEAD) else (exc,)
    return any(
        is_of_redis(one) or (backend.exception_safe_to_retry(one) and not _is_of_its_own(one))
        for one in found
    )


def _is_of_its_own(exc: BaseException) -> bool:
    """Whether it is about what is stored, or sent then, though Celery takes it for an outage."""
    databases: Any = sys.modules.get("sqlalchemy.exc")
    if databases is not None and isinstance(
        exc,
        (
            databases.DataError,
            databases.IntegrityError,
            databases.NotSupportedError,
            databases.ProgrammingError,
        ),
    ):
        return True
    # Among kombu's errors of connections to Redis: an unknown queue, a file of the user's.
    return isinstance(exc, (LookupError, FileNotFoundError, PermissionError))


def _ends_run(backend: Any, exc: BaseException, request: Any) -> bool:
    """Whether it is an outage, and Celery's tracer that has to tell of a delivery of ours."""
    task = get_current_task()
    return (
        task is not None
        and task.request_stack.top is request
        and hasattr(request, DELIVERY)
        and not request.is_eager
        and is_outage(backend, exc)
        and _goes_along()
    )


def _goes_along() -> bool:
    """Whether what is kept goes along with the end: not where another tracer runs coroutines."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) == TRACER:
            return True
        frame = frame.f_back
    return False


def _is_refused(exc: BaseException) -> bool:
    """Whether the server takes nothing, and may not for days; one that is no master is away."""
    return is_answer(exc) and not is_demoted(exc)


def _is_kept(kept: Unstored, task_id: str) -> bool:
    try:
        pickle.loads(pickle.dumps(kept))  # it may have to go to another process
    except Exception as exc:
        logger.error("What %s came to cannot be kept: %s", task_id, describe(exc))
        return False
    leave(task_id, kept)
    return True


def _children(request: Any) -> list[Any]:
    return [one.as_tuple() for one in getattr(request, "children", None) or ()]
