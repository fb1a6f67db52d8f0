"""What only a worker knows, and does: asked for by remote control, with a bounded wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_graceful.claims.claimant import node_of
from celery_graceful.messages.amqp import is_amqp
from celery_graceful.messages.bounded_connections import BrokerAway, bounded_connection
from celery_graceful.operations.records import Answer
from celery_graceful.system.describe import describe

__all__ = ["BROKER_TIMEOUT", "ask", "check_rabbit", "patience", "tell", "why_rabbit_away"]

#: Seconds that the broker gets to connect, and to take a command. With what else may be away, and
#: the start of Python and the app, a command is to end within 5 s.
BROKER_TIMEOUT = 2.0

#: Seconds that each of many hosts gets.
LEAST = 0.5


def patience(broker: Any) -> float:
    """Seconds for each host of a broker, a connection of kombu's."""
    return max(LEAST, BROKER_TIMEOUT / (len(broker.alt) or 1))


def ask(
    app: Any,
    command: str,
    wait: float,
    workers: Sequence[str] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """What workers answer, by the names of their nodes.

    Args:
        app: The Celery app.
        command: Of remote control.
        wait: Seconds, at most, between two answers.
        workers: Whom: names or ids. ``None``: all, and as long as that takes.
        arguments: For it.

    Raises:
        BrokerAway: The broker does not answer, or refuses.
    """
    nodes = None if workers is None else sorted({node_of(worker) for worker in workers})
    broker = app.connection_for_write()
    with bounded_connection(broker, patience(broker)) as connection:
        try:
            answers = app.control.broadcast(
                command,
                arguments=arguments,
                destination=nodes,
                connection=connection,
                reply=True,
                timeout=wait,
                limit=None if nodes is None else len(nodes),
            )
        except connection.channel_errors as exc:  # full, or its user may not
            raise BrokerAway(describe(exc, connection.as_uri())) from exc
    return {node: said for answer in answers or () for node, said in answer.items()}


def check_rabbit(app: Any) -> None:
    """Look whether RabbitMQ answers, if it is the broker.

    Raises:
        BrokerAway: It does not.
    """
    broker = app.connection_for_read()
    if is_amqp(broker):
        with bounded_connection(broker, patience(broker)):
            pass


def why_rabbit_away(app: Any) -> str:
    """Why RabbitMQ does not answer; empty if it does, or is not the broker."""
    try:
        check_rabbit(app)
    except BrokerAway as exc:
        return str(exc)
    return ""


def tell(app: Any, command: str, wait: float, workers: Sequence[str] | None = None) -> list[Answer]:
    """Have workers do something; what each has answered, or that it has not. As ``ask``."""
    said = ask(app, command, wait, workers)
    nodes = said if workers is None else {node_of(worker) for worker in workers}
    return [_answer(node, said.get(node)) for node in sorted(nodes)]


def _answer(node: str, said: Any) -> Answer:
    if not isinstance(said, dict):
        return Answer(node, False, "has not answered in time" if said is None else str(said))
    return Answer(node, "ok" in said, str(said.get("ok", said.get("error", said))))
