"""Batches made by hand, for tests of what workers do with them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from celery import Celery

from celery_graceful.batches.callbacks import made
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.marks import BATCH, Mark, mark
from celery_graceful.batches.status import Status
from celery_graceful.store.app_stores import find_store
from tests.support.workers import wait_until

__all__ = ["Made"]


class Made:
    """A batch in the ledger, whose members are sent one by one.

    Args:
        app: The Celery app.
        callbacks: Which of them there are: the task ``effect`` is sent, with its name.
        others: Callbacks that are something else.
    """

    def __init__(self, app: Celery, *callbacks: str, **others: Any) -> None:
        store = find_store(app)
        assert store is not None
        self.app, self.ledger, self.id = app, BatchLedger(store), uuid.uuid4().hex
        given = {name: app.signature("effect", args=[name]) for name in callbacks} | others
        kept = {name: made(app, self.id, name, sig) for name, sig in given.items()}
        self.ledger.create(self.id, ttl=3600, linger=3600, callbacks=kept)
        self.ledger.begin_sending(self.id)

    def send(self, sig: Any, member: str | None = None, **options: Any) -> str:
        """Register and send a member; returns its id."""
        if isinstance(sig, str):
            sig = self.app.signature(sig)
        member = member or uuid.uuid4().hex
        self.register(member)
        return self.send_registered(sig, member, **options)

    def send_registered(self, sig: Any, member: str, **options: Any) -> str:
        """Send a member that is registered."""
        mark(sig, {BATCH: str(Mark(self.id, member))})
        sig.freeze(member)
        sig.apply_async(**options)
        return member

    def register(self, member: str) -> None:
        """Register a member that is sent later."""
        self.ledger.add(self.id, [(member, b"")])

    def sent(self) -> None:
        """All are sent."""
        self.ledger.sent(self.id)

    @property
    def status(self) -> Status:
        return self.ledger.status(self.id)

    def outcome(self, member: str) -> str:
        """``pending``, ``failed``, ``revoked`` or ``succeeded``."""
        if member in set(self.ledger.members_pending(self.id)):
            return "pending"
        return self.ledger.outcomes(self.id, [member]).get(member, "succeeded")

    def outcomes(self, members: Mapping[str, str]) -> dict[str, str]:
        """Of members by their names."""
        return {name: self.outcome(member) for name, member in members.items()}

    def wait(self, **fields: Any) -> Status:
        """Wait until its status says so."""
        wait_until(
            lambda: all(getattr(self.status, name) == value for name, value in fields.items()),
            f"{fields}, which is {self.status}",
        )
        return self.status
