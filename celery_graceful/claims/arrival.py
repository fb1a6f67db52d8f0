"""How a claimed message is delivered to its consumer, and what becomes of one that is none."""

from __future__ import annotations

from typing import Any

from kombu.utils.encoding import bytes_to_str

from celery_graceful.claims.held_claims import Tag
from celery_graceful.messages.decoding import loads

__all__ = ["deliver"]


def deliver(channel: Any, queue: str, text: Any, tag: Tag) -> None:
    """Deliver a message that is a claim; of one that is no message, its book is told.

    Args:
        channel: kombu's, that consumes from the queue.
        queue: Where it came from.
        text: As it was there.
        tag: Of the claim.

    Raises:
        Exception: What its consumer raised.
    """
    try:
        payload = loads(bytes_to_str(text))
        payload["properties"]["delivery_tag"] = tag
    except Exception as exc:  # what can be in a queue can raise anything
        tag.book.on_no_message(tag, exc)
        return
    try:
        channel.connection._deliver(payload, queue)
    except Exception as exc:
        try:
            channel.Message(payload, channel=channel)
        except Exception:
            tag.book.on_no_message(tag, exc)
        else:
            raise exc from None
