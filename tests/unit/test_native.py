"""Threads, locks and gates of the operating system."""

from __future__ import annotations

import os
import threading
import time

from celery_graceful.native import ForkGate


def fork() -> float:
    """Seconds that a fork waits."""
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        os._exit(0)
    took = time.monotonic() - began
    os.waitpid(pid, 0)
    return took


def test_a_fork_waits_for_what_other_threads_are_in_the_middle_of() -> None:
    gate, inside, out = ForkGate(), threading.Event(), threading.Event()

    def hold() -> None:
        with gate:
            inside.set()
            out.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    threading.Timer(0.3, out.set).start()
    assert 0.2 < fork() < ForkGate.PATIENCE
    thread.join()


def test_a_fork_does_not_wait_for_its_own_thread() -> None:
    """Where greenlets rule, one of them may be inside of the gate while another one forks."""
    with (gate := ForkGate()), gate:
        assert fork() < ForkGate.PATIENCE / 2
    assert fork() < ForkGate.PATIENCE / 2
