"""Locks of ours, and of libraries, where greenlets run: and finalizers, and real threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.workers import ROOT


@pytest.mark.parametrize("hub", ["gevent", "eventlet"])
def test_no_greenlet_waits_for_ever_for_one_of_its_thread(hub: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.unit.system.green_sections", hub]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "fork_gate"


@pytest.mark.parametrize("hub", ["gevent", "eventlet"])
def test_real_threads_and_greenlets_share_the_locks_of_libraries(hub: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.unit.system.green_libraries", hub]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "shared\n"
