"""What a channel has delivered, and not acknowledged: of claims the book knows it better."""

from __future__ import annotations

import time
from typing import Any

from celery.utils.log import get_logger
from kombu.transport import redis as kombu_redis

from celery_graceful.claims.held_claims import Claims, Tag
from celery_graceful.store.store import StoreAway

__all__ = ["QoS"]

logger = get_logger(__name__)

#: Seconds since the last acknowledgement after which no claim waits for the next one.
LATELY = 0.01


class QoS(kombu_redis.QoS):
    """Claimed messages are in Redis already: nothing is written when they arrive."""

    def append(self, message: Any, delivery_tag: str) -> None:
        if isinstance(delivery_tag, Tag):
            super(kombu_redis.QoS, self).append(message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        if isinstance(delivery_tag, Tag):
            delivery_tag.book.ack(delivery_tag)
            self._quick_ack(delivery_tag)
            if not (self.channel._in_poll or self.can_wait):
                delivery_tag.book.on_room()
        else:
            super().ack(delivery_tag)

    @property
    def can_wait(self) -> bool:
        """Whether the next claim can wait until there is more room: the pool has enough to do."""
        channel = self.channel
        book: Claims | None = channel._book
        if book is None or channel._next != "EVALSHA":
            return False
        if time.monotonic() - book.acked_at > LATELY:  # there may be no more room for long
            return False
        return book.has_enough(channel._room(), channel._took)

    def can_consume(self) -> bool:
        # An answer that brings no message is read also where there is no room.
        fetch = self.channel._fetch
        return (fetch is not None and fetch.kind == "END") or bool(super().can_consume())

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if not isinstance(delivery_tag, Tag):
            super().reject(delivery_tag, requeue=requeue)
        elif requeue:
            try:
                delivery_tag.book.give_back([delivery_tag])
            except StoreAway:  # said once, by the store
                logger.warning("%s goes back when Redis answers", delivery_tag)
            self._quick_ack(delivery_tag)
        else:
            self.ack(delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        self._forget_claims()
        super().restore_unacked(client)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        self._forget_claims()
        super().restore_unacked_once(stderr)

    def _forget_claims(self) -> None:
        """They stay claimed when the connection ends, and the process gives them back itself."""
        for tag in [tag for tag in self._delivered if isinstance(tag, Tag)]:
            del self._delivered[tag]
