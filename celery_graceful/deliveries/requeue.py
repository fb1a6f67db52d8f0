"""The one way back to the queue.

A message that this worker holds and will not finish is given back here, whoever asks: a
task that was interrupted, the drain at its start, the hard deadline. How depends on the
transport of the broker:

* Redis, claims: one script moves them back to the lists that they came from.
* Redis without claims: one script moves the messages from kombu's ``unacked`` hash to the
  head of their queues (``unacked``).

  Both work over a connection of their own, with time-outs, from any thread, and move each
  message once however often they are asked.
* Brokers that know of no acknowledgements (``brokers_without_acks``): what is in our memory alone
  is sent again.
* Everything else (RabbitMQ first): ``basic.reject`` with requeue on the channel that the
  message came over; RabbitMQ puts it back where it was. What is still held when the
  connection ends goes back by itself. What a quorum queue has taken back often gets a copy at
  the tail instead.

A message that was acknowledged early is no longer at the broker; it is sent again, to where it
came from: the broker that the worker consumes from.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from celery.utils.log import get_logger

from celery_graceful.claims.held_claims import Claims, Tag
from celery_graceful.deliveries.held_message import HeldMessage
from celery_graceful.deliveries.resending import Resender
from celery_graceful.deliveries.unacked import Unacked, is_fanout
from celery_graceful.messages.amqp import is_amqp
from celery_graceful.messages.bounded_connections import SpareConnections
from celery_graceful.messages.brokers_without_acks import ends_here, is_kept_here
from celery_graceful.messages.comebacks import SENT_AGAIN
from celery_graceful.messages.republish import COUNT, Refused
from celery_graceful.store.app_stores import is_kombus_redis
from celery_graceful.system import native
from celery_graceful.system.describe import describe

__all__ = ["Loop", "NotTaken", "Requeue"]

logger = get_logger(__name__)

#: Seconds that a command to Redis may take, when nothing shorter is asked for.
COMMAND_TIMEOUT = 2.0

#: From this count on, a copy is sent instead, whose count begins anew: at its limit, which is 20
#: in RabbitMQ 4 if nobody sets it, the queue would drop the message.
COPY_AFTER = 10

#: Seconds after which a broker that could not be reached, or has refused, is tried again.
RETRY = 1.0


class NotTaken(Exception):
    """What the broker has not taken back, and has no other copy of.

    Attributes:
        requests: Whose messages.
    """

    def __init__(self, requests: Sequence[HeldMessage], why: Exception) -> None:
        super().__init__(f"{len(requests)} not taken by the broker: {why!r}")
        self.requests = requests


class Loop(Protocol):
    """What the way back asks of the loop of the worker."""

    def ring(self) -> None:
        """Make it go round: there is something to flush, or there may be room. From any thread."""

    def fetching(self) -> bool:
        """Whether a fetch of this worker is under way at the broker.

        It would take what is given back, and a process that ends would lose it.
        """

    def queue_of(self, tag: Any) -> str | None:
        """Which queue a message came from, by its consumer tag."""


class Requeue:
    """Gives messages back for one worker.

    Args:
        app: The Celery app.
        loop: Of the worker.
    """

    def __init__(self, app: Any, loop: Loop) -> None:
        self._loop = loop
        self.connected(app.connection_for_read())
        self._at_once = False
        self._defers = True
        self._lock = native.Lock()
        self._deferred: list[HeldMessage] = []
        #: Until when what the broker has not taken is left alone, on the monotonic clock.
        self._rests_until = 0.0
        #: What has kept those from the broker that were acknowledged early.
        self._why_unsent = ""
        self._again = Resender(app, loop.queue_of)

    def connected(self, connection: Any) -> None:
        """The worker's consumer is connected, perhaps to another kind of broker than before."""
        #: What messages come over, and go back over one like it.
        self.broker = connection
        self._unacked = Unacked()
        self._is_redis = is_kombus_redis(connection.transport)
        #: What is not acknowledged goes back when the connection ends.
        self.is_amqp = is_amqp(connection)

    def give_back(
        self,
        requests: Sequence[HeldMessage],
        *,
        undelivered: Sequence[Tag] = (),
        timeout: float = COMMAND_TIMEOUT,
        own_thread: bool = False,
        tail: bool = False,
        spare_connections: SpareConnections | None = None,
    ) -> None:
        """Give the messages of ``requests`` back, in their order, to the head of the queue.

        Args:
            requests: Whose messages; the first one is the next to be delivered.
            undelivered: Claims that come after them, and of which there are no requests.
            timeout: Seconds that a broker may take to answer.
            own_thread: The caller does not own the broker connection of the worker, and the
                worker is about to drop it: messages that go back with it are left alone.
            tail: To the tail of the queue instead, behind all that waits. Brokers other than
                Redis get a copy there before the message is acknowledged.
            spare_connections: A connection to send again with, what has to be.

        Raises:
            NotTaken: Some were acknowledged early, and are at no broker now. Without
                ``own_thread`` these are tried again instead, at ``flush``.
            Exception: What the broker's client raised. Messages that were not given back
                are still unacknowledged at the broker.
        """
        copies = [r for r in requests if self._is_copy(r)]
        early = [r for r in requests if r.acknowledged and r not in copies]
        late = [r for r in requests if not (r.acknowledged or r.orphaned or r in copies)]
        try:
            self._drop([r for r in copies if not r.acknowledged], timeout, own_thread)
            self._give_back_late(late, undelivered, timeout, own_thread, tail, spare_connections)
        finally:
            if early:
                self._give_back_early(early, timeout, spare_connections, insist=own_thread)
            self._loop.ring()

    def _give_back_early(
        self,
        requests: list[HeldMessage],
        timeout: float,
        spare_connections: SpareConnections | None,
        insist: bool,
    ) -> None:
        unsent = self._again.send(
            requests, self.broker, timeout, spare_connections=spare_connections
        )
        if unsent and insist:
            raise NotTaken([r for r, _ in unsent], unsent[0][1])
        why, self._why_unsent = self._why_unsent, ""
        if unsent:  # refused, too: there may be room in the queue soon
            self._why_unsent = describe(unsent[-1][1])
            if why != self._why_unsent:  # once, not each second
                text = "Could not send messages again yet, which is tried each second: %s"
                logger.warning(text, self._why_unsent)
            self._try_later([r for r, _ in unsent])

    def _give_back_late(
        self,
        late: list[HeldMessage],
        undelivered: Sequence[Tag],
        timeout: float,
        own_thread: bool,
        tail: bool,
        spare_connections: SpareConnections | None,
    ) -> None:
        claimed = [r for r in late if isinstance(r.message.delivery_tag, Tag)]
        if claimed or undelivered:
            self._give_back_claims(claimed, undelivered, tail, timeout)
            late = [r for r in late if r not in claimed]
        if late:
            channel = late[0].message.channel
            if self._is_redis and channel.ack_emulation:
                if not (own_thread or tail) and self._defer(late):
                    return
                self._unacked.give_back(channel, late, tail, timeout, own_thread)
            elif is_kept_here(channel):
                self._give_back_kept(late, timeout, spare_connections, insist=own_thread)
                return
            elif own_thread and ends_here(channel):
                raise NotTaken(late, Refused("its queue ends with this process"))
            elif tail or not own_thread:
                for request in late:
                    self._give_back_amqp(request, tail, timeout)
            else:  # they go back with the connection: of these the queue would drop them
                expired = [r for r in late if r.has_begun and r.has_expired]
                more = {SENT_AGAIN: True}
                unsent = self._again.send(expired, self.broker, timeout, more, spare_connections)
                if unsent:
                    raise NotTaken([request for request, _ in unsent], unsent[0][1])
        for request in late:
            request.mark_answered()

    @property
    def sending(self) -> list[HeldMessage]:
        """Whose messages some thread is sending again right now."""
        return self._again.under_way

    @property
    def deferred(self) -> bool:
        """Whether messages wait for the end of a fetch."""
        return bool(self._deferred)

    def flush(self, **options: Any) -> None:
        """Give back what was deferred, when it is time. Takes the options of ``give_back``."""
        if time.monotonic() < self._rests_until and not options.get("own_thread"):
            return  # it will ring
        with self._lock:
            deferred, self._deferred = self._deferred, []
        if deferred:
            try:
                self.give_back(deferred, **options)
            except Exception as exc:
                lost = exc.requests if isinstance(exc, NotTaken) else ()
                with self._lock:  # not what was sent meanwhile
                    left = [r for r in deferred if r in lost or not r.acknowledged]
                    self._deferred = left + self._deferred
                raise

    def defer_no_more(self) -> None:
        """The last fetch has ended, whatever the loop says of it."""
        self._defers = False

    def defer_again(self) -> None:
        """There are fetches again."""
        self._defers = True

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """The caller has the broker connection to itself, and the loop does not go round."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _defer(self, requests: list[HeldMessage]) -> bool:
        with self._lock:
            if not (self._defers and self._loop.fetching()):
                return False
            self._deferred += requests
        for request in requests:
            # Room to read what the fetch brings.
            request.take_no_room()
        return True

    def end_fetch(self, channel: Any) -> None:
        """Ask Redis to end a fetch (BRPOP) now; where it will not, it ends by itself."""
        self._unacked.end_fetch(channel)

    # -- claims ---------------------------------------------------------------------

    def _give_back_claims(
        self,
        requests: list[HeldMessage],
        undelivered: Sequence[Tag],
        tail: bool,
        timeout: float,
    ) -> None:
        tags: dict[Claims, list[Tag]] = {}
        for tag in [*(request.message.delivery_tag for request in requests), *undelivered]:
            tags.setdefault(tag.book, []).append(tag)
        try:
            for book, some in tags.items():
                book.give_back(some, tail=tail, timeout=timeout)
        finally:  # it goes on trying
            for request in requests:
                request.mark_answered()
                request.take_no_room()

    # -- fanout ----------------------------------------------------------------------

    def _is_copy(self, request: HeldMessage) -> bool:
        return self._is_redis and is_fanout(request.message)

    def _drop(self, requests: list[HeldMessage], timeout: float, own_thread: bool) -> None:
        """There is no list that it came from: the copy is this worker's, and ends with it."""
        for request in requests:
            request.mark_answered()
            self._unacked.drop(request.message, timeout, own_thread)
            logger.info("%s was sent to each worker: it ends here", request.humaninfo())

    # -- what is in our memory alone -------------------------------------------------

    def _give_back_kept(
        self,
        requests: list[HeldMessage],
        timeout: float,
        spare_connections: SpareConnections | None,
        insist: bool,
    ) -> None:
        """Over a connection of its own: the channel is the loop's, which may hang."""
        unsent = dict(
            self._again.send(requests, self.broker, timeout, spare_connections=spare_connections)
        )
        for request in requests:
            if request not in unsent:
                request.take_no_room()
                request.mark_answered()
        if unsent and insist:
            raise NotTaken(list(unsent), next(iter(unsent.values())))
        if unsent:
            logger.warning("It is tried again: %s", describe(next(iter(unsent.values()))))
            self._try_later(list(unsent))

    # -- everything else -----------------------------------------------------------

    def _give_back_amqp(self, request: HeldMessage, tail: bool, timeout: float) -> None:
        copy = tail or request.message.headers.get(COUNT, 0) >= COPY_AFTER
        # The queue itself, or who gets it next, would drop what has expired meanwhile.
        copy = copy or request.has_begun
        if copy and not self._again.send([request], self.broker, timeout, {SENT_AGAIN: True}):
            request.on_ack(logger, request.connection_errors)
        elif self._at_once:
            request.message.reject_log_error(logger, request.connection_errors, True)
        else:
            request.on_reject(logger, request.connection_errors, True)

    def _try_later(self, requests: list[HeldMessage]) -> None:
        with self._lock:
            self._deferred += requests
            self._rests_until = time.monotonic() + RETRY
        timer = threading.Timer(RETRY, self._loop.ring)
        timer.daemon = True
        timer.start()
