"""A task that adds a batch to another one, and is run again before all of it is sent.

What it adds then is, where it is alike, the one that it had begun: under the id of that, with the
members that it has. So none stays behind that nobody sends any more, and its parent would wait for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from celery import current_task
from kombu.utils.json import dumps

from celery_graceful.batches.model import Adds

__all__ = ["Adding"]

#: Batches that are being sent in this process: threads may add several that are alike.
_busy: dict[str, Adding] = {}


class Adding:
    """One batch on its way into another one; a context manager, for as long as it is sent.

    Args:
        batch: Its id.
    """

    def __init__(self, batch: str) -> None:
        self.taken = [batch]
        _busy[batch] = self

    def __enter__(self) -> Adding:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for batch in self.taken:
            _busy.pop(batch, None)

    def take(self, batch: str) -> bool:
        """Send that one; whether nobody here does so already."""
        if _busy.setdefault(batch, self) is not self:
            return False
        self.taken.append(batch)
        return True

    def as_what(
        self, callbacks: Mapping[str, Any], description: str, properties: Mapping[str, Any]
    ) -> Adds | None:
        """As what it is added; ``None`` where no task runs.

        Args:
            callbacks: The signatures of its callbacks, by their names.
            description: The user's; also ``properties``.
        """
        task = current_task.request.id if current_task else None
        if task is None:
            return None
        said = {name: dict(sig) for name, sig in callbacks.items()}, description, properties
        like = hashlib.sha1(dumps(said).encode(), usedforsecurity=False).hexdigest()
        return Adds(task, like, tuple(_busy))
