"""What is aboard a Redis: which members of batches have a message there.

Looked through in short commands, with rests between them: messages stay where they are, and only
what their headers say of batches is answered. From the left, where producers push: what is pushed
meanwhile moves the others on, so that none is passed over that stays in its list.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from celery_graceful.store.store import Store

__all__ = ["TooLong", "Walk"]

#: Messages in the first command on a key, and at most; bytes that one should look at.
FIRST, MOST, BYTES = 16, 200, 500_000

#: Messages in a list that are too many: to get to the middle of it takes too long by itself.
LONGEST = 1_000_000

#: Of the time of each command, how much the server is left alone afterwards, and seconds at most.
REST, LONGEST_REST = 3.0, 0.02


class TooLong(Exception):
    """A list has too many messages to be looked through."""


class Walk:
    """A walk through keys of one Redis.

    Args:
        store: The Redis.
        rest: Waits for so many seconds.
    """

    def __init__(self, store: Store, rest: Callable[[float], object] = time.sleep) -> None:
        self.store = store
        self._rest = rest

    def messages_of(self, key: str, kind: str) -> Iterator[list[str]]:
        """What the messages in a key belong to, some at a time.

        Args:
            key: Without the store's prefix.
            kind: ``list``, or ``hash`` of messages. A key of another type is empty.

        Raises:
            TooLong: It is a list of more than a million.
            StoreAway: Redis did not answer.
        """
        further, count = "0", FIRST
        while further != "":
            began = time.monotonic()
            further, number, size, *found = self.store.run(
                "batch_aboard", [key], [kind, further, count, LONGEST], insist=True
            )
            if further == "long":
                raise TooLong(f"{key} is too long to be looked through")
            took = time.monotonic() - began
            yield found
            if further != "":
                self._rest(min(took * REST, LONGEST_REST))
            if number:
                each = max(1, int(size) // int(number))
                count = max(1, min(MOST, 2 * count, BYTES // each))
