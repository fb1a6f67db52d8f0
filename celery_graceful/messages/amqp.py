"""Brokers that speak AMQP."""

from __future__ import annotations

from typing import Any

__all__ = ["is_amqp"]


def is_amqp(connection: Any) -> bool:
    """Whether a connection of kombu's leads to RabbitMQ, or what speaks like it."""
    return bool(connection.transport.driver_type == "amqp")
