"""Check-ins for Sentry, by the client that the app has set up. Imports ``sentry_sdk``."""

from __future__ import annotations

import copy
import os
import uuid
from typing import Any

import sentry_sdk
import urllib3
from sentry_sdk.crons import capture_checkin
from sentry_sdk.transport import HttpTransport, Transport

from celery_graceful.monitors.report import Dropped, Report

__all__ = ["SentryReporter", "drops_check_ins"]


class SentryReporter:
    """Sends as the app's client would, but at once, in the calling thread.

    The client's own transport has a queue of its own: nobody learns when a check-in has left
    it, nor that it did not; and a child that was forked while a request was under way waits
    for it for ever. Where the app has a transport of its own, that one is used.

    Args:
        timeout: Seconds for one request.
    """

    name = "sentry"

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._original: Any = None
        self._client: Any = None
        self._pid = 0

    def start(self, report: Report) -> None:
        self._send(report)

    def heartbeat(self, report: Report) -> None:
        self._send(report)

    def finish(self, report: Report) -> None:
        self._send(report)

    def _send(self, report: Report) -> None:
        client = self._client_now()
        transport = client.transport
        if isinstance(transport, _AtOnce):
            transport.forget()
            if transport.limited():
                raise Dropped("Sentry's rate limit")
        config: Any = dict(report.config) if report.config else None
        with sentry_sdk.new_scope() as scope:
            scope.set_client(client)
            sent = capture_checkin(
                monitor_slug=report.slug,
                check_in_id=uuid.UUID(report.check_in_id).hex,
                status=report.status,
                duration=report.duration,
                monitor_config=config,
            )
        if sent is None:
            raise Dropped("before_send, or an event processor, took it")
        if isinstance(transport, _AtOnce):
            transport.raise_what_happened()

    def _client_now(self) -> Any:
        original = sentry_sdk.get_client()
        if not original.is_active():
            raise Dropped("no Sentry client is active in this process")
        if original is not self._original or self._pid != os.getpid():  # no shared sockets
            client = original
            if type(original.transport) is HttpTransport:
                client = copy.copy(original)
                client.transport = _AtOnce(original.options, self._timeout)
            self._original, self._client, self._pid = original, client, os.getpid()
        return self._client


def drops_check_ins() -> bool:
    """Whether the client that is active takes a check-in away; nothing is sent.

    What users have hooked into the client is called, with a check-in as it would be sent.
    """
    client = copy.copy(sentry_sdk.get_client())
    client.transport = _Nowhere(client.options)
    with sentry_sdk.new_scope() as scope:
        scope.set_client(client)
        return capture_checkin(monitor_slug="celery-graceful-doctor", status="ok") is None


class _Nowhere(Transport):
    """Sends nothing."""

    def capture_envelope(self, envelope: Any) -> None:
        """Not to anybody."""


class _AtOnce(HttpTransport):
    """Sends in the calling thread, and remembers what became of it."""

    def __init__(self, options: Any, timeout: float) -> None:
        self._timeout = timeout
        self._problem: Exception | None = None
        self._dropped: str | None = None
        super().__init__(options)

    def _get_pool_options(self, *args: Any, **kwargs: Any) -> Any:
        options = super()._get_pool_options(*args, **kwargs)
        return {**options, "timeout": urllib3.Timeout(total=self._timeout), "retries": False}

    def limited(self) -> bool:
        """Whether the server asked for a pause."""
        return bool(self._check_disabled("monitor"))

    def forget(self) -> None:
        self._problem = self._dropped = None

    def capture_envelope(self, envelope: Any) -> None:
        try:
            self._send_envelope(envelope)
        except Exception as exc:
            self._problem = exc

    def on_dropped_event(self, reason: str) -> None:
        self._dropped = reason

    def raise_what_happened(self) -> None:
        """Raise what kept the last envelope from the server.

        Raises:
            Dropped: The server does not want it.
            Exception: The server was away.
        """
        if self._problem is not None:
            raise self._problem
        reason = self._dropped
        if reason is None:
            return
        if reason.startswith("status_5"):
            raise ConnectionError(f"Sentry answered {reason[7:]}")
        if reason == "status_429":
            raise Dropped("Sentry's rate limit")
        raise Dropped(reason)
