"""Real servers for tests, each on free loopback ports in a folder of its own.

A server ends with the process that started it: see `tests.support.processes`.
"""

from tests.servers.base import AnyServer, Server, Startable
from tests.servers.rabbitmq import RabbitNode, RabbitServer
from tests.servers.redis import RedisCluster, RedisServer
from tests.servers.sentinels import SentinelServers
from tests.servers.shared import SharedRabbit

__all__ = [
    "AnyServer",
    "RabbitNode",
    "RabbitServer",
    "RedisCluster",
    "RedisServer",
    "SentinelServers",
    "Server",
    "SharedRabbit",
    "Startable",
]
