"""The loop of a worker: what is acknowledged in it at once."""

from __future__ import annotations

import os
import select
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state
from kombu import Connection
from kombu.asynchronous import Hub
from kombu.message import Message

from celery_graceful.claims.held_claims import Claims, Tag
from celery_graceful.claims.listening import Listening
from celery_graceful.claims.qos import QoS
from celery_graceful.worker.loop import Loop, _acknowledge_at_once, _go_on_while_there_is_more


class Channel:
    no_ack_consumers = None

    def __init__(self) -> None:
        self.acked: list[Any] = []

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        self.acked.append(delivery_tag)


@pytest.fixture
def left() -> list[Any]:
    """What is left to the loop."""
    return []


class LoopsConsumer:
    """As far as the loop changes it."""

    hub = Hub()
    connection = Connection("memory://")
    event_dispatcher: Any = None

    def __init__(self, left: list[Any]) -> None:
        self.left = left
        self.call_soon_ack = lambda p, *_: left.append(p)

    def call_soon(self, p: Any) -> None:
        self.left.append(p)

    def _restore_prefetch_count_after_connection_restart(self) -> None: ...


class OlderConsumer:
    """Of Celery before 5.7, in a green pool."""

    hub = None

    def __init__(self, left: list[Any]) -> None:
        self.call_soon = lambda p, *_: left.append(p)


@pytest.fixture
def consumer(left: list[Any]) -> Any:
    return LoopsConsumer(left)


def message(channel: Channel, tag: Any) -> Message:
    return Message(body="", delivery_tag=tag, channel=channel)


def test_a_claim_is_acknowledged_at_once_in_any_thread(consumer: Any, left: list[Any]) -> None:
    channel, tags = Channel(), [Tag("worker", 1), Tag("worker", 2)]
    Loop(None, green=False).attach(consumer)
    calls = [message(channel, tag).ack_log_error for tag in tags]
    consumer.call_soon_ack(calls[0], None, ())
    in_thread(consumer.call_soon_ack, calls[1], None, ())
    assert (channel.acked, left) == (tags, [])


def test_in_a_green_pool_it_does_not_wait_for_a_place_in_the_pool(left: list[Any]) -> None:
    """The loop stands still as long as the pool is full; Celery sees to that since 5.7."""
    consumer, channel, tag = OlderConsumer(left), Channel(), Tag("worker", 1)
    for _ in range(2):  # it connects again
        _acknowledge_at_once(consumer)
    consumer.call_soon(message(channel, tag).ack_log_error, None, ())
    other = message(channel, "1").ack_log_error
    consumer.call_soon(other, None, ())
    assert (channel.acked, left) == ([tag], [other])


def test_all_else_is_left_to_the_loop(consumer: Any, left: list[Any]) -> None:
    channel = Channel()
    claim, other = message(channel, Tag("worker", 1)), message(channel, "1")
    Loop(None, green=False).attach(consumer)
    calls = [other.ack_log_error, claim.reject_log_error]
    for call in calls:
        consumer.call_soon_ack(call, None, ())
    assert (channel.acked, left) == ([], calls)


def test_a_hub_does_not_wait_while_something_is_left_for_its_next_turn() -> None:
    hub, done = Hub(), list[str]()
    _go_on_while_there_is_more(hub)
    hub.call_later(60, done.append, "waited")
    hub.call_soon(lambda: hub.call_soon(done.append, "more"))
    turns = hub.create_loop()
    for _ in range(2):
        next(turns)
    assert done == ["more"]


@pytest.mark.parametrize(("url", "goes_on"), [("amqp://", True), ("memory://", False)])
def test_only_rabbitmqs_loop_goes_on(consumer: Any, url: str, goes_on: bool) -> None:
    """Others leave calls to each next turn, for as long as there is no room."""
    consumer.hub, consumer.connection = Hub(), Connection(url)
    Loop(None, green=False).attach(consumer)
    assert ("fire_timers" in vars(consumer.hub)) is goes_on


def test_other_threads_make_the_loop_go_round_once_until_it_does() -> None:
    loop, hub = Loop(None, green=False), Hub()
    loop.turn()  # it has no hub yet
    loop.register(hub)
    fd, on_turn = next(
        (fd, call) for fd, (call, _) in hub.readers.items() if fd != loop.bell.read_fd
    )
    loop.turn()  # it goes round already
    assert not is_rung(fd)
    for _ in range(2):
        in_thread(loop.turn)
        in_thread(loop.turn)
        assert os.read(fd, 10) == b"."
        on_turn()
    in_thread(loop.turn)
    on_turn()
    assert not is_rung(fd)
    loop.end(0)


@pytest.mark.parametrize(
    ("ahead", "limit", "running", "held", "room", "expected"),
    [
        (4, 2, 2, 8, 0, True),  # all that may be fetched is
        (4, 2, 2, 6, 2, True),
        (4, 2, 2, 5, 3, False),  # three can be fetched at once
        (4, 2, 2, 4, 1, False),  # the others wait for something else than the pool
        (4, 2, 2, 1, 2, False),  # a place of the pool is free
        (4, 10, 10, 30, 10, True),
        (4, 10, 10, 25, 15, False),
        (4, 10, 3, 30, 10, True),  # of greenlets, only those that run are counted
        (1, 2, 2, 2, 0, False),  # nothing is fetched ahead
        (0, 2, 2, 90, 10, False),  # without limit
        (4, None, None, 90, 1, False),
    ],
)
def test_when_the_pool_has_enough_to_do(
    monkeypatch: pytest.MonkeyPatch,
    ahead: int,
    limit: int | None,
    running: int | None,
    held: int,
    room: int,
    expected: bool,
) -> None:
    pool = SimpleNamespace(limit=limit, num_processes=running)
    worker = SimpleNamespace(pool=pool, prefetch_multiplier=ahead)
    monkeypatch.setattr(state, "reserved_requests", range(held))
    assert Loop(worker, green=False).has_enough(room, took=0.002) is expected


@pytest.mark.parametrize(
    ("ahead", "places", "held", "room", "expected"),
    [
        (4, 2, 4, 4, True),  # all children but one have a next task
        (4, 2, 3, 5, False),
        (4, 10, 16, 24, True),
        (4, 10, 15, 25, False),
        (4, 1, 3, 1, True),
        (4, 1, 2, 2, False),  # the last one that waits
        (2, 2, 3, 1, False),
        (1, 10, 9, 1, False),
    ],
)
def test_it_fetches_more_at_once_from_a_broker_that_is_near(
    monkeypatch: pytest.MonkeyPatch, ahead: int, places: int, held: int, room: int, expected: bool
) -> None:
    pool = SimpleNamespace(limit=places, num_processes=places)
    worker = SimpleNamespace(pool=pool, prefetch_multiplier=ahead)
    monkeypatch.setattr(state, "reserved_requests", range(held))
    assert Loop(worker, green=False).has_enough(room, took=0.0005) is expected


@pytest.mark.parametrize("kind", ["EVALSHA", "EXISTS", "BRPOP"])
@pytest.mark.parametrize("enough", [True, False])
def test_the_loop_turns_for_room_that_it_uses(kind: str, enough: bool) -> None:
    turns: list[int] = []
    book = Claims(None, on_room=lambda: turns.append(1), has_enough=lambda room, took: enough)  # type: ignore[arg-type]
    channel = SimpleNamespace(_book=book, _next=kind, _in_poll=None, _room=lambda: 1, _took=0.0)
    qos = QoS.__new__(QoS)
    qos.channel, qos._quick_ack = channel, lambda tag: None
    tag = book.tag("worker", 1)
    book.ack = lambda tag: None  # type: ignore[method-assign]
    book.acked_at = time.monotonic() + 60
    qos.ack(tag)
    assert len(turns) == (0 if enough and kind == "EVALSHA" else 1)
    book.acked_at = 0.0
    assert not qos.can_wait
    channel._in_poll = "something is fetched"
    qos.ack(tag)
    assert len(turns) == (0 if enough and kind == "EVALSHA" else 1)


def in_thread(call: Any, *args: Any) -> None:
    thread = threading.Thread(target=call, args=args)
    thread.start()
    thread.join(60)


def is_rung(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_kombu_tells_the_loop_once_what_to_listen_to() -> None:
    class Listens:
        cycle = SimpleNamespace(_update_brpop_polling=None)

        def register_with_event_loop(self, connection: Any, loop: Any) -> None:
            self.loop = loop

    class Transport(Listening, Listens): ...

    transport, hub = Transport(), Hub()
    told: list[Any] = []
    add = hub.add_reader
    hub.add_reader = lambda *args: (told.append(args), add(*args))
    transport.register_with_event_loop(None, hub)
    loop = transport.loop
    read, write = os.pipe()
    for callback, args in ((print, (1,)), (print, (1,)), (print, (2,)), (repr, (2,))):
        loop.add_reader(read, callback, *args)
    assert told == [(read, print, 1), (read, print, 2), (read, repr, 2)]
    loop.remove_reader(read)
    loop.add_reader(read, repr, 2)
    assert told[3:] == [(read, repr, 2)]
    assert loop.poller is hub.poller
    os.close(read)
    os.close(write)
