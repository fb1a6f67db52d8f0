"""A Redis transport that claims: what a worker takes off a queue is recorded in the same step.

kombu pops a message and writes it down afterwards; a worker that is killed in between loses it.
Here one script does both, for as many messages as there is room for. Keys, each after the key
prefix of the connection:

``graceful:claims:<worker>``
    Hash of what a worker holds: number of the claim -> list that it came from, zero byte, message.
``graceful:bell:<queue>``
    List that idle workers wait on; see ``ringing``.
``graceful:workers``
    Set of those who may claim; see ``lease``.

Only the channel that a worker's tasks come over claims, which is told so (``claim_for``), and only
where messages are acknowledged. All others do as kombu does: those of a task that consumes by
itself, of what was forked from a worker, and of other programs on the same queues. Private names
of kombu are used here, and pinned in ``tests/unit/test_pins.py``.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from functools import cached_property
from queue import Empty
from typing import Any

from celery.utils.log import get_logger
from kombu.transport import redis as kombu_redis
from kombu.utils.encoding import bytes_to_str
from redis import Redis
from redis.exceptions import NoScriptError

from celery_graceful.claims.arrival import deliver
from celery_graceful.claims.claimant import Claimant, bell_key
from celery_graceful.claims.ear import HAND_OVER, SHORT
from celery_graceful.claims.fetch import Fetch
from celery_graceful.claims.held_claims import Claims
from celery_graceful.claims.listening import Listening
from celery_graceful.claims.qos import QoS
from celery_graceful.claims.ringing import RingingChannel
from celery_graceful.claims.undelivered import Fetched
from celery_graceful.store.answers import is_answer
from celery_graceful.store.client import dropping, send_quickly
from celery_graceful.system.describe import describe
from celery_graceful.system.log_thread import log

__all__ = ["Channel", "SentinelChannel", "SentinelTransport", "Transport"]

logger = get_logger(__name__)

#: Messages to take at once where the prefetch count sets no limit, and at most.
UNLIMITED, MOST = 64, 250

#: Seconds that a worker waits for a bell that may not claim yet; others do as ``ear`` says.
WAIT_REFUSED = 0.1

#: Seconds of each sleep of a loop that is in the wrong process.
LEAVE_OUT = 3600.0

#: Of kombu's ``health_check_interval``, after which, and a second, it thinks that Redis is gone.
PROMPT = 0.8


class _Claiming(RingingChannel):
    """Mixed into kombu's channels."""

    QoS = QoS

    #: The claims of the worker whose tasks come over this channel, and its process.
    _book: Claims | None = None
    _process = 0
    #: What is under way on the connection that fetches.
    _fetch: Fetch | None = None
    #: What to do next: EVALSHA, EXISTS or BRPOP.
    _next = "EVALSHA"
    #: The last claim was refused.
    _refused = False
    #: Seconds that the last claim took, there and back.
    _took = math.inf
    #: What the server is known to know scripts by.
    _known_scripts: frozenset[str] = frozenset()
    #: Consumers that acknowledge nothing, such as those of replies, while they consume here.
    _no_ack_tags: frozenset[str] = frozenset()

    @property
    def may_claim(self: Any) -> bool:
        """Whether it can be told to: not where messages are not acknowledged at all."""
        return isinstance(self.qos, QoS)

    def claim_for(self, book: Claims) -> None:
        """Claim from now on: this is the channel over which a worker's tasks come."""
        self._book, self._process = book, os.getpid()

    def basic_consume(
        self: Any, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any
    ) -> Any:
        if no_ack and queue not in self._fanout_queues:
            self._no_ack_tags |= {consumer_tag}
        answer = super().basic_consume(  # type: ignore[misc]
            queue, no_ack, callback, consumer_tag, **kwargs
        )
        self._wait_anew()
        return answer

    def _basic_cancel(self: Any, consumer_tag: str) -> Any:
        self._no_ack_tags -= {consumer_tag}
        answer = super()._basic_cancel(consumer_tag)  # type: ignore[misc]
        self._wait_anew()
        return answer

    def _wait_anew(self) -> None:
        """It waits for the bells of other queues than it consumes now."""
        if self._fetch is not None and self._fetch.kind == "BRPOP":
            self._fetch.book.ear.wake()

    # -- fetching ------------------------------------------------------------------

    @property
    def active_queues(self: Any) -> Any:
        """As kombu's, which the loop asks for at each turn, and more than once."""
        if self.active_fanout_queues:
            return super().active_queues  # type: ignore[misc]
        return list(dict.fromkeys(self._active_queues))

    @cached_property
    def _keys(self) -> dict[str, tuple[str, ...]]:
        """Of the queues that it fetches from: their bells, and their lists by priority."""
        return {}

    def _keys_of(self: Any, queue: str) -> tuple[str, ...]:
        keys: tuple[str, ...] | None = self._keys.get(queue)
        if keys is None:
            prefix = self.global_keyprefix or ""
            lists = [self._q_for_pri(queue, pri) for pri in self.priority_steps]
            keys = self._keys[queue] = tuple(prefix + key for key in (bell_key(queue), *lists))
        return keys

    def _stay_out(self) -> None:
        """Never go on in a process that a task has forked.

        There gevent and eventlet go on with all greenlets, the worker's loop too: what it reads of
        the connection that both have would be missing here.
        """
        while self._book is not None and os.getpid() != self._process:
            time.sleep(LEAVE_OUT)

    def _receive(self: Any) -> Any:
        self._stay_out()
        return super()._receive()  # type: ignore[misc]

    def _brpop_start(self: Any, timeout: float | None = None) -> None:
        self._stay_out()
        book: Claims | None = self._book
        who = None if book is None else book.who
        if who is None or book is None or self._no_ack_tags:
            self._fetch = None
            # Its default differs between versions; None would wait for ever in the older ones.
            super()._brpop_start(*(() if timeout is None else (timeout,)))  # type: ignore[misc]
            return
        if self._next == "EVALSHA":
            can_wait = self.qos.can_wait
            if not self._ends_can_follow(book):
                sends = self._send_ends(who, book, late=not can_wait)
            else:  # a claim, for which the pool waits, goes before
                sends = can_wait and self._send_ends(who, book, late=True)
            if sends:
                return
            # A stop is heard of by signal; the loop may come here before its part of that.
            if can_wait or book.goes_back():
                return
        queues = self._queue_cycle.consume(len(self._active_queues))
        if not queues:
            return
        fetch = Fetch(self._next, who, book, queues)
        # By priority, and in each by queue; the bells come first.
        keys = [key for column in zip(*map(self._keys_of, queues), strict=True) for key in column]
        bells = len(queues)
        fetch.lists = keys[bells:]
        if fetch.kind == "BRPOP":
            wait = WAIT_REFUSED if self._refused else self._patience(fetch, keys)
            fetch.long = wait > SHORT
            woken = ((self.global_keyprefix or "") + book.ear.wake_key,) if fetch.long else ()
            fetch.keys, fetch.arguments = (*woken, *keys[:bells]), (wait,)
        elif fetch.kind == "EXISTS":
            fetch.keys = fetch.lists
        else:
            order = "in turn" if self.queue_order_strategy == "round_robin" else "in order"
            fetch.claim(self.global_keyprefix or "", keys, self._room(), order)
        self._send(fetch)

    def _ends_can_follow(self: Any, book: Claims) -> bool:
        """Whether ends are sent when a claim is answered, since their answer is read soon."""
        return book.delivers_at_once and "can_consume" not in vars(self.qos)

    def _send_ends(self: Any, who: Claimant, book: Claims, *, late: bool) -> bool:
        """Send ends, if it is time for that; whether it was."""
        along = book.take_ends(late)
        if along is None:
            return False
        fetch = Fetch("END", who, book, [])
        fetch.end(self.global_keyprefix or "", along)
        self._send(fetch)
        return True

    def _send(self: Any, fetch: Fetch) -> None:
        command, name = (*fetch.keys, *fetch.arguments), fetch.kind
        if fetch.script is not None:
            sha, text = fetch.script
            known = sha in self._known_scripts
            name = "EVALSHA" if known else "EVAL"
            command = (sha if known else text, len(fetch.keys), *command)
        connection = self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        self._fetch = fetch
        send_quickly(connection, name, *command)

    def _patience(self: Any, fetch: Fetch, keys: list[str]) -> float:
        """Seconds that a wait for a bell may take."""
        seconds = fetch.book.ear.seconds(frozenset(fetch.queues), lambda: keys)
        checked: float = getattr(self, "health_check_interval", None) or seconds / PROMPT
        return min(seconds, max(SHORT, PROMPT * checked))

    def _room(self: Any) -> int:
        if "can_consume" in vars(self.qos):  # Celery's worker_disable_prefetch asks each time
            return 1
        room = self.qos.can_consume_max_estimate()
        return UNLIMITED if room is None else max(1, min(room, MOST))

    def _brpop_read(self: Any, **options: Any) -> Any:
        self._stay_out()
        if self._fetch is None:
            return super()._brpop_read(**options)  # type: ignore[misc]
        return self._read(self._fetch)

    def _read(self: Any, fetch: Fetch) -> bool:
        try:
            answer = self._answer(fetch)
        finally:
            self._fetch = self._in_poll = None
            flush_reauth = getattr(self, "_flush_brpop_reauth", None)
            if flush_reauth is not None:
                flush_reauth()
        if fetch.kind == "END":
            return True
        if fetch.kind == "EXISTS":
            self._next = "EVALSHA" if answer else "BRPOP"
        elif fetch.kind == "BRPOP":
            self._next = "EVALSHA" if answer else "BRPOP" if fetch.long else "EXISTS"
            self._refused = False
            if answer and bytes_to_str(answer[1]) == HAND_OVER:
                fetch.book.ear.ask()
        elif answer is None:
            self._next, self._refused = "BRPOP", True
            fetch.who.on_refused()
            fetch.book.refused()
        elif not answer:
            self._next, self._refused = "BRPOP", False
        else:
            try:
                self._follow(fetch)
            finally:
                self._deliver_claims(fetch, answer)
            if self._fetch is not None and self._in_poll.can_read():  # most often
                self._read(self._fetch)
            return True
        if self._next == "BRPOP" or fetch.kind == "BRPOP":
            raise Empty
        return True

    def _answer(self: Any, fetch: Fetch) -> Any:
        connection = self.client.connection
        try:
            answer = self.client.parse_response(connection, "EVALSHA")  # no conversions
        except NoScriptError:
            self._known_scripts = frozenset()
            fetch.lost()
            raise Empty from None
        except BaseException as exc:
            if fetch.kind == "END" and is_answer(exc):
                fetch.answered(describe(exc))
                return None
            self._lost(fetch)
            if not is_answer(exc):
                connection.disconnect()
            elif "WRONGTYPE" in str(exc):
                with self.conn_or_acquire() as client:
                    _say_wrong_types(client, fetch.lists)
            raise
        if fetch.script is not None:
            if fetch.kind == "EVALSHA":
                self._took = time.monotonic() - self._brpop_sent_at
            self._known_scripts |= {fetch.script.sha}
            fetch.answered(answer)
        return answer

    def _follow(self: Any, fetch: Fetch) -> None:
        """Have Redis write ends down while what has been claimed is delivered."""
        if self._ends_can_follow(fetch.book):
            try:
                self._send_ends(fetch.who, fetch.book, late=False)
            except self.connection_errors as exc:  # it is heard of when it is used again
                logger.debug("Could not send ends: %s", describe(exc))

    def _deliver_claims(self: Any, fetch: Fetch, answer: list[Any]) -> None:
        queues = fetch.queues
        first_list = 3 + len(queues)
        worker, epoch, lists, tag_of = fetch.who.worker, fetch.epoch, fetch.lists, fetch.book.tag
        found = [
            Fetched(
                queues[(index - first_list) % len(queues)],
                text,
                tag_of(worker, number, lists[index - first_list], epoch),
            )
            for number, (index, text) in enumerate(
                zip(answer[::2], answer[1::2], strict=True), fetch.first
            )
        ]
        book = fetch.book
        if len(found) > 1:  # in solo the first one runs before the next is handed on
            book.arriving.update((one.delivery_tag, one) for one in found[1:])
        book.undelivered.add(found)
        while True:
            if book.goes_back():
                book.release()
            one = book.undelivered.next()
            if one is None:
                return
            self._queue_cycle.rotate(one.queue)
            try:
                if book.who in (fetch.who, None):  # else it is others' by now
                    deliver(self, *one)
            except BaseException:
                rest = book.undelivered.take()
                if rest:
                    book.give_back([each.delivery_tag for each in rest])
                raise
            finally:
                book.arriving.pop(one.delivery_tag, None)

    def _lost(self: Any, fetch: Fetch) -> None:
        self._next = "EVALSHA"
        fetch.lost()

    def _on_connection_disconnect(self: Any, connection: Any) -> None:
        fetch = self._fetch
        if fetch is not None and self._in_poll is connection:
            self._fetch = None
            self._lost(fetch)
        super()._on_connection_disconnect(connection)  # type: ignore[misc]

    def close(self: Any) -> None:
        fetch = self._fetch
        if fetch is not None and fetch.kind == "BRPOP" and self._in_poll:
            # kombu would wait for the answer. A ring that comes with it is for somebody else.
            self._in_poll.disconnect()
            try:
                self._ring(fetch.queues)
            except self.connection_errors as exc:
                logger.debug("Could not ring: %s", describe(exc))
        super().close()  # type: ignore[misc]

    def _do_restore_message(
        self: Any, payload: Any, exchange: str, routing_key: str, *args: Any, **kwargs: Any
    ) -> None:
        """What was sent to each worker has no list to go back to: kombu would make one."""
        if not any(exchange == name for name, _ in list(self._fanout_queues.values())):
            super()._do_restore_message(  # type: ignore[misc]
                payload, exchange, routing_key, *args, **kwargs
            )


def _say_wrong_types(client: Any, lists: Sequence[str]) -> None:
    """Say which of these keys are no lists: a claim cannot read them, nor can plain Celery."""
    for key in lists:
        kind = bytes_to_str(Redis.execute_command(client, "TYPE", key))  # past kombu's prefix
        if kind not in ("list", "none"):
            log(
                logger,
                logging.CRITICAL,
                "The key %r of a queue is a %s in Redis, and no list of messages: who else writes "
                "to this database? Mend: DEL or RENAME it, then start the worker anew",
                key,
                kind,
            )


class Channel(_Claiming, kombu_redis.Channel):  # type: ignore[misc]
    """kombu's Redis channel, with claims."""

    connection_class = dropping(kombu_redis.Channel.connection_class)
    connection_class_ssl = dropping(kombu_redis.Channel.connection_class_ssl)


class SentinelChannel(kombu_redis.SentinelChannel, Channel):  # type: ignore[misc]
    """kombu's Sentinel channel, with claims."""

    connection_class = dropping(kombu_redis.SentinelChannel.connection_class)
    connection_class_ssl = dropping(kombu_redis.SentinelChannel.connection_class_ssl)


class Transport(Listening, kombu_redis.Transport):
    """kombu's Redis transport, with claims."""

    Channel = Channel


class SentinelTransport(kombu_redis.SentinelTransport, Transport):
    """kombu's Sentinel transport, with claims."""

    Channel = SentinelChannel
    #: All of its URLs lead to the same server.
    one_server = True
