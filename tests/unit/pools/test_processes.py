"""Pools of processes: what their children are handed, and their end."""

from __future__ import annotations

import os
import signal
import struct
import threading
import time
from select import PIPE_BUF

import pytest
from celery.concurrency.asynpool import AsynPool
from kombu.asynchronous import Hub, set_event_loop

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
    ending.join(10)
    assert not ending.is_alive(), "the pool still waits for the other half"
    assert problems == []


@pytest.mark.parametrize("size", [1, PIPE_BUF, 3 * PIPE_BUF, 50 * PIPE_BUF])
def test_a_job_that_is_small_is_written_at_once(size: int) -> None:
    hub = Hub()
    set_event_loop(hub)
    pool = graceful(AsynPool)(1, threads=False, initargs=(None, ""))
    (child,) = pool._pool
    try:
        pool.register_with_event_loop(hub)
        got: list[int] = []
        loop = hub.create_loop()
        for number in range(3):
            job = pool.apply_async(len, (b"." * size,), callback=got.append)
            header, body, rest = job._payload
            if size < PIPE_BUF // 2:
                assert (header[:4], rest) == (struct.pack(">I", len(header) - 4), 0)
            else:
                assert (len(header), len(body)) == (4, rest)
            until = time.monotonic() + 10
            while len(got) <= number and time.monotonic() < until:
                next(loop)
        assert got == [size] * 3
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child._popen.wait()
        pool.terminate()
        set_event_loop(None)
