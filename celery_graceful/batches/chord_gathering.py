"""What the body of a chord is given where Celery's counter has not sent it: all members have ended.

Its dispatcher died, or a part was counted never, or not by its message. What the result backend has
kept of the header is what the body gets; if that is not all, or one has failed, its errbacks run.
"""

from __future__ import annotations

from typing import Any

from celery.canvas import group, maybe_signature
from celery.exceptions import ChordError
from celery.result import GroupResult, allow_join_result, result_from_tuple
from celery.utils.log import get_logger

from celery_graceful.batches.callbacks import kept_signature
from celery_graceful.batches.chord_groups import counts_itself, counts_nothing
from celery_graceful.batches.chord_ledger import ChordLedger
from celery_graceful.batches.model import Callback, Due

__all__ = ["all_counted", "gathered", "has_no_results", "let_go"]

logger = get_logger(__name__)

#: Seconds that results may take which are not there when the last member has ended: where a
#: task was set aside its failure is told a little later.
PATIENCE = 10.0

#: Seconds for which Celery drops what comes late to a chord that is over.
OVER = 300


class _NotYet(Exception):
    """Some results are still to come."""


class _Gone(Exception):
    """There are no results any more: the body was sent, or all of it has expired."""


def gathered(app: Any, ledger: ChordLedger, due: Due, callback: Callback) -> Any:
    """The body of a chord with what it is given; ``None`` if it is not to be sent, or not yet.

    Args:
        app: The Celery app.
        ledger: Where the chord is known.
        due: Its body.
        callback: What the ledger keeps of it.

    Raises:
        StoreAway: The ledger does not answer.
        Exception: What the result backend raised.
    """
    body = kept_signature(app, callback)
    backend = app.backend
    try:
        with allow_join_result():
            if counts_itself(backend):
                results = _of_redis(backend, app, ledger, due.batch)
            else:
                results = _of_group(app, ledger, due.batch)
    except _NotYet as exc:
        if ledger.due_for(due) < PATIENCE:
            return None
        return _fails(backend, ledger, due, body, ChordError(str(exc)))
    except _Gone:
        # Who sent it died before saying so; if its message is lost as well, it is found missing.
        if ledger.are_gone(due.batch) == 1:
            ledger.published(due)
            return None
        return _fails(backend, ledger, due, body, ChordError("The body was lost, and its results"))
    except ChordError as exc:
        return _fails(backend, ledger, due, body, exc)
    if not counts_nothing(backend):  # else nobody was to send it
        logger.warning(
            "Chord %s: all of its header has ended, and its body was not sent: it is sent now",
            due.batch,
        )
    _give(app, body, results)
    return body


def _give(app: Any, sig: Any, results: list[Any]) -> None:
    """Have a body called with the results, each of its tasks where it is a group."""
    if isinstance(sig, group):
        sig.tasks = [maybe_signature(task, app=app) for task in sig.tasks]
        for task in sig.tasks:
            _give(app, task, results)
    elif not sig.immutable:
        sig.args = (results, *sig.args)


def _fails(backend: Any, ledger: ChordLedger, due: Due, body: Any, exc: ChordError) -> None:
    if not ledger.published(due):  # somebody else does so
        return
    logger.error("Chord %s cannot go on: %s", due.batch, exc)
    let_go(backend, due.batch)
    try:
        raise exc
    except ChordError:
        backend.chord_error_from_stack(body, exc)


def all_counted(backend: Any, group_id: str) -> bool:
    """Whether a backend that keeps the results of a header has all of them, or had."""
    if not counts_itself(backend):
        return False
    size, parts = _counted(backend, group_id)
    return size is None or len(parts) >= size


def has_no_results(backend: Any, group_id: str) -> bool:
    """Whether the results of a header are not there any more: its body can be given nothing."""
    if not counts_itself(backend):
        return False
    return _counted(backend, group_id) == (None, [])


def _counted(backend: Any, group_id: str) -> tuple[int | None, list[Any]]:
    """How many parts there are to be, and those that there are.

    Celery says how many only when it has sent all of them, and forgets it with the parts.
    """
    key = backend.get_key_for_group
    with backend.client.pipeline() as pipe:
        pipe.get(key(group_id, ".s")).get(key(group_id, ".t"))
        parts_key = key(group_id, ".j")
        (pipe.zrange if backend._chord_zset else pipe.lrange)(parts_key, 0, -1)
        size, more, parts = pipe.execute()
    return None if size is None else int(size) + int(more or 0), parts


def _of_redis(backend: Any, app: Any, ledger: ChordLedger, group_id: str) -> list[Any]:
    size, parts = _counted(backend, group_id)
    if size is None:
        size = ledger.status(group_id).total  # its sender died, and it was said to be complete
        if len(parts) != size:
            raise _Gone
    results = [backend._unpack_chord_result(part, backend.decode) for part in parts]
    if len(results) < size:
        raise _NotYet(f"{size - len(results)} of {size} tasks have ended without a result")
    group = GroupResult.restore(group_id, backend=backend, app=app)
    if group is None:
        return results
    group.on_ready()
    return _joined(app, group)


def _of_group(app: Any, ledger: ChordLedger, group_id: str) -> list[Any]:
    kept = ledger.results(group_id)
    if kept is None:
        raise _NotYet("it is not known which results they are")
    group = app.GroupResult(group_id, [result_from_tuple(one, app=app) for one in kept])
    waiting = [one for one in group.results if not one.ready()]
    failed = next(group._failed_join_report(), None)
    if failed is None and waiting:
        raise _NotYet(f"{len(waiting)} of {len(kept)} tasks have ended without a result")
    if failed is not None:
        raise ChordError(f"Dependency {failed.id} raised {failed.result!r}")
    return _joined(app, group)


def _joined(app: Any, group: GroupResult) -> list[Any]:
    join = group.join_native if group.supports_native_join else group.join
    try:
        results: list[Any] = join(timeout=app.conf.result_chord_join_timeout, propagate=True)
    except Exception as exc:
        raise ChordError(f"Join error: {exc!r}") from exc
    return results


def let_go(backend: Any, group_id: str) -> None:
    """The body is sent, or never is: what comes late counts for nothing."""
    if not counts_itself(backend):
        return
    key = backend.get_key_for_group
    with backend.client.pipeline() as pipe:
        pipe.delete(*(key(group_id, end) for end in (".j", ".t", ".s", ".d")))
        if hasattr(backend, "_chord_part_return_script"):
            pipe.set(key(group_id, ".c"), "done", ex=OVER)
        pipe.execute()
