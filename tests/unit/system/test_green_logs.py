"""The log thread, and greenlets that log at the same time."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.workers import ROOT


@pytest.mark.parametrize("hub", ["gevent", "eventlet"])
def test_no_greenlet_waits_for_ever_for_the_log(hub: str, tmp_path: Path) -> None:
    """A lock that a thread has, and a greenlet waits for, is not given on to that."""
    log = tmp_path / "log"
    command = [sys.executable, "-W", "ignore", "-m", "tests.unit.system.green_logs", hub, str(log)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    lines = Counter(log.read_text().splitlines())
    assert lines.pop(f"of a greenlet: {'y' * 50}") == 4000
    assert lines.pop(f"of a thread: {'x' * 50}") > 10
    assert not lines, "whole lines"
