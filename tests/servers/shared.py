"""One RabbitMQ for all processes of a test run: a node takes seconds of a processor to start."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from tests.servers.rabbitmq import RabbitNode, RabbitServer


class SharedRabbit:
    """Who comes first starts it, and ends it when all others have left.

    Args:
        folder: What the processes of one run have in common, and no other run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._address = folder / "rabbitmq.json"
        self._users: IO[str] | None = None
        self._server: RabbitServer | None = None

    def join(self) -> RabbitNode:
        """The node, which answers; it is this process's until `leave`."""
        with self._alone():
            self._users = (self._folder / "rabbitmq.users").open("a")
            fcntl.flock(self._users, fcntl.LOCK_SH)
            if self._address.exists():
                return RabbitNode(**json.loads(self._address.read_text()))
            self._server = RabbitServer()
            self._server.start()
            address = {"port": self._server.port, "http_port": self._server.http_port}
            self._address.write_text(json.dumps(address))
            return self._server

    def leave(self) -> None:
        """Needs it no more. Its owner waits for the others, who leave in any case: or they end."""
        with ExitStack() as stack:
            if self._users is None:
                return
            stack.enter_context(self._users)
            if self._server is None:
                return
            stack.callback(self._server.close)
            while not self._is_last():
                time.sleep(0.1)

    def _is_last(self) -> bool:
        assert self._users is not None
        with self._alone():
            try:
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._address.unlink()
            return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._folder / "rabbitmq.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
