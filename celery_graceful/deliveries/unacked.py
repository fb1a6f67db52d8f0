"""kombu's ``unacked`` hash: what a worker without claims holds on Redis, and how it goes back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery.utils.log import get_logger
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.messages.redelivered_flag import mark_redelivered
from celery_graceful.store.client import make_client
from celery_graceful.store.scripts import script
from celery_graceful.system.describe import describe
from celery_graceful.system.portions import portions

__all__ = ["Unacked", "is_fanout"]

logger = get_logger(__name__)

#: Seconds for what only saves time.
UNBLOCK_TIMEOUT = 0.5


class Unacked:
    """That of one connection; asked over connections of its own, with time-outs."""

    def __init__(self) -> None:
        self._script = script("requeue").text
        self._clients: dict[tuple[float, bool], Any] = {}

    def give_back(
        self,
        channel: Any,
        requests: Iterable[HeldMessage],
        tail: bool,
        timeout: float,
        own_thread: bool,
    ) -> None:
        """Move messages to the head of their queues, or to the tail.

        Args:
            channel: That they came over.
            requests: Whose messages; the first one is the next to be delivered.
            tail: To the tail.
            timeout: Seconds that Redis may take to answer.
            own_thread: The caller is not the loop.
        """
        client = self._client(channel, timeout, own_thread)
        prefix = channel.global_keyprefix or ""
        unacked = prefix + channel.unacked_key
        index = prefix + channel.unacked_index_key
        # Last first: each goes in front of the one before it.
        order = list(requests)[::-1]
        for portion in portions(order, lambda request: len(request.message.body or "")):
            begun = {request.message.delivery_tag: request.has_begun for request in portion}
            moves: list[Any] = []
            for tag, entry in zip(begun, client.hmget(unacked, list(begun)), strict=True):
                if entry is not None:
                    payload, queue = _decode(channel, entry, begun[tag])
                    moves += [tag, prefix + queue, payload]
            if moves:
                client.eval(self._script, 2, unacked, index, "LPUSH" if tail else "RPUSH", *moves)
            for tag in begun:
                channel.qos._quick_ack(tag)  # kombu must not restore it at exit

    def drop(self, message: Any, timeout: float, own_thread: bool) -> None:
        """It goes nowhere. As ``give_back``."""
        channel, tag = message.channel, message.delivery_tag
        if channel.connection is not None:  # else it went with the connection
            ask = self._client(channel, timeout, own_thread).execute_command
            prefix = channel.global_keyprefix or ""
            ask("HDEL", f"{prefix}{channel.unacked_key}", tag)
            ask("ZREM", f"{prefix}{channel.unacked_index_key}", tag)
            channel.qos._quick_ack(tag)

    def end_fetch(self, channel: Any) -> None:
        """Ask Redis to end a fetch (BRPOP) now; where it will not, it ends by itself."""
        try:
            host, port = channel._in_poll._sock.getsockname()[:2]
            client = self._client(channel, UNBLOCK_TIMEOUT, False)
            for other in client.client_list():
                if other["addr"] in (f"{host}:{port}", f"[{host}]:{port}"):
                    client.client_unblock(int(other["id"]))
        except Exception as exc:  # a Unix socket, a proxy, a server without CLIENT
            logger.debug("Could not end the fetch early: %s", describe(exc))

    def _client(self, channel: Any, timeout: float, own_thread: bool) -> Any:
        """A client like the channel's, that gives up after ``timeout`` seconds."""
        if channel.connection is None:
            raise ConnectionError("the connection that it came over is gone")
        key = (timeout, own_thread)  # under gevent a client belongs to the hub of its thread
        if key not in self._clients:
            self._clients[key] = make_client(channel._get_pool(), timeout)
        return self._clients[key]


def is_fanout(message: Any) -> bool:
    """Whether Redis has sent it to each worker that listened (fanout, ``Broadcast``)."""
    exchange = (message.delivery_info or {}).get("exchange")
    queues = getattr(message.channel, "_fanout_queues", {})
    return any(exchange == name for name, _ in list(queues.values()))


def _decode(channel: Any, entry: bytes, begun: bool) -> tuple[str, str]:
    """The message of an ``unacked`` entry, marked as redelivered, and the list it goes to."""
    payload, exchange, routing_key = loads(bytes_to_str(entry))
    queues = channel._lookup(exchange, routing_key)
    mine = [queue for queue in queues if queue in channel.active_queues] or queues
    priority = channel._get_message_priority(payload, reverse=False)
    return mark_redelivered(dumps(payload), begun=begun), channel._q_for_pri(mine[0], priority)
