"""Commands of many threads, or greenlets, over one connection: who asks takes along who waits.

A thread that has a command for Redis puts it with those that wait. If nobody is asking just then,
it asks for all of them: it sends all there is at once, reads the answers, and hands them out. What
comes meanwhile is asked by the next one. Alone it is a plain question, that waits for nobody.

An exception from outside may come anywhere: of a time limit, of an interrupt, of Ctrl-C. It may
come to who asks for others. Then the connection is closed, so that no answer goes to the wrong one,
and they are told so at once. Each who waits looks again now and then, whatever becomes of who asks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import repeat
from typing import Any

from celery_graceful.store.answers import is_answer, is_timeout, once_more
from celery_graceful.store.connections import take_connection
from celery_graceful.system.native import Latch, is_green, thread_ident

__all__ = ["Together", "TornAway"]

#: Seconds for which a connection is kept; then it goes through its pool, which looks after it.
KEPT = 1.0

#: Seconds after which who waits looks for itself, and for which it waits where Redis may take as
#: long as it likes; and for which it waits longer than Redis may take.
SLICE, LONG, SLACK = 0.5, 120.0, 10.0

#: Bytes of one command that are not copied to be sent with others.
LARGE = 100_000

_NONE: Any = object()


class TornAway(Exception):
    """Nobody knows whether it was asked: who asked for others was stopped, or never came back."""


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
    """

    def __init__(self, pool: Any) -> None:
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
        self._patience = (LONG if limit is None else limit) + SLACK
        #: Somebody has waited in vain: nobody will ask here any more.
        self.stuck = False

    def is_of_here(self) -> bool:
        """Whether this thread may ask here: greenlets only in that of the first of them."""
        return not self._thread or self._thread == thread_ident()

    def ask(self, command: bytes) -> Any:
        """What the server answers.

        Args:
            command: Packed.

        Raises:
            RedisError: The server says so, or it was not reached.
            TornAway: Nobody knows.
        """
        if self._asks == threading.get_ident() and self._turn.locked():
            raise TornAway  # a finalizer, or a signal handler, in the middle of asking
        mine = _Question(command)
        self._waiting.append(mine)
        ends = 0.0
        while mine.answer is _NONE:
            if self._has_asked(mine):
                continue
            if mine.latch is None:
                # It is looked for a turn once more, with this in place: nobody has seen it yet.
                mine.latch = threading.Lock()  # of greenlets, where it has to be
                mine.latch.acquire()
                ends = time.monotonic() + self._patience
            elif not mine.latch.acquire(True, SLICE) and time.monotonic() > ends:
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
            break
        return True

    def _pass_on(self, asked: list[_Question]) -> None:
        """Who has come meanwhile asks next, while the others go on with their answers."""
        with suppress(IndexError):
            self._waiting[0].wake()
        for one in asked:
            one.wake()

    def _give_up(self, mine: _Question) -> None:
        with suppress(ValueError):
            self._waiting.remove(mine)
        mine.answer = TornAway()
        self.stuck = True

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
        connection = self._take()
        try:
            self._clean = False
            commands = [one.command for one in asked]
            if len(commands) > 1 and max(map(len, commands)) < LARGE:
                commands = [b"".join(commands)]
            connection.send_packed_command(commands)
            for one in asked:
                try:
                    one.answer = connection.read_response()
                except Exception as exc:
                    if not is_answer(exc):
                        raise
                    one.answer = exc
            self._clean = True
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
