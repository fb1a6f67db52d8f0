"""Threads, locks and gates of the operating system."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import pytest

from celery_graceful.runs.interrupt import wake
from celery_graceful.system import native
from celery_graceful.system.native import Doorbell, ForkGate
from tests.support.deliveries import bench


def fork() -> float:
    """Seconds that a fork waits."""
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        os._exit(0)
    took = time.monotonic() - began
    os.waitpid(pid, 0)
    return took


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than any pause of the machine."""
    monkeypatch.setattr(ForkGate, "PATIENCE", 60.0)


def test_a_fork_waits_for_what_other_threads_are_in_the_middle_of() -> None:
    gate, inside, done = ForkGate(), threading.Event(), threading.Event()

    def hold() -> None:
        with gate:
            inside.set()
            while not gate._closed_by:
                native.pause(0.001)
            native.pause(0.1)
            done.set()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    pid = os.fork()
    if not pid:
        os._exit(done.is_set())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1, "the fork has not waited"
    thread.join()


def test_a_fork_does_not_wait_for_its_own_thread() -> None:
    """Where greenlets rule, one of them may be inside of the gate while another one forks."""
    with (gate := ForkGate()), gate:
        assert fork() < ForkGate.PATIENCE / 2
    assert fork() < ForkGate.PATIENCE / 2


def test_what_comes_between_two_steps_of_a_thread_gets_in_as_well() -> None:
    """A finalizer, and with greenlets whoever else runs in that thread while it waits."""
    gate, code = ForkGate(), {ForkGate.__enter__.__code__, ForkGate.__exit__.__code__}
    between = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal between
        if frame.f_code in code and event == "line":
            sys.settrace(None)
            with gate:
                between += 1
            sys.settrace(trace)
        return trace

    def go() -> None:
        sys.settrace(trace)
        with gate:
            pass
        sys.settrace(None)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(30)
    assert between > 3
    assert not thread.is_alive()
    assert fork() < ForkGate.PATIENCE / 2


#: Seconds: more milliseconds than poll can count, and more than any clock has.
ENDLESS = (3e6, 1e15)


@pytest.mark.parametrize("seconds", ENDLESS)
def test_no_wait_is_too_long(seconds: float) -> None:
    bell = Doorbell()
    threading.Timer(0.1, bell.ring).start()
    assert bell.wait(seconds) == b"."
    assert native.bounded(lambda: None, seconds)


def test_a_pause_is_a_day_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LONGEST_WAIT", 0.01)
    for seconds in (*ENDLESS, -1.0):
        native.pause(seconds)
    assert Doorbell().wait(1e9) == b""


@pytest.mark.parametrize("seconds", ENDLESS)
def test_a_task_may_wait_for_longer_than_poll_can_count(seconds: float) -> None:
    with bench() as b:

        def interrupt() -> None:
            b.interrupt()
            wake()

        def task(self: Any) -> None:
            threading.Timer(0.1, interrupt).start()
            self.sleep(seconds)

        made = b.task(task)
        assert b.deliver(made)[0] == "IGNORED"
