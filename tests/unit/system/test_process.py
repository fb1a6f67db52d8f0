"""What a process has one of: who fills a slot, what counts, and what a forked child finds."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from celery_graceful.runs import interrupt
from celery_graceful.system import process
from celery_graceful.system.process import Owner, Slot, emptied, kept
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board


@pytest.fixture(autouse=True)
def no_slot_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(process, "_slots", [])
    return


def in_child(slot: Slot[str]) -> str:
    """What a forked child finds in a slot."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writing, slot.value.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with open(reading) as answer:
        return answer.read()


def test_the_latest_counts_and_who_ends_takes_its_own_along() -> None:
    slot = Slot("thing", str, in_fork=kept)
    first, second, third = Owner(), Owner(), Owner()
    for owner, value in ((first, "1"), (second, "2"), (third, "3")):
        owner.fill(slot, value)
        assert slot.value == value
    second.end()
    assert slot.value == "3"
    assert slot.values == ("1", "3")
    third.leave(slot)
    assert slot.value == "1"
    third.end()
    first.end()
    assert slot.value == ""
    assert slot.values == ()


def test_an_owner_has_one_value_in_a_slot() -> None:
    slot = Slot("thing", str, in_fork=kept)
    first, second = Owner(), Owner()
    first.fill(slot, "1")
    second.fill(slot, "2")
    first.fill(slot, "3")
    assert slot.values == ("2", "3")
    first.end()
    assert slot.value == "2"


def test_what_is_empty_is_made_anew() -> None:
    slot: Slot[list[int]] = Slot("thing", list, in_fork=emptied)
    before = slot.value
    owner = Owner()
    owner.fill(slot, [1])
    owner.end()
    assert slot.value == []
    assert slot.value is not before


@pytest.mark.parametrize(("in_fork", "found"), [(kept, "filled"), (emptied, "empty")])
def test_a_forked_child_finds_what_was_declared(in_fork, found: str) -> None:
    slot = Slot("thing", lambda: "empty", in_fork=in_fork)
    Owner().fill(slot, "filled")
    assert in_child(slot) == found
    assert slot.value == "filled"


def test_a_part_that_fails_in_a_forked_child_keeps_no_others() -> None:
    def fails(slot: Slot[str]) -> None:
        raise ValueError

    Slot("broken", str, in_fork=fails)
    slot = Slot("thing", lambda: "empty", in_fork=emptied)
    Owner().fill(slot, "filled")
    assert in_child(slot) == "empty"


def test_a_child_that_is_forked_while_another_thread_fills_can_fill() -> None:
    slot = Slot("thing", str, in_fork=emptied)
    process._lock.acquire()
    pid = os.fork()
    if not pid:
        Owner().fill(slot, "mine")
        os._exit(0 if slot.value == "mine" else 1)
    process._lock.release()
    assert os.waitpid(pid, 0)[1] == 0


def test_the_bell_of_one_worker_outlasts_the_end_of_another() -> None:
    first, second = Owner(), Owner()
    worker_state.attach(Board.create(), first)
    worker_state.attach(Board.create(), second)
    try:
        bell = interrupt._get_bell()  # who waits has it
        first.end()
        interrupt.end()
        assert interrupt._get_bell() is bell
    finally:
        second.end()
        interrupt.end()
    assert interrupt._waiting.value.bell is None
