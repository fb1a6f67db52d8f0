"""Brokers that know of no acknowledgements.

kombu makes queues of tables, files and the like: a message is off them when it is fetched, and
what is not acknowledged is kept in this process's memory alone. kombu writes it back when the
channel is closed; a worker that has to leave at once comes to that too late.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import memory, virtual

__all__ = ["ends_here", "is_kept_here", "promise", "queue_of"]


def is_kept_here(channel: Any) -> bool:
    """Whether what came over ``channel``, and is not acknowledged, is in this process alone."""
    return (
        isinstance(channel, virtual.Channel)
        and channel.do_restore
        and channel.qos.restore_at_shutdown
        and type(channel).basic_ack is virtual.Channel.basic_ack
        and all(
            getattr(type(channel.qos), name) is getattr(virtual.QoS, name)
            for name in ("append", "ack", "reject")
        )
    )


def ends_here(channel: Any) -> bool:
    """Whether its queues are in this process, and end with it."""
    return isinstance(channel, memory.Channel)


def promise(channel: Any) -> str:
    """What becomes of messages that come over it, for people."""
    if ends_here(channel):
        return "Its queues are in this process, and end with it, however that ends"
    if is_kept_here(channel):
        return (
            "It knows of no acknowledgements: what this worker holds is in its memory alone. A "
            "stop sends it back, to the tail; kill -9 loses it"
        )
    return (
        "What comes over it is fetched, kept and given back by its own rules, also when a worker "
        "is killed or cut off"
    )


def queue_of(app: Any, message: Any) -> str | None:
    """The queue that a message of such a broker came from."""
    channel, info = message.channel, message.delivery_info or {}
    if not isinstance(channel, virtual.Channel):
        return None
    queues = channel._lookup(info.get("exchange"), info.get("routing_key"))
    mine = [queue for queue in queues if queue in app.amqp.queues.consume_from]
    return next(iter(mine or queues), None)
