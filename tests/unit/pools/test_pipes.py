"""What goes to and fro between the main process and a pool's children, in how many steps."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pickle import dumps, loads
from select import PIPE_BUF
from typing import Any

import pytest
from billiard import get_context
from billiard.pool import ACK, DEATH, READY, TASK
from billiard.queues import SimpleQueue, _SimpleQueue
from billiard.reduction import ForkingPickler
from celery.app import trace
from celery.app.trace import fast_trace_task
from celery.concurrency import asynpool
from celery.concurrency.asynpool import AsynPool
from kombu.asynchronous import Hub, set_event_loop

from celery_graceful.pools.pipes import ROOM, quick_put, reads_ahead, unfolded
from celery_graceful.pools.processes import graceful

LIMIT = 60.0


def framed(said: Any) -> bytes:
    body = dumps(said)
    return struct.pack(">i", len(body)) + body


class Handler(reads_ahead(asynpool.ResultHandler)):  # type: ignore[misc]
    """What hears a child, and the pipe that this child would have."""

    def __init__(self, hear: Callable[[Any], None]) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.fileno_to_outq = {self.reader: self}
        self.on_state_change = hear
        self.hub = Hub()
        self.register_with_event_loop(self.hub)
        self.hub.add_reader(self.reader, self.handle_event, self.reader)

    def read(self) -> None:
        callback, args = self.hub.readers[self.reader]
        if args:
            callback(*args)
        else:  # as the loop does with a generator
            next(callback, None)


@pytest.fixture
def heard() -> list[Any]:
    return []


@pytest.fixture
def handler(heard: list[Any]) -> Iterator[Handler]:
    handler = Handler(heard.append)
    yield handler
    handler.hub.close()
    os.close(handler.reader)
    os.close(handler.writer)


def test_all_that_a_child_has_said_is_heard_at_once(handler: Handler, heard: list[Any]) -> None:
    os.write(handler.writer, b"".join(map(framed, [(0, "ack"), None, (1, "ready")])))
    handler.read()
    assert heard == [(0, "ack"), (1, "ready")]


def test_a_message_may_come_in_parts(handler: Handler, heard: list[Any]) -> None:
    whole, cut = framed((0, "whole")), framed((1, "cut"))
    os.write(handler.writer, whole)
    for byte in cut:
        os.write(handler.writer, bytes((byte,)))
        if byte == cut[0]:
            handler.read()  # with the whole one: the first one is heard by then
            assert heard == [(0, "whole")]
        handler.read()
    handler.read()
    assert heard == [(0, "whole"), (1, "cut")]
    os.write(handler.writer, whole)
    handler.read()
    assert heard[2:] == [(0, "whole")]


@pytest.mark.parametrize("size", [ROOM - 100, ROOM, 10 * ROOM])
def test_a_message_may_be_longer_than_what_a_pipe_holds(
    handler: Handler, heard: list[Any], size: int
) -> None:
    os.set_blocking(handler.writer, False)
    left = framed((0, "x" * size)) + framed((1, ""))
    until = time.monotonic() + LIMIT
    while len(heard) < 2 and time.monotonic() < until:
        if left:
            left = left[os.write(handler.writer, left[:ROOM]) :]
        handler.read()
    assert [(kind, len(text)) for kind, text in heard] == [(0, size), (1, 0)]


def test_what_is_raised_at_one_message_loses_no_other(heard: list[Any]) -> None:
    def hear(said: Any) -> None:
        heard.append(said)
        if said[0] == 0:
            raise SystemExit(said[1])

    handler = Handler(hear)
    messages = [(0, "first"), (1, "second"), (0, "third"), (1, "fourth")]
    os.write(handler.writer, b"".join(map(framed, messages)))
    with pytest.raises(SystemExit):
        handler.read()
    assert heard == messages
    handler.hub.close()


def test_a_child_that_is_gone_is_read_no_more(handler: Handler, heard: list[Any]) -> None:
    os.write(handler.writer, framed((0, "said")))
    reader = handler.reader
    handler.fileno_to_outq.clear()
    handler.read()
    assert heard == []
    assert reader not in handler.hub.readers


@contextmanager
def pool_of(processes: int, **options: Any) -> Iterator[tuple[Any, Callable[..., None]]]:
    """A pool whose children are there, and what turns its loop until something is so."""
    hub = Hub()
    set_event_loop(hub)
    pool = graceful(AsynPool)(processes, threads=False, initargs=(None, ""), **options)
    try:
        pool.register_with_event_loop(hub)
        loop = hub.create_loop()

        def turn_until(done: Callable[[], object]) -> None:
            until = time.monotonic() + LIMIT
            while not done():
                assert time.monotonic() < until
                next(loop)

        turn_until(lambda: len(pool._all_inqueues) == processes)
        yield pool, turn_until
    finally:
        for child in pool._pool:
            os.kill(child.pid, signal.SIGKILL)
            child._popen.wait()
        pool.terminate()
        set_event_loop(None)


def test_a_child_that_waits_is_given_a_job_before_the_loop_goes_round() -> None:
    with pool_of(2) as (pool, turn_until):
        got: list[int] = []
        first, second, third = (
            pool.apply_async(len, ("." * number,), callback=got.append) for number in (1, 2, 3)
        )
        assert first._write_to is not second._write_to
        assert {first._write_to, second._write_to} == set(pool._pool)
        assert list(pool.outbound_buffer) == [third]  # one at a time
        assert sum(pool.write_stats.values()) == 2
        turn_until(lambda: len(got) == 3)
        assert not pool.outbound_buffer
        assert not pool._busy_workers


@pytest.mark.parametrize("size", [1, PIPE_BUF, 3 * PIPE_BUF, 50 * PIPE_BUF])
def test_a_job_that_is_small_is_one_piece(size: int) -> None:
    with pool_of(1) as (pool, turn_until):
        for _ in range(3):
            job = pool.apply_async(len, (b"." * size,))
            header, body, rest = job._payload
            if size < PIPE_BUF // 2:
                assert (header[:4], rest) == (struct.pack(">I", len(header) - 4), 0)
            else:
                assert (len(header), len(body)) == (4, rest)
            turn_until(job.ready)
            assert job.get(0) == size


def test_a_child_that_is_too_full_for_a_job_gets_it_when_it_has_room() -> None:
    """Celery's way: it waits until the pipe can be written to."""
    with pool_of(1) as (pool, turn_until):
        (child,) = pool._pool
        os.kill(child.pid, signal.SIGSTOP)
        large = pool.apply_async(len, ("." * 3 * ROOM,))
        fd = child.inqW_fd
        assert large._write_to is child
        assert fd in pool._active_writes
        small = pool.apply_async(len, ("",))
        assert list(pool.outbound_buffer) == [small]
        os.kill(child.pid, signal.SIGCONT)
        turn_until(lambda: large.ready() and small.ready())
        assert (large.get(0), small.get(0)) == (3 * ROOM, 0)


def test_who_lets_children_have_several_jobs_keeps_them() -> None:
    with pool_of(1, sched_strategy="fast") as (pool, turn_until):
        jobs = [pool.apply_async(len, ("",)) for _ in range(5)]
        assert len(pool.outbound_buffer) == 5  # until the loop says that there is room
        turn_until(lambda: all(job.ready() for job in jobs))


def test_a_job_of_a_child_that_dies_goes_to_another_one() -> None:
    with pool_of(1) as (pool, turn_until):
        (child,) = pool._pool
        os.kill(child.pid, signal.SIGSTOP)
        job = pool.apply_async(len, ("abc",))
        assert job._write_to is child
        os.kill(child.pid, signal.SIGKILL)
        turn_until(job.ready)
        assert job.get(0) == 3
        assert child not in pool._pool


# -- the child's side ------------------------------------------------------------------


def test_the_function_that_runs_tasks_is_not_pickled() -> None:
    """It would be looked up for each job, there and here."""
    with pool_of(1) as (pool, _):
        request: dict[str, Any] = {"id": "id"}
        args = ("task", "id", request, b"[[], {}, {}]", "application/json", "utf-8")
        usual, other = (
            pool.apply_async(target, args)._payload[0][struct.calcsize(">i") :]
            for target in (fast_trace_task, len)
        )
    assert b"trace" not in usual
    kind, (_, i, target, got, kwargs) = unfolded(loads(usual))
    assert (kind, i, got, kwargs) == (TASK, None, args, {})
    assert callable(target)
    assert unfolded(loads(other)) == loads(other)


@pytest.mark.parametrize(
    ("body", "content_type", "handed"),
    [
        (b'[[1], {"a": 2}, {}]', "application/json", [[1], {"a": 2}, {}]),
        (b"[[1], {", "application/json", None),
        (b"null", "application/json", None),
        (b"[[1], {}, {}]", "application/x-other", None),
        (([1], {}, {}), None, None),
    ],
)
def test_a_body_is_decoded_quickly_or_as_ever(
    monkeypatch: pytest.MonkeyPatch, body: Any, content_type: Any, handed: Any
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(trace, "fast_trace_task", lambda *args: calls.append(args))
    monkeypatch.setattr(trace, "_localized", [{}, {"application/json"}, "host"])
    job = (7, None, None, ("task", "id", {}, body, content_type, "utf-8"), {})
    _, (_, _, target, args, kwargs) = unfolded((TASK, job))
    target(*args, **kwargs)
    expected = (body, content_type, "utf-8") if handed is None else (handed, None, None)
    assert calls == [("task", "id", {}, *expected)]


def test_what_is_not_accepted_is_left_to_celery(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(trace, "fast_trace_task", lambda *args: calls.append(args))
    monkeypatch.setattr(trace, "_localized", [{}, {"application/x-python-serialize"}, "host"])
    args = ("task", "id", {}, b"[[], {}, {}]", "application/json", "utf-8")
    _, (_, _, target, _, _) = unfolded((TASK, (7, None, None, args, {})))
    target(*args)
    assert calls == [args]


class _Reduced:
    """Pickled by billiard alone."""


@pytest.mark.parametrize(
    "said",
    [
        (ACK, (1, None, 12.5, 345, None)),
        (READY, (1, None, (True, (0, "None", 0.5)), 6)),
        (READY, (1, None, (True, (0, "x" * 2 * PIPE_BUF, 0.5)), 6)),
        (READY, (1, None, (True, (1, _Reduced(), 0.5)), 6)),
        (READY, (1, None, (False, _Reduced()), 6)),
        (READY, (1, None, (True, None), 6)),
        (DEATH, (345, 0)),
    ],
)
def test_what_a_child_says_is_as_billiard_would_say_it(
    monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    monkeypatch.setattr(ForkingPickler, "_extra_reducers", {_Reduced: lambda _: (str, ("other",))})
    queues = _SimpleQueue(), _SimpleQueue()
    quick_put(queues[0])(said)
    queues[1].put(said)
    quick, plain = (queue.get() for queue in queues)
    assert quick == plain
    for queue in queues:
        queue.close()


def test_a_queue_that_children_share_is_written_to_under_its_lock() -> None:
    queue = SimpleQueue(ctx=get_context())
    assert quick_put(queue) == queue.put
    queue.close()
