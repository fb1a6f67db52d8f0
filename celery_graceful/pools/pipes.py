"""The pipes between the main process and the children of Celery's ``AsynPool``, in fewer steps.

Celery reads a message in two steps, one message in each turn of the loop, and registers for the
next one; and the loop has to say first that a pipe can be written to, which that of a child that
waits for a job always can. With small tasks most of the main process's time goes that way. Here
all that a child has said is read at once, and a job is written as soon as a child waits for it.
And what each message says alike is not pickled each time: the function that runs a task, and the
types of what billiard's children say.

What is not a matter of one small message stays Celery's: jobs that do not fit into a pipe whole,
children that are given more than one job (``-O fast``), and the shape of a message that has come in
part, a generator that Celery goes on with when the pool ends.
"""

from __future__ import annotations

import os
import select
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import cached_property
from pickle import HIGHEST_PROTOCOL, dumps, loads
from select import PIPE_BUF
from struct import Struct
from typing import Any

from billiard.pool import ACK, READY
from celery.app import trace
from celery.concurrency.asynpool import SCHED_STRATEGY_FAIR, UNAVAIL

from celery_graceful.messages.decoding import decoded

__all__ = ["ReadsAhead", "WritesAtOnce", "quick_put", "reads_ahead", "unfolded"]

#: Bytes to read at once: what a pipe holds.
ROOM = 65536

#: Milliseconds to wait for the rest of what a child has said that has ended.
FINISHING = 10

_HEAD = Struct(">i")

#: What runs nearly all tasks; a job says ``None`` for it.
_usual = trace.fast_trace_task


def reads_ahead(cls: Any) -> Any:
    """A class like ``cls``, Celery's ``ResultHandler`` or one derived from it."""
    return type(cls.__name__, (ReadsAhead, cls), {})


class ReadsAhead:
    """Mixed into Celery's ``ResultHandler``: what children say."""

    fileno_to_outq: dict[int, Any]
    on_state_change: Callable[[Any], None]
    handle_event: Callable[..., None]

    def _make_process_result(self, hub: Any) -> Callable[[int], None]:
        processes = self.fileno_to_outq

        def on_result_readable(fileno: int) -> None:
            if fileno not in processes:  # it is gone
                hub.remove_reader(fileno)
                return
            if fileno in self._unfinished:  # the hub has forgotten who reads
                hub.add_reader(fileno, self._unfinished[fileno])
                return
            try:
                data = os.read(fileno, ROOM)
            except OSError as exc:
                if exc.errno not in UNAVAIL:
                    hub.remove_reader(fileno)
                return
            if not data:
                hub.remove_reader(fileno)
                return
            messages, rest = _split(data)
            if rest:
                unfinished = self._unfinished[fileno] = self._finish(hub, fileno, rest)
                next(unfinished)
                hub.add_reader(fileno, unfinished)
            self._hear(iter(messages))

        return on_result_readable

    @cached_property
    def _unfinished(self) -> dict[int, Generator[None, None, None]]:
        """Who reads on where a message has come in part, by descriptor."""
        return {}

    def finish(self, fileno: int) -> None:
        """Read what there is of a message of which a part was read: its child has ended."""
        unfinished = self._unfinished.pop(fileno, None)
        if unfinished is not None:
            poller = select.poll()
            poller.register(fileno, select.POLLIN)
            try:
                while poller.poll(FINISHING):
                    next(unfinished)
            except (StopIteration, OSError):
                pass

    def _hear(self, messages: Iterator[bytes]) -> None:
        try:
            for message in messages:
                said = loads(message)
                if said:
                    self.on_state_change(said)
        except BaseException:  # out of the code of others: what came after that is read already
            self._hear(messages)
            raise

    def _finish(self, hub: Any, fileno: int, data: bytes) -> Generator[None, None, None]:
        """Read the rest of a message that begins like that, when there is more to read."""
        try:
            yield
            while True:
                size = _HEAD.size
                if len(data) >= size:
                    size += _HEAD.unpack_from(data)[0]
                    if len(data) == size:
                        break
                try:
                    more = os.read(fileno, size - len(data))
                except OSError as exc:
                    if exc.errno not in UNAVAIL:
                        raise
                    yield
                else:
                    if not more:  # it has died of something
                        hub.remove_reader(fileno)
                        return
                    data += more
        finally:
            self._unfinished.pop(fileno, None)
        hub.add_reader(fileno, self.handle_event, fileno)
        self._hear(iter([data[_HEAD.size :]]))


def _split(data: bytes) -> tuple[Iterable[bytes], bytes]:
    """The messages that are there as a whole, and what is left."""
    messages, start, end = [], 0, len(data)
    while end - start >= _HEAD.size:
        body = start + _HEAD.size
        after = body + _HEAD.unpack_from(data, start)[0]
        if after > end:
            break
        messages.append(data[body:after])
        start = after
    return messages, data[start:]


class WritesAtOnce:
    """Mixed into Celery's ``AsynPool``: what children are given."""

    outbound_buffer: deque[Any]
    on_poll_start: Callable[[], None]
    sched_strategy: Any
    write_stats: Counter[int]
    _active_writes: set[int]
    _all_inqueues: set[int]
    _busy_workers: set[int]
    _cache: dict[int, Any]
    _fileno_to_inq: dict[int, Any]
    _quick_put: Callable[[Any], None]

    def _create_write_handlers(self, hub: Any, **kwargs: Any) -> None:
        super()._create_write_handlers(hub, **kwargs)  # type: ignore[misc]
        put, schedule_writes = self._quick_put, hub.consolidate_callback
        one_at_a_time = self.sched_strategy == SCHED_STRATEGY_FAIR
        outbound = self.outbound_buffer

        def quick_put(message: Any) -> None:
            """Celery writes four bytes, which wake a child, and then what it waits for."""
            kind, (number, i, target, args, kwargs) = message
            if target is _usual:
                message = kind, (number, i, None, args, kwargs)
            put(message)
            job = self._cache[number]
            header, body, size = job._payload
            if len(header) + size <= PIPE_BUF:  # is written whole or not at all
                job._payload = b"".join((header, body)), b"", 0
            if one_at_a_time:
                hand_out()

        def hand_out() -> None:
            """Children that wait are given what waits for them."""
            if outbound:
                for fd in self._all_inqueues - self._busy_workers - self._active_writes:
                    if not outbound:
                        break
                    if not self._write(fd):
                        schedule_writes([fd])

        self._quick_put = quick_put
        if one_at_a_time:
            self.on_poll_start = hand_out

    def _write(self, fd: int) -> bool:
        """Give the next job to this child, whole; if that cannot be done, nothing has been."""
        job, process = self.outbound_buffer[0], self._fileno_to_inq.get(fd)
        payload, _, more = job._payload
        if more or job._accepted or process is None:
            return False
        try:
            os.write(fd, payload)
        except OSError:  # or there is no room yet
            return False
        self.outbound_buffer.popleft()
        job._scheduled_for = job._write_to = process
        self._busy_workers.add(fd)
        self.write_stats[process.index] += 1
        return True


# -- the child's side ------------------------------------------------------------------


def unfolded(message: Any) -> Any:
    """A job, as it was before it was written."""
    kind, (number, i, target, args, kwargs) = message
    return (kind, (number, i, _trace, args, kwargs)) if target is None else message


def _trace(
    task: str, uuid: str, request: Any, body: Any, content_type: Any, content_encoding: Any
) -> Any:
    """As Celery's ``fast_trace_task``, with a body that is decoded in fewer steps."""
    accept = trace._localized[1] if trace._localized else ()
    payload = decoded(body, content_type, content_encoding, accept)
    if payload:
        body, content_type, content_encoding = payload, None, None
    return trace.fast_trace_task(task, uuid, request, body, content_type, content_encoding)


def quick_put(queue: Any) -> Callable[[Any], None]:
    """``queue.put``, for what a child says of each job, where the queue is its own."""
    if queue._wlock is not None:  # it is that of all
        return queue.put  # type: ignore[no-any-return]
    put, fd = queue.put, queue._writer.fileno()

    def put_quickly(said: Any) -> None:
        kind, args = said
        # Other results may need billiard's pickler.
        if kind == ACK or (kind == READY and _is_plain(args[2])):
            body = dumps(said, HIGHEST_PROTOCOL)
            if len(body) <= PIPE_BUF - _HEAD.size:  # is written whole
                os.write(fd, _HEAD.pack(len(body)) + body)
                return
        put(said)

    return put_quickly


def _is_plain(result: Any) -> bool:
    """Whether it is what Celery says of a success."""
    succeeded, value = result
    return (
        succeeded is True
        and type(value) is tuple
        and len(value) == 3
        and value[0] == 0
        and type(value[1]) is str
        and type(value[2]) is float
    )
