"""Connections to the broker for what has to be said in little time.

After the hard deadline seconds count, and a handshake takes most of them where the broker, or
the way to it, is slow: seven round trips on RabbitMQ, and more with TLS.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from kombu.exceptions import OperationalError

from celery_graceful.messages.amqp import is_amqp
from celery_graceful.system import native
from celery_graceful.system.describe import describe

__all__ = ["BrokerAway", "SpareConnections", "bounded_connection", "send_events", "use"]

#: Events in one message.
TOGETHER = 500

Use = Callable[[Any], None]


class BrokerAway(ConnectionError):
    """The broker could not be reached, or its connection broke: the message says which, and how."""

    #: See ``describe``.
    is_described = True


@contextmanager
def bounded_connection(broker: Any, timeout: float) -> Iterator[Any]:
    """A connection of its own to a broker, that gives up after ``timeout`` seconds.

    Each host is tried once: kombu would rest for 2 s between two tries.

    Args:
        broker: A connection of kombu's to it, whatever became of it; it is left alone.
        timeout: Seconds.

    Raises:
        BrokerAway: It could not be reached, or the connection broke.
    """
    options = dict(broker.transport_options or {})
    if broker.transport.driver_type == "redis":
        options.update(socket_timeout=timeout, socket_connect_timeout=timeout)
    elif is_amqp(broker):
        options.setdefault("read_timeout", timeout)
        options.setdefault("write_timeout", timeout)
        options["confirm_publish"] = True  # nobody else has the message
    own = broker.clone(connect_timeout=timeout, transport_options=options, heartbeat=0)
    with own as connection:
        try:
            connection.ensure_connection(max_retries=max(0, len(connection.alt) - 1))
            yield connection
        except (*connection.connection_errors, OperationalError) as exc:
            connection.collect()  # a close would wait for an answer once more
            raise BrokerAway(describe(exc, connection.as_uri())) from exc


def send_events(
    connection: Any, app: Any, hostname: str, events: Iterable[tuple[str, dict[str, Any]]]
) -> None:
    """Send events, each with its type and its fields, over a connection of their own.

    Those of tasks go together, as Celery's own do: a broker that is far away is waited for once.

    Raises:
        Exception: What cannot be sent is not kept.
    """
    told = app.events.Dispatcher(
        connection,
        hostname=hostname,
        buffer_while_offline=False,
        buffer_group=["task"],
        buffer_limit=TOGETHER,
    )
    for kind, fields in events:
        told.send(kind, **fields)
    told.flush()


def use(spare_connections: SpareConnections | None, broker: Any, call: Use, timeout: float) -> None:
    """Call ``call`` with the connection that stands by, or with a new one.

    Args:
        spare_connections: The first choice, where there is one.
        broker: As for ``bounded_connection``.
        call: It gets a connection of kombu's.
        timeout: Seconds that the broker may take to answer over a new connection.

    Raises:
        Exception: What ``call``, or the broker's client, raised.
    """
    if spare_connections is None or not spare_connections.call(call):
        with bounded_connection(broker, timeout) as connection:
            call(connection)


class SpareConnections:
    """A connection that is opened before it is needed, in a real thread of its own.

    It is also used there: under gevent a socket belongs to the hub of its thread.

    Args:
        broker: As for ``bounded_connection``.
        timeout: Seconds that the broker may take to answer.
    """

    def __init__(self, broker: Any, timeout: float) -> None:
        self.broker = broker
        self.timeout = timeout
        self._bell = native.Doorbell()
        self._lock = native.Lock()
        self._gone = self._closing = False
        self._calls: deque[_Call] = deque()
        native.start_thread(self._serve, "graceful-spare-connections")

    def call(self, call: Use) -> bool:
        """Call ``call`` with the connection, and wait for it.

        Returns:
            Whether it was called: not if the connection is gone.

        Raises:
            Exception: What it raised; or the broker's client, if the broker could not be
                reached and we were waiting for it.
        """
        asked = _Call(call)
        with self._lock:
            waits = not self._gone
            if waits:
                self._calls.append(asked)
        if waits:
            self._bell.ring()
            asked.ended.acquire()
        if asked.error is not None:
            raise asked.error
        return asked.done

    def close(self) -> None:
        """Close it when what it was asked for is done. Does not wait."""
        self._closing = True
        self._bell.ring()

    def _serve(self) -> None:
        error: Exception | None = None
        try:
            with bounded_connection(self.broker, self.timeout) as connection:
                connection.default_channel  # noqa: B018 -- opens it
                while all(call.run(connection) for call in self._rung_for()):
                    if self._closing:
                        break
        except Exception as exc:
            error = exc
        finally:
            with self._lock:
                self._gone = True
            for call in self._calls:  # no time for a second handshake
                call.error = error
                call.ended.release()

    def _rung_for(self) -> Iterator[_Call]:
        self._bell.wait(None)
        while self._calls:
            yield self._calls.popleft()


class _Call:
    def __init__(self, call: Use) -> None:
        self.call = call
        self.done = False
        self.error: Exception | None = None
        self.ended = native.Latch()
        self.ended.acquire()

    def run(self, connection: Any) -> bool:
        """Whether the connection is still good."""
        try:
            self.call(connection)
            self.done = True
        except Exception as exc:
            self.error = exc
        self.ended.release()
        return self.done
