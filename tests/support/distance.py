"""Ways to a server that take their time, or lead nowhere any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.processes import LOOPBACK

__all__ = ["Door", "FarAway", "HalfOpen", "door", "far_away", "half_open"]


@dataclass
class FarAway:
    """A proxy that hands each packet on after so many seconds, either way."""

    seconds: float
    port: int = 0


@contextmanager
def far_away(port: int, seconds: float) -> Iterator[FarAway]:
    """A proxy to `port`."""
    way = FarAway(seconds)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(LOOPBACK, port)
        await asyncio.gather(carry(reader, back), carry(there, writer))

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await reader.read(1 << 16):
                loop.call_later(way.seconds, writer.write, data)
        except ConnectionError:
            pass
        loop.call_later(way.seconds, writer.close)

    with _served(accept) as way.port:
        yield way


class HalfOpen:
    """A proxy whose connections can be made to swallow all answers."""

    port = opened = 0
    _dead = 0

    def swallow(self) -> None:
        """From now on, in all connections that there are."""
        self._dead = self.opened

    def swallows(self, number: int) -> bool:
        """Whether the connection of that number does."""
        return number <= self._dead


@contextmanager
def half_open(port: int) -> Iterator[HalfOpen]:
    """A proxy to `port`."""
    way = HalfOpen()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        way.opened += 1
        number = way.opened
        there, back = await asyncio.open_connection(LOOPBACK, port)
        await asyncio.gather(
            _carry(reader, back), _carry(there, writer, lambda: way.swallows(number))
        )

    with _served(accept) as way.port:
        yield way


class Door:
    """A proxy that can be shut: its connections end, and who comes is sent away."""

    port = 0

    def __init__(self) -> None:
        self._is_shut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def shut(self) -> None:
        """Until it is opened."""
        self._is_shut = True
        assert self._loop is not None
        for writer in list(self._writers):
            self._loop.call_soon_threadsafe(writer.transport.abort)

    def open(self) -> None:
        """As it was at first."""
        self._is_shut = False

    async def take(self, writer: asyncio.StreamWriter, back: asyncio.StreamWriter) -> bool:
        """Whether these are let through."""
        self._loop = asyncio.get_running_loop()
        self._writers |= {writer, back}
        if self._is_shut:
            writer.transport.abort()
            back.transport.abort()
        return not self._is_shut


@contextmanager
def door(port: int) -> Iterator[Door]:
    """A proxy to `port`."""
    way = Door()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(LOOPBACK, port)
        if await way.take(writer, back):
            await asyncio.gather(_carry(reader, back), _carry(there, writer))

    with _served(accept) as way.port:
        yield way


async def _carry(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    swallows: Callable[[], bool] = lambda: False,
) -> None:
    try:
        while data := await reader.read(1 << 16):
            if not swallows():
                writer.write(data)
    except ConnectionError:
        pass
    writer.close()


@contextmanager
def _served(
    accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]],
) -> Iterator[int]:
    loop = asyncio.new_event_loop()

    async def end() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    server = loop.run_until_complete(asyncio.start_server(accept, LOOPBACK, 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(end())
        loop.close()
