"""Queues of RabbitMQ in which messages wait, or are kept, where there is no store for that.

``graceful.later.<seconds>.<queue>``
    What is in it goes back to the tail of the queue after so many seconds. Declared anew before
    each use; RabbitMQ deletes it a minute after its last message has left.
``graceful.quarantine``
    What cannot be used, with the reason in the header ``graceful_why`` and the queue that it came
    from in ``graceful_queue``. Nobody consumes from it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from celery_graceful.messages.republish import Sender

__all__ = ["send_aside", "send_later", "waited"]

#: Seconds after which a message goes back: as long as it has waited, in these steps.
STEPS = (1, 2, 4, 8, 16, 30)

#: Milliseconds for which a queue stays that is not declared anew, beyond its delay.
KEPT = 60_000

QUARANTINE = "graceful.quarantine"

#: Header: when the message came to wait, seconds since the epoch.
SINCE = "graceful_waits_since"

#: Headers that RabbitMQ adds on the way.
_OF_THE_WAY = ("x-death", "x-first-death-", "x-last-death-")


def waited(message: Any) -> float:
    """Seconds since a message came to wait; 0 for one that has not."""
    since = message.headers.get(SINCE)
    return max(0.0, time.time() - since) if isinstance(since, (int, float)) else 0.0


def send_later(connection: Any, messages: Sequence[tuple[Any, str]]) -> None:
    """Send copies that come back later, each to its queue; confirmed by the broker.

    Raises:
        Exception: What the broker's client raised; some may have been sent.
    """
    declared: set[str] = set()
    sender = Sender(connection)
    for message, queue in messages:
        age = waited(message)
        seconds = next((step for step in STEPS if step >= age), STEPS[-1])
        later = f"graceful.later.{seconds}.{queue}"
        if later not in declared:
            declared.add(later)
            _declare_later(connection.default_channel, later, seconds, queue)
        _forget(message)
        since = message.headers.get(SINCE, time.time())
        sender.send(message, {SINCE: since}, later)


def send_aside(connection: Any, message: Any, queue: str, why: str) -> None:
    """Send a copy to quarantine; confirmed by the broker.

    Raises:
        Exception: What the broker's client raised.
    """
    connection.default_channel.queue_declare(QUARANTINE, durable=True, auto_delete=False)
    _forget(message, SINCE)
    headers = {"graceful_why": why, "graceful_queue": queue}
    Sender(connection).send(message, headers, QUARANTINE)


def _declare_later(channel: Any, name: str, seconds: int, queue: str) -> None:
    arguments = {
        "x-message-ttl": seconds * 1000,
        "x-expires": seconds * 1000 + KEPT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
    }
    channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)


def _forget(message: Any, *names: str) -> None:
    headers: dict[str, Any] = message.headers
    gone: Iterable[str] = [n for n in headers if n.startswith(_OF_THE_WAY) or n in names]
    for name in gone:
        del headers[name]
