"""The connection that a worker consumes over: what is forked from the worker must not have it.

A broker knows by its end that a worker has died. Held open by a process that a task has forked,
RabbitMQ gives the messages of the dead to nobody until its heartbeat is missed, and Redis gives
what it has for a dead one's command to nobody at all. Children of a pool have it as well that are
started while the worker is connected, in the place of others. Private names of kombu are used here,
and pinned in ``tests/unit/test_pins.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery_graceful.messages.amqp import is_amqp
from celery_graceful.system.process import Slot, emptied

__all__ = ["consumed_over"]


def _close(slot: Slot[Any]) -> None:
    """In the forked process: its descriptors alone, and not a word over them."""
    connections = slot.values
    emptied(slot)
    for connection in connections:
        for sock in _sockets(connection):
            sock.close()


def _sockets(connection: Any) -> Iterable[Any]:
    if is_amqp(connection):
        return [connection.connection.transport.sock] if connection.connected else []
    return list(getattr(getattr(connection.transport, "cycle", None), "_chan_to_sock", {}).values())


#: kombu's connection, while the consumer has one. Not that of a worker whose tasks are greenlets:
#: there a fork goes on with all of them, the loop too, which would connect again.
consumed_over: Slot[Any] = Slot("connection that is consumed over", lambda: None, in_fork=_close)
