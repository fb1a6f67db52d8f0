"""What can happen to a task under test, and when. The ``repr`` of an event can be pasted."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from celery_graceful.system.arguments import check_seconds

__all__ = [
    "CHECKPOINT",
    "END",
    "ROW",
    "STEP",
    "Event",
    "Moment",
    "interrupt_after_step",
    "interrupt_at",
    "interrupt_at_checkpoint",
    "interrupt_in_step",
    "kill_at",
    "soft_deadline_after",
]

ROW, STEP, CHECKPOINT, END = "row", "step", "checkpoint", "end"


class Moment(enum.Enum):
    """Of a row, a step or a checkpoint."""

    #: It begins.
    BEGINS = "begins"
    #: It has been done, and nobody has noted that.
    DONE = "done"
    #: That is saved.
    SAVED = "saved"


@dataclass(frozen=True)
class Event:
    """Something that happens to a delivery of a task. Made by the functions of this module.

    Attributes:
        call: The call that makes it.
        kind: Of what it happens at: ``row``, ``step``, ``checkpoint``, ``end``; empty: a moment.
        place: Its number, counted from 1, or its name.
        moment: Before it, after it, or after it was saved.
        kills: Whether the process dies there.
        seconds: After which it happens, where it is bound to no place.
    """

    call: str
    kind: str = ""
    place: int | str = ""
    moment: Moment = Moment.BEGINS
    kills: bool = False
    seconds: float | None = None

    def __repr__(self) -> str:
        return self.call

    def __str__(self) -> str:
        """For people."""
        what = "kill -9" if self.kills else "an interrupt"
        if self.seconds is not None:
            return f"the soft deadline after {self.seconds:g} s"
        if self.kind == END:
            return f"{what} after its end, before its message is acknowledged"
        place = f"{self.kind} {self.place!r}"
        if self.moment is Moment.SAVED:
            return f"{what} after {place} was saved"
        if self.moment is Moment.DONE:
            return f"{what} after {place}, before that is saved"
        return f"{what} {'in' if self.kind == STEP else 'at'} {place}"

    def is_at(self, kind: str, place: int | str, moment: Moment) -> bool:
        """Whether it happens here.

        Args:
            kind: ``row``, ``step``, ``checkpoint`` or ``end``.
            place: Its number, or the name of the step.
            moment: Where in it.
        """
        if (kind, moment) != (self.kind, self.moment):
            return False
        # Inside of a loop a step is known by its path, and by its name in any item.
        return place == self.place or (kind == STEP and str(place).endswith(f"/{self.place}"))


def interrupt_at(*, row: int) -> Event:
    """The worker is asked to stop while that row is in hand.

    The task is told as in a worker: at its next safe point, or at once where it allows that.

    Args:
        row: The number of the row, from 1, in the order in which ``iterate`` first gave them.

    Raises:
        ValueError: ``row`` is no number from 1.
    """
    return Event(f"interrupt_at(row={_number('row', row)})", ROW, row)


def interrupt_in_step(name: str) -> Event:
    """The worker is asked to stop while the function of a step runs.

    Args:
        name: Of the step; inside of a loop, that of the first item that has it.

    Raises:
        TypeError: ``name`` is no text, or empty.
    """
    return Event(f"interrupt_in_step({_name(name)!r})", STEP, name)


def interrupt_after_step(name: str) -> Event:
    """The worker is asked to stop when a step has been saved.

    Args:
        name: Of the step; inside of a loop, that of the first item that has it.

    Raises:
        TypeError: ``name`` is no text, or empty.
    """
    return Event(f"interrupt_after_step({_name(name)!r})", STEP, name, Moment.SAVED)


def interrupt_at_checkpoint(number: int) -> Event:
    """The worker is asked to stop just before a call of ``checkpoint``.

    Args:
        number: Which call in this delivery, from 1.

    Raises:
        ValueError: ``number`` is no number from 1.
    """
    call = f"interrupt_at_checkpoint({_number('number', number)})"
    return Event(call, CHECKPOINT, number)


def soft_deadline_after(seconds: float) -> Event:
    """The soft deadline passes so long after the beginning: ``ShutdownTimeLimit`` is raised.

    Args:
        seconds: From the beginning of the delivery.

    Raises:
        TypeError, ValueError: ``seconds`` is no number of 0 or more.
    """
    check_seconds("soft_deadline_after", seconds)
    return Event(f"soft_deadline_after({seconds!r})", seconds=seconds)


def kill_at(
    *,
    row: int | None = None,
    step: str | None = None,
    checkpoint: int | None = None,
    end: bool = False,
    saved: bool = False,
) -> Event:
    """The process dies, as by ``kill -9``: no ``except`` and no ``finally`` of the task runs.

    Give one of the first four.

    Args:
        row: When that row's body has ended, and nothing was saved since the last save.
        step: When its function has returned, and the result is not saved.
        checkpoint: Where it is called, before it saves.
        end: When the task has returned, and its message is not acknowledged.
        saved: Just after that was saved, instead.

    Raises:
        TypeError: None of the first four is given, or several are; or a step's name is no text.
        ValueError: A row or a checkpoint is no number from 1.
    """
    given = [(ROW, row), (STEP, step), (CHECKPOINT, checkpoint)]
    places = [(kind, place) for kind, place in given if place is not None]
    if len(places) + end != 1:
        raise TypeError("kill_at: give one of row=, step=, checkpoint= and end=True")
    if end:
        return Event("kill_at(end=True)", END, "", Moment.DONE, kills=True)
    ((kind, place),) = places
    if isinstance(place, str):
        _name(place)
    else:
        _number(kind, place)
    unsaved = Moment.BEGINS if kind == CHECKPOINT else Moment.DONE
    call = f"kill_at({kind}={place!r}{', saved=True' if saved else ''})"
    return Event(call, kind, place, Moment.SAVED if saved else unsaved, kills=True)


def _number(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: they are counted from 1")
    return value


def _name(value: str) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} is no name of a step")
    return value
