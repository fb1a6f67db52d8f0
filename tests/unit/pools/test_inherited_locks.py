"""Locks of cached properties that a thread holds at a fork."""

from __future__ import annotations

import os
import signal
import sys
import threading
import types
from collections.abc import Callable

import pytest
from kombu.utils.objects import cached_property

from celery_graceful.pools import inherited_locks


class Thing:
    def __init__(self) -> None:
        self.begun, self.goes_on = threading.Event(), threading.Event()

    @cached_property
    def made(self) -> int:
        self.begun.set()
        self.goes_on.wait()
        return os.getpid()


class Lazy:
    """Says of itself that it is something else, and loads that for it."""

    loads = False

    @property
    def __class__(self) -> type:  # type: ignore[override]
        type(self).loads = True
        return cached_property


class Holder:
    lazy = Lazy()


@pytest.fixture
def more_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "one more", types.ModuleType("one more"))


def in_child(call: Callable[[], bool]) -> bool:
    """Whether a call is true in a forked child, and does not hang there."""
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest's would go on with the tests
        signal.alarm(60)
        os._exit(not call())
    return os.waitpid(pid, 0)[1] == 0


def test_a_child_can_make_what_a_thread_is_making(more_is_loaded: None) -> None:
    thing, other = Thing(), Thing()
    thread = threading.Thread(target=lambda: thing.made)
    thread.start()
    thing.begun.wait()
    inherited_locks.look()
    other.goes_on.set()
    try:
        assert in_child(lambda: other.made == os.getpid())
        assert in_child(lambda: in_child(lambda: other.made == os.getpid()))
    finally:
        thing.goes_on.set()
        thread.join()
    assert thing.made == other.made == os.getpid()


def test_looking_loads_nothing(more_is_loaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lazy, "loads", False)  # tests that go through all objects load it
    inherited_locks.look()
    assert not Lazy.loads


def test_what_was_loaded_since_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    inherited_locks.look()

    class Later(Thing):
        @cached_property
        def late(self) -> bool:
            return True

    lock = vars(Later)["late"].lock
    monkeypatch.setitem(sys.modules, "another", types.ModuleType("another"))
    inherited_locks.look()
    assert in_child(lambda: vars(Later)["late"].lock is not lock)
    assert vars(Later)["late"].lock is lock
