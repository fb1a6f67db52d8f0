"""What RabbitMQ does by its own rules: counts of deliveries, and its clock."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any

from celery_graceful.deliveries.requeue import COPY_AFTER
from celery_graceful.doctor.examination import Examination
from celery_graceful.doctor.findings import Check, Severity, Trouble
from celery_graceful.messages.amqp import is_amqp

__all__ = ["CHECKS"]

#: Seconds of RabbitMQ's ``consumer_timeout``, if nobody has set it.
CONSUMER_TIMEOUT = 1800.0


def _queues(exam: Examination) -> Iterator[tuple[str, dict[str, Any]]]:
    """The queues that workers consume from, each with its arguments; of RabbitMQ alone."""
    if is_amqp(exam.connection):
        for name, queue in exam.app.amqp.queues.consume_from.items():
            yield name, queue.queue_arguments or {}


def delivery_limits(exam: Examination) -> Iterator[Trouble]:
    """CG301: quorum queues that drop what is interrupted often."""
    for name, arguments in _queues(exam):
        limit = arguments.get("x-delivery-limit")
        if arguments.get("x-queue-type") != "quorum" or limit is None or limit < 0:
            continue
        longer = [t.name for t in exam.tasks if t.acks_late and _interruptions(t) >= limit]
        if limit <= COPY_AFTER and longer:
            yield Trouble(
                f"x-delivery-limit of the queue {name}",
                limit,
                f"RabbitMQ drops a message that it has taken back so often, a deploy counts as a "
                f"crash does, and {longer[0]} may be interrupted more often; workers send a copy "
                f"instead from a count of {COPY_AFTER} on, which comes too late",
                f"make it more than {COPY_AFTER}, or set max_interruptions below it",
            )


def _interruptions(task: Any) -> float:
    limit = getattr(task, "max_interruptions", None)
    return inf if limit is None else float(limit)


def consumer_timeouts(exam: Examination) -> Iterator[Trouble]:
    """CG302: tasks that may run for longer than RabbitMQ waits for an acknowledgement."""
    timeouts = [
        (arguments.get("x-consumer-timeout", CONSUMER_TIMEOUT * 1000) / 1000, name, arguments)
        for name, arguments in _queues(exam)
    ]
    if not timeouts:
        return
    seconds, name, arguments = min(timeouts, key=lambda one: one[0])
    is_set = "x-consumer-timeout" in arguments
    for task in exam.tasks:
        if task.acks_late and exam.limit(task) > seconds:
            yield Trouble(
                f"x-consumer-timeout of the queue {name}" if is_set else "consumer_timeout",
                f"{seconds:g} s" if is_set else f"{seconds:g} s, if nobody has set it",
                f"{task.name} may run for {exam.limit(task):g} s: RabbitMQ closes the channel of "
                "its worker before that, and delivers everything again",
                f"set consumer_timeout in rabbitmq.conf, or x-consumer-timeout of the queue, above "
                f"{exam.limit(task):g} s",
            )


CHECKS = (
    Check("CG301", Severity.ERROR, delivery_limits),
    Check("CG302", Severity.WARNING, consumer_timeouts),
)
