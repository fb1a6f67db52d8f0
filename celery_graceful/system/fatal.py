"""The end of a process that cannot start: one line that says why, without a traceback."""

from __future__ import annotations

import logging
from typing import NoReturn

__all__ = ["end"]

# Not Celery's get_logger: its NullHandler would keep it from a process that has set up no log.
logger = logging.getLogger(__name__)


def end(reason: object) -> NoReturn:
    """Say why, where people read what is fatal, and exit with status 1.

    Raises:
        SystemExit: Always. One that carries the reason would be printed to ``stderr``, which in
            a worker is its log, at WARNING.
    """
    if not logger.isEnabledFor(logging.CRITICAL):  # the app has switched it off
        raise SystemExit(str(reason))
    logger.critical("%s", reason)
    raise SystemExit(1)
