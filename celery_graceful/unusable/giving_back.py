"""What waits for a worker that knows its task goes back to its queue, where nobody else sees to it.

The last worker that stops does so; after a kill, ``celery graceful rescue``.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.messages.republish import Refused, Sender
from celery_graceful.poison.quarantine import Kept
from celery_graceful.system.log_thread import log
from celery_graceful.unusable.waiting import WaitingRoom

__all__ = ["give_back_claims", "give_back_copies", "send_back"]

logger = get_logger(__name__)

#: Messages that are sent in one step: time may be short.
FEW = 25


def give_back_claims(room: WaitingRoom, until: float = math.inf) -> int:
    """All that waits goes back to the lists that it came from, in the Redis that is the broker.

    Args:
        room: Where it waits.
        until: On the monotonic clock.

    Returns:
        How many went back.

    Raises:
        StoreAway: Some of it may have gone.
    """
    back = 0
    while time.monotonic() < until and (some := room.back(everything=True)):
        back += some
    return back


def give_back_copies(room: WaitingRoom, connection: Any, until: float = math.inf) -> int:
    """As ``give_back_claims``, of copies in a store, which are sent.

    Args:
        room: Where it waits.
        connection: To the broker, not one that ends with this process.
        until: On the monotonic clock.

    Raises:
        Exception: What the broker's client raised; ``StoreAway``: one may be sent again.
    """
    back, sender = 0, Sender(connection)
    for kind, count in room.kinds().items():
        for _ in range(0, count, FEW):  # no more: what no queue takes comes round again
            if time.monotonic() >= until:
                return back
            back += send_back(sender, room, room.lend(kind, FEW))
    return back


def send_back(sender: Sender, room: WaitingRoom, lent: Sequence[tuple[str, Kept]]) -> int:
    """Send what a room has lent, and tell it what the broker has taken.

    Returns:
        How many that are.

    Raises:
        Exception: As of ``give_back_copies``.
    """
    sent = []
    try:
        for loan, kept in lent:
            try:
                sender.send(kept.to_message(), queue=kept.message["queue"])
            except Refused as exc:  # its queue is gone: later, perhaps
                log(logger, logging.WARNING, "A message that waits was not taken back: %s", exc)
            else:
                sent.append(loan)
    finally:
        room.drop(sent)
    return len(sent)
