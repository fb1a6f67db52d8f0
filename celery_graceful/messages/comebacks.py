"""What a message says of earlier deliveries of its task."""

from __future__ import annotations

from typing import Any

from celery_graceful.messages.own_headers import SENT_AGAIN

__all__ = ["SENT_AGAIN", "came_back", "may_resume", "replaced_by"]


def may_resume(request: Any) -> bool:
    """Whether an earlier delivery, or an earlier try, may have begun, and left a checkpoint.

    Args:
        request: The context of a task, or what it is made of.
    """
    return bool(request.get("retries")) or came_back(request)


def came_back(request: Any) -> bool:
    """Whether a delivery has come back to its queue, as it does when it is interrupted."""
    info = request.get("delivery_info") or {}
    return bool(info.get("redelivered") or request.get(SENT_AGAIN))


def replaced_by(request: Any) -> int:
    """How many tasks one has replaced, each by ``self.replace``.

    It has their id, and may begin before the last of them has ended: what is kept by ids is not its
    own alone.

    Args:
        request: The context of a task, or what it is made of.
    """
    nesting = request.get("replaced_task_nesting")
    return nesting if isinstance(nesting, int) and nesting > 0 else 0
