"""Which queues the members of a batch are sent to, by what is kept of them."""

from __future__ import annotations

from typing import Any

from celery_graceful.batches.callbacks import kept_signature
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.marks import Mark, all_of
from celery_graceful.batches.model import Due
from celery_graceful.batches.packing import unpack
from celery_graceful.batches.search_state import callback_name
from celery_graceful.messages.routing import routed_to
from celery_graceful.store.store import StoreAway

__all__ = ["Routes"]

#: Members that are looked at: those of one batch are mostly sent the same way.
SAMPLE = 1000


class Routes:
    """The routes of an app.

    Args:
        app: The Celery app.
        ledger: Where its batches are known.
    """

    def __init__(self, app: Any, ledger: BatchLedger) -> None:
        self.app, self.ledger = app, ledger

    def of(self, batch: str, members: set[str]) -> list[str]:
        """Queues that some members of a batch are in, if they are in one: those of its app too.

        Raises:
            StoreAway: The store does not answer.
        """
        queues = dict.fromkeys(self.app.amqp.queues)
        some = [member for member, _ in zip(members, range(SAMPLE), strict=False)]
        kept = self.ledger.messages(batch, some)
        for member in some:
            try:
                sigs = self._signatures(batch, member, kept.get(member))
            except StoreAway:
                raise
            except Exception:  # it may be another app's
                continue
            for sig in sigs:
                named = routed_to(self.app, sig.task, sig.options, sig.args, sig.kwargs)
                queues.update(dict.fromkeys(named))
        return list(queues)

    def _signatures(self, batch: str, member: str, packed: bytes | None) -> list[Any]:
        name = callback_name(member)
        if name:
            return [*all_of(kept_signature(self.app, self.ledger.callback(Due(batch, name))))]
        return [*all_of(unpack(self.app, packed, Mark(batch, member)))] if packed else []
