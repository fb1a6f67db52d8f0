"""Guarded sections in which a finalizer lets other greenlets run."""

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
