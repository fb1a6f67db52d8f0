"""What this worker has in memory of its claims: the only thing left when Redis has lost its data.

Then they are written there again, or go back from here. What is known of each is the epoch of the
server's data in which it was a claim: one that is not there in the same epoch is somebody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from celery_graceful.claims.moves import Move, entry_of, from_entry
from celery_graceful.claims.undelivered import Fetched

__all__ = ["InMemory"]


class InMemory:
    """Of one book of claims, which are known by their tags.

    Args:
        lock: Of the book.
        first_epoch: Of a worker: in which it was there first. For what it claimed before that was
            known here.
        delete: Told of claims that were written, and are none any more, by worker and number.
        delete_soon: The same; called under the lock.
    """

    def __init__(
        self,
        lock: Any,
        first_epoch: Callable[[str], str],
        delete: Callable[[Iterable[tuple[str, int]]], None],
        delete_soon: Callable[[str, int], None],
    ) -> None:
        self._lock = lock
        self._first_epoch, self._delete, self._delete_soon = first_epoch, delete, delete_soon
        #: Messages that a request answers for, until their claims are off our hands; ``None`` for
        #: those that are acknowledged.
        self.held: dict[str, Any] = {}
        #: Messages that no request answers for yet, of those that came with others.
        self.arriving: dict[str, Fetched] = {}
        #: Messages that none answers for any more, while they go back.
        self.let_go: dict[str, Any] = {}
        #: The epoch in which claims were seen, where that is not the one of their tag.
        self._seen: dict[str, str] = {}
        #: Claims that were written again -> for which epoch; empty while they are written.
        self._written: dict[str, str] = {}
        #: Of those, off our hands while they were written: perhaps before they were.
        self._crossed: list[tuple[str, int]] | None = None

    def let_go_of(self, tag: str) -> None:
        """No request answers for it any more."""
        for known in (self.held, self.arriving):
            if known.get(tag) is not None:
                self.let_go[tag] = known.pop(tag)

    def went_back(self, tag: str) -> None:
        """It is in its queue."""
        self.let_go.pop(tag, None)
        self.arriving.pop(tag, None)

    def knows(self, tag: str) -> bool:
        """Whether its message is here."""
        return self.held.get(tag) is not None or tag in self.let_go or tag in self.arriving

    def see(self, tag: str, epoch: str) -> None:
        """It is a claim in that epoch."""
        self._seen[tag] = epoch

    def moves(self, tag: str, *, begun: bool) -> list[Move]:
        """How it goes back, if its message is here."""
        claim, entry = self._look_up(tag)
        if claim is None:
            return []
        epoch = self._seen.get(tag) or self._written.get(tag) or claim.epoch
        epoch = epoch or self._first_epoch(claim.worker)
        return [from_entry(*entry(), begun=begun, epoch=epoch)]

    def _look_up(self, tag: str) -> tuple[Any, Callable[[], tuple[int, str]]]:
        message = self.held.get(tag) or self.let_go.get(tag) or self.arriving.get(tag)
        return getattr(message, "delivery_tag", None), lambda: entry_of(message)

    def forget(self, tags: Iterable[str]) -> None:
        """They are claims no more. Under the lock."""
        for tag in tags:
            self.held.pop(tag, None)
            if self._seen:
                self._seen.pop(tag, None)
            if self._written and self._written.pop(tag, None) is not None:
                worker, _, number = tag.rpartition("/")
                if self._crossed is not None:
                    self._crossed.append((worker, int(number)))
                else:
                    self._delete_soon(worker, int(number))

    @contextmanager
    def restoring(self, worker: str, epoch: str) -> Iterator[list[tuple[int, str]]]:
        """A context in which numbers and entries of all that is here are written again.

        What comes off our hands meanwhile is deleted once more: one may overtake the other.

        Args:
            worker: An identity of this process.
            epoch: That has begun, and knows nothing of it.
        """
        with self._lock:
            known = [*list(self.held.values()), *list(self.arriving.values())]
            lost = {
                str(tag)
                for tag in (message.delivery_tag for message in known if message is not None)
                if tag.worker == worker and self._written.get(tag, tag.epoch) != epoch
            }
            # Not of that epoch yet: what goes back before it is written there is nowhere else.
            self._written.update(dict.fromkeys(lost, ""))
            self._crossed, written = [], ""
        try:
            found = map(self._look_up, lost)
            yield sorted(entry() for claim, entry in found if claim is not None)
            written = epoch
        finally:
            with self._lock:
                self._written.update({tag: written for tag in lost if tag in self._written})
                crossed, self._crossed = self._crossed, None
            # Here and now: the worker may be about to leave, and nobody left to do so.
            self._delete(crossed)
