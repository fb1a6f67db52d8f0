"""What a message says of its task: in its headers, or, by protocol 1, in its body."""

from __future__ import annotations

import base64
from typing import Any

from kombu.message import Message
from kombu.utils.json import loads

__all__ = ["fields_of", "message_from", "parse"]


def fields_of(message: Any) -> dict[str, Any]:
    """The headers, or the body of protocol 1; nothing where Celery finds that there is nothing."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    if "task" in headers:
        return headers
    try:
        payload = message.payload
    except Exception:
        return headers
    return payload if isinstance(payload, dict) else headers


def parse(raw: str) -> Message:
    """A message of kombu's virtual transports."""
    return message_from(loads(raw))


def message_from(payload: Any) -> Message:
    """As ``parse``, of what its text says."""
    properties = payload["properties"]
    body = payload["body"]
    if properties.get("body_encoding") == "base64":
        body = base64.b64decode(body)
    return Message(
        body=body,
        headers=payload.get("headers"),
        properties=properties,
        content_type=payload.get("content-type"),
        content_encoding=payload.get("content-encoding"),
        delivery_info=properties.get("delivery_info"),
    )
