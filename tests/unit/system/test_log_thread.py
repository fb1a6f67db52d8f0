"""The log thread, and who listens to logging besides handlers."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from celery_graceful.system import log_thread
from celery_graceful.system.log_thread import LogThread
from tests.support.workers import TIMEOUT, wait_until


class Handler(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.written.append(record.getMessage())


@pytest.mark.parametrize("is_busy", [False, True])
def test_who_has_replaced_callhandlers_hears_each_line_once(
    is_busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Sentry's SDK has: of what was written in the place of a hub, when the hub has time."""
    heard: list[tuple[str, str]] = []
    call_handlers: Callable[[logging.Logger, logging.LogRecord], None]
    call_handlers = logging.Logger.callHandlers

    def listen(self: logging.Logger, record: logging.LogRecord) -> None:
        call_handlers(self, record)
        if record.name.startswith("heard"):
            heard.append((record.name, record.getMessage()))

    monkeypatch.setattr(logging.Logger, "callHandlers", listen)
    monkeypatch.setattr(log_thread, "HUB_PATIENCE", 0.0 if is_busy else TIMEOUT)
    handler, logger = Handler(), logging.getLogger("heard")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [handler])
    log = LogThread(logger, through_loop=lambda: None)
    log(logging.WARNING, "by %s", "itself")
    log(logging.WARNING, "as another", logger=logging.getLogger("heard.below"))
    if is_busy:
        wait_until(lambda: len(handler.written) == 2, "they are written")
        assert not heard, "there a lock may be waited for"
    for _ in range(2):
        log.write_pending()
    log.end(TIMEOUT)
    assert handler.written == ["by itself", "as another"]
    assert heard == [("heard", "by itself"), ("heard.below", "as another")]
