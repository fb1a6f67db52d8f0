"""What the demo's workers need: a Redis of their own, and a slow HTTP service."""

from __future__ import annotations

import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from redis import Redis, RedisError

from celery_graceful.system.guarded_process import Process

__all__ = ["CannotRun", "redis_server", "slow_service"]

_LOOPBACK = "127.0.0.1"

#: Seconds that Redis may take to answer.
_START_TIMEOUT = 10.0


class CannotRun(Exception):
    """Something that the demo needs is missing."""


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis on a free loopback port that keeps nothing; gives its URL.

    Raises:
        CannotRun: There is no redis-server, or it does not start.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise CannotRun(
            "redis-server is not on the PATH; install it with "
            "apt-get install redis-server, dnf install redis or brew install redis"
        )
    port = _free_port()
    options = {"port": str(port), "bind": _LOOPBACK, "dir": str(folder), "save": ""}
    argv = [program, *(word for name, value in options.items() for word in (f"--{name}", value))]
    process = Process(argv, output=subprocess.DEVNULL)
    url = f"redis://{_LOOPBACK}:{port}/0"
    try:
        _wait_for(url, process)
        yield url
    finally:
        process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _wait_for(url: str, process: Process) -> None:
    end = time.monotonic() + _START_TIMEOUT
    with Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
                return
            except RedisError as exc:
                if process.wait(0.02) is not None:
                    raise CannotRun("redis-server ended while it started") from exc
                if time.monotonic() > end:
                    raise CannotRun(f"redis-server did not start: {exc}") from exc


@contextmanager
def slow_service(seconds: float, on_hung_up: Callable[[float], None]) -> Iterator[str]:
    """An HTTP service that takes ``seconds`` for each answer; gives its URL.

    Args:
        seconds: That an answer takes.
        on_hung_up: Called when a caller hangs up, with the seconds that it had waited.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            started = time.monotonic()
            # A caller that has sent all of its request becomes readable when it hangs up.
            readable, _, _ = select.select([self.connection], [], [], seconds)
            if readable:
                on_hung_up(time.monotonic() - started)
                return
            body = b"two parcels, on Tuesday"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """The timeline says what there is to say."""

    server = ThreadingHTTPServer((_LOOPBACK, 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    try:
        yield f"http://{_LOOPBACK}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
