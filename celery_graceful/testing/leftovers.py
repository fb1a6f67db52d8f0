"""What tests look up at the broker: what is left there, and leases of workers that were killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

from celery import Celery

from celery_graceful.claims.claimant import lease_key
from celery_graceful.operations import Operations
from celery_graceful.operations.stores import stores_of
from celery_graceful.store.store import StoreAway

__all__ = ["Broker", "queues_of"]

F = TypeVar("F", bound=Callable[..., Any])

#: Seconds for which a Redis that does not answer is asked again, and between two times: a machine
#: that runs tests is busy.
PATIENCE, AGAIN = 10.0, 0.1


def _patient(ask: F) -> F:
    @wraps(ask)
    def patiently(*args: Any) -> Any:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return ask(*args)
            except StoreAway:
                if time.monotonic() > end:
                    raise
                time.sleep(AGAIN)

    return patiently  # type: ignore[return-value]


class Broker:
    """The broker of a test, and with Redis the store as well.

    Args:
        url: Its URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_redis = url.startswith(("redis", "rediss"))
        #: Of this class alone: the app of the test keeps its connections.
        self.app = Celery("celery_graceful.testing", broker=url, set_as_current=False)
        self.app.conf.broker_connection_retry = False

    def close(self) -> None:
        """Close its connections."""
        self.app.close()

    @_patient
    def empty(self) -> None:
        """Remove all that is there. Only of a Redis that nobody else uses."""
        for store in stores_of(self.app).workers:
            store.execute("FLUSHDB", ())

    @_patient
    def end_lease(self, node: str) -> None:
        """As if the time of a worker that is gone were up: others take its tasks over at once."""
        if not self.is_redis:
            return
        for worker in Operations(self.app).workers():
            if worker.name == node:
                for store in stores_of(self.app).workers:
                    store.execute("DEL", [lease_key(worker.id)])

    @_patient
    def left(self, queues: set[str]) -> list[str]:
        """Messages, claims and checkpoints that are there, one a line."""
        return [*self._waiting(queues), *(self._kept() if self.is_redis else ())]

    def _waiting(self, queues: set[str]) -> Iterator[str]:
        with self.app.connection_for_read() as connection:
            channel = connection.channel()
            for name in sorted(queues):
                try:
                    count = channel.queue_declare(name, passive=True).message_count
                except connection.channel_errors:  # nobody has made it
                    channel = connection.channel()
                    continue
                if count:
                    yield f"{count} messages in the queue {name}"

    def _kept(self) -> Iterator[str]:
        operations = Operations(self.app)
        for claim in operations.claims():
            whose = claim.worker if claim.worker_lives else f"{claim.worker}, which is dead"
            yield f"a claim on {claim.task}[{claim.id}] of {whose}"
        for saved in operations.checkpoints():
            yield f"a checkpoint of {saved.task}[{saved.id}]"


def queues_of(app: Any) -> set[str]:
    """The queues that an app names."""
    return set(app.amqp.queues)
