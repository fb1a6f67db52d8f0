"""Waiting for an outbox, where threads are threads and where they are greenlets."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.workers import ROOT, TIMEOUT

PATCH = {
    "threads": "",
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}

PROGRAM = """
import threading
from celery_graceful.monitors.outbox import Outbox

gate = threading.Event()
sent = []

def send():
    assert gate.wait({timeout})
    sent.append(1)

outbox = Outbox("a server")
assert outbox.flush(0.01), "nothing was put there yet"
outbox.put(send)
assert not outbox.flush(0.01)
assert not outbox.flush(0.2), "longer than it looks at once"
gate.set()
assert outbox.flush({timeout})
assert sent == [1]
gate.clear()
outbox.put(send)
assert not outbox.flush(0.2)
gate.set()
assert outbox.flush({timeout})
assert sent == [1, 1]
print("done")
"""


@pytest.mark.parametrize("how", PATCH)
def test_flush_waits_for_as_long_as_it_says(how: str) -> None:
    program = PATCH[how] + PROGRAM.format(timeout=TIMEOUT)
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=5 * TIMEOUT,
    )
    assert ended.stdout == "done\n", ended.stderr
