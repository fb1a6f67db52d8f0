"""Which message it is: what tells a later try or a replacement of a task from a second delivery."""

from __future__ import annotations

import zlib
from typing import Any

__all__ = ["Fingerprint", "fingerprint", "fingerprint_as_text"]

#: The task, its try, how deep it is nested as a replacement, a sum over the body.
Fingerprint = tuple[str, Any, Any, int]


def fingerprint(request: Any) -> Fingerprint:
    """Of the message of one of Celery's requests."""
    headers, body = request.request_dict, request.message.body
    check = zlib.crc32(body.encode() if isinstance(body, str) else body or b"")
    return request.id, headers.get("retries"), headers.get("replaced_task_nesting"), check


def fingerprint_as_text(found: Fingerprint) -> str:
    """The same for other workers, who know the task."""
    return "/".join(map(str, found[1:]))
