"""What is under way on the connection over which a worker's messages come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_graceful.claims.acks import Along
from celery_graceful.claims.claimant import WORKERS, Claimant, claims_key
from celery_graceful.claims.held_claims import Claims
from celery_graceful.store.scripts import Script, script

__all__ = ["Fetch"]

CLAIM, END = script("claim"), script("batch_end")


class Fetch:
    """One command that is under way.

    A claim (EVALSHA), a look into the queues (EXISTS), a wait for a bell (BRPOP), or ends that are
    written down, with their acknowledgements (END).
    """

    def __init__(self, kind: str, who: Claimant, book: Claims, queues: list[str]) -> None:
        self.kind = kind
        self.who = who
        self.book = book
        self.queues = queues
        self.epoch = who.epoch
        #: Those that it looks into, with the key prefix, and what a claim numbers them from.
        self.lists: Sequence[str] = ()
        self.first = 0
        self.script: Script | None = None
        #: What the command is told.
        self.keys: Sequence[str] = ()
        self.arguments: Sequence[Any] = ()
        #: It waits for as long as ears look into the queues.
        self.long = False
        self._along: Along | None = None

    def claim(self, prefix: str, keys: list[str], room: int, order: str) -> None:
        """Claim messages.

        Args:
            prefix: Of keys.
            keys: Bells, and lists, with it.
            room: For how many messages.
            order: Of the queues.
        """
        worker, self.script = self.who.worker, CLAIM
        self.first = self.who.take_numbers(room)
        self.keys = [prefix + WORKERS, prefix + claims_key(worker), *keys]
        done = self.book.take_done(worker)
        self.arguments = [worker, self.first, room, len(self.queues), order, *done]

    def end(self, prefix: str, along: Along) -> None:
        """Write ends down."""
        self.script, self._along = END, along
        self.keys, self.arguments = [prefix + key for key in along.keys], along.arguments

    def lost(self) -> None:
        """What it should have done may not be done."""
        if self._along is not None:
            self.book.ends_not_sent()
        elif self.script is not None:
            self.book.not_sent(self.who.worker)

    def answered(self, answer: Any) -> None:
        """What the script of a claim, or of ends, answered; of those, text is why it failed."""
        if self._along is None:
            self.book.sent(self.who.worker, accepted=answer is not None)
        else:
            self.book.ends_sent(self._along, answer)
