"""Servers that take check-ins and keep what they get: Kent for Sentry, and one as Healthchecks."""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from tests.servers import Server
from tests.support.processes import LOOPBACK
from tests.support.workers import ROOT, TIMEOUT

__all__ = ["HealthchecksServer", "KentServer", "Project"]

KENT = """
import sys
from kent import app
app.EventManager.MAX_EVENTS = 100_000
server = app.create_app()

@server.route("/kept/<int:project>")
def kept(project):
    return [e.body for e in app.EVENTS.get_events() if e.project_id == project]

server.run(host=sys.argv[1], port=int(sys.argv[2]), threaded=True)
"""


class KentServer(Server):
    """Kent, that keeps all it gets, and has a page that shows it."""

    programs = ()

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)

    def project(self) -> Project:
        """A project that no other test uses."""
        return Project(self, next(self._numbers))

    def _launch(self) -> None:
        script = self.folder / "kept.py"
        script.write_text(KENT)
        self._spawn(sys.executable, str(script), LOOPBACK, str(self.port))

    def _ping(self) -> None:
        urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/kept/0", timeout=30).close()


class Project:
    """One Sentry project."""

    def __init__(self, server: KentServer, number: int) -> None:
        self.dsn = f"http://public@{LOOPBACK}:{server.port}/{number}"
        self._url = f"http://{LOOPBACK}:{server.port}/kept/{number}"

    def check_ins(self) -> dict[str, list[dict[str, Any]]]:
        """All check-ins in the order in which they came, by slug."""
        found: dict[str, list[dict[str, Any]]] = {}
        for body in self._kept():
            if "check_in_id" in body:
                found.setdefault(body["monitor_slug"], []).append(body)
        return found

    def events(self) -> list[dict[str, Any]]:
        """All errors in the order in which they came."""
        return [body for body in self._kept() if "exception" in body]

    def _kept(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(self._url, timeout=TIMEOUT) as response:
            return [body for body in json.load(response) if isinstance(body, dict)]

    def wait(
        self, done: Callable[[dict[str, list[dict[str, Any]]]], bool]
    ) -> dict[str, list[dict[str, Any]]]:
        """Wait until what has come is what the caller wants."""
        end = time.monotonic() + TIMEOUT
        while not done(found := self.check_ins()):
            assert time.monotonic() < end, found
            time.sleep(0.05)
        return found


class HealthchecksServer:
    """Follows the documented protocol of Healthchecks pings, and keeps them."""

    answer: ClassVar[tuple[int, bytes]] = (200, b"OK")

    def __init__(self) -> None:
        self.pings: list[tuple[str, str, str]] = []  # slug or uuid, what, rid
        self.bodies: list[str] = []
        self.status, self.text = 200, b"OK"
        self._news = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.take(self.path, body)
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(outer.text)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{LOOPBACK}:{self._server.server_port}/ping-key"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def take(self, path: str, body: bytes) -> None:
        parts = urlsplit(path)
        words = parts.path.removeprefix("/ping-key").strip("/").split("/")
        what = words[1] if len(words) > 1 else "success"
        with self._news:
            self.pings.append((words[0], what, parse_qs(parts.query)["rid"][0]))
            self.bodies.append(body.decode())
            self._news.notify_all()

    def wait(self, count: int) -> list[tuple[str, str, str]]:
        """Wait for ``count`` pings."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.pings) >= count, TIMEOUT), self.pings
            return list(self.pings)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(TIMEOUT)


def environ() -> dict[str, str]:
    """For a process of ours that imports the tests."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}
