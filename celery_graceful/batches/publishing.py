"""Many messages at once: in pipelines where the broker has such, and confirmed by RabbitMQ.

A producer is held for one call only, however long the next members take to come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any

from celery import states
from celery.result import AsyncResult, EagerResult
from kombu import exceptions
from kombu.exceptions import OperationalError
from kombu.messaging import Producer

from celery_graceful.batches.kept_headers import are_kept
from celery_graceful.batches.marks import parts_of
from celery_graceful.batches.model import Outcome
from celery_graceful.system.describe import describe
from celery_graceful.system.loaded import is_instance, loaded

__all__ = ["publish"]

Send = Callable[..., None]

#: kombu has it since 5.7.
BatchPublishError: Any = getattr(exceptions, "BatchPublishError", OperationalError)

#: Messages in one pipeline, and seconds that RabbitMQ may take to confirm one more of them.
PIPELINE, PATIENCE = 100, 30.0


def publish(app: Any, signatures: Sequence[Any]) -> dict[str, Outcome]:
    """Send signatures. Once this returns the broker has all of them; in no certain order.

    Where the connection is lost on the way they are sent once more: some may then be there twice.

    Args:
        app: The Celery app.
        signatures: With their ids.

    Returns:
        Of single tasks those that their own ``apply_async`` did not send, by id, and what they
        came to: left out as duplicates (celery-once, celery-singleton), or run there.

    Raises:
        kombu.exceptions.OperationalError: The broker could not be reached.
        Exception: What Celery raises for signatures that cannot be sent.
    """
    are_kept()
    alone = []
    for sig in signatures:
        if parts_of(sig) is None:
            alone.append(sig)
        else:  # Celery takes a producer of its own for each, and the pool may have no more than one
            sig.apply_async()
    not_sent: dict[str, Outcome] = {}
    if not alone:
        return not_sent
    send = _sender(app, not_sent)
    with app.producer_or_acquire() as pooled:
        connection = pooled.connection
        lost = (*connection.connection_errors, OperationalError, BatchPublishError)
        try:
            try:
                _send_all(pooled, alone, send)
            except lost:
                connection.collect()
                connection.ensure_connection(**_policy(app))
                pooled.revive(connection)
                _send_all(pooled, alone, send)
        except lost as exc:
            if isinstance(exc, OperationalError):
                raise
            raise OperationalError(describe(exc, connection.as_uri())) from exc
    return not_sent


def _policy(app: Any) -> dict[str, Any]:
    names = ("max_retries", "interval_start", "interval_step", "interval_max")
    policy = app.conf.task_publish_retry_policy
    return {name: policy[name] for name in names if name in policy}


def _send_all(pooled: Any, signatures: Sequence[Any], send: Send) -> None:
    channel = pooled.channel
    if getattr(pooled, "batch", None) is not None and pooled.supports_batch_publish:
        with pooled.batch(PIPELINE):
            for sig in signatures:
                send(sig, pooled)
    elif (
        is_instance(channel, "kombu.transport.pyamqp", "Channel")
        and not channel.connection.confirm_publish
    ):
        with closing(_Confirmed(channel.connection.channel())) as producer:
            for sig in signatures:
                send(sig, producer, retry=False)  # which would go on over another channel
            producer.wait()
    else:
        for sig in signatures:
            send(sig, pooled)


class _Confirmed(Producer):
    """Publishes any number of messages, and then waits until RabbitMQ has confirmed them."""

    def __init__(self, channel: Any) -> None:
        super().__init__(channel, auto_declare=False)
        self._amqp = channel
        self._published = 0
        self._open: set[int] = set()
        self._refused = False
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        """As kombu's."""
        self._published += 1
        self._open.add(self._published)
        return super().publish(*args, **kwargs)

    def wait(self) -> None:
        """Wait for what is still to be confirmed.

        Raises:
            OperationalError: RabbitMQ has not taken all of it.
        """
        while self._open:
            self._amqp.connection.drain_events(timeout=PATIENCE)
        if self._refused:
            raise OperationalError("RabbitMQ has refused some of the messages")

    def close(self) -> None:
        """Give the channel up."""
        with suppress(Exception):  # it is gone with its connection
            self._amqp.close()

    def _on_ack(self, tag: int, multiple: bool) -> None:
        if multiple:
            self._open = {one for one in self._open if one > tag}
        else:
            self._open.discard(tag)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._refused = True
        self._on_ack(tag, multiple)


def _sender(app: Any, not_sent: dict[str, Outcome]) -> Send:
    """Sends the signature of one task, or notes that it was not sent.

    Nobody waits for the results of members, one by one.
    """
    subscribes = _subscribes(app)
    tried: set[str] = set()

    def send(sig: Any, producer: Any, **options: Any) -> None:
        member = sig.options["task_id"]
        if member in not_sent:
            return
        is_first = member not in tried
        tried.add(member)
        if subscribes:
            ignored = sig.options.get("ignore_result")
            if ignored is None:
                ignored = getattr(app.tasks.get(sig.task), "ignore_result", None)
            if not ignored:
                # To the backend here, which would subscribe to each; the message says what is.
                headers = {**sig.options["headers"], "ignore_result": ignored}
                options |= {"ignore_result": True, "headers": headers}
        result = sig.apply_async(producer=producer, add_to_parent=False, **options)
        # The second time it may be its own first one that it is a duplicate of.
        if is_first and (outcome := _outcome_of_none(result, member)) is not None:
            not_sent[member] = outcome

    return send


def _outcome_of_none(result: Any, member: str) -> Outcome | None:
    """What one came to that was not sent, by what its ``apply_async`` returned."""
    if isinstance(result, EagerResult):
        ended = {states.FAILURE: Outcome.FAILED, states.REVOKED: Outcome.REVOKED}
        return ended.get(result.state, Outcome.SUCCEEDED)
    of_another = isinstance(result, AsyncResult) and result.id != member
    return Outcome.SUCCEEDED if of_another else None


def _subscribes(app: Any) -> bool:
    """Whether the result backend subscribes to the result of each task that is sent."""
    backend = loaded("celery.backends.redis", "RedisBackend")
    return backend is not None and isinstance(app.backend, backend)
