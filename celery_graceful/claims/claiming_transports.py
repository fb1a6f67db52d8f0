"""Which transports claim: kombu's for Redis, and whatever is derived from it.

Claims are mixed into the channel that a transport has, below what its author wrote: his methods run
first, and what they leave to kombu is done by ours. A channel that fetches in a way of its own is
left alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from kombu.transport import redis as kombu_redis

from celery_graceful.claims import transport as ours

__all__ = ["what_keeps_from_claiming", "with_claims"]

#: How a channel of kombu's fetches: we do the one, and expect the answer in the other.
FETCH = ("_brpop_start", "_brpop_read")

# As they were when we were imported.
_Transport, _SentinelTransport = kombu_redis.Transport, kombu_redis.SentinelTransport
_Channel, _SentinelChannel, _QoS = kombu_redis.Channel, kombu_redis.SentinelChannel, kombu_redis.QoS


@cache
def with_claims(cls: type) -> type:
    """A transport class with claims mixed into its channel; as it is where that cannot be.

    Made once for each class, so that its instances are of one class.
    """
    if cls in (_Transport, _SentinelTransport):
        return ours.Transport if cls is _Transport else ours.SentinelTransport
    channel: type = getattr(cls, "Channel", object)
    if issubclass(channel, ours.Channel) or not _can_mix(cls, channel):
        return cls
    is_sentinel = issubclass(channel, _SentinelChannel)
    claims = _mix(channel, ours.SentinelChannel if is_sentinel else ours.Channel)
    claims.QoS = _mix(channel.QoS, ours.QoS)  # type: ignore[attr-defined]
    base = ours.SentinelTransport if issubclass(cls, _SentinelTransport) else ours.Transport
    mixed = _mix(cls, base)
    mixed.Channel = claims  # type: ignore[attr-defined]
    return mixed


def what_keeps_from_claiming(transport: Any, channel: Any) -> str:
    """Why messages that come over a channel are not claimed.

    Args:
        transport: A transport.
        channel: One of its channels.
    """
    if not isinstance(transport, _Transport) or not isinstance(channel, _Channel):
        return "it is not kombu's Redis transport, nor derived from it"
    if not channel.ack_emulation:
        return "the transport option ack_emulation is off"
    if not _can_mix(type(transport), type(channel)):
        return "its channel fetches in a way of its own"
    return "the app has connections of its own (app.amqp_cls, or app.amqp.Connection)"


def _can_mix(cls: type, channel: type) -> bool:
    return (
        issubclass(cls, _Transport)
        and issubclass(channel, _Channel)
        and issubclass(channel.QoS, _QoS)
        and all(getattr(channel, name) is getattr(_Channel, name) for name in FETCH)
    )


def _mix(theirs: type, mixin: type) -> type:
    """A class of theirs, with ``mixin`` between it and kombu's."""
    if issubclass(mixin, theirs):  # it is kombu's own
        return mixin
    about = {"__module__": theirs.__module__, "__doc__": theirs.__doc__}
    return type(theirs.__name__, (theirs, mixin), about)
