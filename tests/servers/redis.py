"""A redis-server."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import ClassVar

import redis

from tests.servers.base import Server
from tests.support.processes import LOOPBACK, free_port


class RedisServer(Server):
    """A redis-server.

    Args:
        appendonly: keep the data over `stop` and `kill`; without, Redis comes back empty.
        options: directives of its configuration, such as `{"replicaof": "127.0.0.1 6379"}`.
    """

    programs = ("redis-server",)
    databases: ClassVar[int] = 1024

    def __init__(self, appendonly: bool = False, options: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.appendonly = appendonly
        self.options = dict(options or {})
        self._numbers = itertools.count(1)  # 0 is that of whoever names none

    def url(self, db: int = 0) -> str:
        """The URL of one of its databases."""
        return f"redis://{LOOPBACK}:{self.port}/{db}"

    def client(self, db: int = 0, timeout: float = 30.0) -> redis.Redis:
        """A client of one database; `timeout` in seconds is that of its socket."""
        return redis.Redis.from_url(self.url(db), socket_timeout=timeout, decode_responses=True)

    def fresh_db(self) -> int:
        """The number of an empty database that no test used lately."""
        db = next(self._numbers) % self.databases
        with self.client(db) as client:
            client.flushdb()
        return db

    def _launch(self) -> None:
        options = {
            "port": str(self.port),
            "bind": LOOPBACK,
            "dir": str(self.folder),
            "databases": str(self.databases),
            "save": "",
            "appendonly": "yes" if self.appendonly else "no",
            # What was written outlives `kill`: only a machine that crashes needs more. And while
            # Redis waits for a slow disk, it answers before it has written.
            "appendfsync": "no",
            "repl-diskless-sync-delay": "0",
            **self.options,
        }
        arguments = ((f"--{name}", *value.split(" ")) for name, value in options.items())
        self._spawn("redis-server", *itertools.chain(*arguments))

    def _ping(self) -> None:
        with self.client(timeout=1.0) as client:
            client.ping()


class RedisCluster(RedisServer):
    """A Redis Cluster of one server, which has all slots."""

    def __init__(self) -> None:
        super().__init__(options={"cluster-enabled": "yes", "cluster-port": str(free_port())})

    def _ping(self) -> None:
        with self.client(timeout=1.0) as client:
            if not client.cluster("slots"):
                client.cluster("addslots", *range(16384))
            if client.cluster("info")["cluster_state"] != "ok":
                raise redis.ConnectionError("the cluster is not up yet")
