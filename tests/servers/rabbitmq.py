"""A RabbitMQ node."""

from __future__ import annotations

import base64
import http.client
import itertools
import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import quote

import amqp

from tests.servers.base import SEARCH_PATH, Server
from tests.support.processes import LOOPBACK, free_port

#: Of virtual hosts; a node may serve several processes.
_numbers = itertools.count(1)


class RabbitNode:
    """A RabbitMQ node that somebody has started.

    Args:
        port: Of AMQP.
        http_port: Of its management.
    """

    credentials: ClassVar[str] = "guest:guest"

    def __init__(self, port: int, http_port: int) -> None:
        self.port, self.http_port = port, http_port

    def url(self, vhost: str = "/", port: int = 0) -> str:
        """The URL of one of its virtual hosts, by a proxy's port if that is given."""
        return f"amqp://{self.credentials}@{LOOPBACK}:{port or self.port}/{quote(vhost, safe='')}"

    def vhost(self) -> str:
        """Make a new virtual host and return its name."""
        name = f"test-{os.getpid()}-{next(_numbers)}"
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


class RabbitServer(Server, RabbitNode):
    """A RabbitMQ node that knows no other: own cookie, own epmd. It keeps durable messages."""

    programs = ("rabbitmq-server", "epmd")

    def __init__(self, options: Mapping[str, int] | None = None) -> None:
        Server.__init__(self)
        RabbitNode.__init__(self, self.port, free_port())
        self.options = dict(options or {})
        self.dist_port = free_port()
        self.epmd_port = free_port()
        self.node = f"graceful-{self.port}@localhost"

    def control(self, *args: str) -> None:
        """Run ``rabbitmqctl`` for this node.

        Raises:
            subprocess.CalledProcessError: It did not do that.
        """
        program = shutil.which("rabbitmqctl", path=SEARCH_PATH)
        assert program is not None
        subprocess.run(
            [program, "--node", self.node, *args],
            env=self._env(ERL_EPMD_PORT=str(self.epmd_port)),
            check=True,
            timeout=self.start_timeout,
            stdout=subprocess.DEVNULL,
        )

    def _launch(self) -> None:
        epmd = {"ERL_EPMD_PORT": str(self.epmd_port), "ERL_EPMD_ADDRESS": LOOPBACK}
        self._spawn("epmd", **epmd)
        self._spawn(
            "rabbitmq-server",
            **epmd,
            RABBITMQ_NODENAME=self.node,
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
