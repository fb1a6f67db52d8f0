"""``Operations``: what operators see and do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.exceptions import UnknownBatch
from celery_graceful.operations import checkpoints
from celery_graceful.operations.claims import claims_of
from celery_graceful.operations.findings import findings_of
from celery_graceful.operations.places import Places, places_of
from celery_graceful.operations.records import (
    Checkpoint,
    Claim,
    DeadWorker,
    Status,
    Worker,
    utc,
)
from celery_graceful.operations.workers import dead_of, workers_of
from celery_graceful.poison.quarantine import count
from celery_graceful.settings import Settings
from celery_graceful.store.store import settings_of

__all__ = ["Operations"]


class Operations:
    """What operators see and do, of one app. Any process can make it; ``Graceful(app)`` has one.

    Reading never needs a worker to answer. All of it raises ``StoreAway`` where the store, or the
    Redis that is the broker, does not answer, and ``NoStore`` where there is none.

    Args:
        app: The Celery app.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    @property
    def _places(self) -> Places:
        return places_of(self.app)

    @property
    def _settings(self) -> Settings:
        return settings_of(self.app)

    # -- what there is -----------------------------------------------------------------

    def status(self) -> Status:
        """All workers, and what waits for somebody."""
        workers, dead = tuple(self.workers()), tuple(self.dead_workers())
        quarantined = count(self._places.workers[0])
        missing = tuple(self.batches_missing())
        found = findings_of(
            workers, dead, quarantined, missing, heartbeat=self._settings.heartbeat_interval
        )
        return Status(utc(time.time()), workers, dead, quarantined, missing, tuple(found))

    def workers(self) -> list[Worker]:
        """Workers whose lease runs, by name."""
        return workers_of(self._places, self._settings.lease_ttl)

    def dead_workers(self) -> list[DeadWorker]:
        """Workers whose lease has run out: dead, frozen or cut off."""
        return dead_of(self._places)

    def batches_missing(self) -> list[str]:
        """Batches that have not ended, and that miss members, as of the last look for them."""
        ledger, found = BatchLedger(self._places.store), []
        for batch in ledger.stood_still(0):
            try:
                if ledger.status(batch).missing:
                    found.append(batch)
            except UnknownBatch:
                pass  # it has ended meanwhile, and was forgotten
        return found

    def claims(self, worker: str | None = None) -> Iterator[Claim]:
        """Messages that workers hold, those of the dead too; none where the broker is no Redis.

        Args:
            worker: Only that one's: the name of its node, or its id.
        """
        return claims_of(self._places, worker)

    # -- what tasks have saved -----------------------------------------------------------

    def checkpoint(self, task_id: str, task: str | None = None) -> Checkpoint | None:
        """What is saved of a task; ``None`` for nothing.

        Args:
            task_id: Its id.
            task: Its name. Without, all keys of the store are walked through.
        """
        store = self._places.store
        if task is not None:
            return checkpoints.read(store, task, task_id)
        found = (checkpoints.read_key(store, key) for key in checkpoints.find_keys(store, task_id))
        return next((each for each in found if each is not None), None)

    def checkpoints(self) -> Iterator[Checkpoint]:
        """All that is saved, in no order."""
        store = self._places.store
        for key in checkpoints.find_keys(store):
            found = checkpoints.read_key(store, key)
            if found is not None:
                yield found

    def clear_checkpoint(self, task_id: str) -> bool:
        """Delete what is saved of a task: its next run starts over. Whether there was something.

        One that runs saves again what it does from now on.
        """
        store = self._places.store
        return bool(checkpoints.clear(store, checkpoints.find_keys(store, task_id)))
