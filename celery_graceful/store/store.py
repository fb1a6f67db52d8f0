"""The store: Redis, reached over the app's own connection parameters.

Keys, each after the key prefix of the connection:

``graceful:checkpoint:<task name>:<task id>``
    Hash, with ``graceful_checkpoint_ttl`` to live.

    ==================  ==========================================================
    ``fence``           token of the delivery that may write
    ``began``           when that delivery began, microseconds of the server's clock
    ``interruptions``   how often the task was interrupted
    ``state``           what the task passed to ``checkpoint``
    ``c:<loop>``        cursor of a loop: JSON of kind, cursor, whether it is done
    ``s:<step>``        result of a step: JSON of position and result
    ``own_cursor``      there if it keeps the cursor of a loop itself
    ==================  ==========================================================

Check-ins (``monitors/check_in.py``):

``graceful:run:<slug>:<run>``
    Hash: ``began``, milliseconds of the first worker's clock; ``closed``, how many check-ins of
    the run were closed before its end. ``graceful_checkpoint_ttl`` to live.

Deaths and quarantine (``poison/``), where the workers are known:

``graceful:deaths:<task id>``
    Sorted set: one death of a process that ran it -> when, seconds of the server's clock.
    Expires after ``graceful_poison_window``.
``graceful:started:<task id>``
    String, RabbitMQ only: ``<worker>|<delivery>`` that runs it (``start_note.py``); ``=<message>``
    for a while when it has ended, and its acknowledgement may be lost.
``graceful:quarantine``
    Hash: task id -> JSON of what ``quarantine.Kept`` says.
``graceful:released:<task id>``
    String, there while RabbitMQ is sent it again, and it is still in quarantine.
``graceful:untold``
    Sorted set: ids in quarantine whose failure has not been told yet -> when to tell it.

Batches: ``batches/keys.py``. The history: ``history/journal.py``.

The scripts are in ``lua/``. Besides its client only the transport and the demo import redis.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

from celery.utils.log import get_logger

from celery_graceful.store.answers import (
    is_answer,
    is_forbidden,
    is_of_a_cluster,
    is_of_a_replica,
)
from celery_graceful.store.client import address_of, make_client
from celery_graceful.store.cluster import place_in_cluster
from celery_graceful.store.connections import disconnect, take_connection
from celery_graceful.store.presence import Presence
from celery_graceful.store.scripts import script as script_of
from celery_graceful.system import native
from celery_graceful.system.describe import describe
from celery_graceful.system.log_thread import log

__all__ = [
    "COMMAND_TIMEOUT",
    "SEPARATOR",
    "Store",
    "StoreAway",
    "StoreForbidden",
    "StoreInCluster",
    "StoreIsReplica",
    "StoreRefused",
    "fork_gate",
]

logger = get_logger(__name__)

#: Between the name of a queue and a priority in the keys of its lists: kombu's default of ``sep``.
SEPARATOR = "\x06\x16"

#: Seconds that a connect, and an answer, may take.
COMMAND_TIMEOUT = 1.0

#: Seconds until a store that was away is asked again: the first time, and at most. After a
#: failover it must not be long: tasks save nothing until then.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 2.0


#: Workers ask stores in threads, and fork children.
fork_gate = native.ForkGate()


class StoreAway(Exception):
    """The store could not be asked, or did not answer in time."""

    #: The message has the type, and where it happened; see ``describe``.
    is_described = True


class StoreRefused(StoreAway):
    """The store answered that it does not do this; it may do everything else.

    Who can wait for a store that is away can wait for this as well.
    """


class StoreForbidden(StoreRefused):
    """The store does not allow it to its user: waiting changes nothing."""


class StoreInCluster(StoreRefused):
    """It is a server of a Redis Cluster, which has not all of our keys together.

    Args:
        said: As of the others.
        mend: What to do.
    """

    def __init__(self, said: str, mend: str) -> None:
        super().__init__(said, mend)
        self.said, self.mend = said, mend

    def __str__(self) -> str:
        return f"{self.said}. Mend: {self.mend}"


class StoreIsReplica(StoreRefused):
    """The store is no master: it can be read. Only who asks quietly hears it as an answer."""


class Store:
    """One Redis database.

    Args:
        source: Where its address was found, for messages.
        make_pool: Makes a redis connection pool for a time-out in seconds; does not connect.
        prefix: Put in front of every key.
        separator: Where it is a broker, between the name of a queue and a priority.
    """

    def __init__(
        self,
        source: str,
        make_pool: Callable[[float], Any],
        prefix: str = "",
        separator: str = SEPARATOR,
    ) -> None:
        self.source = source
        self.prefix = prefix
        self.separator = separator
        self._make_pool = make_pool
        self._clients: dict[tuple[float, int], Any] = {}
        self._away_since: float | None = None
        #: The end of the last outage, on the monotonic clock.
        self._back_at = 0.0
        self._pause = FIRST_PAUSE
        self._ask_again_at = 0.0
        self._refused: set[str] = set()
        self._lock = native.Lock()
        #: How many connections were made to it, and how many of them in place of one that was
        #: lost. Each may lead to another server.
        self.connections = self.reconnections = 0
        self._made: WeakSet[Any] = WeakSet()
        self._presence = Presence(lambda keys: int(self.execute("EXISTS", keys)))
        #: The other end of the last one.
        self.peer: Any = None

    def run(
        self,
        script: str,
        keys: Sequence[str],
        args: Sequence[Any],
        *,
        timeout: float = COMMAND_TIMEOUT,
        insist: bool = False,
        quiet: bool = False,
    ) -> Any:
        """Run a script of ``lua/``.

        Args:
            script: Its name, without ``.lua``.
            keys: Its keys, without the prefix.
            args: Its arguments.
            timeout: Seconds for a connect, and for the answer.
            insist: Ask also when the store was away a moment ago.
            quiet: It may refuse: no line in the log.

        Raises:
            StoreAway: It did not work. Said in the log once, until it works again.
            StoreRefused: It answered with an error. Said in the log once for each script.
        """
        sha, text = script_of(script)
        names = [self.prefix + key for key in keys]

        def call(client: Any) -> Any:
            return client.run_script(sha, text, names, args)

        return self._ask(f"the script {script}", keys, call, timeout, insist, quiet)

    def execute(
        self,
        command: str,
        keys: Sequence[str],
        args: Sequence[Any] = (),
        *,
        timeout: float = COMMAND_TIMEOUT,
        insist: bool = False,
        quiet: bool = False,
    ) -> Any:
        """Run one command, such as HDEL. Arguments and errors are those of ``run``."""
        names = [self.prefix + key for key in keys]

        def call(client: Any) -> Any:
            return client.execute_command(command, *names, *args)

        return self._ask(command, keys, call, timeout, insist, quiet)

    def alone(self, call: Callable[[Any], Any]) -> Any:
        """Use a connection that nobody else does, and that is closed then.

        Args:
            call: Is given redis-py's connection. It has no database chosen.

        Raises:
            StoreAway: It did not work.
        """

        def use(_: Any) -> Any:
            pool = self.own_client(COMMAND_TIMEOUT, db=0).connection_pool
            connection = take_connection(pool)
            try:
                return call(connection)
            finally:
                connection.disconnect()

        return self._ask("a question", [], use, COMMAND_TIMEOUT, insist=True, quiet=True)

    def check_slots(self) -> None:
        """Ask for two keys together.

        Raises:
            StoreInCluster: Its slots keep apart what belongs together.
            StoreAway: As ``run``.
        """
        self.execute("EXISTS", ["graceful:workers", "graceful:batches"], insist=True, quiet=True)

    def any_exists(self, *keys: str, age: float) -> bool:
        """Whether one of the keys is there, or was up to ``age`` seconds ago. Raises as ``run``.

        For those who look for the same keys again and again: they share their questions.
        """
        return self._presence.any_of(keys, age)

    def was_away_since(self, moment: float) -> bool:
        """Whether it was away at that moment or later, on the monotonic clock, or still is."""
        return self._away_since is not None or self._back_at > moment

    def disconnect(self) -> None:
        """Close all connections, to Sentinels as well. Who asks again connects again."""
        for client in list(self._clients.values()):
            disconnect(client.connection_pool)

    def _ask(
        self,
        what: str,
        keys: Sequence[str],
        call: Callable[[Any], Any],
        timeout: float,
        insist: bool,
        quiet: bool,
    ) -> Any:
        if self._away_since is not None and not insist and time.monotonic() < self._ask_again_at:
            raise StoreAway(f"{self.source} was away a moment ago")
        address, asked_at = "", time.monotonic()
        try:
            with fork_gate:
                client = self._client(timeout)
                address = address_of(client.connection_pool)
                answer = call(client)
        except Exception as exc:  # redis, kombu and the system have each errors of their own
            why = describe(exc, address)
            if is_answer(exc):
                self._answered(asked_at)
                refusal = self._refusal(exc, f"{self.source}: {why}")
                if not quiet:
                    self._refuses(what, keys, str(refusal).removeprefix(f"{self.source}: "))
                raise refusal from exc
            if quiet and is_of_a_replica(exc):  # to others it is away until another one is master
                self._answered(asked_at)
                raise StoreIsReplica(f"{self.source}: {why}") from exc
            self._failed(why, asked_at)
            raise StoreAway(f"{self.source}: {why}") from exc
        self._answered(asked_at)
        if self._refused and (refused := _kind(what, keys)) in self._refused:
            self._refused.discard(refused)
            what += self._on(keys)
            log(logger, logging.WARNING, "The store (%s) does %s again", self.source, what)
        return answer

    def _answered(self, asked_at: float) -> None:
        with self._lock:
            since = self._away_since
            if since is None or asked_at < since:  # it comes late, from before the outage
                return
            self._away_since, self._back_at = None, time.monotonic()
        away = self._back_at - since
        self._pause = FIRST_PAUSE
        log(logger, logging.WARNING, "The store (%s) is back after %.1f s", self.source, away)

    def _refusal(self, exc: Exception, said: str) -> StoreRefused:
        if is_of_a_cluster(exc):
            return StoreInCluster(said, place_in_cluster(self.source, self.prefix, str(exc)))
        return StoreForbidden(said) if is_forbidden(exc) else StoreRefused(said)

    def _refuses(self, what: str, keys: Sequence[str], why: str) -> None:
        if _kind(what, keys) not in self._refused:
            self._refused.add(_kind(what, keys))
            log(
                logger,
                logging.ERROR,
                "The store (%s) refuses %s%s: %s",
                self.source,
                what,
                self._on(keys),
                why,
            )

    def _on(self, keys: Sequence[str]) -> str:
        return f" on {', '.join(self.prefix + key for key in keys[:5])}" if keys else ""

    def _failed(self, why: str, asked_at: float) -> None:
        now = time.monotonic()
        with self._lock:
            begins = self._away_since is None
            if begins and asked_at < self._back_at:  # it comes late, from the outage before
                return
            if begins:
                self._away_since = now
        if begins:
            log(
                logger,
                logging.WARNING,
                "The store (%s) does not work: %s. Tasks go on, and keep in memory what they "
                "have to save until it does",
                self.source,
                why,
            )
        else:
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
        self._ask_again_at = now + self._pause

    @property
    def user(self) -> str:
        """The name that it is asked under."""
        kwargs = self._client(COMMAND_TIMEOUT).connection_pool.connection_kwargs
        return kwargs.get("username") or "default"

    @property
    def db(self) -> int:
        """The number of its database."""
        return int(self._client(COMMAND_TIMEOUT).connection_pool.connection_kwargs.get("db") or 0)

    @property
    def address(self) -> str:
        """Host and port."""
        return address_of(self._client(COMMAND_TIMEOUT).connection_pool)

    def _client(self, timeout: float) -> Any:
        # With greenlets a connection, and the lock of a pool, belong to the hub of their thread.
        key = timeout, native.thread_ident() if native.is_green() else 0
        if key not in self._clients:
            self._clients[key] = self.own_client(timeout, redis_connect_func=self._on_connect)
        return self._clients[key]

    def own_client(self, timeout: float, **parameters: Any) -> Any:
        """A client with connections of its own, which say nothing of who answers the others."""
        return make_client(
            self._make_pool(timeout),
            timeout,
            decode_responses=True,
            encoding="utf-8",
            encoding_errors="surrogateescape",  # what is in a queue may be anything
            **parameters,
        )

    def _on_connect(self, connection: Any) -> None:
        self.connections += 1
        self.reconnections += connection in self._made
        self._made.add(connection)
        self.peer = connection._sock.getpeername()
        connection.on_connect()


def _kind(what: str, keys: Sequence[str]) -> str:
    """A command, and the kind of keys that it is about: some of them may be forbidden."""
    return f"{what} {':'.join(keys[0].split(':')[:2])}" if keys else what
