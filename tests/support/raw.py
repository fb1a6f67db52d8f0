"""What the broker and the event bus hold, as it is: raw messages, events as they come."""

from __future__ import annotations

import json
import threading
from typing import Any

import redis
from celery import Celery
from celery.events.dispatcher import EventDispatcher

from tests.support.workers import TIMEOUT, wait_until

__all__ = ["LOSES_EVENTS", "Events", "RawMessage", "raw_messages"]

RawMessage = dict[str, Any]

#: Celery before 5.7 forgets events that one thread sends while another one flushes the buffer.
LOSES_EVENTS = not hasattr(EventDispatcher, "_prepare_event")

#: What differs between two deliveries of one message.
OF_ONE_DELIVERY = ("delivery_tag", "redelivered")


def raw_messages(client: redis.Redis, queue: str = "celery") -> dict[str, list[RawMessage]]:
    """The messages in a queue, all priorities of it, by task id."""
    found: dict[str, list[RawMessage]] = {}
    for key in client.scan_iter(f"{queue}*", _type="list"):
        for text in client.lrange(key, 0, -1):
            message = json.loads(text)
            for mapping in (
                message["headers"],
                message["properties"],
                message["properties"].get("delivery_info", {}),
            ):
                for name in OF_ONE_DELIVERY:
                    mapping.pop(name, None)
            message["list"] = key
            found.setdefault(message["headers"]["id"], []).append(message)
    return found


class Events:
    """Real events, received by a thread of the test: their types by task id, in order."""

    def __init__(self, app: Celery) -> None:
        self.seen: dict[str, list[str]] = {}
        self._last = threading.Event()
        self._ready = threading.Event()
        self._app = app
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()
        assert self._ready.wait(TIMEOUT)

    def _receive(self) -> None:
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self._on_event})
            with receiver.consumer_context() as (own_connection, *_):
                seconds = 0.01  # with Redis it subscribes when it looks for the first time
                while not self._last.is_set():
                    try:
                        own_connection.drain_events(timeout=seconds)
                    except TimeoutError:
                        pass
                    self._ready.set()
                    seconds = 1

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["type"] == "last":
            self._last.set()
        elif "uuid" in event and event["type"] != "task-sent":
            self.seen.setdefault(event["uuid"], []).append(event["type"])

    def wait(self, task_id: str, type: str) -> None:
        """Wait for one: who has sent it may be gone, and what it sent still on its way."""
        wait_until(lambda: type in self.seen.get(task_id, ()), f"{type} of {task_id}")

    def all(self) -> dict[str, list[str]]:
        """All that were sent until now.

        A fetch that is under way when a worker stops may bring back what the worker just gave
        back; it is given back again. Such a `task-received` at the end is left out.
        """
        with self._app.connection_for_write() as connection:
            self._app.events.Dispatcher(connection).send("last")
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        for types in self.seen.values():
            while len(types) > 1 and types[-1] == "task-received":
                types.pop()
        return self.seen
