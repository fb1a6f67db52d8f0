"""What is under way on the connection over which a worker's messages come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_graceful.claims.acks import Along
from celery_graceful.claims.claimant import WORKERS, Claimant, claims_key
from celery_graceful.claims.held_claims import Claims
from celery_graceful.store.scripts import script

__all__ = ["Fetch"]

CLAIM, CLAIM_AND_END = script("claim"), script("claim_and_end")


class Fetch:
    """One command that is under way: a claim, a look into the queues, or a wait for a bell."""

    def __init__(self, kind: str, who: Claimant, book: Claims, queues: list[str]) -> None:
        self.kind = kind
        self.who = who
        self.book = book
        self.queues = queues
        self.epoch = who.epoch
        #: Those that it looks into, with the key prefix, and what a claim numbers them from.
        self.lists: Sequence[str] = ()
        self.first = 0
        self.script = CLAIM
        #: It waits for as long as ears look into the queues.
        self.long = False
        self._along: Along | None = None

    def claim(
        self, prefix: str, keys: list[str], room: int, order: str
    ) -> tuple[list[str], list[Any]]:
        """What the script of a claim is told: keys, and arguments.

        Args:
            prefix: Of keys.
            keys: Bells, and lists, with it.
            room: For how many messages.
            order: Of the queues.
        """
        worker, along = self.who.worker, self.book.take_ends()
        self.first = self.who.take_numbers(room)
        keys = [prefix + WORKERS, prefix + claims_key(worker), *keys]
        args = [worker, self.first, room, len(self.queues), order, *self.book.take_done(worker)]
        if along is None:
            return keys, args
        self.script, self._along = CLAIM_AND_END, along
        return [*(prefix + key for key in along.keys), *keys], [*along.arguments, *args]

    def claimed(self, answer: Any) -> Any:
        """What a claim answered, of that: what it has taken; ``None``: it was refused."""
        if self._along is not None:
            answer, ends = answer
            self.book.ends_sent(self._along, ends)
        self.book.sent(self.who.worker, accepted=answer is not None)
        return answer
