"""The connection that a worker's events and heartbeats go over: it never holds up its loop."""

from __future__ import annotations

from typing import Any

from celery_graceful.messages.amqp import is_amqp

__all__ = ["close_in_time", "read_what_is_there", "stay_lost", "wait_for_no_confirms"]

#: Seconds for which a broker may leave each of two questions without an answer when it is closed.
PATIENCE = 0.5


def read_what_is_there(consumer: Any) -> None:
    """Never wait for what comes over it: RabbitMQ's heartbeats, and nothing else.

    Since 5.7 Celery waits a tenth of a second for them in each turn of a loop without a hub, in
    which one message is taken. Nor is anything read while a greenlet sends: it may wait for an
    answer, that an exchange is declared for instance, for ever if another one has read that.
    """
    dispatcher, events = consumer.event_dispatcher, _amqp_of(consumer)
    if events is None:
        return

    def drain_events(**_: Any) -> Any:
        if not dispatcher.mutex.acquire(blocking=False):
            raise TimeoutError("a greenlet sends, and reads what comes")
        try:
            return type(events).drain_events(events, timeout=0)
        finally:
            dispatcher.mutex.release()

    events.drain_events = drain_events


def wait_for_no_confirms(consumer: Any) -> None:
    """Events may be lost: nobody waits for a broker that confirms nothing, as it is full or hangs.

    With ``confirm_publish`` the loop would, for the answer to its heartbeat, and hear of no end.
    """
    dispatcher, events = consumer.event_dispatcher, _amqp_of(consumer)
    if events is None or not events.transport_options.get("confirm_publish"):
        return
    events.transport_options = {**events.transport_options, "confirm_publish": False}
    if events.connected:
        events.connection.confirm_publish = False
        if dispatcher.producer is not None:  # its channel is in that mode, if anything was sent
            dispatcher.producer.revive(events.channel())


def close_in_time(consumer: Any) -> None:
    """RabbitMQ reads nothing from who has sent something while it is full: it is left then.

    Celery waits for its answers without limit, a worker that has nothing left to do until its last
    resort.
    """
    events = _amqp_of(consumer)
    if events is None:
        return

    def close() -> None:
        if events.connected:
            events.connection.sock.settimeout(PATIENCE)
        type(events).close(events)

    events.close = close


def stay_lost(consumer: Any) -> None:
    """Once lost it is made anew at once, or never: then it ends the loop.

    Celery sends heartbeats from its loop, and would try until the broker is back: nothing else was
    done meanwhile, a drain least of all. What is not sent waits for the next dispatcher.

    Nor is it made anew by who looks after heartbeats (since Celery 5.7), or later: its dispatcher
    would keep the channel that is gone, on which kombu then declares the exchange of events, for
    ever, and makes a connection each time: the loop never came back from that.
    """
    events = getattr(consumer.event_dispatcher, "connection", None)
    if events is None:
        return
    ensure, check, is_lost = type(events)._ensure_connection, type(events).heartbeat_check, False

    def connect_once(*_: Any, reraise_as_library_errors: bool = True, **__: Any) -> Any:
        nonlocal is_lost
        if is_lost:
            _raise_lost()
        how = {"reraise_as_library_errors": reraise_as_library_errors}
        try:
            return ensure(events, max_retries=max(0, len(events.alt) - 1), **how)
        except Exception:
            is_lost = True
            if consumer.hub is not None:
                consumer.call_soon(_raise_lost)
            elif consumer.connection is not None:
                consumer.connection.drain_events = _raise_lost
            raise

    def heartbeat_check(*args: Any, **kwargs: Any) -> Any:
        if not events.connected:
            _raise_lost()
        return check(events, *args, **kwargs)

    events._ensure_connection = connect_once
    if is_amqp(events):
        events.heartbeat_check = heartbeat_check


def _amqp_of(consumer: Any) -> Any:
    """The connection, where there is one and it leads to RabbitMQ; else ``None``."""
    events = getattr(consumer.event_dispatcher, "connection", None)
    return events if events is not None and is_amqp(events) else None


def _raise_lost(**_: Any) -> None:
    raise ConnectionResetError("the connection of events is lost")
