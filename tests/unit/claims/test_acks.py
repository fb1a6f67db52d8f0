"""Acknowledgements: who sends them."""

from __future__ import annotations

import time
from threading import Lock
from typing import Any
from unittest.mock import Mock

import pytest

from celery_graceful.claims import acks as acks_module
from celery_graceful.claims.acks import Acks, Along


@pytest.fixture
def store() -> Mock:
    return Mock()


@pytest.fixture
def acks(store: Mock) -> Acks:
    return Acks(store, Lock(), lambda worker, numbers: None, lambda store, ends: None)


def sent(store: Mock) -> list[Any]:
    return [call.args[2] for call in store.execute.call_args_list]


def test_what_claims_take_along_is_not_sent_beside_them(acks: Acks, store: Mock) -> None:
    acks.add("worker", 1)
    assert acks.take("worker") == [1]
    acks.sent("worker")
    acks.add("worker", 2)
    acks.send(at_once=False)
    assert sent(store) == []
    assert acks.has_more()  # it is looked at again
    acks.send(at_once=False)
    assert sent(store) == [[2]]
    assert acks.is_sent()


def test_what_no_claim_takes_along_is_sent(acks: Acks, store: Mock) -> None:
    acks.add("worker", 1)
    acks.send(at_once=False)
    assert sent(store) == [[1]]


def test_who_is_in_a_hurry_waits_for_no_claim(acks: Acks, store: Mock) -> None:
    acks.add("worker", 1)
    acks.take("worker")
    acks.add("worker", 2)
    acks.send(at_once=True)
    assert sent(store) == [[2]]


def test_of_a_lost_identity_no_claim_takes_anything_along(acks: Acks, store: Mock) -> None:
    acks.add("lost", 1)
    acks.add("worker", 2)
    acks.take("worker")
    acks.sent("worker")
    acks.add("worker", 3)
    acks.send(at_once=False)
    assert sent(store) == [[1]]
    assert acks.take("worker") == [3]


class Ends:
    """Writes ends down, by itself or between claims."""

    def __init__(self) -> None:
        self.alone: list[list[Any]] = []
        self.asked: list[list[Any]] = []
        self.heard: list[Any] = []
        self.acks: Acks | None = None
        #: Of those that it is asked to take along, how many it does.
        self.most = 100

    def write(self, store: Any, ends: Any) -> None:
        self.alone.append([end for end, _ in ends])
        assert self.acks is not None
        assert self.acks.take_ends(True) is None  # two at once would be one too many

    def along(self, store: Any, ends: Any, workers: Any, numbers: Any) -> Along:
        self.asked.append(list(ends))
        return Along(("key",), ("text",), min(self.most, len(ends)), self.heard.append)


@pytest.fixture
def ends() -> Ends:
    return Ends()


@pytest.fixture
def with_ends(store: Mock, ends: Ends, monkeypatch: pytest.MonkeyPatch) -> Acks:
    monkeypatch.setattr(acks_module, "RIPE_ENDS", 2)
    monkeypatch.setattr(acks_module, "RIPE", 600.0)
    monkeypatch.setattr(acks_module, "LATE", 600.0)
    ends.acks = Acks(store, Lock(), lambda worker, numbers: None, ends.write, ends.along)
    return ends.acks


def end(acks: Acks, *numbers: int) -> None:
    for number in numbers:
        acks.along[f"worker/{number}"] = f"end {number}"
        acks.add("worker", number)


def test_who_fetches_takes_ends_along_when_there_are_some(with_ends: Acks, ends: Ends) -> None:
    end(with_ends, 1)
    assert with_ends.take_ends(False) is None
    end(with_ends, 2, 3)
    along = with_ends.take_ends(False)
    assert along is not None
    with_ends.send_ends(at_once=True)
    assert ends.alone == []
    assert not with_ends.is_sent()
    with_ends.ends_sent(along, "answer")
    assert ends.heard == ["answer"]
    assert with_ends.is_sent()


def test_who_fetches_takes_ends_along_that_have_waited(
    with_ends: Acks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acks_module, "RIPE", 0.0)
    end(with_ends, 1)
    assert with_ends.take_ends(True) is None
    assert with_ends.take_ends(False) is not None


def test_who_fetches_takes_ends_along_before_a_claim_if_the_pool_is_never_busy(
    with_ends: Acks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acks_module, "LATE_ENDS", 3)
    end(with_ends, 1, 2)
    assert with_ends.take_ends(True) is None
    end(with_ends, 3)
    assert with_ends.take_ends(True) is not None


def test_what_there_is_no_room_for_is_written_beside_it(with_ends: Acks, ends: Ends) -> None:
    ends.most = 1
    end(with_ends, 1, 2)
    assert with_ends.take_ends(False) is not None
    with_ends.send_ends(at_once=True)
    assert ends.alone == [["end 2"]]


def test_what_cannot_be_taken_along_is_not_put_off_by_that(
    with_ends: Acks, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a callback comes first, and others follow all the time: the thread comes to it."""
    ends.most = 0
    monkeypatch.setattr(acks_module, "QUIET", 600.0)
    end(with_ends, 1, 2)
    began = with_ends._ends_since
    assert with_ends.take_ends(False) is None
    assert with_ends._ends_since == began
    monkeypatch.setattr(acks_module, "GATHER_ENDS", time.monotonic() - began)
    with_ends.send_ends(at_once=False)
    assert ends.alone == [["end 1", "end 2"]]


def test_ends_that_have_no_answer_are_written_by_the_thread(with_ends: Acks, ends: Ends) -> None:
    """A connection was lost, or somebody does not want to wait for it."""
    for lose in (with_ends.ends_not_sent, with_ends.call_back):
        end(with_ends, 1, 2)
        along = with_ends.take_ends(False)
        assert along is not None
        lose()
        assert with_ends.has_more()
        with_ends.send_ends(at_once=False)  # at once
        assert ends.alone.pop() == ["end 1", "end 2"]
        with_ends.ends_sent(along, "late")
        assert with_ends.is_sent()


def test_ends_that_could_not_be_written_down_are_taken_along_no_more_for_a_while(
    with_ends: Acks, ends: Ends
) -> None:
    end(with_ends, 1, 2)
    assert with_ends.take_ends(False) is not None
    with_ends.ends_failed()
    assert with_ends.take_ends(False) is None
    with_ends.send_ends(at_once=False)
    assert ends.alone == [["end 1", "end 2"]]
