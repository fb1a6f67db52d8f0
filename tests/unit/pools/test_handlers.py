"""The signal handlers of a process that runs tasks."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from celery_graceful.pools.handlers import Handlers, getsignal


def ours(*_: Any) -> None:
    raise AssertionError("nobody sends it")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGURG)}
    before[signal.SIGUSR2] = signal.getsignal(signal.SIGUSR2)
    signal.signal(signal.SIGTERM, ours)
    signal.signal(signal.SIGURG, signal.SIG_IGN)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_what_a_task_sets_is_put_back() -> None:
    kept = Handlers(wakeup=False)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGURG, print)
    kept.put_back()
    assert getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGTERM) is ours
    assert getsignal(signal.SIGURG) == signal.getsignal(signal.SIGURG) == signal.SIG_IGN


def test_what_nobody_had_is_free_for_tasks() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    kept = Handlers(wakeup=False)
    signal.signal(signal.SIGUSR2, ours)
    kept.put_back()
    assert signal.getsignal(signal.SIGUSR2) is ours


def test_signals_are_written_where_they_were() -> None:
    async def task() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, print)

    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    before = signal.set_wakeup_fd(write_fd)
    try:
        kept = Handlers(wakeup=True)
        asyncio.run(task())
        assert signal.set_wakeup_fd(-1) == -1
        kept.put_back()
        assert signal.set_wakeup_fd(-1) == write_fd
        os.close(write_fd)
        kept.put_back()  # a task has closed all files
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.set_wakeup_fd(before)
        os.close(read_fd)
