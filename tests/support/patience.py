"""The servers, to the process of a test: they are as busy as all else there, and not away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_graceful.operations import why
from celery_graceful.poison import quarantine
from celery_graceful.store.store import Store
from tests.support.workers import TIMEOUT

if TYPE_CHECKING:
    import pytest

__all__ = ["has_patience"]


def has_patience(patch: pytest.MonkeyPatch, *, away: int = 0) -> None:
    """In this process Redis has time to answer; but for that at the port ``away``.

    And RabbitMQ has, to take what is sent again, and whoever keeps results.
    """
    own_client = Store.own_client

    def waits(store: Store, timeout: float, **parameters: Any) -> Any:
        client = own_client(store, max(timeout, TIMEOUT), **parameters)
        if client.connection_pool.connection_kwargs.get("port") == away:
            client = own_client(store, timeout, **parameters)
        return client

    patch.setattr(Store, "own_client", waits)
    if not away:
        patch.setattr(quarantine, "SEND_TIMEOUT", TIMEOUT)
        patch.setattr(why, "RESULT_TIMEOUT", TIMEOUT)
