"""Acknowledgements of claims: gathered, and sent together.

Along with the next claim, or 5 ms later from a thread of its own, over a connection of its own. So
an acknowledgement depends neither on the connection that its message came over nor on the event
loop, and is lost with neither.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.claims.claimant import claims_key
from celery_graceful.store.store import Store
from celery_graceful.system.log_thread import log

__all__ = ["Acks"]

logger = get_logger(__name__)

#: Acknowledgements in one command.
BATCH = 500

#: Acknowledgements that are remembered: a failover to a replica that lags undoes the last ones.
LATELY = 10_000


class Acks:
    """Of what was claimed on one server, under all identities of a worker.

    Claims are told apart by their worker and number.

    Args:
        store: Where the claims are.
        lock: Of the book that these are part of.
        on_sent: Told, under the lock, of a worker's numbers that are claims no more.
    """

    def __init__(
        self, store: Store, lock: Any, on_sent: Callable[[str, Iterable[int]], None]
    ) -> None:
        self.store = store
        self._lock = lock
        self._on_sent = on_sent
        self._done: dict[str, list[int]] = {}
        self._under_way: dict[str, list[int]] = {}
        self._lately: deque[str] = deque(maxlen=LATELY)

    # -- under the lock --------------------------------------------------------------

    def add(self, worker: str, number: int) -> None:
        """Acknowledge it soon."""
        self._done.setdefault(worker, []).append(number)

    def has_more(self) -> bool:
        """Whether some are still to be sent by the thread."""
        return any(self._done.values())

    def is_sent(self) -> bool:
        """Whether all are sent."""
        return not (self._under_way or self.has_more())

    def unsent(self) -> Mapping[str, list[int]]:
        """Those that the thread has still to send, of each worker."""
        return self._done

    def call_back(self) -> None:
        """What ``take`` gave out may never be sent: the thread sends it as well."""
        for worker in list(self._under_way):
            self._done.setdefault(worker, []).extend(self._under_way.pop(worker))

    def remember(self, tags: Iterable[str]) -> None:
        """They were acknowledged."""
        self._lately.extend(tags)

    # -- along with a claim ------------------------------------------------------------

    def take(self, worker: str) -> list[int]:
        """Numbers to delete along with the next claim; ``sent`` or ``not_sent`` has to follow."""
        with self._lock:
            numbers = self._done.get(worker)
            if not numbers:
                return []
            self._done[worker] = numbers[BATCH:]
            self._under_way.setdefault(worker, []).extend(numbers[:BATCH])
            return numbers[:BATCH]

    def sent(self, worker: str) -> None:
        """What ``take`` gave out is deleted."""
        with self._lock:
            self._on_sent(worker, self._under_way.pop(worker, ()))

    def not_sent(self, worker: str) -> None:
        """What ``take`` gave out may not be deleted. Under the lock."""
        self._done.setdefault(worker, []).extend(self._under_way.pop(worker, ()))

    # -- in the thread -----------------------------------------------------------------

    def send(self) -> None:
        """Send what there is.

        Raises:
            StoreAway: Redis did not answer; to be done again.
        """
        with self._lock:
            batch = {worker: numbers for worker, numbers in self._done.items() if numbers}
            self._done = {}
        try:
            for worker in list(batch):
                self._delete(worker, batch[worker])
                with self._lock:
                    self._on_sent(worker, batch.pop(worker))
        finally:
            with self._lock:
                for worker, numbers in batch.items():
                    self._done.setdefault(worker, []).extend(numbers)

    def once_more(self, worker: str, numbers: list[int]) -> list[int]:
        """Of these claims, those that were not acknowledged: the others are, once more.

        Raises:
            StoreAway: As ``send``.
        """
        lately = set(self._lately)
        again = [number for number in numbers if f"{worker}/{number}" in lately]
        if again:
            self._delete(worker, again)
            log(logger, logging.INFO, "Redis had lost %d acknowledgements", len(again))
        return [number for number in numbers if f"{worker}/{number}" not in lately]

    def _delete(self, worker: str, numbers: list[int]) -> None:
        for start in range(0, len(numbers), BATCH):
            part = numbers[start : start + BATCH]
            self.store.execute("HDEL", [claims_key(worker)], part, insist=True)
