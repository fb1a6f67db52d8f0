"""The servers, to the process of a test: they are as busy as all else there, and not away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_graceful.batches import caretaker_rounds, queues, sending
from celery_graceful.membership import events
from celery_graceful.operations import asking, why
from celery_graceful.poison import deaths, quarantine
from celery_graceful.store.store import Store
from tests.support.workers import TIMEOUT

if TYPE_CHECKING:
    import pytest

__all__ = ["has_patience"]


#: How long whoever sends, or asks, waits.
LIMITS = [
    (asking, "BROKER_TIMEOUT"),
    (caretaker_rounds, "EVENT_TIMEOUT"),
    (deaths, "EVENT_TIMEOUT"),
    (events, "TIMEOUT"),
    (quarantine, "SEND_TIMEOUT"),
    (queues, "TIMEOUT"),
    (sending, "PATIENCE"),
    (why, "RESULT_TIMEOUT"),
]


def has_patience(patch: pytest.MonkeyPatch, *, away: int = 0) -> None:
    """In this process Redis has time to answer; but for that at the port ``away``.

    And RabbitMQ has, to answer and to take what is sent, and whoever keeps results.
    """
    own_client = Store.own_client

    def waits(store: Store, timeout: float, **parameters: Any) -> Any:
        client = own_client(store, max(timeout, TIMEOUT), **parameters)
        if client.connection_pool.connection_kwargs.get("port") == away:
            client = own_client(store, timeout, **parameters)
        return client

    patch.setattr(Store, "own_client", waits)
    if not away:
        for module, name in LIMITS:
            patch.setattr(module, name, TIMEOUT)
