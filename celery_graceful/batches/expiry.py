"""When tasks expire that a signature is made of."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any

from celery_graceful.batches.marks import all_of, parts_of

__all__ = ["has_expired", "moment"]


def has_expired(sig: Any, sent: float | None = None) -> bool:
    """Whether a task would not run that it is, or is made of: then it cannot succeed any more.

    Args:
        sig: The signature.
        sent: When it was sent, which is what seconds count from; those of tasks that come later
            count from who knows when, and each time anew.
    """
    moments = [moment(part.options.get("expires")) for part in all_of(sig)]
    if parts_of(sig) is None and sent is not None:
        task = sig.app.tasks.get(sig.task)
        seconds = sig.options.get("expires", getattr(task, "expires", None))
        moments += [sent + seconds] if isinstance(seconds, (int, float)) else []
    return any(until is not None and until < time.time() for until in moments)


def moment(said: Any) -> float | None:
    """A time in seconds; results and signatures give it in several ways, or not at all."""
    try:
        said = datetime.fromisoformat(said) if isinstance(said, str) else said
    except ValueError:
        return None
    if not isinstance(said, datetime):
        return None
    return (said if said.tzinfo else said.replace(tzinfo=timezone.utc)).timestamp()
