"""What the event loop listens to: told once, not at each of its turns; and it stays deaf to none.

kombu before 5.7 stops fetching for good where a connection is lost and opened again unseen, as by a
check of its health: celery/kombu#2492 and #2630. Private names of kombu are used here, and pinned
in ``tests/unit/test_pins.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Listening"]


class Listening:
    """Mixed into kombu's Redis transports."""

    cycle: Any
    #: The loops that it was shown.
    _shown: tuple[_Loop, ...] = ()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        cycle = self.cycle
        takes_out = hasattr(cycle, "_update_brpop_polling")  # which came with 5.7
        shown = _Loop(loop, spare=takes_out)
        self._shown += (shown,)
        super().register_with_event_loop(connection, shown)  # type: ignore[misc]
        if not takes_out:
            cycle._on_connection_disconnect = lambda lost: _forget(cycle, loop, lost)

    def close_connection(self, connection: Any) -> None:
        super().close_connection(connection)  # type: ignore[misc]
        for shown in self._shown:
            shown.on_tick.clear()


def _forget(cycle: Any, loop: Any, connection: Any) -> None:
    """Listen no more to what is lost: at its next turn the loop listens to what came after it."""
    gone = {key for key in cycle._chan_to_sock if key[1].connection is connection}
    lost = {(channel, kind) for channel, _, kind in gone}
    for key in gone:
        del cycle._chan_to_sock[key]
    for fd, channel_and_kind in list(cycle._fd_to_chan.items()):
        if channel_and_kind in lost:
            del cycle._fd_to_chan[fd]
            loop.remove(fd)


class _Loop:
    """The loop, as a transport is shown it.

    Args:
        hub: kombu's.
        spare: Do not tell it, at each turn, of what it listens to already: kombu takes out what is
            disconnected.
    """

    def __init__(self, hub: Any, *, spare: bool) -> None:
        self._hub, self._spare = hub, spare
        self.on_tick = _Ticks(hub.on_tick)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hub, name)

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        if not self._spare or self._hub.readers.get(fd) != (callback, args):
            self._hub.add_reader(fd, callback, *args)


class _Ticks:
    """What a loop does at each of its turns, by one transport: until that is closed."""

    def __init__(self, of_loop: set[Callable[[], None]]) -> None:
        self._of_loop = of_loop
        self._ours: list[Callable[[], None]] = []

    def add(self, tick: Callable[[], None]) -> None:
        self._ours.append(tick)
        self._of_loop.add(tick)

    def clear(self) -> None:
        """Take out what this transport has put in."""
        while self._ours:
            self._of_loop.discard(self._ours.pop())
