"""A delivery whose task goes on as another one: by a retry, or by what replaces it.

It has ended when that is sent, and lives on for a while: RETRY is stored, which takes up to 19 s
where the result backend is away, and handlers of signals are called. Whatever cuts that off, the
hard deadline, a time limit or the death of its process, its message does not come again: its task
would go on twice.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.batches.model import Outcome
from celery_graceful.deliveries.handler_errors import let_go, say
from celery_graceful.deliveries.stage import OPEN, Stage
from celery_graceful.deliveries.stored_here import StoredHere
from celery_graceful.messages.fingerprint import fingerprint, fingerprint_as_text
from celery_graceful.monitors import outcome
from celery_graceful.system.log_thread import log
from celery_graceful.timeline.successors import Sent

__all__ = ["GoesOn"]

logger = get_logger(__name__)


class GoesOn(StoredHere):
    """A delivery that may have sent what goes on in its place."""

    #: It has ended by that, and what its run or its pool has still to say changes nothing.
    is_left = False

    def leave_to_successor(self, why: str) -> bool:
        if self.is_left:
            return True
        sent = self.successor
        if sent is None or self.lost:
            return False
        with self.ledger.leaving:
            if not self.ledger.close(self, Stage.FINISHED, only=OPEN):
                return False
            self.is_left, self.goes_on = True, sent is Sent.RETRY
            text = "%s[%s] has sent its %s, and ends by that: %s"
            log(logger, logging.WARNING, text, self.name, self.id, sent.name.lower(), why)
            let_go(self)
            if self.ledger.at_deadline and self.note is not None:
                # RabbitMQ hears of it by the loop, which may be stuck: other workers are told.
                message = fingerprint_as_text(fingerprint(self))
                self.ledger.post_mortems.remember(self.id, self.note, message, wake=False)
            try:
                self.acknowledge()
            except Exception as exc:
                say(self, "goes on as another one, and answering its message raised", exc)
            if not self.goes_on:  # of a retry the check-in stays open
                outcome.close(self, "ok", "replaced", dying=True)
        return True

    def on_retry(self, exc_info: Any) -> None:
        self.goes_on = True
        super().on_retry(exc_info)

    def _retry_worker_lost(self, *args: Any) -> Any:
        """Celery tries a task again since 5.7, where it is told to, when its child is lost."""
        self.comes_to(None)
        try:
            sent = super()._retry_worker_lost(*args)
        except BaseException:  # where it could not be sent, nothing is raised
            self.is_settled = self.goes_on = True
            raise
        self.goes_on = self.goes_on or sent
        self.comes_to(Outcome.FAILED)
        return sent
