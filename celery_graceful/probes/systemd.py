"""What systemd is told, where a unit wants to know: ``Type=notify``, ``WatchdogSec=``.

Datagrams to the socket that ``NOTIFY_SOCKET`` names, in the file system or abstract (``@``).
"""

from __future__ import annotations

import _socket
import os
import time
from collections.abc import Mapping

__all__ = ["Systemd"]

#: Seconds between two signs of life, at least.
LEAST = 0.1


class Systemd:
    """The service manager of one worker.

    Args:
        address: Of its socket.
        watchdog: Seconds within which it wants to hear of the worker; 0 if it does not.
    """

    def __init__(self, address: str, watchdog: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        #: Seconds between two signs of life; ``inf`` if none is wanted.
        self.every = max(watchdog / 3, LEAST) if watchdog else float("inf")
        self._beat_at = float("-inf")
        self._state = self._status = ""

    @classmethod
    def announced(cls, environ: Mapping[str, str] = os.environ) -> Systemd | None:
        """The one that has started this process, if it wants to be told."""
        address = environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return None
        wanted = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environ.get("WATCHDOG_USEC", "")
        return cls(address, int(usec) / 1e6 if wanted and usec.isdecimal() else 0.0)

    def tell(self, state: str, status: str, live: bool) -> None:
        """Tell what is new.

        Args:
            state: ``READY=1``, ``STOPPING=1`` or what else the worker has come to; told once.
            status: For ``systemctl status``.
            live: Whether the worker is.
        """
        now = time.monotonic()
        beat = live and now >= self._beat_at + self.every
        words = [state] if state and state != self._state else []
        words += [f"MONOTONIC_USEC={int(now * 1e6)}"] if words == ["RELOADING=1"] else []
        words += [f"STATUS={status}"] if status != self._status else []
        words += ["WATCHDOG=1"] if beat else []
        if words and self._send("\n".join(words)):
            self._state, self._status = state or self._state, status
            self._beat_at = now if beat else self._beat_at

    def _send(self, text: str) -> bool:
        # Not the socket module's: a green pool has patched that one.
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.sendto(text.encode(), self._address)
        except OSError:
            return False  # its buffer is full, or it is gone: said again the next time
        finally:
            sock.close()
        return True
