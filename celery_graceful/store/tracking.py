"""Keys that Redis tells of when they change: two connections, one that asks and one that is told.

``CLIENT TRACKING`` is in every Redis since 6.0, without any configuration. What the one connection
has asked about is told to the other one, once, when anybody writes it; who wants to hear of it
again asks again. It is told to another connection since that works whatever protocol they speak.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_graceful.store.answers import is_answer
from celery_graceful.store.client import listening
from celery_graceful.store.connections import take_connection
from celery_graceful.store.store import COMMAND_TIMEOUT, Store, StoreAway, StoreRefused, fork_gate
from celery_graceful.system import native
from celery_graceful.system.describe import describe

__all__ = ["Tracking"]

#: Where it is told, by Redis itself.
CHANNEL = "__redis__:invalidate"


class Tracking:
    """Connections of their own to a store's server, for one thread.

    Args:
        store: Whose server it is.

    Raises:
        StoreAway: It did not answer.
        StoreRefused: It does not do this, or not for this user.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asks: Any = None
        self._told: Any = None
        try:
            with fork_gate:
                pool = store.own_client(COMMAND_TIMEOUT).connection_pool
                self._told, self._asks = (take_connection(pool) for _ in range(2))
                (me,) = self._ask(self._told, [("CLIENT", "ID")])
                parser = self._told._parser
                # redis-py would throw away what it says, but for hiredis before 5.3.
                if listening(self._told) and hasattr(parser, "set_invalidation_push_handler"):
                    parser.set_invalidation_push_handler(lambda said: said)
                self._told.send_command("SUBSCRIBE", CHANNEL)
                self._hear()
                self._ask(self._asks, [("CLIENT", "TRACKING", "ON", "REDIRECT", me)])
        except Exception as exc:
            self.close()
            raise self._away(exc) from exc

    def ask(self, *commands: Sequence[Any]) -> list[Any]:
        """Ask commands in one go; what they read is told of from now on, once.

        Args:
            commands: Their names and arguments, keys with their prefix.

        Raises:
            StoreAway: Redis did not answer.
            StoreRefused: It has answered one of them with an error.
        """
        try:
            with fork_gate:
                return self._ask(self._asks, commands)
        except Exception as exc:
            raise self._away(exc) from exc

    def wait(self, seconds: float, bell: native.Doorbell) -> set[str] | None:
        """Wait until something has changed, or somebody rings.

        Returns:
            The keys that have changed, as far as Redis says which; ``None`` if none has.

        Raises:
            StoreAway: The connection is lost.
        """
        try:
            if not self._can_hear():  # TLS may have read more than was asked for
                poller = native.original("select", "poll")()
                for fd in (self._told._sock.fileno(), bell.read_fd):
                    poller.register(fd, 1)  # POLLIN
                poller.poll(native.capped(seconds) * 1000)
                bell.take()
            changed: set[str] | None = None
            while self._can_hear():
                changed = (changed or set()).union(self._hear())
            return changed
        except Exception as exc:
            raise self._away(exc) from exc

    def close(self) -> None:
        """Give both connections up."""
        for connection in (self._asks, self._told):
            if connection is not None:
                connection.disconnect()

    def _ask(self, connection: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
        connection.send_packed_command(connection.pack_commands(commands))
        answers: list[Any] = []
        refusal = None
        for _ in commands:
            try:
                answers.append(connection.read_response())
            except Exception as exc:
                if not is_answer(exc):
                    raise
                refusal = refusal or exc  # those that follow have to be read all the same
        if refusal is not None:
            raise refusal
        return answers

    def _can_hear(self) -> bool:
        return bool(self._told.can_read(0))

    def _hear(self) -> list[str]:
        """What it is told next: keys; none if all may have changed, or of its subscription."""
        said = self._told.read_response(**listening(self._told))
        keys = said[-1] if said else None
        return keys if isinstance(keys, list) else []

    def _away(self, exc: Exception) -> StoreAway:
        kind = StoreRefused if is_answer(exc) else StoreAway
        return kind(f"{self._store.source}: {describe(exc)}")
