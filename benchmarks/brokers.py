"""Brokers of benchmarks that are not of Redis alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kombu import Queue

from tests.servers import RabbitServer, RedisServer

__all__ = ["BROKERS", "Broker"]


@dataclass(frozen=True)
class Broker:
    """What messages go over.

    Attributes:
        name: For the table.
        queue_type: Of RabbitMQ; empty for Redis.
    """

    name: str
    queue_type: str = ""

    def url(self, redis: RedisServer, rabbit: RabbitServer) -> str:
        """Of its server."""
        return rabbit.url() if self.queue_type else redis.url()

    def configure(self, conf: Any, queue: str) -> None:
        """Let an app use a queue of this kind."""
        if self.queue_type:
            arguments = {"x-queue-type": self.queue_type}
            conf.task_queues = [Queue(queue, routing_key=queue, queue_arguments=arguments)]

    def env(self, redis: RedisServer, rabbit: RabbitServer) -> dict[str, str]:
        """The same, for ``benchmarks.app``."""
        if not self.queue_type:
            return {}
        return {
            "BENCH_BROKER": self.url(redis, rabbit),
            "BENCH_QUEUE_TYPE": self.queue_type,
            "BENCH_STORE": redis.url(),
        }


BROKERS = (
    Broker("Redis"),
    Broker("RabbitMQ, classic", "classic"),
    Broker("RabbitMQ, quorum", "quorum"),
)
