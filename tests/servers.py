"""Real Redis and RabbitMQ servers for tests, each on free loopback ports in a folder of its own.

A server ends with the process that started it: see `tests.support.processes`.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import os
import shutil
import signal
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar
from urllib.parse import quote

import amqp
import redis

from tests.support.processes import LOOPBACK, GuardedProcess, free_port

AServer = TypeVar("AServer", bound="Server")
AnyServer = TypeVar("AnyServer", bound="Startable")

# Debian's wrapper in /usr/sbin changes the user and the environment: the plain script comes first.
SEARCH_PATH = os.pathsep.join(
    ["/usr/lib/rabbitmq/bin", os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"]
)


class Startable(Protocol):
    """What a test can start for itself: one server, or some that belong together."""

    @classmethod
    def missing(cls) -> list[str]:
        """The programs that it needs and this machine has not."""

    def start(self) -> None:
        """Start it and return when it answers."""

    def close(self) -> None:
        """End it at once and remove its folder."""


class Server(ABC):
    """The life of a server. Use it as a context manager, or call `start` and `close`.

    `stop`, `kill` and `start` keep port and folder: clients can connect again after them.
    """

    programs: ClassVar[Sequence[str]]
    start_timeout: ClassVar[float] = 120.0

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="celery-graceful-"))
        self.processes: list[GuardedProcess] = []

    def __enter__(self: AServer) -> AServer:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @classmethod
    def missing(cls) -> list[str]:
        """The programs that it needs and this machine has not."""
        return [name for name in cls.programs if not shutil.which(name, path=SEARCH_PATH)]

    @property
    def pid(self) -> int:
        """The process id of the server itself."""
        return self.processes[-1].pid

    def start(self) -> None:
        """Start it and return when it answers."""
        try:
            self._launch()
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def stop(self, timeout: float = 60.0) -> None:
        """End it in good order (SIGTERM)."""
        self.resume_processes()
        self._end(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._end(signal.SIGKILL, timeout=60.0)

    def restart(self) -> None:
        """Stop it in good order and start it again."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nothing answers."""
        self.processes[-1].signal(signal.SIGSTOP)
        self.processes[-1].wait_paused()

    def resume(self) -> None:
        """Go on after `pause`, and return when it answers."""
        self.resume_processes()
        self._wait_until_ready()

    def resume_processes(self) -> None:
        """Go on after `pause`, without waiting."""
        for process in self.processes:
            process.signal(signal.SIGCONT)

    def running(self) -> bool:
        """Whether its processes live; they do while it is paused."""
        return bool(self.processes) and all(process.alive() for process in self.processes)

    def ensure_running(self) -> None:
        """Make good whatever a test did to it."""
        if self.running():
            self.resume()
        else:
            self.kill()
            self.start()

    def close(self) -> None:
        """End it at once and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @abstractmethod
    def _launch(self) -> None:
        """Start the processes with `_spawn`, the server's own as the last one."""

    @abstractmethod
    def _ping(self) -> None:
        """Raise an `OSError`, `RedisError` or `AMQPError` while it is not ready."""

    def _spawn(self, program: str, *args: str, **env: str) -> None:
        path = shutil.which(program, path=SEARCH_PATH)
        if path is None:
            raise FileNotFoundError(program)
        env = {"PATH": SEARCH_PATH, "HOME": str(self.folder), "LANG": "C.UTF-8", **env}
        self.processes.append(GuardedProcess([path, *args], env, self.folder))

    def _end(self, number: int, timeout: float) -> None:
        while self.processes:
            self.processes[-1].end(number, timeout)
            self.processes.pop()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while True:
            try:
                return self._ping()
            except (OSError, redis.RedisError, amqp.AMQPError) as error:
                alive = self.running()
                if alive and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                output = (self.folder / "output").read_text(errors="replace")[-2000:]
                problem = "does not answer" if alive else "ended while it started"
                raise RuntimeError(f"{type(self).__name__} {problem}:\n{output}") from error


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
        self._numbers = itertools.count()

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
            "repl-diskless-sync-delay": "0",
            **self.options,
        }
        arguments = ((f"--{name}", *value.split(" ")) for name, value in options.items())
        self._spawn("redis-server", *itertools.chain(*arguments))

    def _ping(self) -> None:
        with self.client(timeout=1.0) as client:
            client.ping()


class RabbitServer(Server):
    """A RabbitMQ node that knows no other: own cookie, own epmd. It keeps durable messages."""

    programs = ("rabbitmq-server", "epmd")
    credentials: ClassVar[str] = "guest:guest"

    def __init__(self, options: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.options = dict(options or {})
        self.http_port = free_port()
        self.dist_port = free_port()
        self.epmd_port = free_port()
        self._numbers = itertools.count(1)

    def url(self, vhost: str = "/", port: int = 0) -> str:
        """The URL of one of its virtual hosts, by a proxy's port if that is given."""
        return f"amqp://{self.credentials}@{LOOPBACK}:{port or self.port}/{quote(vhost, safe='')}"

    def vhost(self) -> str:
        """Make a new virtual host and return its name."""
        name = f"test-{next(self._numbers)}"
        self.api("PUT", f"vhosts/{name}")
        return name

    def delete_vhost(self, name: str) -> None:
        """Remove a virtual host with its queues, and close the connections to it."""
        self.api("DELETE", f"vhosts/{name}")

    def queue_length(self, queue: str, vhost: str = "/") -> int:
        """How many messages wait in the queue: those that a consumer holds do not count.

        Raises:
            amqp.exceptions.NotFound: there is no such queue.
        """
        with self.connection(vhost) as connection:
            declared = connection.channel().queue_declare(queue, passive=True)
            return int(declared.message_count)

    def connection(self, vhost: str = "/", timeout: float = 30.0) -> amqp.Connection:
        """A connection to open with `with` or `connect()`, which does not retry.

        Args:
            timeout: seconds for the connect, and for each answer while it connects.
        """
        user, password = self.credentials.split(":")
        return amqp.Connection(
            f"{LOOPBACK}:{self.port}",
            user,
            password,
            virtual_host=vhost,
            connect_timeout=timeout,
            read_timeout=timeout,
        )

    def api(self, method: str, path: str) -> bytes:
        """Call the management API and return the response's body."""
        connection = http.client.HTTPConnection(LOOPBACK, self.http_port, timeout=30.0)
        token = base64.b64encode(self.credentials.encode()).decode()
        try:
            connection.request(method, f"/api/{path}", headers={"Authorization": f"Basic {token}"})
            response = connection.getresponse()
            body = response.read()
        except http.client.HTTPException as error:
            raise OSError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        if response.status >= 400:
            raise OSError(f"{method} {path}: {response.status} {body!r}")
        return body

    def _launch(self) -> None:
        epmd = {"ERL_EPMD_PORT": str(self.epmd_port), "ERL_EPMD_ADDRESS": LOOPBACK}
        self._spawn("epmd", **epmd)
        self._spawn(
            "rabbitmq-server",
            **epmd,
            RABBITMQ_NODENAME=f"graceful-{self.port}@localhost",
            RABBITMQ_NODE_IP_ADDRESS=LOOPBACK,
            RABBITMQ_NODE_PORT=str(self.port),
            RABBITMQ_DIST_PORT=str(self.dist_port),
            RABBITMQ_MNESIA_BASE=str(self.folder / "mnesia"),
            RABBITMQ_LOG_BASE=str(self.folder / "log"),
            RABBITMQ_PID_FILE=str(self.folder / "pid"),
            RABBITMQ_CONF_ENV_FILE=self._file("env.conf", ""),
            RABBITMQ_ENABLED_PLUGINS_FILE=self._file("plugins", "[rabbitmq_management]."),
            RABBITMQ_CONFIG_FILE=self._file("rabbitmq.conf", self._config()),
            RABBITMQ_ADVANCED_CONFIG_FILE=self._file("advanced.config", self._advanced()),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=(
                "+S 2:2 -kernel inet_dist_use_interface {127,0,0,1}"
            ),
            RUNNING_UNDER_SYSTEMD="true",  # makes the script exec Erlang: its pid is ours
        )

    def _config(self) -> str:
        return (
            f"listeners.tcp.default = {LOOPBACK}:{self.port}\n"
            f"management.tcp.ip = {LOOPBACK}\n"
            f"management.tcp.port = {self.http_port}\n"
            "disk_free_limit.absolute = 1MB\n"
        )

    def _advanced(self) -> str:
        options = ",".join(f"{{{name},{value}}}" for name, value in self.options.items())
        return f"[{{rabbit,[{options}]}}].\n"

    def _file(self, name: str, content: str) -> str:
        path = self.folder / name
        path.write_text(content)
        return str(path)

    def _ping(self) -> None:
        with self.connection(timeout=5.0):
            pass
        self.api("GET", "vhosts")
