"""What is asked before a part of a batch runs."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.states import IGNORED

from celery_graceful.batches import running
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.marks import CALLBACK, COPY
from celery_graceful.store.store import StoreAway


@pytest.mark.parametrize("is_back", [True, False])
def test_a_store_that_is_away(is_back: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a callback waits for it; not for ever: then it runs, as ever."""
    app = Celery(set_as_current=False, broker="memory://")
    ran, asked = [], []

    @app.task(name="callback", shared=False)
    def callback() -> None:
        ran.append(1)

    def may_run(*args: Any) -> bool:
        asked.append(1)
        if is_back and len(asked) == 3:
            return False
        raise StoreAway("away")

    monkeypatch.setattr(running, "PATIENCE", 60.0 if is_back else 0.05)
    monkeypatch.setattr(running, "PAUSE", 0.01)
    monkeypatch.setattr(running, "find_store", lambda app: object())
    monkeypatch.setattr(BatchLedger, "may_run", may_run)
    callback.__trace__ = lambda *args: callback()
    running.ask_before(callback)
    request = {CALLBACK: "b/on_complete", COPY: "a copy"}
    answer = callback.__trace__("id", (), {}, request)
    assert (answer is not None and answer[1].state == IGNORED) is is_back
    assert ran == ([] if is_back else [1])
    assert len(asked) >= 3
