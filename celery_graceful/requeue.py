"""The one way back to the queue.

A message that this worker holds and will not finish is given back here, whoever asks: a
task that was interrupted, the drain at its start, the hard deadline. How depends on the
transport of the broker:

* Redis, claims: one script moves them back to the lists that they came from.
* Redis without claims: one script moves the messages from kombu's ``unacked`` hash to the
  head of their queues.

  Both work over a connection of their own, with time-outs, from any thread, and move each
  message once however often they are asked.
* Brokers that know of no acknowledgements (``kept``): what is in our memory alone is sent again.
* Everything else (RabbitMQ first): ``basic.reject`` with requeue on the channel that the
  message came over; RabbitMQ puts it back where it was. What is still held when the
  connection ends goes back by itself. What a quorum queue has taken back often gets a copy at
  the tail instead.

A message that was acknowledged early is no longer at the broker; it is sent again, to where it
came from: the broker that the worker consumes from.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

from celery_graceful import kept, native
from celery_graceful.checkpoint import SENT_AGAIN
from celery_graceful.claims import Claims, Tag
from celery_graceful.client import make_client
from celery_graceful.describe import describe
from celery_graceful.kept import ends_here, is_kept_here
from celery_graceful.redelivery import BEGUN, mark_redelivered
from celery_graceful.sending import COUNT, Refused, Sender
from celery_graceful.standby import Standby, use
from celery_graceful.store import is_kombus_redis

if TYPE_CHECKING:
    from celery_graceful.request import GracefulRequest

__all__ = ["NotTaken", "Requeue"]

logger = get_logger(__name__)

#: Seconds that a command to Redis may take, when nothing shorter is asked for.
COMMAND_TIMEOUT = 2.0

#: From this count on, a copy is sent instead, whose count begins anew: at its limit, which is 20
#: in RabbitMQ 4 if nobody sets it, the queue would drop the message.
COPY_AFTER = 10

#: Seconds after which a broker that could not be reached is tried again.
RETRY = 1.0

#: Seconds for what only saves time.
UNBLOCK_TIMEOUT = 0.5


class NotTaken(Exception):
    """What the broker has not taken back, and has no other copy of.

    Attributes:
        requests: Whose messages.
    """

    def __init__(self, requests: Sequence[GracefulRequest], why: Exception) -> None:
        super().__init__(f"{len(requests)} not taken by the broker: {why!r}")
        self.requests = requests


class Requeue:
    """Gives messages back for one worker.

    Args:
        app: The Celery app.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.connected(app.connection_for_read())
        #: Which queue a message came from, by its consumer tag; set by the drain.
        self.queue_of: Callable[[Any], str | None] = lambda tag: None
        self._script = (
            files("celery_graceful").joinpath("lua/requeue.lua").read_text(encoding="utf-8")
        )
        self._clients: dict[tuple[float, bool], Any] = {}
        #: The caller has the broker connection to itself, and the loop does not go round.
        self.at_once = False
        #: Whether a fetch of this worker is under way at the broker; set by the drain. It would
        #: take what is given back, and a process that ends would lose it.
        self.fetching: Callable[[], bool] = lambda: False
        #: Called when something was given back, and there may be room for something else.
        self.on_room: Callable[[], None] = lambda: None
        self._lock = native.Lock()
        self._deferred: list[GracefulRequest] = []
        self._sending: list[GracefulRequest] = []
        #: Makes the loop call ``flush``; set by the drain.
        self.ring_loop: Callable[[], None] = lambda: None

    def connected(self, connection: Any) -> None:
        """The worker's consumer is connected, perhaps to another kind of broker than before."""
        #: What messages come over, and go back over one like it.
        self.broker = connection
        self._clients = {}
        self._is_redis = is_kombus_redis(connection.transport)
        #: What is not acknowledged goes back when the connection ends.
        self.is_amqp = connection.transport.driver_type == "amqp"

    def give_back(
        self,
        requests: Sequence[GracefulRequest],
        *,
        timeout: float = COMMAND_TIMEOUT,
        own_thread: bool = False,
        tail: bool = False,
        standby: Standby | None = None,
    ) -> None:
        """Give the messages of ``requests`` back, in their order, to the head of the queue.

        Args:
            requests: Whose messages; the first one is the next to be delivered.
            timeout: Seconds that a broker may take to answer.
            own_thread: The caller does not own the broker connection of the worker, and the
                worker is about to drop it: messages that go back with it are left alone.
            tail: To the tail of the queue instead, behind all that waits. Brokers other than
                Redis get a copy there before the message is acknowledged.
            standby: A connection to send again with, what has to be.

        Raises:
            NotTaken: Some were acknowledged early, and are at no broker now.
            Exception: What the broker's client raised. Messages that were not given back
                are still unacknowledged at the broker.
        """
        copies = [r for r in requests if self._is_copy(r.message)]
        early = [r for r in requests if r.acknowledged and r not in copies]
        late = [r for r in requests if not (r.acknowledged or r.orphaned or r in copies)]
        try:
            self._drop_copies([r for r in copies if not r.acknowledged], timeout, own_thread)
            self._give_back_late(late, timeout, own_thread, tail, standby)
        finally:
            if early:
                self._give_back_early(early, timeout, standby, insist=own_thread)
            self.on_room()

    def _give_back_early(
        self,
        requests: list[GracefulRequest],
        timeout: float,
        standby: Standby | None,
        insist: bool,
    ) -> None:
        unsent = self._send_again(requests, timeout, standby=standby)
        lost = [(r, exc) for r, exc in unsent if insist or isinstance(exc, Refused)]
        later = [r for r, exc in unsent if not (insist or isinstance(exc, Refused))]
        if later:
            logger.warning("Could not reach the broker to send messages again: %r", unsent[-1][1])
            self._try_later(later)
        if lost:
            raise NotTaken([r for r, _ in lost], lost[0][1])

    def _give_back_late(
        self,
        late: list[GracefulRequest],
        timeout: float,
        own_thread: bool,
        tail: bool,
        standby: Standby | None,
    ) -> None:
        claimed = [r for r in late if isinstance(r.message.delivery_tag, Tag)]
        if claimed:
            self._give_back_claims(claimed, tail, timeout)
            late = [r for r in late if r not in claimed]
        if late:
            channel = late[0].message.channel
            if self._is_redis and channel.ack_emulation:
                if not (own_thread or tail) and self._defer(channel, late):
                    return
                client = self._client(channel, timeout, own_thread)
                self._give_back_redis(client, channel, late, tail)
            elif is_kept_here(channel):
                self._give_back_kept(late, timeout, standby, insist=own_thread)
                return
            elif own_thread and ends_here(channel):
                raise NotTaken(late, Refused("its queue ends with this process"))
            elif tail or not own_thread:
                for request in late:
                    self._give_back_amqp(request, tail, timeout)
            else:  # they go back with the connection: of these the queue would drop them
                expired = [r for r in late if r.has_begun and r.has_expired]
                unsent = self._send_again(expired, timeout, {SENT_AGAIN: True}, standby)
                if unsent:
                    raise NotTaken([request for request, _ in unsent], unsent[0][1])
        for request in late:
            request.acknowledged = True

    @property
    def sending(self) -> list[GracefulRequest]:
        """Whose messages some thread is sending again right now."""
        return list(self._sending)

    @property
    def deferred(self) -> bool:
        """Whether messages wait for the end of a fetch."""
        return bool(self._deferred)

    def flush(self, **options: Any) -> None:
        """Give back what was deferred. Takes the options of ``give_back``."""
        with self._lock:
            deferred, self._deferred = self._deferred, []
        if deferred:
            try:
                self.give_back(deferred, **options)
            except Exception:
                with self._lock:
                    self._deferred = deferred + self._deferred
                raise

    def _defer(self, channel: Any, requests: list[GracefulRequest]) -> bool:
        with self._lock:
            if not self.fetching():
                return False
            self._deferred += requests
        for request in requests:
            # Room to read what the fetch brings.
            channel.qos._quick_ack(request.message.delivery_tag)
        return True

    # -- Redis ---------------------------------------------------------------------

    def _give_back_claims(
        self, requests: list[GracefulRequest], tail: bool, timeout: float
    ) -> None:
        tags: dict[Claims, list[Tag]] = {}
        for request in requests:
            tag = request.message.delivery_tag
            tags.setdefault(tag.book, []).append(tag)
        try:
            for book, some in tags.items():
                book.give_back(some, tail=tail, timeout=timeout)
        finally:  # it goes on trying
            for request in requests:
                request.acknowledged = True
                request.message.channel.qos._quick_ack(request.message.delivery_tag)

    def _give_back_redis(
        self, client: Any, channel: Any, requests: Iterable[GracefulRequest], tail: bool
    ) -> None:
        begun = {request.message.delivery_tag: request.has_begun for request in requests}
        tags = list(begun)
        prefix = channel.global_keyprefix or ""
        unacked = prefix + channel.unacked_key
        index = prefix + channel.unacked_index_key
        moves: list[Any] = []
        # Last first: each goes in front of the one before it.
        for tag, entry in reversed(list(zip(tags, client.hmget(unacked, tags), strict=True))):
            if entry is not None:
                payload, queue = self._decode(channel, entry, begun[tag])
                moves += [tag, prefix + queue, payload]
        if moves:
            client.eval(self._script, 2, unacked, index, "LPUSH" if tail else "RPUSH", *moves)
        for tag in tags:
            channel.qos._quick_ack(tag)  # kombu must not restore it at exit

    def _is_copy(self, message: Any) -> bool:
        """Whether Redis has sent it to each worker that listened (fanout, ``Broadcast``).

        There is no list that it came from: the copy is this worker's, and ends with it.
        """
        exchange = (message.delivery_info or {}).get("exchange")
        queues = getattr(message.channel, "_fanout_queues", {}) if self._is_redis else {}
        return any(exchange == name for name, _ in list(queues.values()))

    def _drop_copies(
        self, requests: list[GracefulRequest], timeout: float, own_thread: bool
    ) -> None:
        for request in requests:
            channel, tag = request.message.channel, request.message.delivery_tag
            request.acknowledged = True
            if channel.connection is not None:  # else it went with the connection
                ask = self._client(channel, timeout, own_thread).execute_command
                prefix = channel.global_keyprefix or ""
                ask("HDEL", f"{prefix}{channel.unacked_key}", tag)
                ask("ZREM", f"{prefix}{channel.unacked_index_key}", tag)
                channel.qos._quick_ack(tag)
            logger.info("%s was sent to each worker: it ends here", request.humaninfo())

    def end_fetch(self, channel: Any) -> None:
        """Ask Redis to end a fetch (BRPOP) now; where it will not, it ends by itself."""
        try:
            host, port = channel._in_poll._sock.getsockname()[:2]
            client = self._client(channel, UNBLOCK_TIMEOUT, False)
            for other in client.client_list():
                if other["addr"] in (f"{host}:{port}", f"[{host}]:{port}"):
                    client.client_unblock(int(other["id"]))
        except Exception as exc:  # a Unix socket, a proxy, a server without CLIENT
            logger.debug("Could not end the fetch early: %s", describe(exc))

    @staticmethod
    def _decode(channel: Any, entry: bytes, begun: bool) -> tuple[str, str]:
        """The message of an ``unacked`` entry, marked as redelivered, and the list it goes to."""
        payload, exchange, routing_key = loads(bytes_to_str(entry))
        queues = channel._lookup(exchange, routing_key)
        mine = [queue for queue in queues if queue in channel.active_queues] or queues
        priority = channel._get_message_priority(payload, reverse=False)
        return mark_redelivered(dumps(payload), begun=begun), channel._q_for_pri(mine[0], priority)

    def _client(self, channel: Any, timeout: float, own_thread: bool) -> Any:
        """A client like the channel's, that gives up after ``timeout`` seconds."""
        if channel.connection is None:
            raise ConnectionError("the connection that it came over is gone")
        key = (timeout, own_thread)  # under gevent a client belongs to the hub of its thread
        if key not in self._clients:
            self._clients[key] = make_client(channel._get_pool(), timeout)
        return self._clients[key]

    # -- what is in our memory alone -------------------------------------------------

    def _give_back_kept(
        self,
        requests: list[GracefulRequest],
        timeout: float,
        standby: Standby | None,
        insist: bool,
    ) -> None:
        """Over a connection of its own: the channel is the loop's, which may hang."""
        unsent = dict(self._send_again(requests, timeout, standby=standby))
        for request in requests:
            if request not in unsent:
                request.message.channel.qos._quick_ack(request.message.delivery_tag)
                request.acknowledged = True
        if unsent and insist:
            raise NotTaken(list(unsent), next(iter(unsent.values())))
        if unsent:
            logger.warning("It is tried again: %s", describe(next(iter(unsent.values()))))
            self._try_later(list(unsent))

    # -- everything else -----------------------------------------------------------

    def _give_back_amqp(self, request: GracefulRequest, tail: bool, timeout: float) -> None:
        copy = tail or request.message.headers.get(COUNT, 0) >= COPY_AFTER
        # The queue itself would drop what has expired meanwhile.
        copy = copy or ("expiration" in request.message.properties and request.has_begun)
        if copy and not self._send_again([request], timeout, {SENT_AGAIN: True}):
            request.on_ack(logger, request.connection_errors)
        elif self.at_once:
            request.message.reject_log_error(logger, request.connection_errors, True)
        else:
            request.on_reject(logger, request.connection_errors, True)

    @staticmethod
    def _headers_of(request: GracefulRequest, more: dict[str, Any] | None) -> dict[str, Any]:
        """What the copy of a message says beside what it said."""
        return {**(more or {}), **({"redelivered": BEGUN} if request.has_begun else {})}

    # -- sending again -------------------------------------------------------------

    def _send_again(
        self,
        requests: Iterable[GracefulRequest],
        timeout: float,
        more_headers: dict[str, Any] | None = None,
        standby: Standby | None = None,
    ) -> list[tuple[GracefulRequest, Exception]]:
        """Send messages again, to the broker that they came from.

        Returns:
            Those that were not sent, each with the reason.
        """
        waiting = deque(requests)
        begun = list(waiting)
        with self._lock:
            self._sending += begun
        refused: list[tuple[GracefulRequest, Exception]] = []

        def send(connection: Any) -> None:
            sender = Sender(connection)
            while waiting:
                message = waiting[0].message
                tag = (message.delivery_info or {}).get("consumer_tag")
                queue = self.queue_of(tag) or kept.queue_of(self.app, message)
                try:
                    sender.send(message, self._headers_of(waiting[0], more_headers), queue)
                except Refused as exc:
                    refused.append((waiting[0], exc))
                waiting.popleft()

        try:
            use(standby, self.broker, send, timeout)
        except Exception as exc:
            refused += [(request, exc) for request in waiting]
        finally:
            with self._lock:
                self._sending = [r for r in self._sending if r not in begun]
        return refused

    def _try_later(self, requests: list[GracefulRequest]) -> None:
        with self._lock:
            self._deferred += requests
        timer = threading.Timer(RETRY, self.ring_loop)
        timer.daemon = True
        timer.start()
