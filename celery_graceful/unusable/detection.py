"""Messages that a worker cannot make a task of: unknown here, or unusable anywhere.

Celery discards both, and some of the latter take the worker down. Here a message whose task this
worker does not know waits for one that does (``waiting.py``), and one that nobody can use is kept
in quarantine. Both are done from a thread, so the loop never waits for a store; until it is done
the message is a claim, or unacknowledged: nothing is lost by a kill at any moment.

Private names of Celery are hooked here: the callbacks of its consumer for what it cannot use, and
the handler of all that arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import signals
from celery.app.task import Context
from celery.concurrency.solo import TaskPool as SoloPool
from celery.exceptions import NotRegistered
from celery.utils.log import get_logger
from celery.worker import state
from kombu.exceptions import ContentDisallowed, DecodeError, OperationalError

from celery_graceful.batches.ends import Ends
from celery_graceful.claims.arrival import deliver
from celery_graceful.claims.held_claims import Tag
from celery_graceful.deliveries.ledger import Ledger
from celery_graceful.deliveries.stage import Stage
from celery_graceful.messages.broadcast import is_broadcast
from celery_graceful.messages.fields import fields_of
from celery_graceful.messages.validation import flaw_of, has_text, reason_of
from celery_graceful.settings import Settings
from celery_graceful.store.app_stores import find_workers_store
from celery_graceful.store.store import StoreAway
from celery_graceful.timeline.board import Board
from celery_graceful.unusable.destinations import Case, make_destination
from celery_graceful.unusable.set_aside import SetAside, where

if TYPE_CHECKING:
    from celery_graceful.deliveries.held_message import HeldMessage

__all__ = ["UnusableMessages"]

logger = get_logger(__name__)

#: Names that are told one by one.
NAMED = 1000

#: What says nothing of the message that was being handled.
_ENVIRONMENT = (OSError, MemoryError, OperationalError, StoreAway)


class UnusableMessages:
    """Those of one worker.

    Args:
        app: The Celery app.
        settings: What the user set.
        ledger: What the worker holds.
        board: Says when nothing is fetched any more.
        ends: Has to know of members of batches that nobody will run.
        queue_of: The queue that a consumer tag of the worker stands for.
        ring_loop: Makes the loop call ``on_loop``.
        tasks_run_here: In this process, not in children.
    """

    def __init__(
        self,
        app: Any,
        settings: Settings,
        ledger: Ledger,
        board: Board,
        ends: Ends,
        *,
        queue_of: Callable[[Any], str | None],
        ring_loop: Callable[[], None],
        tasks_run_here: bool,
    ) -> None:
        self.app = app
        self.settings = settings
        self.ledger = ledger
        self.board = board
        self.ends = ends
        self.queue_of = queue_of
        self.ring_loop = ring_loop
        self.tasks_run_here = tasks_run_here
        self.patience = settings.unknown_task_patience
        self.set_aside: SetAside | None = None
        #: Celery's consumer, or the last one: it may still bring something as it ends.
        self._consumer: Any = None
        #: Names that are not known here, as far as they were told.
        self._named: set[str] = set()
        #: Of tasks whose messages are as Celery makes them.
        self._usual: set[str] = set()
        self._told_none = False

    @property
    def waiting(self) -> int:
        """Messages that wait, for tasks that are not known here."""
        return 0 if self.set_aside is None else self.set_aside.waiting

    def finish(self) -> bool:
        """Begin nothing more, since the worker has nothing else to do; whether it can go."""
        return self.set_aside is None or self.set_aside.finish()

    def keep(self, request: HeldMessage, why: str) -> str | None:
        """Keep a copy of the message of a task that is off its queue, and cannot go back there.

        Args:
            request: Its delivery.
            why: For people.

        Returns:
            Where it is; ``None`` where there is no place.

        Raises:
            Exception: What the client of that place raised.
        """
        if self.set_aside is None:
            return None
        message, fields = request.message, request.request_dict
        case = Case(message, None, self._queue_of(message) or "", request.name, request.id)
        kept = self.set_aside.destination.keep(case, why, False)
        self.ends.note_failed(fields)
        return kept

    def on_change(self) -> None:
        """A delivery has ended: there may be room. From any thread."""
        if self.set_aside is not None and self.set_aside.hungry:
            self.set_aside.look()

    def end(self, seconds: float) -> None:
        """The worker ends."""
        if self.set_aside is not None:
            self.set_aside.end(seconds)

    # -- hooks, in the loop ----------------------------------------------------------

    def attach(self, consumer: Any, *, allowed: bool) -> None:
        """A consumer is about to consume.

        Args:
            consumer: Celery's.
            allowed: Whether Redis, if there is one, lets us do all that we want.
        """
        # Not before Celery does: others replace what it imports.
        from celery.worker.consumer.consumer import Consumer

        self._consumer = consumer
        self._make_aside(allowed)
        hooks: dict[str, Callable[..., Any]] = {
            "on_unknown_message": self._on_unknown_message,
            "on_invalid_task": self._on_invalid_task,
            "on_decode_error": self._on_decode_error,
        }
        waits = self.patience and self.set_aside is not None
        hooks["on_unknown_task"] = self._on_unknown_task if waits else self._discard
        for name, hook in hooks.items():
            # A consumer of the user's own (worker_consumer) may know what to do with them.
            if getattr(type(consumer), name) is getattr(Consumer, name):
                setattr(consumer, name, hook)
        consumer.task_consumer.on_decode_error = consumer.on_decode_error
        make = type(consumer).create_task_handler
        consumer.create_task_handler = lambda *args, **kwargs: self._guarded(
            make(consumer, *args, **kwargs)
        )

    def know(self, consumer: Any) -> None:
        """Celery has built its strategies."""
        tasks, usual = consumer.app.tasks, consumer.app.Task.Strategy
        # A strategy of its own (celery-batches) may want other messages.
        self._usual = {name for name in consumer.strategies if tasks[name].Strategy == usual}

    def _make_aside(self, allowed: bool) -> None:
        destination = make_destination(self.app, self.ledger, self.settings, allowed=allowed)
        if destination is None:
            if self.patience and not self._told_none:
                self._told_none = True
                if find_workers_store(self.app) is None:
                    why = "There is no Redis to keep messages in (graceful_store), so those"
                else:  # why it is not used was said when the consumer was connected
                    why = "For the same reason messages"
                logger.warning(
                    "%s for tasks that are not known here are discarded, as in plain Celery "
                    "(graceful_unknown_task_patience = 0 says that this is all right)",
                    why,
                )
            self.detach()
            self.end(0.0)
            self.set_aside = None
            return
        if self.set_aside is None:
            self.set_aside = SetAside(
                destination, self.ledger, self.board, self.patience, self.ends, self.ring_loop
            )
        self.set_aside.attach(destination, self._consumer)

    def detach(self) -> None:
        """The consumer has left its loop."""
        if self.set_aside is not None:
            self.set_aside.detach()

    def _guarded(self, handle: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Celery's handler of a message; none is so bad that it takes the worker down."""

        runs_here = self.tasks_run_here

        def on_task_received(message: Any) -> Any:
            try:
                headers = message.headers
                name = headers["task"] if "task" in headers else fields_of(message).get("task", "")
                if not isinstance(name, str):
                    return self._hold(message, "the name of its task is none")
                if name in self._usual:
                    flaw = flaw_of(message, runs_here=runs_here)
                    if flaw is not None:
                        return self._hold(message, flaw)
                return handle(message)
            except Exception as exc:
                self._failed(message, exc)

        return on_task_received

    def _failed(self, message: Any, exc: Exception) -> None:
        consumer = self._consumer
        errors = (*_ENVIRONMENT, *consumer.connection_errors, *consumer.channel_errors)
        if isinstance(exc, errors) or consumer.app.backend.exception_safe_to_retry(exc):
            raise exc
        request = next((r for r in self.ledger.open_requests() if r.message is message), None)
        if request is not None:
            if not self.ledger.close(request, Stage.RELEASED, only=(Stage.RECEIVED,)):
                logger.error("%s has begun, and raised: %s", request.humaninfo(), where(exc))
                if isinstance(consumer.pool, SoloPool):  # it has ended
                    self._end(request)
                return
            state.task_ready(request)
            if request.claim is not None:
                request.claim.book.held.pop(request.claim, None)
        if message.acknowledged:
            logger.error("A message that was acknowledged raised: %s", where(exc))
            return
        logger.error("A message that has no known flaw raised: %s", where(exc))
        self._hold(message, reason_of(exc), exc)

    def _end(self, request: HeldMessage) -> None:
        """What was raised outside of the body of a task has ended it, here where it ran."""
        try:
            request.on_failure(ExceptionInfo())
        except Exception:  # as before: what it says of errbacks, for instance
            self.ledger.drop(request)
        if not request.acknowledged:
            state.task_ready(request)
            request.acknowledge()

    def _on_unknown_message(self, body: Any, message: Any) -> None:
        self._hold(message, "it names no task")

    def _on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._hold(message, reason_of(exc), exc)

    def _on_decode_error(self, message: Any, exc: Exception) -> None:
        refused = isinstance(exc, ContentDisallowed)
        self._hold(message, reason_of(exc if refused else DecodeError()), exc)

    def on_no_message(self, tag: Tag, exc: Exception) -> None:
        """A claim is no message of kombu's."""
        self._put(Case(None, tag, "", why=reason_of(exc), exc=exc))

    def _on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        fields = fields_of(message)
        name, task_id = fields["task"], fields.get("id")
        tag = _tag_of(message)
        queue = "" if tag is not None else self._queue_of(message)
        if not has_text(task_id):
            self._hold(message, "its id is none")
        elif not has_text(name):
            self._hold(message, "the name of its task is none")
        elif queue is None or is_broadcast(self._consumer.app, message.delivery_info):
            self._discard(body, message, exc)  # a copy for this worker: nobody else waits for it
        else:
            self._say_once(name)
            self._put(Case(message, tag, queue, name, task_id))

    def _discard(self, body: Any, message: Any, exc: Exception) -> None:
        """As Celery does."""
        from celery.worker.consumer.consumer import Consumer

        self.ends.note_failed(fields_of(message))
        Consumer.on_unknown_task(self._consumer, body, message, exc)

    def _say_once(self, name: str) -> None:
        if name in self._named or len(self._named) > NAMED:
            return
        self._named.add(name)
        if len(self._named) > NAMED:
            logger.warning("More than %d tasks are not known here: no more are named", NAMED)
            return
        logger.warning(
            "The task %.200r is not known here: a message for it waits for a worker that knows it, "
            "for up to %g s (graceful_unknown_task_patience), and then %s",
            name,
            self.patience,
            self.set_aside and self.set_aside.destination.end,
        )

    def _hold(self, message: Any, why: str, exc: Exception | None = None) -> None:
        """A message that cannot be used."""
        fields = fields_of(message)
        tag = _tag_of(message)
        case = Case(
            message,
            tag,
            "" if tag is not None else self._queue_of(message) or "",
            fields.get("task", ""),
            fields.get("id", ""),
            why=why,
            exc=exc,
        )
        if self.set_aside is not None:
            self.set_aside.put(case)
        else:
            logger.error("A message from %s cannot be used: %s. Rejected", case.queue, why)
            self.ends.note_failed(fields)
            message.reject_log_error(logger, self._consumer.connection_errors)
            self._tell(case)

    def _put(self, case: Case) -> None:
        assert self.set_aside is not None
        self.set_aside.put(case)

    def _queue_of(self, message: Any) -> str | None:
        """Where it came from; of a claim its claim tells."""
        info = message.delivery_info or {}
        queue = self.queue_of(info.get("consumer_tag"))
        if queue is None and hasattr(message.channel, "_lookup"):
            channel = message.channel
            try:
                found = list(channel._lookup(info.get("exchange"), info.get("routing_key")))
            except Exception:  # where it says that it goes is none
                return None
            active = getattr(channel, "active_queues", found)
            queue = next((one for one in found if one in active), None)
        return queue

    # -- in the loop -----------------------------------------------------------------

    def on_loop(self) -> None:
        """Acknowledge what is safe elsewhere, and start what waited and is known here."""
        set_aside = self.set_aside
        while set_aside is not None and set_aside.done:
            self._settle(set_aside.done.popleft())
        while set_aside is not None and set_aside.arrived and set_aside.consumer is not None:
            queue, text, tag = set_aside.arrived.popleft()
            deliver(set_aside.consumer.task_consumer.channel, queue, text, tag)

    def _settle(self, case: Case) -> None:
        message, tasks = case.message, self._consumer.task_consumer
        if case.tag is not None:
            case.free()
        elif tasks is not None and message.channel is tasks.channel:
            # Else its connection is gone, and it comes again.
            message.ack_log_error(logger, self._consumer.connection_errors)
        if case.kept:
            self._tell(case)

    def _tell(self, case: Case) -> None:
        """As Celery does; what a receiver raises is logged there."""
        consumer, message = self._consumer, case.message
        if case.why:
            signals.task_rejected.send(sender=consumer, message=message, exc=case.exc)
            return
        exc = NotRegistered(case.name)
        if self.set_aside is not None and self.set_aside.destination.tells:
            self.ledger.post_mortems.tell_soon()
        else:
            request = Context(id=case.id, **message.properties)
            consumer.app.backend.mark_as_failure(case.id, exc, request=request)
            if consumer.event_dispatcher:
                consumer.event_dispatcher.send("task-failed", uuid=case.id, exception=repr(exc))
        signals.task_unknown.send(
            sender=consumer, message=message, exc=exc, name=case.name, id=case.id
        )


def _tag_of(message: Any) -> Tag | None:
    tag = message.delivery_tag
    return tag if isinstance(tag, Tag) else None
