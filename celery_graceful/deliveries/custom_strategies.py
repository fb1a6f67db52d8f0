"""Deliveries that others hand to the pool: tasks with a ``Strategy`` of their own.

Such a task makes its requests itself, keeps them for a while, and hands many at once to the pool,
in a call that is of none of them; celery-batches does so. What a call runs is known by the ids in
its arguments. What has gone back meanwhile is taken out of them, and a call of which nothing is
left is not made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from billiard.exceptions import WorkerLostError
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger
from celery.worker import strategy

from celery_graceful.batches.model import Outcome
from celery_graceful.deliveries.exc_info import raised
from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.stage import Stage

__all__ = ["CustomStrategies", "has_own_strategy"]

logger = get_logger(__name__)

#: How deep in the arguments of a call ids are looked for.
DEPTH = 5

_GONE = object()


def has_own_strategy(task: Any) -> bool:
    """Whether it is not Celery that decides what becomes of the messages of ``task``."""
    return symbol_by_name(task.Strategy) is not strategy.default


class CustomStrategies:
    """The calls of a worker's pool that are not of one delivery each.

    Args:
        ledger: What the worker holds.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def around(
        self,
        apply_async: Callable[..., Any],
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        *,
        here: Callable[..., Any] | None = None,
        **options: Any,
    ) -> Any:
        """Make a call of the pool, unless nothing is left to do in it.

        Args:
            apply_async: The pool's.
            target: What to call.
            args: For it.
            kwargs: For it.
            here: How a target is called in a pool whose tasks run in this process.
            options: Of ``apply_async``.
        """
        if not self.ledger.by_others:
            return apply_async(target, args, kwargs, **options)
        if self.ledger.releasing:
            self.ledger.release_unstarted()
        search = _Search(self.ledger.by_others)
        args, kwargs = search.through(args), search.through(kwargs)
        found = search.found()
        if search.left and not found and not search.others:
            logger.debug("%r is not called: what it was for went back", target)
            return None
        call = _Call(self.ledger, found)
        if here is not None:
            target = partial(call.run, partial(here, target))
        options.update(
            accept_callback=partial(call.accepted, options.get("accept_callback")),
            callback=partial(call.returned, options.get("callback")),
            error_callback=partial(call.failed, options.get("error_callback")),
        )
        return apply_async(target, args, kwargs, **options)


class _Search:
    """Looks for deliveries in the arguments of a call.

    Args:
        deliveries: Those that it may be.
    """

    def __init__(self, deliveries: Iterable[HeldMessage]) -> None:
        self._all = list(deliveries)
        self._by_id: defaultdict[str, list[HeldMessage]] = defaultdict(list)
        for delivery in self._all:
            self._by_id[delivery.id].append(delivery)
        self._tasks = {id(delivery.task) for delivery in self._all}
        self._named: set[int] = set()
        self._found: dict[HeldMessage, None] = {}
        #: Some have gone back; some are in the pool already, or have ended.
        self.left = self.others = False

    def found(self) -> list[HeldMessage]:
        """Those that wait, and are handed over now.

        Where no id is named, all that wait of the tasks that are.
        """
        if not (self._found or self.left or self.others):
            return [d for d in self._all if _waits(d) and id(d.task) in self._named]
        return list(self._found)

    def through(self, value: Any) -> Any:
        """``value`` without what has gone back, as far as that stands in lists."""
        kept = self._kept(value, set(), DEPTH)
        return value if kept is _GONE else kept

    def _kept(self, value: Any, here: set[HeldMessage], depth: int) -> Any:
        if id(value) in self._tasks:
            self._named.add(id(value))
            return value
        task_id = value if isinstance(value, str) else getattr(value, "id", None)
        if isinstance(task_id, str) and task_id in self._by_id:
            return value if self._is_ours(self._by_id[task_id], here) else _GONE
        if depth and type(value) in (list, tuple, dict):
            here = set()
            items = value.values() if type(value) is dict else value
            kept = [self._kept(item, here, depth - 1) for item in items]
            if type(value) is list:
                return [new for new in kept if new is not _GONE]
            kept = [old if new is _GONE else new for old, new in zip(items, kept, strict=True)]
            return tuple(kept) if type(value) is tuple else dict(zip(value, kept, strict=True))
        return value

    def _is_ours(self, deliveries: list[HeldMessage], here: set[HeldMessage]) -> bool:
        """Whether a task that is named is one of those that were delivered, and are still here.

        Args:
            deliveries: Of that task.
            here: Those that are named in the same list already.
        """
        for delivery in deliveries:
            if delivery not in here and not delivery.has_left:
                here.add(delivery)
                if _waits(delivery):
                    self._found[delivery] = None
                else:
                    self.others = True
                return True
        self.left = True
        return False


def _waits(delivery: HeldMessage) -> bool:
    return delivery.stage is Stage.RECEIVED


class _Call:
    """One call of the pool, and the deliveries that it runs.

    Args:
        ledger: What the worker holds.
        deliveries: They wait.
    """

    def __init__(self, ledger: Ledger, deliveries: list[HeldMessage]) -> None:
        self.ledger = ledger
        self.deliveries = deliveries
        ledger.move(deliveries, Stage.HANDED_OVER, only=(Stage.RECEIVED,))

    def accepted(self, tell: Callable[..., Any] | None, pid: int, time_accepted: float) -> None:
        """The pool has begun with it."""
        self.ledger.move(self.deliveries, Stage.RUNNING, only=(Stage.HANDED_OVER,))
        for delivery in self.deliveries:
            delivery.begun_by(pid, time_accepted)
            if delivery.claim is not None and not delivery.acknowledged:
                self.ledger.post_mortems.begins(delivery)
        if tell is not None:
            tell(pid, time_accepted)

    def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run it; what it raises, a pool of this process tells nobody."""
        try:
            return call(args, kwargs)
        except BaseException:
            self._ended()
            raise

    def returned(self, tell: Callable[..., Any] | None, result: Any) -> None:
        """It has ended."""
        self._ended(tell, result, comes_to=Outcome.SUCCEEDED)

    def failed(self, tell: Callable[..., Any] | None, exc_info: Any) -> None:
        """It has ended in an exception, or its process has."""
        self._ended(tell, exc_info, lost=isinstance(raised(exc_info), WorkerLostError))

    def _ended(
        self,
        tell: Callable[..., Any] | None = None,
        result: Any = None,
        lost: bool = False,
        comes_to: Outcome = Outcome.FAILED,
    ) -> None:
        with self.ledger.leaving:
            for delivery in self.deliveries:
                delivery.comes_to(comes_to)
            try:
                if tell is not None:
                    tell(result)
            finally:
                for delivery in self.deliveries:
                    if delivery.acknowledged:
                        delivery.write_end()
                        self.ledger.finish(delivery)
                    elif not lost or not self.ledger.post_mortems.child_died(
                        delivery, partial(self._after_death, delivery)
                    ):
                        self.ledger.put_down(delivery)

    def _after_death(self, delivery: HeldMessage, quarantined: bool) -> None:
        if quarantined:
            self.ledger.drop(delivery)
        elif self.ledger.close(delivery, Stage.RELEASED, only=(Stage.HANDED_OVER, Stage.RUNNING)):
            self.ledger.requeue.give_back([delivery])
