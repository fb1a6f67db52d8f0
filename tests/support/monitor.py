"""What a Redis is asked for."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import redis

__all__ = ["monitored"]


@contextmanager
def monitored(client: redis.Redis) -> Iterator[list[str]]:
    """The commands that arrive meanwhile for the client's database; not those within scripts."""
    commands: list[str] = []
    db, end = client.connection_pool.connection_kwargs.get("db") or 0, uuid.uuid4().hex
    with client.monitor() as monitor:
        yield commands
        client.echo(end)
        for one in monitor.listen():
            if end in one["command"]:
                break
            if one["db"] == db and one["client_type"] != "lua":
                commands.append(one["command"])
