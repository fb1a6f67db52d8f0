"""Redis transports as other people write them: derived from kombu's, or all their own."""

from __future__ import annotations

from queue import Empty

import redis
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

from tests.apps import say

KINDS = ("Derived", "OwnChannel", "OwnFetch", "Foreign")
TRANSPORT_ALIASES.update({kind.lower(): f"tests.support.transports:{kind}" for kind in KINDS})


class Derived(kombu_redis.Transport):
    """With a driver name of its own."""

    driver_name = "shop"


class CountingQoS(kombu_redis.QoS):
    """Tells what it is asked, and leaves the rest to kombu."""

    def append(self, message, delivery_tag):
        say("appended")
        super().append(message, delivery_tag)

    def ack(self, delivery_tag):
        say("acknowledged")
        super().ack(delivery_tag)


class CountingChannel(kombu_redis.Channel):
    """Tells what it is asked, and leaves the rest to kombu."""

    QoS = CountingQoS

    def _put(self, queue, message, **kwargs):
        message["headers"]["shop"] = "sent"
        super()._put(queue, message, **kwargs)


class OwnChannel(kombu_redis.Transport):
    """With a channel and a QoS of its own."""

    Channel = CountingChannel


class OwnFetch(kombu_redis.Transport):
    """Looks before it waits."""

    class Channel(kombu_redis.Channel):
        def _brpop_start(self, *args, **kwargs):
            super()._brpop_start(*args, **kwargs)


class ForeignChannel(virtual.Channel):
    """Lists of Redis, and nothing else."""

    @property
    def redis(self):
        return self.connection.redis

    def _get(self, queue, timeout=None):
        text = self.redis.rpop(queue)
        if text is None:
            raise Empty
        return loads(bytes_to_str(text))

    def _put(self, queue, message, **kwargs):
        self.redis.lpush(queue, dumps(message))

    def _size(self, queue):
        return self.redis.llen(queue)

    def _purge(self, queue):
        return self.redis.delete(queue)


class Foreign(virtual.Transport):
    """Says that it is Redis, and is not kombu's."""

    Channel = ForeignChannel
    driver_type = driver_name = "redis"
    polling_interval = 0.05
    connection_errors = (*virtual.Transport.connection_errors, redis.ConnectionError)

    def __init__(self, client, **kwargs):
        super().__init__(client, **kwargs)
        self.redis = redis.Redis(host=client.hostname, port=client.port, db=client.virtual_host)

    def driver_version(self):
        return redis.__version__
