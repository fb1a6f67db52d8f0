"""Pools of processes: what their children are handed, and their end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.concurrency.asynpool import AsynPool
from kombu.asynchronous import Hub, set_event_loop

from celery_graceful.pools.processes import graceful
from celery_graceful.timeline import worker_state
from celery_graceful.timeline.board import Board
from tests.support.workers import TIMEOUT


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


@pytest.fixture
def pool() -> Iterator[Any]:
    """One child, which has come up, and a loop."""
    worker_state.attach(Board.create())
    hub = Hub()
    set_event_loop(hub)
    app = Celery("pools", broker="memory://", set_as_current=False)
    pool = graceful(AsynPool)(1, threads=False, initargs=(app, "test@here"))
    pool.register_with_event_loop(hub)
    pool.hub = hub
    turn_until(pool, lambda: pool._all_inqueues)
    yield pool
    pool.terminate()
    pool.join()
    hub.close()
    worker_state.detach()


def turn_until(pool: Any, condition: Callable[[], object]) -> None:
    """Let the loop go round."""
    loop, end = pool.hub.create_loop(), time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, f"{condition} is not so after {TIMEOUT:g} s"
        next(loop)


def lose_connection(pool: Any) -> None:
    """As Celery's loop does it, and its consumer, and its next loop."""
    pool.hub.reset()
    set_event_loop(pool.hub)
    pool.connection_lost(lambda job: False)
    pool.register_with_event_loop(pool.hub)


def test_a_result_that_was_read_in_part_when_the_connection_was_lost(pool: Any) -> None:
    results: list[Any] = []
    pool.apply_async(bytes, (3_000_000,), callback=results.append)
    turn_until(pool, lambda: pool._result_handler._unfinished)
    lose_connection(pool)
    turn_until(pool, lambda: results)
    pool.apply_async(len, ("after",), callback=results.append)
    turn_until(pool, lambda: len(results) == 2)
    assert results == [bytes(3_000_000), 5]
    assert not pool._result_handler._unfinished


def test_a_job_that_was_written_in_part_when_the_connection_was_lost(pool: Any) -> None:
    results: list[Any] = []
    (child,) = pool._pool
    os.kill(child.pid, signal.SIGSTOP)
    pool.apply_async(len, ("x" * 3_000_000,), callback=results.append)
    turn_until(pool, lambda: pool._active_writers)
    lose_connection(pool)
    assert pool._active_writers
    os.kill(child.pid, signal.SIGCONT)
    turn_until(pool, lambda: results)
    assert results == [3_000_000]
    assert not pool._active_writers
    assert not pool._active_writes


def test_a_child_that_is_on_its_way_out_when_the_connection_is_lost(pool: Any) -> None:
    """It has closed its files, so nothing says when it has ended: it is looked at again."""
    (child,) = pool._pool
    pool._untrack_child_process(child, pool.hub)
    lose_connection(pool)
    child.terminate()
    child._popen.wait()
    pool.hub.call_later(0, pool._event_process_exit, pool.hub, child)
    turn_until(pool, lambda: pool._all_inqueues and child not in pool._pool)
    results: list[Any] = []
    pool.apply_async(len, ("after",), callback=results.append)
    turn_until(pool, lambda: results)
