"""Acknowledgements: who sends them."""

from __future__ import annotations

from threading import Lock
from typing import Any
from unittest.mock import Mock

import pytest

from celery_graceful.claims.acks import Acks


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
