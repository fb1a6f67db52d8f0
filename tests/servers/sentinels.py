"""Real Redis with Sentinel for tests: who is the master, and how another one takes its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import redis

from tests.servers.base import Server
from tests.servers.redis import RedisServer
from tests.support.processes import LOOPBACK


class _SentinelServer(Server):
    """One sentinel, that watches one master."""

    def __init__(self, master: int) -> None:
        super().__init__()
        self._master = master

    def client(self, timeout: float = 30.0) -> redis.Redis:
        """A client of it."""
        return redis.Redis(LOOPBACK, self.port, socket_timeout=timeout, decode_responses=True)

    def master(self) -> int:
        """The port of the server that it takes for the master."""
        with self.client() as client:
            address: Any = client.sentinel_get_master_addr_by_name(SentinelServers.name)
            return int(address[1])

    def greet_every(self, milliseconds: int) -> None:
        """Let it tell the others of itself so often: they hear of it, and of a failover, by that.

        Its default, 2,000, also makes for the seconds in which an old master stays a master.
        """
        with self.client() as client, suppress(redis.ResponseError):  # not before Redis 7
            client.execute_command("SENTINEL", "DEBUG", "publish-period", milliseconds)

    def takes_for_dead_after(self, seconds: float) -> None:
        """Let a master that is silent for so long be a dead one."""
        with self.client() as client:
            milliseconds = int(seconds * 1000)
            client.sentinel_set(SentinelServers.name, "down-after-milliseconds", milliseconds)

    def knows_all(self, name: str, others: int) -> bool:
        """Whether it knows the others, and a replica that is fit to be the master."""
        with self.client() as client:
            known = client.sentinel_master(name)
            fit = any(one["flags"] == "slave" for one in client.sentinel_slaves(name))
        return fit and (known["num-other-sentinels"], known["flags"]) == (others, "master")

    def _launch(self) -> None:
        name = SentinelServers.name
        path = self.folder / "sentinel.conf"  # which it rewrites, and reads again at a restart
        if not path.exists():
            path.write_text(
                f"port {self.port}\nbind {LOOPBACK}\ndir {self.folder}\n"
                f"sentinel monitor {name} {LOOPBACK} {self._master} 2\n"
                f"sentinel down-after-milliseconds {name} {int(SentinelServers.patience * 1000)}\n"
                f"sentinel failover-timeout {name} 3000\n"
            )
        self._spawn("redis-server", str(path), "--sentinel")

    def _ping(self) -> None:
        with self.client(timeout=1.0) as client:
            client.ping()


class SentinelServers:
    """A master, a replica, and three sentinels that let one take the other's place.

    Use it as a context manager, or call `start` and `close`. What happens to a server is done to
    it alone: `master.pause()`, `master.kill()`, and `start()` or `resume()` of the same object.
    A master that is silent is taken for dead in `wait_failover` alone: else a busy machine decides.
    """

    #: What the master is called.
    name: ClassVar[str] = "shop"
    #: Seconds of silence after which the master is taken for dead: while that is waited for, and
    #: else.
    impatience: ClassVar[float] = 1.0
    patience: ClassVar[float] = 600.0

    def __init__(self) -> None:
        first = RedisServer()
        self.nodes = (first, RedisServer(options={"replicaof": f"{LOOPBACK} {first.port}"}))
        self.sentinels = [_SentinelServer(first.port) for _ in range(3)]

    def __enter__(self) -> SentinelServers:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @classmethod
    def missing(cls) -> list[str]:
        """The programs that it needs and this machine has not."""
        return RedisServer.missing()

    @property
    def options(self) -> dict[str, Any]:
        """Transport options, of a broker and of a result backend, that go with `url`."""
        return {"master_name": self.name}

    def url(self, db: int = 0) -> str:
        """The URL of one of its databases, by all sentinels."""
        return ";".join(f"sentinel://{LOOPBACK}:{one.port}/{db}" for one in self.sentinels)

    @property
    def master(self) -> RedisServer:
        """The one that the sentinels name now; as long as they do not agree, the old one."""
        ports = {one.master() for one in self.sentinels if one.running()}
        first, second = self.nodes
        if len(ports) == 1:
            self._master = first if ports == {first.port} else second
        return self._master

    @property
    def replica(self) -> RedisServer:
        """The one that is not the master."""
        first, second = self.nodes
        return second if self.master is first else first

    def client(self, db: int = 0, timeout: float = 30.0) -> redis.Redis:
        """A client of the server that is the master now, and stays with it."""
        return self.master.client(db, timeout)

    def start(self) -> None:
        """Start all and return when a failover would succeed."""
        try:
            for node in self.nodes:  # the replica first known to the master, then to sentinels:
                node.start()  # they look for replicas every ten seconds
            self._master = self.nodes[0]
            self._wait(self._in_step, "the replica has what the master has")
            for one in self.sentinels:
                one.start()
                one.greet_every(100)
            self.wait_until_whole()
            for one in self.sentinels:
                one.greet_every(2000)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all at once and remove their folders."""
        for server in (*self.sentinels, *self.nodes):
            server.close()

    def failover(self) -> RedisServer:
        """Have the replica take the master's place (`SENTINEL FAILOVER`); see `wait_failover`.

        A sentinel gives a try up that takes too long on a busy machine, and refuses one where it
        has not heard the replica lately: then it is asked again.
        """
        old, first = self.master, self.sentinels[0]

        def is_over() -> bool:
            if first.master() == old.port:
                with first.client() as client:
                    client.sentinel_failover(self.name)  # it says so if it is at it
            return self.master is not old

        self._wait(is_over, "another master")
        return self.master

    def wait_failover(self, old: RedisServer) -> RedisServer:
        """Wait until all sentinels name another master than `old`, which is silent; return it.

        The old one, if it runs, takes writes for some ten seconds more.
        """
        running = [one for one in self.sentinels if one.running()]
        for one in running:
            one.takes_for_dead_after(self.impatience)
        new = self._wait_for_another(old)
        for one in running:
            one.takes_for_dead_after(self.patience)
        return new

    def _wait_for_another(self, old: RedisServer) -> RedisServer:
        self._wait(lambda: self.master is not old, "another master")
        return self.master

    def wait_until_copied(self) -> None:
        """Wait until the replica has all that has been written to the master by now."""
        with self.master.client() as client:
            written = client.info("replication")["master_repl_offset"]

        def has_it() -> bool:
            with self.replica.client() as client:
                return bool(client.info("replication").get("slave_repl_offset", 0) >= written)

        self._wait(has_it, "the replica has what was written")

    def wait_until_whole(self) -> None:
        """Wait until the sentinels know each other and the replica, which has all: again, after
        a failover of which all servers run.
        """
        others = len(self.sentinels) - 1
        self._wait(
            lambda: self._in_step() and all(s.knows_all(self.name, others) for s in self.sentinels),
            "master, replica and sentinels know each other",
        )

    def _in_step(self) -> bool:
        with self.replica.client() as client:
            about = client.info("replication")
        return (about["role"], about.get("master_link_status")) == ("slave", "up")

    @staticmethod
    def _wait(condition: Callable[[], object], what: str, timeout: float = 120.0) -> None:
        end = time.monotonic() + timeout
        while True:
            try:
                if condition():
                    return
            except (redis.RedisError, OSError):
                pass
            if time.monotonic() > end:
                raise RuntimeError(f"not in {timeout:g} s: {what}")
            time.sleep(0.05)
