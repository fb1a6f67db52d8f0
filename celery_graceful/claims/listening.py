"""What the event loop listens to: told once, and not at each of its turns."""

from __future__ import annotations

from typing import Any

__all__ = ["ListensOnce"]


class ListensOnce:
    """Mixed into kombu's Redis transports."""

    cycle: Any

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        if hasattr(self.cycle, "_update_brpop_polling"):
            loop = _Sparing(loop)
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]


class _Sparing:
    """The loop, as a transport tells it at each turn of what it may listen to already.

    kombu takes out what is disconnected since 5.7, which ``_update_brpop_polling`` came with.

    Args:
        hub: kombu's.
    """

    def __init__(self, hub: Any) -> None:
        self._hub = hub

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hub, name)

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        if self._hub.readers.get(fd) != (callback, args):
            self._hub.add_reader(fd, callback, *args)
