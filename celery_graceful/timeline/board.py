"""The board: memory that all processes of a worker share.

Four pages, numbers, marks and notes, mapped by the main process before it starts its children.
Reading it costs a memory access, so a task can ask as often as it likes; waiting is done on a pipe
(see ``interrupt``). The clock is ``time.monotonic``, which all processes of a machine share.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import time
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from celery_graceful.phases import InterruptReason, Phase
from celery_graceful.system import native
from celery_graceful.timeline.board_file import BoardFile, announced_file
from celery_graceful.timeline.marks import Marks
from celery_graceful.timeline.successors import Successors
from celery_graceful.timeline.tallies import Tallies

if TYPE_CHECKING:  # who runs no worker has none
    from celery_graceful.timeline.grace_period import Deadlines

__all__ = ["CANCELLATIONS", "PLACES", "Board"]

_PAGE = 4096
_FLAG, _PHASE, _REASON, _BEATING = 0, 1, 2, 3
#: What the flag is up for.
_STOPPING, _LOST, _REVOKED = 4, 5, 6
_RELEASING, _PLACE = 7, 8
#: How often the worker was told that batches were cancelled; round and round.
CANCELLATIONS = 9
_TIMES = struct.Struct("=ddddd")  # requested, soft, hard, end of grace, last resort
_TIMES_AT = 16
_MOMENT, _WORD, _HALF = struct.Struct("=d"), struct.Struct("=Q"), struct.Struct("=L")
_LEASE = struct.Struct("=dL4x")  # surely held until, identity
_LEASES_AT = _TIMES_AT + _TIMES.size
_TARGETS_AT = 128
#: Servers that a worker may have a lease on.
PLACES = (_TARGETS_AT - _LEASES_AT) // _LEASE.size
_LEASES = range(_LEASES_AT, _LEASES_AT + PLACES * _LEASE.size, _LEASE.size)
_REVOKE = struct.Struct("=Qd")  # task, moment of its end
_REVOKES_AT = _PAGE // 2
#: Where each of them may stand.
_TARGETS = range(_TARGETS_AT, _REVOKES_AT, _WORD.size)
_REVOKES = range(_REVOKES_AT, _PAGE, _REVOKE.size)
_ENDED_AT = _PAGE
_HEARD_AT = _ENDED_AT + _PAGE
#: Whose stack is asked for, whose it is that stands there, and its length.
_STACK = struct.Struct("=QQQ")
_STACK_AT = _HEARD_AT + _PAGE
_TALLIES_AT = _STACK_AT + _PAGE
_MARKS_AT = _TALLIES_AT + Tallies.SIZE
_SUCCESSORS_AT = _MARKS_AT + Marks.SIZE
_SIZE = _SUCCESSORS_AT + Successors.SIZE

_REASONS: list[InterruptReason] = list(InterruptReason)


class Board:
    """The shared memory.

    Args:
        memory: A writable mapping of four pages, the tallies, the marks and the successors.
        file: What is behind it, where that is a file of this process.
    """

    def __init__(self, memory: Any, file: BoardFile | None = None) -> None:
        self.memory = memory
        self._file = file
        #: What is counted in any process.
        self.tallies = Tallies(memory, _TALLIES_AT)
        #: Deliveries that have something in the store, by which their end is told to look there.
        self.marks = Marks(memory, _MARKS_AT)
        #: Deliveries whose runs have sent what goes on in their place.
        self.successors = Successors(memory, _SUCCESSORS_AT)
        #: Deliveries that the hard deadline took away, and that may still run in this very process.
        self.taken_away: set[str] = set()
        #: What was asked for last, and held: how its claims begin, where its lease is, and whose.
        self._held: tuple[str, int, int] = "/", 0, 0

    @classmethod
    def create(cls, *, spawn: bool = False) -> Board:
        """Map new pages; with ``spawn`` in a file that is announced in the environment."""
        if not spawn:
            return cls(mmap.mmap(-1, _SIZE))
        file = BoardFile(_SIZE)
        return cls(mmap.mmap(file.fd, _SIZE), file)

    @classmethod
    def announced(cls) -> Board | None:
        """Map the pages of the parent in a spawned child, if there are any."""
        with announced_file() as file:
            return None if file is None else cls(mmap.mmap(file.fileno(), _SIZE))

    def close(self) -> None:
        """Remove the file, in the process that made it."""
        if self._file is not None:
            self._file.remove()

    @property
    def interrupted(self) -> bool:
        """Whether all running tasks have to stop."""
        return bool(self.memory[_STOPPING])

    def _write(self, offset: int, word: bytes) -> None:
        # Others read meanwhile. One word is copied in one step; two are not, and ``pack_into``
        # writes zeros first.
        self.memory[offset : offset + len(word)] = word

    def _raise_flag(self, what: int) -> None:
        self.memory[what] = 1
        self.memory[_FLAG] = 1  # last: whoever sees it finds the rest in place

    def _lower_flag(self, what: int) -> None:
        self.memory[what] = 0
        self.memory[_FLAG] = self._has_reason()
        if self._has_reason():  # a signal handler, or another thread, has just raised it
            self.memory[_FLAG] = 1

    def _has_reason(self) -> bool:
        return any(self.memory[_STOPPING : _REVOKED + 1])

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is fetched or started any more."""
        return bool(self.memory[_PHASE])

    @property
    def releasing(self) -> bool:
        """Whether what has not begun goes back instead."""
        return bool(self.memory[_RELEASING])

    def release(self, on: bool) -> None:
        """Have it go back, or not. Safe in a signal handler."""
        self.memory[_RELEASING] = on

    def count_cancellation(self) -> None:
        """It was told so."""
        self.memory[CANCELLATIONS] = (self.memory[CANCELLATIONS] + 1) % 256

    # -- the lease -------------------------------------------------------------------

    def holds(self, worker: str) -> bool | None:
        """Whether claims of that identity are held. ``None``: only the store knows."""
        identity, others = _identity(worker), False
        for offset in _LEASES:
            until, known = _LEASE.unpack_from(self.memory, offset)
            if known == identity:
                return True if time.monotonic() < until else None
            others = others or known
        return not others

    def surely_holds(self, claim: str) -> bool:
        """Whether a claim, or any that begins like it, is held, and nobody has to be asked.

        Args:
            claim: ``<worker>/<number>``.
        """
        # Before and after each run: few steps.
        prefix, offset, identity = self._held
        if claim.startswith(prefix):
            until, known = _LEASE.unpack_from(self.memory, offset)
            if known == identity and time.monotonic() < until:
                return True
        worker = claim.rpartition("/")[0]
        if self.holds(worker) is not True:
            return False
        self._held = f"{worker}/", _LEASES[self.place_of(worker)], _identity(worker)
        return True

    def place_of(self, worker: str) -> int:
        """On which server that identity has its lease."""
        identity = _identity(worker)
        for place, offset in enumerate(_LEASES):
            if _LEASE.unpack_from(self.memory, offset)[1] == identity:
                return place
        return self.place

    def hold_lease(self, until: float, worker: str, place: int = 0) -> None:
        """The lease of ``worker``, on the server at that place, is surely held until then."""
        # The identity first: the old one is not held until the new moment.
        offset = _LEASES[place]
        self._write(offset + _MOMENT.size, _HALF.pack(_identity(worker)))
        self._write(offset, _MOMENT.pack(until))

    def forget_lease(self, place: int) -> None:
        """There is none on that server any more."""
        self._write(_LEASES[place] + _MOMENT.size, _HALF.pack(0))

    @property
    def place(self) -> int:
        """Where the worker's consumer is connected: the place of its URL among the broker's."""
        return int(self.memory[_PLACE])

    def be_at(self, place: int) -> None:
        """The worker's consumer is connected there."""
        self.memory[_PLACE] = place

    def lose_lease(self) -> None:
        """Tasks of claims of another identity have to stop, until ``forget_lost``."""
        self._raise_flag(_LOST)

    def forget_lost(self) -> None:
        """The last of them has ended."""
        self._lower_flag(_LOST)

    @property
    def has_lost(self) -> bool:
        """Whether tasks run whose claims were lost."""
        return bool(self.memory[_LOST])

    @property
    def phase(self) -> Phase:
        return Phase(self.memory[_PHASE])

    def enter(self, phase: Phase) -> None:
        """Safe in a signal handler."""
        self.memory[_PHASE] = phase

    @property
    def reason(self) -> InterruptReason:
        return _REASONS[int(self.memory[_REASON])]

    def begin_stop(self, deadlines: Deadlines, reason: InterruptReason) -> None:
        """Start the clock: from now on tasks see the interrupt. Safe in a signal handler."""
        now = time.monotonic()
        _TIMES.pack_into(
            self.memory,
            _TIMES_AT,
            now,
            now + deadlines.soft,
            now + deadlines.hard,
            now + deadlines.grace,
            now + deadlines.last_resort,
        )
        self.memory[_REASON] = _REASONS.index(reason)
        if self.phase < Phase.QUIET:
            self.enter(Phase.QUIET)
        self._raise_flag(_STOPPING)

    def _time(self, index: int) -> float:
        return float(_TIMES.unpack_from(self.memory, _TIMES_AT)[index])

    @property
    def requested_at(self) -> float:
        """When the stop was asked for, on the monotonic clock."""
        return self._time(0)

    @property
    def soft_at(self) -> float:
        return self._time(1)

    @property
    def hard_at(self) -> float:
        return self._time(2)

    @property
    def limit_again_at(self) -> float:
        """When tasks that have swallowed ``ShutdownTimeLimit`` get it a second time."""
        return (self.soft_at + self.hard_at) / 2

    @property
    def grace_ends_at(self) -> float:
        return self._time(3)

    @property
    def last_resort_at(self) -> float:
        """When the main process leaves, whatever is still open."""
        return self._time(4)

    def leave_at(self, moment: float) -> None:
        """The last resort is at another moment than the grace period asks for."""
        self._write(_TIMES_AT + 4 * _MOMENT.size, _MOMENT.pack(moment))

    def aim(self, pid: int) -> None:
        """Single out a child that has to end its task (``revoke`` with ``terminate``)."""
        free = None
        for offset in _TARGETS:
            marked = _WORD.unpack_from(self.memory, offset)[0]
            if marked == pid:
                return
            if marked and not native.is_alive(marked):  # it was killed before it looked
                self._write(offset, _WORD.pack(0))
                marked = 0
            if not marked and free is None:
                free = offset
        if free is not None:
            self._write(free, _WORD.pack(pid))

    def is_target(self, pid: int) -> bool:
        """Whether ``pid`` was singled out; asking takes the mark away."""
        for offset in _TARGETS:
            if _WORD.unpack_from(self.memory, offset)[0] == pid:
                self._write(offset, _WORD.pack(0))
                return True
        return False

    # -- the wake signal -------------------------------------------------------------

    def set_heard(self, pid: int, heard: bool) -> None:
        """``pid`` is about to be sent the wake signal, or hears it, and is about to look."""
        self.memory[_HEARD_AT + pid % _PAGE] = heard

    def has_heard(self, pid: int) -> bool:
        """Whether it has looked at the board since then."""
        return bool(self.memory[_HEARD_AT + pid % _PAGE])

    # -- revoked tasks ---------------------------------------------------------------

    def revoke(self, task_id: str, deadline: float) -> bool:
        """A running task has to stop until ``deadline``. False: too many have, at once."""
        digest = _digest(task_id)
        for offset in _REVOKES:
            if _REVOKE.unpack_from(self.memory, offset)[0] in (0, digest):
                self._write(offset + _WORD.size, _MOMENT.pack(deadline))
                self._write(offset, _WORD.pack(digest))  # who finds it finds the moment
                self._raise_flag(_REVOKED)
                return True
        return False

    def revoked_until(self, task_id: str) -> float | None:
        """When a revoked task has to have ended; ``None`` if it is not revoked."""
        if self.memory[_REVOKED]:
            digest = _digest(task_id)
            for found, deadline in _REVOKE.iter_unpack(self.memory[_REVOKES_AT:_PAGE]):
                if found == digest:
                    return float(deadline)
        return None

    def forget_revoked(self, task_id: str) -> None:
        """A revoked task has ended."""
        digest = _digest(task_id)
        left = False
        for offset in _REVOKES:
            found = _REVOKE.unpack_from(self.memory, offset)[0]
            if found == digest:
                self._write(offset, _WORD.pack(0))
            left = left or found not in (0, digest)
        if not left:
            self._lower_flag(_REVOKED)

    # -- check-ins -------------------------------------------------------------------

    @property
    def beating(self) -> bool:
        """Whether a heartbeat of the main process is on its way to a monitor's server."""
        return bool(self.memory[_BEATING])

    def beat(self, under_way: bool) -> None:
        """A heartbeat is on its way, or not any more."""
        self.memory[_BEATING] = under_way

    def set_ended(self, pid: int, run: str | None) -> None:
        """The process ``pid`` has begun to report the end of ``run``."""
        self._write(_ended(pid), _HALF.pack(0 if run is None else zlib.crc32(run.encode())))

    def has_ended(self, pid: int, run: str) -> bool:
        """Whether ``run`` is the last of which it has done so.

        Processes whose ids are 1024 apart share a place: a no too many.
        """
        return bool(_HALF.unpack_from(self.memory, _ended(pid))[0] == zlib.crc32(run.encode()))

    # -- stacks ----------------------------------------------------------------------

    def ask_stack(self, pid: int) -> None:
        """Ask a child where it stands, which it says when it is signalled; one at a time."""
        self._write(_STACK_AT + _WORD.size, bytes(2 * _WORD.size))
        self._write(_STACK_AT, _WORD.pack(pid))

    def wants_stack(self, pid: int) -> bool:
        """Whether that child is asked."""
        return bool(_WORD.unpack_from(self.memory, _STACK_AT)[0] == pid)

    def give_stack(self, pid: int, stack: str) -> None:
        """The child says where it stands. Safe in a signal handler."""
        text = stack.encode(errors="replace")[: _PAGE - _STACK.size]
        self._write(_STACK_AT + _STACK.size, text)
        self._write(_STACK_AT + 2 * _WORD.size, _WORD.pack(len(text)))
        self._write(_STACK_AT, _WORD.pack(0))
        self._write(_STACK_AT + _WORD.size, _WORD.pack(pid))  # last: who sees it finds the rest

    def take_stack(self, pid: int) -> str | None:
        """What it has said; ``None`` if it has not."""
        _, said, length = _STACK.unpack_from(self.memory, _STACK_AT)
        if said != pid:
            return None
        start = _STACK_AT + _STACK.size
        return bytes(self.memory[start : start + length]).decode(errors="replace")


@lru_cache(64)
def _identity(worker: str) -> int:
    """Four bytes that tell it from other workers, most likely."""
    return zlib.crc32(worker.encode())


def _digest(task_id: str) -> int:
    """Eight bytes that tell it from other tasks; never zero."""
    digest = hashlib.blake2b(task_id.encode(), digest_size=_REVOKE.size // 2).digest()
    return int.from_bytes(digest, "big") or 1


def _ended(pid: int) -> int:
    return _ENDED_AT + pid * _HALF.size % _PAGE
