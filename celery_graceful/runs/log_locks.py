"""Handlers of ``logging`` take their lock by ``with``, as Python 3.13 has them do.

Before, what is raised in a thread from outside could land between ``acquire`` and the ``try``: the
lock was held for ever, and with it all stood still who log, the worker first of all.
"""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from typing import Any

__all__ = ["install"]


def install() -> None:
    """For this process; doing so twice is the same as once."""
    if sys.version_info < (3, 13):
        for cls, method in ((logging.Handler, _handle), (logging.StreamHandler, _flush)):
            name = method.__name__.removeprefix("_")
            if getattr(cls, name).__module__ == logging.__name__:  # nobody else has changed it
                setattr(cls, name, method)


def _handle(self: logging.Handler, record: logging.LogRecord) -> Any:
    found: Any = self.filter(record)
    if isinstance(found, logging.LogRecord):  # since Python 3.12
        record = found
    if found:
        with self.lock or nullcontext():
            self.emit(record)
    return found


def _flush(self: logging.StreamHandler[Any]) -> None:
    with self.lock or nullcontext():
        if self.stream and hasattr(self.stream, "flush"):
            self.stream.flush()
