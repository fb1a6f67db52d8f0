"""What the tests of this folder count on beyond their servers."""

from __future__ import annotations

from typing import Any

import pytest

from celery_graceful.store.store import Store
from tests.support.workers import TIMEOUT


@pytest.fixture(autouse=True)
def patient_stores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Redis of all tests is not away where the machine is so busy that it stands still.

    Who wants to see one that is starts a server of its own.
    """
    if "redis_db" in request.fixturenames:
        own_client = Store.own_client

        def waits(self: Store, timeout: float, **parameters: Any) -> Any:
            return own_client(self, max(timeout, TIMEOUT), **parameters)

        monkeypatch.setattr(Store, "own_client", waits)
