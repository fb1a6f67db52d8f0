"""What is sent over our Redis transport: with each message a bell is rung, in the same script.

``graceful:bell:<queue>``
    List that idle workers wait on. Bounded, expiring.

A user of Redis who may not do that sends as kombu does, and says so once. Private names of kombu
are used here, and pinned in ``tests/unit/test_pins.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import redis
from celery.utils.log import get_logger
from kombu.utils.json import dumps
from redis.exceptions import NoScriptError

from celery_graceful.claims.claimant import bell_key
from celery_graceful.store.answers import is_forbidden
from celery_graceful.store.scripts import Script, script
from celery_graceful.system.describe import describe

__all__ = ["RingingChannel"]

logger = get_logger(__name__)

#: Rings that are kept, and milliseconds until they expire.
RINGS, RINGS_TTL = 16, 10_000

#: What a producer has to be allowed for that, with its key prefix.
TO_RING = "+eval +evalsha +lpush +lpop +ltrim +pexpire ~%sgraceful:bell:*"

PUT, RING = script("put"), script("ring")

#: Brokers, with their user, and key prefixes that this process was refused to ring at.
_refused: set[tuple[str, str]] = set()


class RingingChannel:
    """Mixed into kombu's channels."""

    #: Who is given what is sent over this channel, in place of Redis.
    _taker: Callable[[str, str, str], object] | None = None
    #: The client of what is sent, and the pool of its connections.
    _sender: tuple[Any, Any] = (None, None)

    def _create_client(self: Any, asynchronous: bool = False) -> Any:
        """One for all that is sent: kombu makes one each time, which takes longer than to send.

        Raises:
            redis.ConnectionError: The channel is closed: its connection was lost while something
                was being sent over it. kombu sends it over the next one, then.
        """
        if self.connection is None:
            raise redis.ConnectionError("the connection was lost")
        if asynchronous or self.pool.connection_kwargs.get("credential_provider") is not None:
            return super()._create_client(asynchronous)  # type: ignore[misc]
        pool, client = self._sender
        if pool is not self.pool:
            client = super()._create_client()  # type: ignore[misc]
            self._sender = self.pool, client
        return client

    @cached_property
    def _at(self: Any) -> tuple[str, str]:
        return self.connection.client.as_uri(), self.global_keyprefix or ""

    @property
    def may_ring(self) -> bool:
        """Whether its user of Redis may do more than put a message into a list."""
        return not _refused or self._at not in _refused

    def hand_to(self, taker: Callable[[str, str, str], object]) -> None:
        """Give it what is sent from now on: the keys of list and bell, without the key prefix, and
        the message as it has to stand there. But what kombu has to do more for than that.
        """
        self._taker = taker

    def _put(self: Any, queue: str, message: Any, **kwargs: Any) -> None:
        batch = kwargs.get("_publish_batch")
        plain = queue.endswith(".pidbox") or not self.may_ring
        if plain or (not batch and queue in getattr(self, "_expires", ())):
            super()._put(queue, message, **kwargs)  # type: ignore[misc]
            return
        if batch is not None:
            super()._put(queue, message, **kwargs)  # type: ignore[misc]
            if hasattr(batch, "ring_for"):
                batch.ring_for.add(queue)
            return
        pri = self._get_message_priority(message, reverse=False)
        if self._taker is not None:
            self._taker(self._q_for_pri(queue, pri), bell_key(queue), dumps(message))
            return
        prefix = self.global_keyprefix or ""
        keys = (prefix + self._q_for_pri(queue, pri), prefix + bell_key(queue))
        try:
            with self.conn_or_acquire() as client:
                _run(client, PUT, keys, (dumps(message), RINGS, RINGS_TTL))
        except redis.ResponseError as exc:
            if not is_forbidden(exc):
                raise
            # Nothing was done: it rings first.
            super()._put(queue, message, **kwargs)  # type: ignore[misc]
            self._do_not_ring(exc)

    def _do_not_ring(self: Any, exc: Exception) -> None:
        """The user of Redis may send messages, but no more."""
        if self.may_ring:
            _refused.add(self._at)
            logger.warning(
                "Workers see what this process sends up to a second later: the user of Redis may "
                "not ring for them: %s. Mend: ACL SETUSER %s %s; then start this process anew",
                describe(exc),
                self.connection.client.userid or "default",
                TO_RING % (self.global_keyprefix or ""),
            )

    def create_publish_batch(self: Any, max_size: int) -> Any:
        """As kombu's; the bells are rung when the messages are in their queues."""
        batch = super().create_publish_batch(max_size)  # type: ignore[misc]
        flush, batch.ring_for = batch.flush, set()

        def flush_and_ring() -> None:
            flush()
            queues, batch.ring_for = batch.ring_for, set()
            try:
                self._ring(queues)
            except redis.ResponseError as exc:  # the messages are there
                if not is_forbidden(exc):
                    raise
                self._do_not_ring(exc)

        batch.flush = flush_and_ring
        return batch

    def _ring(self: Any, queues: Iterable[str]) -> None:
        prefix = self.global_keyprefix or ""
        bells = tuple(prefix + bell_key(queue) for queue in queues)
        if bells:
            with self.conn_or_acquire() as client:
                _run(client, RING, bells, ("", RINGS_TTL))


def _run(client: Any, wanted: Script, keys: tuple[str, ...], args: tuple[Any, ...]) -> Any:
    """Run a script; past kombu's clients, which would put the key prefix before some keys."""
    execute = redis.Redis.execute_command
    try:
        return execute(client, "EVALSHA", wanted.sha, len(keys), *keys, *args)
    except NoScriptError:
        return execute(client, "EVAL", wanted.text, len(keys), *keys, *args)
