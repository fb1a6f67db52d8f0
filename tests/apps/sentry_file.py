"""Sentry's SDK, with a transport that writes to a file: one line of JSON an item."""

from __future__ import annotations

import json
import os

import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport


def init(path: str) -> None:
    """Send everything to the file at ``path``."""

    class FileTransport(Transport):
        def capture_envelope(self, envelope):
            for item in envelope.items:
                line = json.dumps([item.type, item.payload.json], default=str) + "\n"
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                os.write(descriptor, line.encode())
                os.close(descriptor)

    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        transport=FileTransport,
        integrations=[CeleryIntegration()],
        traces_sample_rate=1.0,
    )
