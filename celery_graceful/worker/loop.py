"""The worker's event loop, seen by the drain: how to reach it, and how to stop fetching."""

from __future__ import annotations

import selectors
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from celery.utils.log import get_logger
from celery.worker import state
from kombu.message import Message

from celery_graceful.claims.held_claims import Tag
from celery_graceful.messages.amqp import is_amqp
from celery_graceful.system import native
from celery_graceful.worker import events_connection

__all__ = ["Loop", "consume_again", "innermost_at_work"]

logger = get_logger(__name__)

#: Seconds at most for taking what RabbitMQ has sent already.
READ_PENDING = 0.3

#: Seconds for which Celery's loop without a hub waits for messages, at most.
SYNLOOP = 2.0

#: Seconds within which a broker answers that is near.
NEAR = 0.001

#: The function around ``drain_events``, and the packages that handle what it brings.
_WAIT = "interruptible_drain_events"
_AT_WORK = ("celery", "celery_graceful", "redis")


class Loop:
    """One worker's loop, over all of its connections.

    Args:
        worker: Celery's ``WorkController``.
        green: Its tasks are greenlets.
    """

    def __init__(self, worker: Any, *, green: bool) -> None:
        self.worker = worker
        self._listeners: list[Callable[[], None]] = []
        self.bell = native.Doorbell()
        #: Makes the loop go round, and nothing more; whether it was rung; the thread that need not.
        self._turner, self._turns, self._thread = native.Doorbell(), False, 0
        #: A consumer is connected and its loop goes round.
        self.alive = False
        #: When it was not any more, on the monotonic clock.
        self.left_at: float | None = None
        #: When it went round last.
        self.turned_at = time.monotonic()
        #: Seconds in which it need not, though somebody has rung.
        self.pause = 0.0
        self._green = green
        self._main: Any = None
        self._listener: threading.Thread | None = None
        self._ended = False
        self._queues: dict[str, str] = {}
        #: Callbacks of consumers that are cancelled, and where they are.
        self._kept: dict[str, Any] = {}
        self._callbacks: dict[str, Any] = {}

    def add_listener(self, on_loop: Callable[[], None]) -> None:
        """Have something called in the loop after somebody rang, after what was added before."""
        self._listeners.append(on_loop)

    def ring(self) -> None:
        """Make the loop call its listeners soon. From any thread, or a signal handler."""
        self.bell.ring()

    # -- the consumer comes and goes -----------------------------------------------

    def attach(self, consumer: Any) -> None:
        """A consumer is about to enter its loop."""
        _restore_in_loop(consumer)
        if not _is_woken_by_calls(consumer.hub):
            _go_round_for_calls(consumer, self.turn)
        _acknowledge_at_once(consumer)
        events_connection.wait_for_no_confirms(consumer)
        events_connection.stay_lost(consumer)
        events_connection.close_in_time(consumer)
        if consumer.hub is None:
            self._attach_synloop(consumer)
            self._begins()
        elif is_amqp(consumer.connection):
            _go_on_while_there_is_more(consumer.hub)

    def register(self, hub: Any) -> None:
        """The hub of the event loop is ready for readers."""
        hub.add_reader(self.bell.read_fd, self._on_bell)
        hub.add_reader(self._turner.read_fd, self._on_turn)
        self._thread = threading.get_ident()
        self._begins()

    def _begins(self) -> None:
        self.turned_at = time.monotonic()
        self.alive = True

    def detach(self) -> None:
        """The consumer has left its loop."""
        if self.alive:
            self.alive = False
            self.left_at = time.monotonic()

    def is_heard(self) -> bool:
        """Whether the broker has heard, or will hear, what has been said to it (RabbitMQ)."""
        consumer = self.worker.consumer
        channel = getattr(consumer.task_consumer, "channel", None)
        connected = bool(consumer.connection and consumer.connection.connected)
        return connected and bool(getattr(channel, "is_open", False))

    def end(self, seconds: float) -> None:
        """The process goes on without a worker: end the thread, in up to ``seconds``."""
        self._ended = True
        self.bell.ring()
        if self._listener is not None:
            self._listener.join(seconds)
        self.bell = self._turner = native.SILENT
        # They hold the worker, and older versions of kombu keep the connection in a timer for good.
        for queue in self._kept:
            self._callbacks.pop(queue, None)
        self._kept, self._callbacks = {}, {}

    def _on_bell(self, *_: Any) -> None:
        if not self.pause:  # else this is a thread beside it
            self.turned_at = time.monotonic()
        self.bell.take()
        for on_loop in self._listeners:
            on_loop()
        self.turn()  # for what was left to it

    def _on_turn(self, *_: Any) -> None:
        self._turner.take()
        self._turns = False  # who comes from now on is too late for this turn

    def _attach_synloop(self, consumer: Any) -> None:
        """Without a hub: a thread (a greenlet, where tasks are) listens to the bell."""
        if self._main is None:
            if self._green:
                import greenlet

                self._main = greenlet.getcurrent()
            else:
                self._main = threading.current_thread()
            self._listener = threading.Thread(
                target=self._listen, name="graceful-loop", daemon=True
            )
            self._listener.start()
        if self._green:
            events_connection.read_what_is_there(consumer)
        drain_events = consumer.connection.drain_events
        self.pause = 0.0 if self._green else SYNLOOP

        def interruptible_drain_events(timeout: float | None = None) -> Any:
            self.turned_at = time.monotonic()
            if state.should_stop is not None or state.should_terminate is not None:
                raise TimeoutError  # the loop goes round once more when it is told to end
            return drain_events(timeout=timeout)

        consumer.connection.drain_events = interruptible_drain_events

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.bell.read_fd, selectors.EVENT_READ)
            while not self._ended:
                selector.select()
                try:
                    self._on_bell()
                except Exception:  # nobody else listens
                    logger.exception("The loop's part of the drain failed")

    def turn(self) -> None:
        """Make the loop go round once now, if it waits: from what ends a task, in any pool."""
        if self._thread:
            if threading.get_ident() != self._thread and not self._turns:
                self._turns = True
                self._turner.ring()
        elif self._green and self._main is not None:
            from celery_graceful.pools.green import in_hub

            in_hub(self._end_wait)

    def _end_wait(self) -> None:
        if _waits_for_events(self._main.gr_frame):
            self._main.throw(TimeoutError("the loop has to go round"))

    def has_enough(self, room: int, took: float) -> bool:
        """Whether the pool has enough to do until more is free than ``room`` places of messages.

        As long as half of what may be fetched ahead waits for the pool, the other half is fetched
        in one go; from a broker that is near all of it, when half of the pool has no next task.

        Args:
            room: Places that are free now.
            took: Seconds that the last fetch took.
        """
        pool = self.worker.pool
        # Of greenlets the latter counts those that run; a pool that has ended has none.
        places: int = max(pool.limit or 0, getattr(pool, "num_processes", 0) or 0)
        ahead = places * (self.worker.prefetch_multiplier - 1)
        keep = max(1, places // 2) if took < NEAR else ahead - ahead // 2
        return bool(room < ahead - keep and keep <= len(state.reserved_requests) - places)

    def finish(self) -> None:
        """Do what waits for the next turn: acknowledgements above all. In the loop's thread."""
        consumer = self.worker.consumer
        consumer.perform_pending_operations()
        if consumer.hub is not None and consumer.connection and consumer.connection.connected:
            for call in consumer.hub._pop_ready():
                try:
                    call()
                except Exception:
                    logger.exception("%r failed at the end of the loop", call)

    # -- fetching ------------------------------------------------------------------

    def stop_fetching(self) -> None:
        """Cancel the consumers without waiting for the broker's answer; in the loop."""
        consumer = self.worker.consumer
        tasks = consumer.task_consumer
        if tasks is None:
            return
        # A consumer that reconnects consumes again, unless there is nothing to consume from.
        tasks.consume = lambda *_, **__: None
        if consumer.connection is None:  # it connects again
            return
        self.queue_of("")  # asked for when the tags are gone
        tags = list(tasks._active_tags.values())
        tasks._active_tags.clear()
        if is_amqp(consumer.connection):
            for tag in tags:
                tasks.channel.basic_cancel(tag, nowait=True)
            return
        # What a fetch that is under way still brings shall come to us, to go back to the
        # head of its queue; without a callback kombu puts it at the tail.
        callbacks = getattr(tasks.channel.connection, "_callbacks", {})
        kept = dict(callbacks)
        for tag in tags:
            tasks.channel.basic_cancel(tag)
        self._kept = {queue: kept[queue] for queue in kept.keys() - callbacks.keys()}
        callbacks.update(self._kept)
        self._callbacks = callbacks

    def fetch_again(self) -> None:
        """Consume again, without waiting for the broker's answer; in the loop."""
        consumer = self.worker.consumer
        tasks = consumer.task_consumer
        if tasks is None:
            return
        vars(tasks).pop("consume", None)
        self._kept = {}  # who consumes has a callback of its own
        if consumer.connection is not None:  # else it consumes when it has connected
            consume_again(tasks)

    def queue_of(self, tag: Any) -> str | None:
        """The name of the queue that a consumer tag of ours stands for."""
        tasks = getattr(self.worker.consumer, "task_consumer", None)
        for queue, active in dict(getattr(tasks, "_active_tags", None) or {}).items():
            self._queues[active] = queue
        return self._queues.get(tag)

    def fetching(self) -> bool:
        """Whether a fetch from Redis (BRPOP, for up to a second) is under way."""
        tasks = getattr(self.worker.consumer, "task_consumer", None)
        channel = getattr(tasks, "channel", None)
        if not self.alive or getattr(channel, "_fetch", None):  # what comes as a claim is safe
            return False
        return bool(getattr(channel, "_in_poll", None))

    def read_pending(self) -> None:
        """Take what RabbitMQ has sent already, so that it can be given back.

        Other traffic, as of a large fleet, keeps it for ``READ_PENDING`` seconds at most.
        """
        if not is_amqp(self.worker.consumer.connection):
            return  # a Redis list gives one message at a time
        end = time.monotonic() + READ_PENDING
        try:
            while time.monotonic() < end:
                self.worker.consumer.connection.drain_events(timeout=0.05)
        except (TimeoutError, OSError):
            pass


def consume_again(consumer: Any) -> None:
    """As its ``consume``, but for an answer of the broker: that would be waited for in the loop."""
    for queue in list(consumer.queues):
        consumer._basic_consume(queue, no_ack=consumer.no_ack, nowait=True)


def _waits_for_events(frame: FrameType | None) -> bool:
    """Whether a greenlet that stands at ``frame`` waits in ``drain_events`` for what comes.

    And does not take a message in: whoever handles it may wait too, and would take the exception
    for an answer of its own server that did not come.
    """
    found, _ = innermost_at_work(frame)
    return found is not None and found.f_code.co_name == _WAIT


def innermost_at_work(
    frame: FrameType | None,
) -> tuple[FrameType | None, FrameType | None]:
    """Of a greenlet that stands at ``frame``, the innermost frame of what handles messages.

    Returns:
        It, and the frame that it has called: others' wait for messages, if that is all it does.
    """
    inner = None
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in _AT_WORK:
            return frame, inner
        inner, frame = frame, frame.f_back
    return None, inner


def _go_on_while_there_is_more(hub: Any) -> None:
    """Never wait for events while something is left for the next turn.

    What is done in a turn leaves more to the next one, and kombu waits before that, until a timer
    is due: in a pool of one process, where messages are read in such calls, with what is to be
    acknowledged before the next message comes. Only on RabbitMQ: on SQS a call looks for room in
    each turn, and is left to the next one again.
    """
    fire_timers = type(hub).fire_timers

    def until_events(*args: Any, **kwargs: Any) -> Any:
        seconds = fire_timers(hub, *args, **kwargs)
        return 0 if hub._ready else seconds

    hub.fire_timers = until_events


def _restore_in_loop(consumer: Any) -> None:
    """After a reconnect Celery raises the prefetch count with each acknowledgement.

    In the thread that acknowledges, which waits for the broker's answer then, and so does the
    loop on the same socket: one of the two for ever.
    """
    restore = type(consumer)._restore_prefetch_count_after_connection_restart
    consumer._restore_prefetch_count_after_connection_restart = partial(
        consumer.call_soon, partial(restore, consumer)
    )


def _is_woken_by_calls(hub: Any) -> bool:
    """Whether what another thread leaves to a hub ends its wait: since kombu 5.7."""
    return hub is not None and hasattr(type(hub), "_create_waker")


def _go_round_for_calls(consumer: Any, turn: Callable[[], None]) -> None:
    """What is left to a loop does not wait for the next message, or the next timer.

    Of a queue whose consumer is to be cancelled it would still be taken: a whole claim of them. And
    while all that may be fetched is fetched, no message comes before what threads acknowledge is.
    """
    call_soon = type(consumer).call_soon

    def call_and_turn(*args: Any, **kwargs: Any) -> Any:
        left = call_soon(consumer, *args, **kwargs)
        turn()
        return left

    consumer.call_soon = call_and_turn


def _acknowledge_at_once(consumer: Any) -> None:
    """A claim need not wait for the loop, wherever its task has ended.

    Its acknowledgement is written down and nothing more; Celery leaves it to the next turn of the
    loop, which is made for it then. Before 5.7 also in a green pool, where the loop stands still
    while the pool is full: what was revoked then would not end. Since 5.7 not in one.
    """
    name = "call_soon_ack" if hasattr(consumer, "call_soon_ack") else "call_soon"
    if name == "call_soon_ack" and consumer.hub is None:
        return
    later = getattr(consumer, name)
    later = getattr(later, "_later", later)  # what is there is of an earlier connection
    ack = Message.ack_log_error

    def at_once(p: Any, *args: Any, **kwargs: Any) -> Any:
        is_ack = getattr(p, "__func__", None) is ack
        may_go = is_ack and isinstance(p.__self__.delivery_tag, Tag)
        return p(*args, **kwargs) if may_go else later(p, *args, **kwargs)

    at_once._later = later  # type: ignore[attr-defined]
    setattr(consumer, name, at_once)
