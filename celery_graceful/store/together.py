"""Commands of many threads, or greenlets, over one connection: who asks takes along who waits.

A thread that has a command for Redis puts it with those that wait. If nobody is asking just then,
it asks for all of them: it sends all there is at once, reads the answers, and hands them out. What
comes meanwhile is asked by the next one. Alone it is a plain question, that waits for nobody.

An exception from outside may come anywhere: of a time limit, of an interrupt, of Ctrl-C. It may
come to who asks for others. Then the connection is closed, so that no answer goes to the wrong one,
and they are told so at once. Each who waits looks again now and then, whatever becomes of who asks.

A connection may be dead while all others are fine, and who reads from it is told after minutes. The
others do not wait for that: where nothing comes for a while, they ask elsewhere.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import repeat
from typing import Any

from celery_graceful.store.answers import is_answer, is_goodbye, is_timeout, no_answer, once_more
from celery_graceful.store.connections import take_connection
from celery_graceful.system.native import Latch, is_green, thread_ident

__all__ = ["Together", "TornAway", "ask"]

#: Seconds for which a connection is kept; then it goes through its pool, which looks after it.
KEPT = 1.0

#: Seconds after which who waits looks for itself; and after which it asks elsewhere, where nothing
#: is heard: more than a connect takes, or a server that is busy for a moment.
SLICE, PATIENCE = 0.5, 1.5

#: Seconds until who has asked elsewhere gives up, where Redis may take as long as it likes.
LONG = 120.0

#: Bytes that are sent at once; one command of more is not copied.
LARGE = 100_000

_NONE: Any = object()


class TornAway(Exception):
    """Nobody knows whether it was asked: who asked for others was stopped, or has not come back."""


class _Question:
    """A command that waits for its answer; an error is raised where it was asked.

    Args:
        command: As it is sent.
    """

    __slots__ = ("answer", "command", "latch")

    def __init__(self, command: bytes) -> None:
        self.command = command
        self.answer: Any = _NONE
        self.latch: Any = None

    def wake(self) -> None:
        """Have its thread look what has become of it."""
        if self.latch is not None:
            with suppress(RuntimeError):  # it is awake
                self.latch.release()


class Together:
    """Asks the server of a pool for whoever comes, in the process that has made it.

    Args:
        pool: redis-py's, its own.
        patience: Seconds for which who waits wants to hear something. ``None``: a moment, of those
            for whom it is all the same whether something is asked twice.
    """

    def __init__(self, pool: Any, patience: float | None = None) -> None:
        self._source = pool
        self._waiting: deque[_Question] = deque()
        self._turn = turn = Latch()
        #: In C: no exception from outside comes between a success and the ``try`` that follows.
        self._attempts: Iterator[bool] = map(turn.acquire, repeat(False))
        self._asks = 0
        #: The connection of greenlets is of no use to a thread without their hub.
        self._thread = thread_ident() if is_green() else 0
        self._connection: Any = None
        self._clean = True
        self._kept_until = 0.0
        self.encode = pool.get_encoder().encode
        limit = pool.connection_kwargs.get("socket_timeout")
        #: Seconds that an answer may take.
        self.limit: float = LONG if limit is None else limit
        self._patience = PATIENCE if patience is None else patience
        #: When something was sent or answered, or somebody began to ask.
        self._moved_at = 0.0
        #: Somebody has waited in vain: nobody shall ask here any more.
        self.stuck = False
        self._next: dict[str, Together] = {}

    def is_of_here(self) -> bool:
        """Whether this thread may ask here: greenlets only in that of the first of them."""
        return not self._thread or self._thread == thread_ident()

    def next(self, made: Together) -> Together:
        """Where those go on who leave this one, as it is stuck: the first one that was made."""
        return self._next.setdefault("", made)

    def ask(self, command: bytes) -> Any:
        """What the server answers.

        Args:
            command: Packed.

        Raises:
            RedisError: The server says so, or it was not reached.
            TornAway: Nobody knows. If it is ``stuck`` now, it is to be asked elsewhere.
        """
        if self._asks == threading.get_ident() and self._turn.locked():
            raise TornAway  # a finalizer, or a signal handler, in the middle of asking
        mine = _Question(command)
        self._waiting.append(mine)
        began = 0.0
        while mine.answer is _NONE:
            if self._has_asked(mine):
                continue
            if mine.latch is None:
                # It is looked for a turn once more, with this in place: nobody has seen it yet.
                mine.latch = threading.Lock()  # of greenlets, where it has to be
                mine.latch.acquire()
                began = time.monotonic()
            elif mine.latch.acquire(True, SLICE) or mine.answer is not _NONE:
                continue
            elif self._is_silent(began):
                self._give_up(mine)
        if isinstance(mine.answer, Exception):
            raise mine.answer
        return mine.answer

    def _has_asked(self, mine: _Question) -> bool:
        """Ask for all who wait, if it is this thread's turn; whether it was."""
        asked: list[_Question] = []
        for is_mine in self._attempts:
            if not is_mine:
                return False
            try:
                if mine.answer is _NONE:
                    self._asks = threading.get_ident()
                    self._ask(mine, asked)
            finally:
                self._asks = 0
                self._turn.release()
                self._pass_on(asked)
                if self.stuck:
                    self._close()
            break
        return True

    def _pass_on(self, asked: list[_Question]) -> None:
        """Who has come meanwhile asks next, while the others go on with their answers."""
        with suppress(IndexError):
            self._waiting[0].wake()
        for one in asked:
            one.wake()

    def _is_silent(self, began: float) -> bool:
        return self.stuck or time.monotonic() > max(began, self._moved_at) + self._patience

    def _give_up(self, mine: _Question) -> None:
        with suppress(ValueError):
            self._waiting.remove(mine)
        mine.answer = TornAway()
        self.stuck = True
        self._close()

    def _close(self) -> None:
        """Nobody asks here any more; who still does will close it."""
        if self._turn.acquire(False):
            try:
                self._clean = False
                if self._connection is not None:
                    self._give_back()
            finally:
                self._turn.release()

    def _ask(self, mine: _Question, asked: list[_Question]) -> None:
        try:
            self._gather(asked)
            if mine not in asked:  # taken along by one who was stopped
                mine.answer = TornAway()
            if asked:
                self._exchange(asked)
        except Exception as exc:
            if once_more(exc) is None:
                raise
            if is_timeout(exc):  # each of them would wait as long for the next one
                self._gather(asked)
            for one in asked:
                if one.answer is _NONE:
                    one.answer = once_more(exc)
        finally:
            for one in asked:
                if one.answer is _NONE:
                    one.answer = TornAway()

    def _gather(self, asked: list[_Question]) -> None:
        while self._waiting:
            asked.append(self._waiting.popleft())

    def _exchange(self, asked: list[_Question]) -> None:
        self._moved_at = time.monotonic()
        connection = self._take()
        try:
            self._clean = False
            for part in _parts([one.command for one in asked]):
                connection.send_packed_command([part])
                self._moved_at = time.monotonic()
            is_over = False
            for one in asked:
                try:
                    one.answer = connection.read_response()
                except Exception as exc:
                    if not is_answer(exc):
                        raise
                    one.answer = exc
                    is_over = is_goodbye(exc)
                self._moved_at = time.monotonic()
            self._clean = not is_over
        finally:
            if not self._clean:
                self._give_back()

    def _take(self) -> Any:
        now = time.monotonic()
        if self._connection is not None and (now > self._kept_until or not self._clean):
            self._give_back()
        if self._connection is None:
            self._connection = take_connection(self._source)
            self._clean, self._kept_until = True, now + KEPT
        return self._connection

    def _give_back(self) -> None:
        connection = self._connection
        if not self._clean:
            connection.disconnect()
        self._connection = None
        self._source.release(connection)


def ask(find: Callable[[], Together], command: bytes) -> Any:
    """What the server answers, over another connection if nothing comes over the first one.

    It may be asked twice.

    Args:
        find: Says where to ask; nowhere that is stuck.
        command: Packed.

    Raises:
        RedisError: The server says so, it was not reached, or has not answered in time.
        TornAway: Nobody knows.
    """
    began = time.monotonic()
    while True:
        together = find()
        try:
            return together.ask(command)
        except TornAway:
            if not together.stuck:
                raise
            if time.monotonic() > began + together.limit:
                raise no_answer(together.limit) from None


def _parts(commands: list[bytes]) -> Iterator[bytes]:
    """What is sent at once."""
    part: list[bytes] = []
    size = 0
    for command in commands:
        if part and size + len(command) > LARGE:
            yield b"".join(part)
            part, size = [], 0
        part.append(command)
        size += len(command)
    yield b"".join(part)  # of one, it is that
