"""Prefork: a child that leaves takes nothing with it that the others need."""

from __future__ import annotations

import subprocess
import sys

CHILD = """
import os, signal
from types import SimpleNamespace
from billiard import get_context
from celery_graceful.pools import child

outq = get_context("fork").SimpleQueue()  # which all children share where there is no event loop
if not os.fork():
    holds_results = child._GracefulChild._holds_results
    child._leave(None, lambda: holds_results(SimpleNamespace(outq=outq)), os.getpid(), 3)
    with outq._wlock:
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(4)
print(os.waitstatus_to_exitcode(os.wait()[1]), outq._wlock.acquire(True, 1))
"""


def test_what_is_told_to_end_while_it_writes_to_the_others_pipe_lets_go_of_it() -> None:
    argv = [sys.executable, "-c", CHILD]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("3 True\n", "")
