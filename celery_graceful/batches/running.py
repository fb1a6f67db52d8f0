"""What is asked before a part of a batch runs, in the process that runs it.

A member of a cancelled batch is left out, and so is a copy of a callback of which another one
runs. Whoever is no part of a batch pays for two looks into a dict.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import wraps
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.app.trace import TraceInfo, trace_ok_t
from celery.states import IGNORED

from celery_graceful.batches.cancellations import Known, is_cancelled, known_of
from celery_graceful.batches.ledger import ANY, BatchLedger
from celery_graceful.batches.marks import (
    BATCH,
    CALLBACK,
    COPY,
    EACH,
    LAST,
    Mark,
    callback_id,
    callback_of,
    member_of,
)
from celery_graceful.batches.skipped_or_replaced import LeftOut, Why
from celery_graceful.store.app_stores import find_store
from celery_graceful.store.store import StoreAway, StoreForbidden
from celery_graceful.system.per_app import PerApp
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import CANCELLATIONS

__all__ = ["ask_before"]

logger = logging.getLogger(__name__)

#: Seconds for which a batch that was not cancelled is taken to be so still; and after which one
#: asks again, for the others: else all threads would find that out of date in the same moment.
#: Longer than ends are gathered for: while there are ends, nobody has to ask.
FRESH, AGING = 0.1, 0.08

#: Seconds for which a callback waits for a store that is away: nobody else says whether another
#: copy of it runs. Then it runs. And between two questions.
PATIENCE, PAUSE = 5.0, 0.1

#: Of which it is asked just now.
_asked: PerApp[set[str]] = PerApp()


def ask_before(task: Any) -> None:
    """Ask before each run of ``task``; doing so twice is the same as once."""
    trace = task.__trace__
    if trace is None or hasattr(trace, "_asks_before"):
        return

    app, known = task.app, known_of(task.app)

    @wraps(trace)
    def traced(task_id: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        if request is not None and (BATCH in request or CALLBACK in request):
            mark = request.get(BATCH)
            # Many members begin, and each step before them costs: so none is a call of ours.
            asked = known.asked.get(mark.partition("/")[0]) if isinstance(mark, str) else None
            if (
                asked is None
                or worker_state.flag.value[CANCELLATIONS] != asked.told
                or time.monotonic() - asked.at >= AGING
            ):
                why = _keeps(app, known, request)
                if why is not None:
                    return _left_out(task, task_id, why)
        return trace(task_id, args, kwargs, request)

    traced._asks_before = True  # type: ignore[attr-defined]
    task.__trace__ = traced


def _keeps(app: Any, known: Known, request: dict[str, Any]) -> Why | None:
    """What keeps a task from running."""
    try:
        if BATCH in request:
            member = member_of(request)
            if member is None or known.age(member.batch) < AGING:
                return None
            return Why.CANCELLED if _is_cancelled(app, known, member.batch) else None
        callback = callback_of(request)
        return Why.COPY if callback and _is_another(app, callback, request) else None
    except StoreAway:  # said there
        return None


def _is_cancelled(app: Any, known: Known, batch: str) -> bool:
    asked, store = _asked.setdefault(app, set()), find_store(app)
    if store is None or (known.age(batch) < FRESH and batch in asked):
        return False
    asked.add(batch)
    try:
        return is_cancelled(app, store, batch, insist=False)
    finally:
        asked.discard(batch)


def _is_another(app: Any, callback: Mark, request: Mapping[str, Any]) -> bool:
    copy, store = request.get(COPY), find_store(app)
    if store is None or not isinstance(copy, str):
        return False
    task_id, part = str(request.get("id")), ""
    if task_id != (request.get(LAST) or callback_id(*callback)):
        part = task_id if copy.startswith(EACH) else ANY
    ledger, end = BatchLedger(store), time.monotonic() + PATIENCE
    while True:
        try:
            return not ledger.may_run(*callback, copy, part=part)
        except StoreForbidden:
            raise
        except StoreAway:
            if time.monotonic() > end:
                raise
            time.sleep(PAUSE)


def _left_out(task: Any, task_id: str, why: Why) -> Any:
    logger.info("Task %s[%s] is left out: %s", task.name, task_id, why.value)
    try:
        raise LeftOut(why)
    except LeftOut as exc:
        return trace_ok_t(ExceptionInfo(internal=True), TraceInfo(IGNORED, exc), 0.0, None)
