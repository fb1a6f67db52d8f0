"""The doors by which a delivery leaves, and who hears of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.stage import OPEN, Stage


class Held(HeldMessage):
    """Without a message."""

    id = "id"
    takes_room = True

    def __init__(self, ledger: Ledger, stage: Stage = Stage.RECEIVED, claim: Any = None) -> None:
        self.stage, self.claim, self.note = stage, claim, None
        self.started_at = self.worker_pid = None
        self.told_to_end = self.lost = self.acknowledged = False
        ledger.enter(self)

    def acknowledge(self) -> None:
        self.mark_answered()

    def take_no_room(self) -> None:
        self.takes_room = False


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(Mock(), Mock())


@pytest.fixture
def heard(ledger: Ledger) -> list[None]:
    told: list[None] = []
    ledger.add_listener(lambda: told.append(None))
    return told


def test_it_leaves_by_one_door(ledger: Ledger, heard: list[None]) -> None:
    held = Held(ledger, Stage.RUNNING)
    assert ledger.finish(held)
    assert len(heard) == 1
    assert not ledger.open_requests()
    assert not ledger.finish(held)
    assert not ledger.give_up(heard=True)
    assert not ledger.close(held, Stage.RELEASED, only=OPEN)
    assert ledger.counts[Stage.FINISHED] == len(heard) == 1


@pytest.mark.parametrize("loop_heard", [True, False])
def test_what_the_hard_deadline_takes_away(ledger: Ledger, loop_heard: bool) -> None:
    """Without the loop, what was handed over may have begun."""
    held = {stage: Held(ledger, stage) for stage in OPEN}
    assert ledger.give_up(heard=loop_heard) == list(held.values())
    handed_over = Stage.RELEASED if loop_heard else Stage.GIVEN_UP
    assert [one.stage for one in held.values()] == [Stage.RELEASED, handed_over, Stage.GIVEN_UP]


def test_claims_that_were_lost_are_others(ledger: Ledger) -> None:
    looked: list[None] = []
    running = SimpleNamespace(discard=lambda tag: None)
    book = SimpleNamespace(held={}, running=running, on_room=lambda: looked.append(None))
    ours, theirs = (SimpleNamespace(worker=name, book=book, n=name) for name in ("new", "old"))
    waits, runs = Held(ledger, claim=theirs), Held(ledger, Stage.RUNNING, theirs)
    early, kept = Held(ledger, Stage.RUNNING, theirs), Held(ledger, claim=ours)
    early.mark_answered()
    ledger.lose("old")
    assert [one.lost for one in (waits, runs, early, kept)] == [True, True, False, False]
    assert waits.stage is Stage.LOST
    assert ledger.runs_lost
    assert not ledger.finish(runs)
    assert runs.stage is Stage.LOST
    assert ledger.open_requests() == [early, kept]
    assert [one.takes_room for one in (waits, runs, early, kept)] == [False, False, True, True]
    assert len(looked) == 2


def test_what_ends_elsewhere_is_acknowledged_once(ledger: Ledger) -> None:
    held = Held(ledger)
    ledger.drop(held)
    assert held.acknowledged
    gone = Held(ledger)
    ledger.close(gone, Stage.RELEASED, only=OPEN)
    ledger.drop(gone)
    assert not gone.acknowledged


def test_what_nobody_answered_is_held_on(ledger: Ledger, heard: list[None]) -> None:
    held, ended = Held(ledger, Stage.HANDED_OVER), Held(ledger, Stage.RUNNING)
    ledger.move([held, ended], Stage.RUNNING, only=(Stage.HANDED_OVER,))
    held.begun_by(1, 2.0)
    ledger.finish(ended)
    for one in (held, ended):
        ledger.put_down(one)
    assert (held.stage, held.started_at) == (Stage.RECEIVED, None)
    assert ended.stage is Stage.FINISHED
    assert len(heard) == 3


def test_what_comes_while_it_releases_is_told(ledger: Ledger, heard: list[None]) -> None:
    Held(ledger)
    assert not heard
    ledger.begin_release()
    Held(ledger)
    assert len(heard) == 1
