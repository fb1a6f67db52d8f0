"""What the tests of this folder count on beyond their servers."""

from __future__ import annotations

import pytest

from tests.support.patience import has_patience


@pytest.fixture(autouse=True)
def patient_stores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Redis of all tests is not away where the machine is so busy that it stands still.

    Who wants to see one that is starts a server of its own.
    """
    if "redis_db" in request.fixturenames:
        has_patience(monkeypatch)
