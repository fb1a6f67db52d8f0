"""An outbox, and waiting for it, where threads are threads and where they are greenlets."""

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
from celery_graceful.monitors import outbox as module
from celery_graceful.monitors.outbox import Outbox

module.LINGER = {timeout}
gate = threading.Event()
sent = []

def send():
    assert gate.wait({timeout})
    sent.append(threading.get_ident())

outbox = Outbox("a server")
assert outbox.flush(0.01), "nothing was put there yet"
outbox.put(send)
assert not outbox.flush(0.01)
assert not outbox.flush(0.2), "longer than it looks at once"
gate.set()
assert outbox.flush({timeout})
assert len(sent) == 1
gate.clear()
outbox.put(send)
assert not outbox.flush(0.2)
gate.set()
assert outbox.flush({timeout})
outbox.put(send, after=10 * {timeout})
assert not outbox._idle.wait(0.2) and len(sent) == 2, "it may wait for another one"
assert outbox.flush({timeout})
outbox.put(send, after=10 * {timeout})
outbox.put(send)
assert outbox.flush({timeout})
assert len(sent) == 5
assert len(set(sent)) == 1, "a thread for each of them"
print("done")
"""


@pytest.mark.parametrize("how", PATCH)
def test_one_thread_sends_and_flush_waits_for_as_long_as_it_says(how: str) -> None:
    assert run(how, PROGRAM) == "done\n"


def run(how: str, program: str) -> str:
    """What it prints where the originals are patched like that."""
    ended = subprocess.run(
        [sys.executable, "-c", PATCH[how] + program.format(timeout=TIMEOUT)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=5 * TIMEOUT,
    )
    assert not ended.returncode, ended.stderr
    return ended.stdout


FOREIGN = """
import time
from celery_graceful.monitors import outbox as module
from celery_graceful.monitors.outbox import Outbox
from celery_graceful.system import native

module.LINGER = 3.0
sent = []
outbox = Outbox("a server")
outbox.put(lambda: sent.append("here"))
assert outbox.flush({timeout})
native.start_thread(lambda: outbox.put(lambda: sent.append("there")), "foreign").wait({timeout})
until = time.monotonic() + {timeout}
while len(sent) < 2 and time.monotonic() < until:
    time.sleep(0.01)
assert sent == ["here", "there"]
print("done")
"""


@pytest.mark.parametrize("how", PATCH)
def test_what_another_thread_puts_there_is_sent(how: str) -> None:
    """Where it cannot wake a greenlet, that looks before it ends."""
    assert run(how, FOREIGN) == "done\n"


WAITS = """
import threading, time
from celery_graceful.monitors import outbox as module
from celery_graceful.monitors.outbox import Outbox

module.LINGER = module.LOOKS = {timeout}
sent = []
outbox = Outbox("a server")
outbox.put(lambda: sent.append("first"))
assert outbox.flush({timeout})
rung = []

class Bell:
    def __init__(self, bell):
        self.wait, self.clear, self.is_set, self.ring = bell.wait, bell.clear, bell.is_set, bell.set

    def set(self):
        rung.append(None)
        self.ring()

outbox._bell = Bell(outbox._bell)
outbox.put(lambda: sent.append("begins"), after=0.05)
assert not rung, "it would be in the way of what begins"
assert outbox._idle.wait({timeout})
assert sent == ["first", "begins"]
outbox.put(lambda: sent.append("begins"), after=10 * {timeout})
outbox.put(lambda: sent.append("ends"))
assert len(rung) == 1
assert outbox._idle.wait({timeout})
assert sent[2:] == ["begins", "ends"]
outbox.put(lambda: sent.append("later"), after=20 * {timeout})
outbox.put(lambda: sent.append("sooner"), after=0.1)
assert outbox._idle.wait({timeout}), "the first one decides"
del rung[:]
module.LOOKS = 0.0
outbox.put(lambda: sent.append("rings"))
assert outbox._idle.wait({timeout})
outbox.put(lambda: sent.append("begins"), after=0.05)
assert len(rung) == 2, "it does not look any more"
assert outbox._idle.wait({timeout})
assert sent[4:] == ["later", "sooner", "rings", "begins"]
print("done")
"""


@pytest.mark.parametrize("how", PATCH)
def test_nobody_is_woken_for_what_can_wait(how: str) -> None:
    assert run(how, WAITS) == "done\n"
