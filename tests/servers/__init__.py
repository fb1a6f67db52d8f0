"""Real servers for tests, each on free loopback ports in a folder of its own.

A server ends with the process that started it: see `tests.support.processes`.
"""

from tests.servers.base import AnyServer, Server, Startable
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.sentinels import SentinelServers

__all__ = ["AnyServer", "RabbitServer", "RedisServer", "SentinelServers", "Server", "Startable"]
