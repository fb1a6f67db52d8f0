"""What is asked before a part of a batch runs."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from celery import Celery
from celery.states import IGNORED

from celery_graceful.batches import cancellations, running
from celery_graceful.batches.cancellations import Moment, known_of
from celery_graceful.batches.ledger import BatchLedger
from celery_graceful.batches.marks import BATCH, CALLBACK, COPY
from celery_graceful.batches.model import State
from celery_graceful.store.store import StoreAway
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import CANCELLATIONS, Board


@pytest.mark.parametrize("is_back", [True, False])
def test_a_store_that_is_away(is_back: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a callback waits for it; not for ever: then it runs, as ever."""
    app = Celery(set_as_current=False, broker="memory://")
    ran, asked = [], []

    @app.task(name="callback", shared=False)
    def callback() -> None:
        ran.append(1)

    def may_run(*args: Any, **options: Any) -> bool:
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
    assert len(asked) >= (3 if is_back else 1)


def test_of_several_threads_one_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a batch was cancelled; the others go by an answer that is fresh still."""
    app = Celery(set_as_current=False, broker="memory://")
    now, asked, ran = [1000.0], [], []
    states = {"b": State.SENT}

    @app.task(name="member", shared=False)
    def member() -> None: ...

    def state(self: Any, batch: str, **options: Any) -> State:
        asked.append(1)
        if len(asked) > 1 and states["b"] is State.SENT:
            begins()  # another thread, while this one waits for its answer
        return states["b"]

    def begins() -> None:
        member.__trace__("id", (), {}, {BATCH: "b/id"})

    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(running, "find_store", lambda app: object())
    monkeypatch.setattr(BatchLedger, "state", state)
    member.__trace__ = lambda *args: ran.append(1)
    running.ask_before(member)
    begins()
    begins()
    assert (len(asked), len(ran)) == (1, 2)
    now[0] += (running.AGING + running.FRESH) / 2
    begins()
    assert (len(asked), len(ran)) == (2, 4)
    states["b"] = State.CANCELLED
    now[0] += running.FRESH  # nobody goes by what is older than that
    begins()
    begins()
    assert (len(asked), len(ran)) == (4, 4)


def test_who_was_told_of_a_cancellation_asks_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an answer is fresh; and no answer counts that was asked for before."""
    app, asked, ran = Celery(set_as_current=False, broker="memory://"), [], []
    board = Board.create()

    @app.task(name="member", shared=False)
    def member() -> None: ...

    def state(self: Any, batch: str, **options: Any) -> State:
        asked.append(1)
        return State.SENT if len(asked) == 1 else State.CANCELLED

    monkeypatch.setattr(running, "find_store", lambda app: object())
    monkeypatch.setattr(running, "FRESH", 600.0)
    monkeypatch.setattr(running, "AGING", 600.0)
    monkeypatch.setattr(BatchLedger, "state", state)
    member.__trace__ = lambda *args: ran.append(1)
    running.ask_before(member)
    worker_state.attach(board)
    try:
        for _ in range(2):
            member.__trace__("id", (), {}, {BATCH: "b/id"})
        assert (len(asked), len(ran)) == (1, 2)
        before = Moment.now()
        board.count_cancellation()
        known_of(app).not_cancelled(["b"], before)
        member.__trace__("id", (), {}, {BATCH: "b/id"})
        assert (len(asked), len(ran)) == (2, 2)
    finally:
        worker_state.detach()


def test_ends_spare_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they were answered is as good as what was asked for."""
    app, ran = Celery(set_as_current=False, broker="memory://"), []

    @app.task(name="member", shared=False)
    def member() -> None: ...

    monkeypatch.setattr(running, "find_store", lambda app: pytest.fail("it was asked"))
    member.__trace__ = lambda *args: ran.append(1)
    running.ask_before(member)
    known_of(app).not_cancelled(["b"], Moment(time.monotonic() + 600, 0))
    member.__trace__("id", (), {}, {BATCH: "b/id"})
    assert ran == [1]


def test_of_many_batches_not_all_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellations, "MOST", 2)
    known = cancellations.Known()
    for batch in ("a", "b", "c"):
        known.not_cancelled([batch], Moment.now())
    assert known.age("a") == math.inf
    assert known.age("c") < math.inf


def test_the_board_counts_round_and_round() -> None:
    board = Board.create()
    for _ in range(255):
        board.count_cancellation()
    assert board.memory[CANCELLATIONS] == 255
    board.count_cancellation()
    assert board.memory[CANCELLATIONS] == 0
