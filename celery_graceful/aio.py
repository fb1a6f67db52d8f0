"""Interrupts in coroutines: a coroutine is cancelled, and ends as the interruption that it is.

An exception from outside lands in whatever a thread runs at that moment. Where that is an event
loop, it lands in a callback that swallows it, in one of many coroutines whose ``gather`` keeps
it, or leaves the loop with all of them in it. So while a coroutine is *tied* to its task nothing
is raised from outside: the coroutine is cancelled, by ``asyncio.Task.cancel`` in its own loop, and
at the end of the block that ties it the ``CancelledError`` becomes what was due.

Works with ``asyncio.run``, asgiref's ``async_to_sync`` and loops of your own, also where they run
in another thread.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakSet

from celery.exceptions import SoftTimeLimitExceeded

from celery_graceful.exceptions import Interrupted
from celery_graceful.runs.interruption import CANCELLED_FOR, cancelled, is_of_cancellation
from celery_graceful.runs.run import Run, make, of_context
from celery_graceful.system.arguments import check_seconds
from celery_graceful.system.exception_chain import parts

__all__ = ["interruptible", "limited", "run", "shield", "sleep"]

T = TypeVar("T")

#: In which the interrupt has been raised: they know.
_told: WeakSet[asyncio.Task[Any]] = WeakSet()


def interruptible() -> AbstractAsyncContextManager[None]:
    """Inside it an interrupt cancels the coroutine, wherever it waits.

    Raises:
        Interrupted: An interrupt is on, or came, and no shield is held.
        ShutdownTimeLimit: The soft deadline has passed, and an interrupt was swallowed before.
        SoftTimeLimitExceeded: Celery's soft time limit has passed.
    """
    return _Tied(anywhere=True)


def limited() -> AbstractAsyncContextManager[None]:
    """Inside it only what leaves no choice cancels the coroutine.

    Raises:
        ShutdownTimeLimit: The soft deadline has passed.
        SoftTimeLimitExceeded: Celery's soft time limit has passed.
        Interrupted: The task was revoked.
    """
    return _Tied(anywhere=False)


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """As ``asyncio.run``, for a task: ``main`` is ``limited``.

    Args:
        main: The coroutine.
        debug: As of ``asyncio.run``.

    Returns:
        What ``main`` returned.

    Raises:
        ShutdownTimeLimit, SoftTimeLimitExceeded, Interrupted: As ``limited``.
        TypeError: ``main`` is no coroutine.
        BaseException: What ``main`` raised.
    """
    if not inspect.iscoroutine(main):
        raise TypeError(f"aio.run: {main!r} is no coroutine: call the async function")

    async def tied() -> T:
        async with limited():
            result: T = await main
            return result

    return asyncio.run(tied(), debug=debug)


async def sleep(seconds: float) -> None:
    """Sleep, and raise ``Interrupted`` the moment an interrupt comes; inside a shield, just sleep.

    Args:
        seconds: For how long; 0 is a safe point alone.

    Raises:
        Interrupted: An interrupt is on, or came.
        TypeError, ValueError: ``seconds`` is no number of 0 or more.
    """
    check_seconds("aio.sleep", seconds)
    async with interruptible():
        await asyncio.sleep(seconds)


@asynccontextmanager
async def shield() -> AsyncIterator[None]:
    """No coroutine of this task is cancelled inside; what came is raised at the outermost exit.

    The hard deadline bounds it. A cancellation that is not ours, such as that of an
    ``asyncio.timeout``, is as ever.

    Raises:
        Interrupted, ShutdownTimeLimit, SoftTimeLimitExceeded: At the exit, when one came
            while inside.
    """
    belongs_to = _run()
    if belongs_to is None:
        yield
        return
    cleans_up = belongs_to in cancelled  # its block raises, as soon as it is left
    with belongs_to.undisturbed():
        yield
    task = asyncio.current_task()
    if task is None or belongs_to.shielded:
        return
    due = belongs_to.due_for(set(belongs_to.was_made), anywhere=False)  # a limit is raised once
    if due is not None:
        for tie in belongs_to.ties:
            if isinstance(tie, _Tied):
                tie.tell(task, due)
    elif (
        belongs_to.graceful
        and belongs_to.interrupt is not None
        and task not in _told
        and not cleans_up
    ):
        due = Interrupted
        belongs_to.raised = True
    if due is not None:
        raise _made(due, belongs_to, task)


def _made(due: type[BaseException], run: Run, task: asyncio.Task[Any]) -> BaseException:
    """What is due, to be raised in ``task``."""
    if due is not SoftTimeLimitExceeded:
        _told.add(task)
    return make(due, run)


def _run() -> Run | None:
    """The run that the calling coroutine works for."""
    found = of_context.get()
    return None if found is None or found.done else found


class _Tied(AbstractAsyncContextManager[None]):
    """Ties the coroutine that enters it to its run."""

    def __init__(self, *, anywhere: bool) -> None:
        self._anywhere = anywhere
        self._due: type[BaseException] | None = None
        self._seen: set[type[BaseException]] = set()
        self._cancels = 0
        self.asked = False
        self._run: Run | None = None

    async def __aenter__(self) -> None:
        task, found = asyncio.current_task(), _run()
        if task is None or found is None:
            return
        self._task, self._loop = task, asyncio.get_running_loop()
        self._before = _cancelling(task)
        if not self._anywhere:
            self._seen |= found.was_made  # as everywhere, a limit is raised once
        self._run = found
        found.tie(self)
        self._raise_due()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._run is None:
            return
        if not isinstance(exc, GeneratorExit):
            self._take_over(self._run)
        if exc is None and not self._cancels:
            self._raise_due()  # it came just now
        self._run.untie(self)
        if self._cancels:
            await self._take_back(exc)
        elif exc is None:
            self._run.raise_due()  # that of code that is not tied

    def _raise_due(self) -> None:
        assert self._run is not None
        due = self._run.due_for(self._seen, anywhere=self._anywhere)
        if due is not None:
            self._run.untie(self)
            raise _made(due, self._run, self._task)

    def tell(self, task: asyncio.Task[Any], due: type[BaseException]) -> None:
        """It is raised in ``task`` elsewhere."""
        if task is self._task:
            self._seen.add(due)

    # -- from outside ----------------------------------------------------------------

    def ring(self) -> bool:
        """Make the loop look; whether it can."""
        self.asked = True
        try:
            self._loop.call_soon_threadsafe(self._look)
        except RuntimeError:  # it was closed, and the coroutine left in the middle
            return False
        return True

    def _look(self) -> None:
        self.asked = False
        if self._run is not None and self in self._run.ties:
            due = self._run.due_for(self._seen, anywhere=self._anywhere)
            if due is not None:
                self._due = due
                self._cancels += 1
                if due is not SoftTimeLimitExceeded:
                    cancelled.add(self._run)
                self._task.cancel(CANCELLED_FOR[due])

    def _take_over(self, run: Run) -> None:
        """What blocks have cancelled that were entered in here, and are not left.

        Those of generators, which whoever iterates has left in the middle.
        """
        ties = run.ties
        for tie in ties[ties.index(self) + 1 :] if self in ties else ():
            if isinstance(tie, _Tied) and tie._task is self._task and tie._cancels:
                run.untie(tie)
                self._cancels, tie._cancels = self._cancels + tie._cancels, 0
                self._due = self._due or tie._due

    async def _take_back(self, exc: BaseException | None) -> None:
        """Our cancellation ends here."""
        for _ in range(self._cancels):
            _uncancel(self._task)
        assert self._run is not None
        assert self._due is not None
        is_cancelled = isinstance(exc, asyncio.CancelledError)
        elsewhere = asyncio.current_task() is not self._task
        is_ours = exc is not None and is_of_cancellation(exc, self._run)
        if isinstance(exc, GeneratorExit) or (elsewhere and is_cancelled and not is_ours):
            return  # of a generator's block: what was cancelled stands outside of it
        if not elsewhere:
            cancelled.discard(self._run)
        if is_cancelled:
            if _cancelling(self._task) <= self._before:  # nobody else's
                raise _made(self._due, self._run, self._task) from exc
        elif exc is None or isinstance(exc, Exception) or parts(exc):
            try:  # it may not have landed yet
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if _cancelling(self._task) > self._before:
                    raise
            if exc is None or is_ours:
                raise _made(self._due, self._run, self._task) from exc


def _cancelling(task: asyncio.Task[Any]) -> int:
    """How many cancellations of it are under way; before Python 3.11 nobody counts them."""
    count = getattr(task, "cancelling", None)
    return 0 if count is None else int(count())


def _uncancel(task: asyncio.Task[Any]) -> None:
    if hasattr(task, "uncancel"):
        task.uncancel()
