"""What this process knows of its worker: the board, and what it says. Cheap to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_graceful.phases import Interrupt, Phase
from celery_graceful.system.process import Owner, Slot, itself, kept

if TYPE_CHECKING:  # who runs no worker has none
    from celery_graceful.timeline.board import Board
    from celery_graceful.timeline.successors import Sent
    from celery_graceful.timeline.tallies import Tallies

__all__ = [
    "WorkerInterrupt",
    "attach",
    "board",
    "detach",
    "flag",
    "holds",
    "is_stopping",
    "successor_of",
    "tallies",
    "worker_interrupt",
]


#: This process's board; ``None`` outside of a worker.
board: Slot[Board | None] = Slot("board", lambda: None, in_fork=kept)

#: ``flag.value[0]`` is true when running tasks have to stop: all, those whose claims were lost, or
#: some that were revoked. Outside of a worker it never is. What else the board says is behind it.
flag: Slot[Any] = Slot("flag", lambda: bytes(16), in_fork=kept)


def attach(new: Board, owner: Owner = itself) -> None:
    """Make ``new`` the board of this process, for as long as its owner is there."""
    owner.fill(board, new)
    owner.fill(flag, new.memory)


def detach(owner: Owner = itself) -> None:
    """Forget a board: its worker has ended, and the process goes on."""
    owner.leave(flag)
    owner.leave(board)


class WorkerInterrupt(Interrupt):
    """That of a task in a worker."""

    @property
    def phase(self) -> Phase:
        return Phase.RUNNING if board.value is None else board.value.phase

    def __eq__(self, other: object) -> bool:
        """It is an ``Interrupt`` to others, also to one that was made by hand."""
        if not isinstance(other, Interrupt):
            return NotImplemented
        return (self.reason, self.deadline) == (other.reason, other.deadline)

    __hash__ = Interrupt.__hash__

    def __repr__(self) -> str:
        return f"Interrupt(reason={self.reason!r}, deadline={self.deadline!r})"


def is_stopping() -> bool:
    """Whether this process is a worker's, and all of its running tasks have to stop."""
    return board.value is not None and board.value.interrupted


def tallies() -> Tallies | None:
    """Where this process counts; ``None`` where nobody wants to know."""
    here = board.value
    return here.tallies if here is not None and here.tallies.on else None


def successor_of(delivery: str | None) -> Sent | None:
    """What a delivery's run has sent in its place, as far as that is known."""
    here = board.value
    return None if here is None or delivery is None else here.successors.find(delivery)


def worker_interrupt() -> Interrupt | None:
    """The interrupt of all that runs in this worker, if it is on."""
    if board.value is None or not board.value.interrupted:
        return None
    return WorkerInterrupt(board.value.reason, board.value.hard_at)


def holds(worker: str) -> bool | None:
    """Whether claims of that identity are held. ``None``: only the store knows."""
    answers = [each.holds(worker) for each in board.values if each is not None]
    if True in answers:
        return True
    return None if None in answers or not answers else False
