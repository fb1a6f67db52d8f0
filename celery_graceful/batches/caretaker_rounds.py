"""The rounds of one worker: it looks after batches that stand still, when nobody else does."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.batches.cancellations import tell_workers
from celery_graceful.batches.caretaker import Caretaker
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.looks import PAUSE, patience
from celery_graceful.batches.model import Due
from celery_graceful.batches.repair import Repair, Repaired, strange_of
from celery_graceful.batches.search_state import callback_member
from celery_graceful.messages.bounded_connections import (
    BrokerAway,
    bounded_connection,
    send_events,
)
from celery_graceful.settings import Settings
from celery_graceful.store.app_stores import find_store
from celery_graceful.store.store import Store, StoreAway, fork_gate
from celery_graceful.system.describe import describe
from celery_graceful.system.log_thread import log

__all__ = ["Rounds"]

logger = get_logger(__name__)

#: Seconds between two rounds, at least; and that the broker gets to take an event.
LEAST, EVENT_TIMEOUT = 0.2, 2.0


class Rounds:
    """Of one worker.

    Args:
        app: The Celery app.
        settings: What the user set.
        hostname: Of the worker, for events.
        on_due: Told of callbacks that have become due, and where.
        is_fenced: Whether a task of that name is one whose runs are fenced.
    """

    def __init__(
        self,
        app: Any,
        settings: Settings,
        hostname: str,
        on_due: Callable[[Store, list[Due]], None],
        is_fenced: Callable[[str], bool],
    ) -> None:
        self.app, self.settings, self.hostname = app, settings, hostname
        self._on_due, self._is_fenced = on_due, is_fenced
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._caretaker: Caretaker | None = None

    def start(self) -> None:
        """Go round in a thread: of the pool's kind, since what is sent passes the user's code."""
        self._thread = threading.Thread(target=self._run, name="graceful-batches", daemon=True)
        self._thread.start()

    def end(self, seconds: float) -> None:
        """Go round no more; wait for the end of a look for up to ``seconds``."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._over.wait(max(LEAST, patience(self.settings) * PAUSE)):
            try:
                store = find_store(self.app)
                if store is not None:
                    self._caretaker_of(store).look()
            except StoreAway:
                pass  # said there
            except BrokerAway as exc:
                log(logger, logging.WARNING, "Batches wait to be looked after: %s", exc)
            except Exception:
                log(logger, logging.ERROR, "Looking after batches: %s", traceback.format_exc())

    def _caretaker_of(self, store: Store) -> Caretaker:
        """There may be another store when the consumer is connected elsewhere."""
        caretaker = self._caretaker
        if caretaker is None or caretaker.store is not store:
            repair = Repair(
                self.app,
                BatchLedger(store),
                lambda due: self._publish(store, due),
                worker=self.hostname,
            )
            caretaker = Caretaker(
                self.app,
                self.settings,
                repair,
                self._is_fenced,
                self._over,
                self._tell,
                self._tell_cancelled,
            )
            self._caretaker = caretaker
        return caretaker

    def _publish(self, store: Store, due: Sequence[Due]) -> None:
        """Those of tasks that are not known here stay in the outbox, for workers that know them."""
        ledger = BatchLedger(store)
        ours = [
            one
            for one in due
            if not strange_of(self.app, ledger, one.batch, [callback_member(one.name)])
        ]
        self._on_due(store, ours)

    def _tell(self, batch: str, done: Repaired) -> None:
        counts = {name: len(some) for name, some in done._asdict().items()}
        event = "batch-repaired", {"uuid": batch, **counts}
        self._send(
            f"No event of the repair of batch {batch}",
            lambda connection: send_events(connection, self.app, self.hostname, [event]),
        )

    def _tell_cancelled(self, batches: list[str]) -> None:
        self._send(
            f"Workers may not know that batches were cancelled ({len(batches)})",
            lambda connection: tell_workers(self.app, batches, connection),
        )

    def _send(self, what_if_not: str, send: Callable[[Any], None]) -> None:
        """What may be lost, for it is said again, or not needed."""
        try:
            broker = self.app.connection_for_write()
            with fork_gate, bounded_connection(broker, EVENT_TIMEOUT) as connection:
                send(connection)
        except Exception as exc:
            log(logger, logging.WARNING, "%s: %s", what_if_not, describe(exc))
