"""The loop of a worker: what is acknowledged in it at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from kombu.message import Message

from celery_graceful.claims.held_claims import Tag
from celery_graceful.worker.loop import Loop, _acknowledge_at_once


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

    hub = "there is one"

    def __init__(self, left: list[Any]) -> None:
        self.call_soon = left.append
        self.call_soon_ack = lambda p, *_: left.append(p)

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


def test_a_claim_is_acknowledged_at_once_in_the_loops_own_thread(
    consumer: Any, left: list[Any]
) -> None:
    channel, tag = Channel(), Tag("worker", 1)
    Loop(None, green=False).attach(consumer)
    consumer.call_soon_ack(message(channel, tag).ack_log_error, None, ())
    assert (channel.acked, left) == ([tag], [])


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
    calls = [other.ack_log_error, claim.reject_log_error, claim.ack_log_error]
    for call in calls[:2]:
        consumer.call_soon_ack(call, None, ())
    thread = threading.Thread(target=consumer.call_soon_ack, args=(calls[2], None, ()))
    thread.start()
    thread.join(10)
    assert (channel.acked, left) == ([], calls)
