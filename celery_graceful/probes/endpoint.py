"""Answers over HTTP: a few short pages, one after the other, from one real thread.

Not ``http.server``: that would be green in a green pool, and needs a thread for each who asks, or
lets the slowest hold up all others.
"""

from __future__ import annotations

import _socket
import errno
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from celery_graceful.exceptions import SettingsError

__all__ = ["IN", "OUT", "Endpoint", "Page", "PortTaken"]

#: As ``select`` has them, which a green pool patches.
IN, OUT = 1, 4

#: Seconds that whoever asks may take; who asks at once; bytes of a question.
PATIENCE, MOST, LONGEST = 5.0, 64, 8192

#: Who waits to be heard. Of whom the kernel hears nothing tries again after a second, which is all
#: that Kubernetes gives.
QUEUED = 1024

#: Seconds until it is tried again when the process has no descriptor left for who asks.
AGAIN = 1.0


class PortTaken(SettingsError):
    """Another process has the port; it may be free later."""


class Page(NamedTuple):
    """An answer."""

    status: int
    text: str
    kind: str = "text/plain; charset=utf-8"


_REASONS = {
    200: "OK",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class _Client:
    """Who asks."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.asked, self.answer = b"", b""
        self.until = time.monotonic() + PATIENCE


class Endpoint:
    """A port on which pages are read.

    Args:
        host: An address of this machine.
        port: The port; 0 takes a free one.
        pages: What makes them, by path.

    Raises:
        PortTaken: Another process listens there.
        SettingsError: It cannot be listened there.
    """

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[], Page]]) -> None:
        self.pages = pages
        self._clients: dict[int, _Client] = {}
        self._deaf_until = 0.0
        family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
        self._sock = _socket.socket(family, _socket.SOCK_STREAM)
        try:
            self._sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            self._sock.bind((host, port))
            self._sock.listen(QUEUED)
            self._sock.setblocking(False)
        except OSError as exc:
            self._sock.close()
            mend = f"{exc.strerror or exc}; give each worker of a host its own, or 0 for a free one"
            kind = PortTaken if exc.errno == errno.EADDRINUSE else SettingsError
            raise kind("graceful_probe_port", f"{host}:{port}", mend) from exc
        self.port: int = self._sock.getsockname()[1]

    # -- in its thread ---------------------------------------------------------------

    def waits_for(self) -> dict[int, int]:
        """What it wants to hear of, by descriptor."""
        wanted = {fd: OUT if client.answer else IN for fd, client in self._clients.items()}
        if time.monotonic() >= self._deaf_until:
            wanted[self._sock.fileno()] = IN
        return wanted

    def seconds_to_next(self) -> float:
        """Seconds until somebody has taken too long."""
        ends = [client.until for client in self._clients.values()]
        return max(0.0, min(ends) - time.monotonic()) if ends else float("inf")

    def go_on(self, fds: list[int]) -> None:
        """Accept, read and answer what can be without waiting."""
        for fd in fds:
            try:
                if fd == self._sock.fileno():
                    self._accept()
                elif fd in self._clients:
                    self._serve(self._clients[fd])
            except BlockingIOError:
                pass
            except OSError:  # who asked is gone
                self._drop(fd)
        for fd, client in list(self._clients.items()):
            if time.monotonic() >= client.until:
                self._drop(fd)

    def _accept(self) -> None:
        try:
            fd, _ = self._sock._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        except OSError:  # whoever asks waits, and would be heard of again at once
            self._deaf_until = time.monotonic() + AGAIN
            return
        if len(self._clients) >= MOST:  # who asks at once is answered, whoever else takes his time
            self._drop(min(self._clients, key=lambda each: self._clients[each].until))
        client = _socket.socket(fileno=fd)
        client.setblocking(False)
        self._clients[fd] = _Client(client)

    def _serve(self, client: _Client) -> None:
        if not client.answer:
            asked = client.sock.recv(LONGEST)
            client.asked += asked
            if not asked or len(client.asked) > LONGEST:
                self._drop(client.sock.fileno())
            elif b"\r\n\r\n" in client.asked or b"\n\n" in client.asked:
                client.answer = self._answer(client.asked)
        if client.answer:
            client.answer = client.answer[client.sock.send(client.answer) :]
            if not client.answer:
                self._drop(client.sock.fileno())

    def _answer(self, asked: bytes) -> bytes:
        method, _, rest = asked.partition(b" ")
        path = rest.split(None, 1)[0].partition(b"?")[0].decode("latin-1") if rest.strip() else ""
        if method not in (b"GET", b"HEAD"):
            page = Page(405, "GET, or HEAD\n")
        elif path in self.pages:
            page = self.pages[path]()
        else:
            page = Page(404, "\n".join(sorted(self.pages)) + "\n")
        body = page.text.encode()
        head = (
            f"HTTP/1.1 {page.status} {_REASONS[page.status]}\r\nContent-Type: {page.kind}\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == b"HEAD" else body)

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd, None)
        if client is None:
            return
        try:
            client.sock.shutdown(_socket.SHUT_RDWR)  # a child, forked just now, may have it too
        except OSError:
            pass  # it is gone
        client.sock.close()

    def close(self) -> None:
        """The worker ends."""
        for fd in list(self._clients):
            self._drop(fd)
        self._sock.close()

    def close_inherited(self) -> None:
        """In a forked child, which has nothing to do with it. Its parent's stay open."""
        for client in self._clients.values():
            client.sock.close()
        self._sock.close()
