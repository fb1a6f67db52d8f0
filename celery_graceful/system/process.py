"""What this process has one of: its worker's board, its log thread, its patience at exit.

A part that needs such a thing declares a *slot* for it, next to the type of what goes in there, and
reads ``slot.value``. *Owners* fill slots; each worker is one. Several workers may be embedded in
one process, at once or one after the other: the value of the latest counts, and an owner that ends
takes its own along, wherever in the row it stands.

What a forked child finds in a slot is declared at the slot, and is seen to here, before any other
code of the child.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from celery_graceful.system import native

__all__ = ["Owner", "Slot", "emptied", "itself", "kept"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_slots: list[Slot[Any]] = []
_lock = native.Lock()


class Slot(Generic[T]):
    """The place of one thing that this process has.

    Args:
        name: For people.
        empty: Makes what is in it while nobody has filled it.
        in_fork: Makes it what a forked child shall find: ``kept``, ``emptied``, or what its part
            does there.
    """

    __slots__ = ("_empty", "_filled", "in_fork", "name", "value", "values")

    def __init__(
        self, name: str, empty: Callable[[], T], *, in_fork: Callable[[Slot[T]], None]
    ) -> None:
        self.name = name
        self.in_fork = in_fork
        self._empty = empty
        self._filled: dict[Owner, T] = {}
        #: What counts.
        self.value: T = empty()
        #: Those of all owners, the one that counts last.
        self.values: tuple[T, ...] = ()
        _slots.append(self)

    def __repr__(self) -> str:
        return f"<{self.name}: {self.value!r}>"

    def _fill(self, owner: Owner, value: T) -> None:
        self._filled.pop(owner, None)
        self._filled[owner] = value
        self._settle()

    def _leave(self, owner: Owner) -> None:
        if owner in self._filled:
            del self._filled[owner]
            self._settle()

    def _clear(self) -> None:
        self._filled.clear()
        self._settle()

    def _settle(self) -> None:
        self.values = tuple(self._filled.values())
        self.value = self.values[-1] if self.values else self._empty()


class Owner:
    """Who fills slots for as long as it is there: a worker."""

    def __init__(self) -> None:
        self._slots: list[Slot[Any]] = []

    def fill(self, slot: Slot[T], value: T) -> None:
        """From now on that is what this process has; its own from before is gone."""
        with _lock:
            slot._fill(self, value)
            if slot not in self._slots:
                self._slots.append(slot)

    def leave(self, slot: Slot[Any]) -> None:
        """Take its own out of one slot, if there is any."""
        with _lock:
            slot._leave(self)

    def end(self) -> None:
        """Take its own out of all slots, the latest first."""
        with _lock:
            while self._slots:
                self._slots.pop()._leave(self)


#: Fills what belongs to no worker.
itself = Owner()


def kept(slot: Slot[Any]) -> None:
    """A forked child has what its parent had."""


def emptied(slot: Slot[Any]) -> None:
    """A forked child has none yet."""
    slot._clear()


def _in_child() -> None:
    global _lock
    _lock = native.Lock()
    for slot in _slots:
        try:
            slot.in_fork(slot)
        except Exception:
            logger.exception("%s in a forked child", slot.name)


os.register_at_fork(after_in_child=_in_child)
