"""``iterate``: a loop that goes on after the last item that it finished."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from time import monotonic
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from celery.utils.log import get_logger

from celery_graceful.checkpoints.checkpoint import CURSOR, Checkpoint
from celery_graceful.checkpoints.codec import decode, encode
from celery_graceful.checkpoints.safe_point import pending_interrupt, stand
from celery_graceful.checkpoints.watch import UNWATCHED, Watch
from celery_graceful.exceptions import CheckpointError
from celery_graceful.runs.run import current
from celery_graceful.sources.base import IterableSource, Source, as_source
from celery_graceful.timeline import worker_state

__all__ = ["UNSET", "Loop", "Progress", "Scope"]

T = TypeVar("T")

logger = get_logger(__name__)

#: Stands for a cursor that was not given; ``None`` is one, that of the beginning.
UNSET: Any = object()

#: Items walked over between two looks at the interrupt.
STRIDE = 1024


class Scope:
    """Where names of loops and steps are told apart: the task, or one item of a loop.

    Args:
        prefix: In front of the names.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        #: Place of the last step reached, in the order of the run that saved it.
        self.last_place = -1
        self._names: Counter[str] = Counter()

    def path(self, kind: str, name: str) -> str:
        """A path that no other loop or step of this run has: a second ``a`` is ``a#2``."""
        if not isinstance(name, str) or not name:
            raise CheckpointError(f"the name of a {kind} has to be a string, not {name!r}.")
        self._names[kind + name] += 1
        count = self._names[kind + name]
        return self.prefix + quote(name, safe=" :.") + (f"#{count}" if count > 1 else "")

    def reach(self, place: int) -> None:
        """The step at that place, if none behind it was reached before."""
        self.last_place = max(self.last_place, place)


class Progress:
    """The loops and steps of one delivery, and when they save.

    Args:
        checkpoint: Where to.
        interval: Seconds between saves.
        max_run_time: Seconds after which the task makes room for others, or ``None``.
        watch: Who looks on.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        interval: float,
        max_run_time: float | None,
        watch: Watch = UNWATCHED,
    ) -> None:
        self.checkpoint = checkpoint
        self.watch = watch
        self.interval = interval
        self.loops: list[Loop[Any]] = checkpoint.loops
        self.save_at = monotonic() + interval
        self.run_time_at = math.inf
        if checkpoint.began is not None and max_run_time is not None:
            self.run_time_at = checkpoint.began + max_run_time
        self._root = Scope()
        self._reached: set[str] = set()

    @property
    def scope(self) -> Scope:
        """The innermost item that is being worked on, else the task."""
        return self.loops[-1].item_scope() if self.loops else self._root

    def stand(self) -> None:
        """A safe point.

        Raises:
            Interrupted: The task has to stop.
        """
        self.run_time_at = stand(self.checkpoint, self.run_time_at)

    def save(self) -> bool:
        """Save what is new; whether the store has everything."""
        saved = self.checkpoint.save()
        self.save_at = monotonic() + self.interval
        return saved

    def pause(self, *, save: bool) -> None:
        """Between two items: save if it is time, stop if the task has to."""
        if pending_interrupt(self.checkpoint, self.run_time_at) is not None:
            self.stand()  # saves before it raises
        elif save or monotonic() >= self.save_at:
            self.save()

    # -- steps that an earlier run saved ---------------------------------------------

    def reach(self, path: str) -> None:
        """This run has come to a step that was saved."""
        self._reached.add(path)

    def unreached(self, prefix: str) -> list[str]:
        """The saved steps below ``prefix`` that this run has not come to."""
        return [p for p in self.checkpoint.loaded_steps(prefix) if p not in self._reached]

    def report_unreached(self, prefix: str = "") -> None:
        """Name them in the log, once."""
        for path in self.unreached(prefix):
            self.reach(path)
            logger.warning(
                "%s[%s]: the step %r was saved by an earlier run, and this run did not come to "
                "it. Its result is dropped: was it renamed, moved or removed?",
                self.checkpoint.name,
                self.checkpoint.task_id,
                path,
            )


class Loop(Generic[T]):
    """What ``iterate`` returns: an iterable, to be used once.

    Attributes:
        cursor: Where to go on after the item in hand. Commit it together with the effects of
            the item, and pass it as ``cursor=`` later: so they happen exactly once.
    """

    def __init__(
        self,
        progress: Progress,
        source: Iterable[T] | Source[T],
        *,
        name: str | None = None,
        cursor: Any = UNSET,
        every: int | None = None,
    ) -> None:
        if every is not None and (isinstance(every, bool) or not isinstance(every, int)):
            raise CheckpointError(f"every={every!r}: give a number of items, such as 1.")
        if every is not None and every < 1:
            raise CheckpointError(f"every={every!r}: give at least 1.")
        self.source = as_source(source)
        self.path = progress.scope.path("loop", "loop" if name is None else name)
        self.cursor: Any = None
        self._done: Any = None
        self._due = 0.0
        self._progress = progress
        self._checkpoint = progress.checkpoint
        self._field = CURSOR + self.path
        self._own_cursor = cursor is not UNSET
        self._start = cursor
        self._every = every
        self._since_save = 0
        self._scope: Scope | None = None
        self._begun = self._tried = False

    @property
    def saves_cursor(self) -> bool:
        """Whether its cursor is in the checkpoint, and not in somebody's own storage."""
        return not self._own_cursor

    def look_after_item(self) -> None:
        """There is something to be done when the item in hand is."""
        self._due = 0.0

    def save_after_item(self) -> None:
        """Save when the item in hand is done, as if ``checkpoint_interval`` were over."""
        self._progress.save_at = 0.0
        self.look_after_item()

    def __iter__(self) -> Iterator[T]:
        return self._progress.watch.items(self, self._items())

    def _items(self) -> Iterator[T]:
        if self._begun:
            raise RuntimeError("a loop runs once: call iterate() again for another one")
        self._begun = True
        self._progress.stand()
        done, ended = self._begin()
        if ended:
            return
        self._done = self.cursor = done
        pairs = self._open(done)
        flag, clock = worker_state.flag.value, monotonic
        run = current()
        self._progress.loops.append(self)
        self._enter_item()
        if run is not None:
            run.loops += 1
        try:
            for self.cursor, item in pairs:
                yield item
                self._done = self.cursor
                if flag[0] or clock() >= self._due:
                    self._pause()
            ended = True
        finally:
            if run is not None:
                run.loops -= 1
            if self in self._progress.loops:  # else the task's code was left before
                self.deposit(ended)
                self._progress.loops.remove(self)
                self._checkpoint.loop_left(self)
        self._end()

    def _begin(self) -> tuple[Any, bool]:
        """Where to go on, and whether there is nothing left to do."""
        if self._own_cursor:
            self._checkpoint.note_own_cursor()
        text = self._checkpoint.get(self._field)
        if self._own_cursor or text is None:
            start = self._start if self._own_cursor else None
            self.source.check(start)
            return start, False
        kind, done, ended = decode(text)
        if kind != self.source.kind:
            raise CheckpointError(
                f"the loop {self.path!r} was saved over a {kind} and now runs over a "
                f"{self.source.kind}: give it another name= to start it anew."
            )
        self.source.check(done)
        return done, ended

    def _open(self, done: Any) -> Iterator[tuple[Any, T]]:
        source = self.source
        if isinstance(source, IterableSource) and done:
            left = done
            while left > 0:
                left -= STRIDE
                for _ in islice(source.items, min(STRIDE, left + STRIDE)):
                    pass
                self._progress.stand()
        return source.pairs(done)

    def _pause(self) -> None:
        progress = self._progress
        last = progress.loops[-1]
        if last is not self and not last.path.startswith(f"{self.path}@"):
            raise CheckpointError(
                f"the loop {self.path!r} goes on while an item of {last.path!r} is in hand: side "
                "by side (zip) they would not go on from places that belong together. Iterate over "
                "one of them, or over a list of pairs."
            )
        if self.saves_cursor:
            self._checkpoint.item_done(self)
        if self._scope is not None:
            self._leave_item()
            self._enter_item()
        self._since_save += 1
        every = self._every is not None and self._since_save >= self._every
        if every:
            self._since_save = 0
        if not self._tried:
            self._tried = True
            self.deposit()  # the first cursor shows whether it can be saved at all
        progress.pause(save=every)
        if self._every is None:
            self._due = min(progress.save_at, progress.run_time_at)

    def deposit(self, ended: bool = False) -> None:
        """Put the position into the checkpoint.

        Raises:
            CheckpointError: The cursor cannot be saved.
        """
        if not self._own_cursor and (ended or self._done is not None):
            name = f"the cursor of {self.path!r}"
            limit = self._checkpoint.settings.checkpoint_max_bytes
            cursor = encode(self._done, name, limit)
            kind = encode(self.source.kind, name)
            self._checkpoint.put(self._field, f"[{kind},{cursor},{'true' if ended else 'false'}]")

    def _end(self) -> None:
        """The source is used up: what its items have left is obsolete."""
        prefix = self.path + "@"
        self._scope = None
        self._progress.report_unreached(prefix)
        self._checkpoint.drop(prefix)
        # A loop inside another one is saved with it.
        self._progress.pause(save=not self._progress.loops or self._every is not None)

    # -- what is inside the body -----------------------------------------------------

    def item_scope(self) -> Scope:
        """The scope of the item in hand, known by the cursor that leads to it."""
        if self._scope is None:
            before = quote(encode(self._done, f"the cursor of {self.path!r}"), safe="")
            self._scope = Scope(f"{self.path}@{before}/")
            self.look_after_item()
        return self._scope

    def _enter_item(self) -> None:
        if self._progress.unreached(self.path + "@"):
            self.item_scope()  # to see which of them this item comes to

    def _leave_item(self) -> None:
        assert self._scope is not None
        self._progress.report_unreached(self._scope.prefix)
        self._checkpoint.drop(self._scope.prefix)
        self._scope = None
