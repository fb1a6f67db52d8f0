"""Pools of processes: what their children are handed, and their end."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from celery.concurrency.asynpool import AsynPool

from celery_graceful.pools.processes import graceful


@pytest.mark.parametrize("rest", [b"\x80\x04N.", b"\x00\x00\x00\x08half"])
def test_a_message_that_a_child_has_read_in_part_holds_up_no_end(rest: bytes) -> None:
    """What is left of it is no message: no traceback, no waiting for what never comes."""
    pool = graceful(AsynPool)(1, threads=False)
    (child,) = pool._pool
    os.kill(child.pid, signal.SIGKILL)
    child._popen.wait()
    os.write(child.inq._writer.fileno(), rest)
    problems: list[BaseException] = []

    def terminate() -> None:
        try:
            pool.terminate()
        except BaseException as problem:
            problems.append(problem)

    ending = threading.Thread(target=terminate, daemon=True)
    ending.start()
    ending.join(60)
    assert not ending.is_alive(), "the pool still waits for the other half"
    assert problems == []
