"""What a task under test has done, and where an event hits it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, TypeVar

from celery_graceful.checkpoints.checkpoint import CURSOR
from celery_graceful.checkpoints.codec import decode, encode
from celery_graceful.checkpoints.watch import Watch, Watched
from celery_graceful.runs.run import current
from celery_graceful.testing.events import CHECKPOINT, END, ROW, STEP, Event, Moment
from celery_graceful.testing.killing import Killed, Killing, running_loop
from celery_graceful.testing.memory_store import MemoryStore

__all__ = ["Observer", "Row", "Step"]

T = TypeVar("T")

#: Items of these types are what they show.
_PLAIN = (str, int, float, bytes, tuple, list, dict, date, datetime)


@dataclass
class Row:
    """An item that ``iterate`` gave to the body of its loop.

    Attributes:
        number: From 1, in the order in which they were first given.
        loop: The path of the loop; a name, or ``loop``.
        item: The item, as it was given last.
        begun: How often it was given.
        done: How often its body has ended.
        saved: It will not be given again.
    """

    number: int
    loop: str
    item: Any
    begun: int = 0
    done: int = 0
    saved: bool = False

    @property
    def repeated(self) -> bool:
        """Whether it was given more than once."""
        return self.begun > 1


@dataclass
class Step:
    """A step.

    Attributes:
        path: Its name; inside a loop behind that of the item.
        begun: How often its function was called.
        done: How often that returned.
        skipped: How often a later run was given the result that was saved.
        saved: It will not be called again.
    """

    path: str
    begun: int = 0
    done: int = 0
    skipped: int = 0
    saved: bool = False

    @property
    def repeated(self) -> bool:
        """Whether its function was called more than once."""
        return self.begun > 1


class Observer(Watch):
    """Of one task, in all of its deliveries.

    Args:
        interrupt: Asks the worker to stop.
    """

    def __init__(self, interrupt: Callable[[], None]) -> None:
        self.store = self.keeper = MemoryStore(self._saved)
        self.steps: dict[str, Step] = {}
        #: Calls of ``checkpoint`` in the delivery under way.
        self.checkpoints = 0
        #: The event of the delivery under way has come.
        self.has_come = False
        #: What it came to in a delivery after it was interrupted there: the most of all deliveries.
        self.ran_on: list[str] = []
        #: Its process is dead.
        self.was_killed = False
        self._killing: Killing | None = None
        self._loop: Any = None
        self._interrupt = interrupt
        self._rows: dict[tuple[str, str], Row] = {}
        self._event: Event | None = None
        self._after_interrupt: list[str] = []

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def disorder(self, other: Observer) -> str:
        """Where a source gave something else than it gave another run, for people."""
        for key, row in self._rows.items():
            there = other._rows.get(key)
            if there is not None and type(row.item) in _PLAIN and row.item != there.item:
                return (
                    f"the source of {row.loop!r} has no fixed order: in the same place it gave "
                    f"{there.item!r:.60} to the run that nobody disturbed, and {row.item!r:.60} to "
                    "this one"
                )
        return ""

    def begin(self, event: Event | None) -> None:
        """A delivery begins, to which that happens."""
        self._event, self.has_come = event, False
        self.was_killed, self._killing = False, None
        self._loop = running_loop()
        self.checkpoints = 0
        self._after_interrupt = []
        self.store.connect()

    def end(self) -> None:
        """It has ended."""
        if self._killing is not None:
            self._killing.end()

    # -- the task stands there -----------------------------------------------------------

    def items(self, loop: Watched, items: Iterator[T]) -> Iterator[T]:
        for item in items:
            row = self._row(loop, item)
            row.begun += 1
            self._reach(ROW, row.number, Moment.BEGINS)
            yield item
            row.done += 1
            self._reach(ROW, row.number, Moment.DONE)
            if self._is_next(ROW, row.number, Moment.SAVED):
                loop.save_after_item()
                next(items, None)  # that saves, before it looks for another item
                self._reach(ROW, row.number, Moment.SAVED)

    def step_known(self, path: str) -> None:
        self._step(path).skipped += 1

    def step_begins(self, path: str) -> None:
        self._step(path).begun += 1
        self._reach(STEP, path, Moment.BEGINS)

    def step_ran(self, path: str) -> None:
        self._step(path).done += 1
        self._reach(STEP, path, Moment.DONE)

    def step_saved(self, path: str) -> None:
        self._step(path).saved = True
        self._reach(STEP, path, Moment.SAVED)

    def checkpoint_comes(self) -> None:
        self.checkpoints += 1
        self._reach(CHECKPOINT, self.checkpoints, Moment.BEGINS)

    def checkpoint_passed(self) -> None:
        self._reach(CHECKPOINT, self.checkpoints, Moment.SAVED)

    def task_returned(self) -> None:
        """The delivery has succeeded, and its message is not acknowledged."""
        if self._is_next(END, "", Moment.DONE):
            self.has_come = self.was_killed = True

    # -- what follows from that ----------------------------------------------------------

    def _reach(self, kind: str, place: int | str, moment: Moment) -> None:
        if self.was_killed:
            raise Killed  # it was swallowed
        run = current()
        if run is not None and run.raised and moment is Moment.BEGINS:
            self._after_interrupt.append(f"{kind} {place}")
            self.ran_on = max(self.ran_on, self._after_interrupt, key=len)
        if self._is_next(kind, place, moment):
            self.has_come = True
            assert self._event is not None
            if not self._event.kills:
                self._interrupt()
                return
            self.store.cut_off()
            self.was_killed = True
            self._killing = Killing(self._loop)
            self._killing.begin()
            raise Killed

    def _is_next(self, kind: str, place: int | str, moment: Moment) -> bool:
        event = self._event
        return event is not None and not self.has_come and event.is_at(kind, place, moment)

    def _row(self, loop: Watched, item: Any) -> Row:
        key = loop.path, encode(loop.cursor, "a cursor")
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = Row(len(self._rows) + 1, loop.path, item)
        row.item = item
        return row

    def _step(self, path: str) -> Step:
        return self.steps.setdefault(path, Step(path))

    def _saved(self, changed: list[str], obsolete: list[str]) -> None:
        fields = self.store.fields
        for field in changed:
            if field.startswith(CURSOR):
                _, cursor, ended = decode(fields[field])
                self._is_saved(field.removeprefix(CURSOR), None if ended else encode(cursor, ""))
        for field in obsolete:
            if field.startswith(CURSOR):
                self._is_saved(field.removeprefix(CURSOR), None)

    def _is_saved(self, path: str, cursor: str | None) -> None:
        """All rows of a loop are, up to that cursor."""
        for (loop, at), row in self._rows.items():
            if loop == path:
                row.saved = True
                if at == cursor:
                    return
