"""A thread that there is only while there is something to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import pytest

from celery_graceful.system.repeating import Repeating
from tests.support.workers import TIMEOUT, wait_until

NAME = "a test of repeating"


class Work:
    """Does it as often as it has answers: whether it has to be done again, or what it raises."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers = list(answers)
        self.on_last: Callable[[], None] = lambda: None

    def __call__(self) -> bool:
        if not self.answers:  # it was asked for once more than it has to be done
            return False
        answer = self.answers.pop(0)
        if not self.answers:
            self.on_last()
        if isinstance(answer, Exception):
            raise answer
        return answer


def threads() -> Iterable[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == NAME]


def is_done(work: Work) -> None:
    wait_until(lambda: not work.answers and not threads(), "it is done, and its thread has ended")


def test_it_is_done_while_there_is_a_reason_and_begins_again() -> None:
    """An error is none to end."""
    work = Work(True, ValueError("a bug"), False)
    one = Repeating(work, 0.001, NAME)
    assert not threads()
    for answers in ([], [True, False]):
        work.answers += answers
        one.begin()
        one.begin()
        is_done(work)


def test_where_no_thread_can_be_started_the_next_one_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = Work(False)
    one = Repeating(work, 0.001, NAME)

    def fails(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        with pytest.raises(RuntimeError):
            one.begin()
    one.begin()
    is_done(work)


def test_what_comes_meanwhile_is_done_as_well() -> None:
    """It may have come too late to be seen, by who says that nothing is left."""
    work = Work(False)
    one = Repeating(work, 0.001, NAME)

    def begin_again() -> None:
        work.on_last = lambda: None
        work.answers.append(False)
        one.begin()

    work.on_last = begin_again
    one.begin()
    is_done(work)


def test_it_is_done_a_last_time() -> None:
    work = Work(True)
    one = Repeating(work, 600.0, NAME)
    one.begin()
    assert len(list(threads())) == 1
    one.end(TIMEOUT)
    assert not work.answers
    assert not threads()
    one.begin()
    assert not threads()


def test_the_end_of_what_has_nothing_to_do() -> None:
    Repeating(Work(), 600.0, NAME).end(TIMEOUT)
