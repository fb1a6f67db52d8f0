"""What a message says of earlier deliveries of its task."""

from __future__ import annotations

from typing import Any

__all__ = ["SENT_AGAIN", "came_back", "may_resume"]

#: Name of the header of messages that were sent again to the tail of their queue.
SENT_AGAIN = "graceful_sent_again"


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
