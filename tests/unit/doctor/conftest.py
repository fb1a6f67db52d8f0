"""What the doctor's tests have in common: no task of another test is in their apps."""

from __future__ import annotations

import pytest
from celery import _state


@pytest.fixture(autouse=True)
def no_shared_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are shared by default: without this, those of other tests are bound in each app."""
    own = {one for one in _state._on_app_finalizers if one.__module__ == "celery.app.builtins"}
    assert own
    monkeypatch.setattr(_state, "_on_app_finalizers", own)
