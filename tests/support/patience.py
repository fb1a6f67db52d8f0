"""Redis, in the process of a test: it is as busy as all else there, and not away."""

from __future__ import annotations

from typing import Any

import pytest

from celery_graceful.operations import why
from celery_graceful.store.store import Store
from tests.support.workers import TIMEOUT

__all__ = ["has_patience"]


def has_patience(patch: pytest.MonkeyPatch) -> None:
    """In this process Redis has time to answer, also where it keeps results."""
    own_client = Store.own_client

    def waits(store: Store, timeout: float, **parameters: Any) -> Any:
        return own_client(store, max(timeout, TIMEOUT), **parameters)

    patch.setattr(Store, "own_client", waits)
    patch.setattr(why, "RESULT_TIMEOUT", TIMEOUT)
