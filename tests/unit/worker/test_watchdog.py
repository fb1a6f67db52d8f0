"""The end of a worker whose interpreter has stopped for good."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys

import pytest

from tests.support.workers import ROOT, TIMEOUT

#: Computes in one C call, which never gives up the GIL.
WORKER = """
import os
from celery_graceful.worker.watchdog import Watchdog

watchdog = Watchdog(0.2, os.open(os.devnull, os.O_WRONLY))
print("started", os.getpid(), flush=True)
watchdog.start_clock()
sum(range(10**15))
"""

CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def _can_contain() -> bool:
    return shutil.which(CONTAINER[0]) is not None and not subprocess.call(
        [*CONTAINER, "true"], stderr=subprocess.DEVNULL
    )


@pytest.mark.parametrize("first", [False, True], ids=["a process", "PID 1"])
def test_a_process_that_computes_is_ended(first: bool) -> None:
    """PID 1 of a container ignores the SIGKILL of a process in it."""
    if first and not _can_contain():
        pytest.skip("needs the right to make a PID namespace")
    argv = [*(CONTAINER if first else []), sys.executable, "-c", WORKER]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            word, pid = process.stdout.readline().split()
            assert (word, pid == "1") == ("started", first)
            status = process.wait(TIMEOUT)
        finally:
            process.kill()
    # unshare cannot end by its child's signal in each version, and then says so by its status.
    assert status == -signal.SIGKILL or (first and status in (1, 128 + signal.SIGKILL))
