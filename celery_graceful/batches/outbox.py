"""The outbox of one worker: it publishes callbacks that it made due, and those that others left.

In a thread of its own (in a greenlet, where tasks are): what is sent passes through the user's
routers and signal handlers, and the broker may take its time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger

from celery_graceful.batches.brief_status import standing_of
from celery_graceful.batches.callback_publishing import publish_due
from celery_graceful.batches.callbacks import kept_signature
from celery_graceful.batches.chord_ledger import ChordLedger
from celery_graceful.batches.ledger import LEFT, OUTBOX
from celery_graceful.batches.marks import all_of
from celery_graceful.batches.model import Due
from celery_graceful.batches.whereabouts import broker_of
from celery_graceful.messages.bounded_connections import BrokerAway
from celery_graceful.store.app_stores import find_store
from celery_graceful.store.store import Store, StoreAway, fork_gate
from celery_graceful.system.describe import describe

__all__ = ["Outbox"]

logger = get_logger(__name__)

#: Seconds for which one whose task an app does not know is left to the others.
STRANGE = 60.0

#: Seconds between looks for what others have left.
LOOK_EVERY = 5.0


class Outbox:
    """Of one worker.

    Args:
        app: The Celery app.
        ring_loop: Makes the loop call ``on_loop``.
    """

    def __init__(self, app: Any, ring_loop: Callable[[], None]) -> None:
        self.app = app
        self.ring_loop = ring_loop
        self._due: deque[tuple[Store, Due]] = deque()
        self._looks: deque[Store] = deque()
        self._news, self._idle = threading.Event(), threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._look_at = 0.0
        #: What could not be published, as far as that was said.
        self._said: set[Due] = set()

    # -- from any thread ---------------------------------------------------------------

    def due(self, store: Store, due: list[Due]) -> None:
        """Callbacks have become due: publish them."""
        self._due.extend((store, one) for one in due)
        self.ring_loop()

    def look(self, store: Store) -> None:
        """Publish what others have left in the outbox."""
        self._looks.append(store)
        self.ring_loop()

    def look_now_and_then(self) -> None:
        """As ``look``, in the store of the app, if it is time to."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            store = find_store(self.app)
            if store is not None:
                self.look(store)

    @property
    def busy(self) -> bool:
        """Whether something is being published. What is not is left to others."""
        return bool(self._due)

    # -- in the loop ---------------------------------------------------------------------

    def on_loop(self) -> None:
        """Start the thread, or wake it: it may be a greenlet of this one."""
        if not (self._due or self._looks) or self._ended:
            return
        self._idle.clear()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="graceful-outbox", daemon=True)
            self._thread.start()
        self._news.set()

    def end(self, seconds: float) -> None:
        """The worker ends: publish what there is, in up to ``seconds``. The rest is swept."""
        self.on_loop()  # which does not go round any more
        if self._thread is not None:
            self._idle.wait(seconds)
        self._ended = True
        self._news.set()

    # -- in the thread -------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended:
            self._news.wait()
            self._news.clear()
            while self._due:
                self._publish(*self._due[0])
                self._due.popleft()
            while self._looks:
                self._sweep(self._looks.popleft())
            if not (self._due or self._looks):
                self._idle.set()

    def _sweep(self, store: Store) -> None:
        try:
            ledger = ChordLedger(store)
            left = ledger.outbox(LEFT) if store.execute("EXISTS", [OUTBOX]) else []
            left = [due for due in left if self._is_ours(ledger, due)]
        except StoreAway:  # said there
            return
        for due in left:
            self._publish(store, due)

    def _is_ours(self, ledger: ChordLedger, due: Due) -> bool:
        """Whether it goes to the broker of this app, and where this app would send it.

        Several apps may share a store. One that does not know the task would send it by its own
        routes: it leaves it to those who do, as long as there are some.
        """
        stands = standing_of(ledger, due.batch)
        if stands is not None and stands.broker not in ("", broker_of(self.app)):
            return False
        try:
            sig = kept_signature(self.app, ledger.callback(due))
        except Exception as exc:  # it was dropped, or is said when it is published
            logger.debug("%s: %s", due, describe(exc))
            return True
        known = all(one.task in self.app.tasks for one in all_of(sig))
        return known or ledger.due_for(due) > STRANGE

    def _publish(self, store: Store, due: Due) -> None:
        try:
            with fork_gate:  # of all times, a pool forks when a child has died
                publish_due(self.app, store, due)
        except StoreAway:
            pass  # said there
        except Exception as exc:
            if due not in self._said:
                self._said.add(due)
                logger.error(
                    "The callback %s of batch %s could not be sent: %s. It is tried again",
                    due.name,
                    due.batch,
                    describe(exc),
                    exc_info=not isinstance(exc, BrokerAway),
                )
        else:
            self._said.discard(due)
