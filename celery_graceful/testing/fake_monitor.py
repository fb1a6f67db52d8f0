"""A server that takes check-ins as Sentry and Healthchecks do, and keeps them."""

from __future__ import annotations

import gzip
import importlib
import json
import re
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["FakeMonitor", "SentCheckIn"]

#: Seconds that is waited for a check-in, if the test does not say.
LIMIT = 30.0

#: What the last part of a ping says.
_PINGS = {"start": "in_progress", "fail": "error", "log": "log"}


@dataclass(frozen=True)
class SentCheckIn:
    """One check-in as it came.

    Attributes:
        slug: Of the monitor.
        id: The same for all of one run.
        status: ``"in_progress"``, ``"ok"``, ``"error"``; Healthchecks' ``"log"``.
        duration: Seconds, where it says so.
        config: What it tells of the monitor.
    """

    slug: str
    id: str
    status: str
    duration: float | None = None
    config: Any = None


class FakeMonitor:
    """Takes what is sent to ``dsn`` (Sentry) and ``ping_url`` (Healthchecks)."""

    def __init__(self) -> None:
        self._sent: list[SentCheckIn] = []
        self._news = threading.Condition()
        monitor = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                monitor._take(self.path, _plain(body, self.headers.get("Content-Encoding")))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_GET = do_HEAD = do_POST

            def log_message(self, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        where = f"127.0.0.1:{self._server.server_port}"
        self.dsn = f"http://public@{where}/1"
        self.ping_url = f"http://{where}/ping"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def sent(self) -> list[SentCheckIn]:
        """All check-ins, in the order in which they came."""
        with self._news:
            return list(self._sent)

    def statuses(self, slug: str) -> list[str]:
        """Of one monitor, in their order.

        Args:
            slug: The monitor's.
        """
        return [sent.status for sent in self.sent if sent.slug == slug]

    def wait_for(self, slug: str, status: str, *, timeout: float = LIMIT) -> SentCheckIn:
        """Wait for a check-in; returns the first that there is.

        Args:
            slug: The monitor's.
            status: ``"in_progress"``, ``"ok"`` or ``"error"``.
            timeout: Seconds.

        Raises:
            AssertionError: It did not come.
        """
        end = time.monotonic() + timeout
        with self._news:
            while True:
                for sent in self._sent:
                    if (sent.slug, sent.status) == (slug, status):
                        return sent
                if not self._news.wait(max(0.0, end - time.monotonic())):
                    lines = "\n".join(f"    {sent}" for sent in self._sent) or "    nothing"
                    what = f"waited for {status!r} of {slug!r}: not in {timeout:g} s"
                    raise AssertionError(f"{what}; there came\n{lines}")

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()

    def _take(self, path: str, body: bytes) -> None:
        found = _of_sentry(body) if "/envelope" in path else _of_healthchecks(path)
        with self._news:
            self._sent += found
            self._news.notify_all()


def _plain(body: bytes, encoding: str | None) -> bytes:
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "br":  # only where Sentry's client has found it
        return bytes(importlib.import_module("brotli").decompress(body))
    return body


def _of_sentry(envelope: bytes) -> list[SentCheckIn]:
    """The check-ins of an envelope: a line of JSON, then pairs of a header and what it is for."""
    found = []
    _, _, rest = envelope.partition(b"\n")
    while rest:
        head, _, rest = rest.partition(b"\n")
        if not head.strip():
            continue
        header = json.loads(head)
        length = header.get("length")
        if length is None:
            item, _, rest = rest.partition(b"\n")
        else:
            item, rest = rest[:length], rest[length:]
        if header.get("type") == "check_in":
            one = json.loads(item)
            found.append(
                SentCheckIn(
                    one["monitor_slug"],
                    one["check_in_id"],
                    one["status"],
                    one.get("duration"),
                    one.get("monitor_config"),
                )
            )
    return found


def _of_healthchecks(path: str) -> list[SentCheckIn]:
    url = urlsplit(path)
    found = re.fullmatch(r"/ping/(.+?)(?:/(start|fail|log|\d+))?", url.path)
    if found is None:
        return []
    slug, end = found.groups()
    status = _PINGS.get(end or "", "ok" if end in (None, "0") else "error")
    return [SentCheckIn(slug, parse_qs(url.query).get("rid", [""])[0], status)]
