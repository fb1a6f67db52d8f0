"""Brokers whose queues cannot be read: RabbitMQ first, which at least says how many wait there.

What no living worker holds is in a queue, or lost. A queue that is empty, at two looks, has not got
it. One that is not may have it for long, and then nobody can say; a member that was sent an age
ago is listed all the same, as unsure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from celery_graceful.batches.search_state import Doubt, Sought
from celery_graceful.claims.claimant import WORKERS, lease_key
from celery_graceful.messages.amqp import is_amqp
from celery_graceful.messages.bounded_connections import bounded_connection
from celery_graceful.messages.routing import DELAYED
from celery_graceful.store.start_note import StartNote
from celery_graceful.store.store import Store, fork_gate

__all__ = ["Queues"]

#: Seconds that the broker gets.
TIMEOUT = 2.0

#: Seconds for which a batch has to stand still until its members are listed that may be in a queue;
#: and those whose worker is gone: a broker that has not heard of that yet gives them back later.
AGE, GIVES_BACK = 3600.0, 300.0

#: When it is known what is missing.
EMPTY = "run it again when the queue is empty"
GIVEN_BACK = "run it again in some minutes"

#: Keys in one command.
CHUNK = 500


class Queues:
    """The queues of one broker.

    Args:
        app: The Celery app.
        store: Where the workers are known.
        routes: The queues that members of a batch are sent to.
    """

    def __init__(
        self,
        app: Any,
        store: Store | None,
        routes: Callable[[str, set[str]], Iterable[str]],
    ) -> None:
        self.app, self.store = app, store
        self._routes = routes

    def look(self, sought: Sought, *, again: bool) -> None:
        """As that of ``Whereabouts``."""
        broker = self.app.connection_for_read()
        if not is_amqp(broker):
            for batch, _ in sought:
                why = f"the queues of {broker.transport.driver_type} cannot be looked into"
                sought.doubt(batch, Doubt(why, AGE))
            return
        with fork_gate, bounded_connection(broker, TIMEOUT) as connection:
            lengths = _Lengths(connection)
            delayed = lengths.first_not_empty(DELAYED) if lengths.exists(DELAYED[0]) else None
            for batch, members in sought:
                queue = lengths.first_not_empty(self._routes(batch, members)) or delayed
                if queue is not None:
                    sought.doubt(batch, Doubt(lengths.said_of(queue), AGE, EMPTY))
        if again and self.store is not None:
            self._ask_notes(self.store, sought)

    def _ask_notes(self, store: Store, sought: Sought) -> None:
        """What was noted when a run began: its worker lives, or the broker gives it back."""
        workers = sorted(store.execute("SMEMBERS", [WORKERS], insist=True))
        beats = store.execute("MGET", [lease_key(w) for w in workers]) if workers else []
        living = {worker for worker, beat in zip(workers, beats, strict=True) if beat is not None}
        for batch, some in sought:
            members = sorted(some)
            for start in range(0, len(members), CHUNK):
                chunk = members[start : start + CHUNK]
                keys = [f"graceful:started:{member}" for member in chunk]
                for member, text in zip(chunk, store.execute("MGET", keys), strict=True):
                    note = StartNote.parse(text)
                    if note is None:
                        continue
                    if note.worker in living:
                        sought.found([f"{batch}/{member}"])
                    elif note.may_come_back:
                        why = "the worker that ran it is gone, and RabbitMQ may give it back"
                        sought.doubt(batch, Doubt(why, GIVES_BACK, GIVEN_BACK))


class _Lengths:
    """How many messages are ready in queues, each asked for once."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._channel = connection.default_channel
        self._known: dict[str, int | None] = {}

    def first_not_empty(self, queues: Iterable[str]) -> str | None:
        return next((queue for queue in queues if self._length(queue)), None)

    def exists(self, queue: str) -> bool:
        return self._length(queue) is not None

    def said_of(self, queue: str) -> str:
        """Why nobody knows what is in one that is not empty."""
        count = self._length(queue) or 0
        wait = "1 waits" if count == 1 else f"{count:,} wait"
        return f"{queue} is not empty ({wait} there), and RabbitMQ does not say what is in it"

    def _length(self, queue: str) -> int | None:
        if queue not in self._known:
            try:
                declared = self._channel.queue_declare(queue, passive=True)
                self._known[queue] = int(declared.message_count)
            except self._connection.channel_errors:  # there is none
                self._known[queue] = None
                self._channel = self._connection.channel()
        return self._known[queue]
