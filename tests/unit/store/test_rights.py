"""What is asked of Redis is what its user is asked to be allowed."""

from __future__ import annotations

import re
from pathlib import Path

import celery_graceful
from celery_graceful.store.rights import COMMANDS

ROOT = Path(celery_graceful.__file__).parent


def test_every_command_is_tried_at_start() -> None:
    """A new one: add it to ``rights.COMMANDS``, with arguments with which it does nothing."""
    used = set()
    for path in ROOT.rglob("*.lua"):
        used |= set(re.findall(r"redis\.p?call\('(\w+)'", path.read_text()))
    # Of the helpers for tests, which have a server of their own, workers run nothing.
    for path in {*ROOT.rglob("*.py")} - {*(ROOT / "testing").glob("*.py")}:
        used |= set(re.findall(r"execute\(\s*\"([A-Z]+)\"", path.read_text()))
    assert used >= {"HSET", "MGET", "TIME"}
    # Not what only looks after batches, or what the doctor or an operator asks, nor what writes the
    # history: that is said when it is refused, and is no reason to do without the rest.
    elsewhere = {"CONFIG", "INFO", "LRANGE", "SCAN", "XADD", "XRANGE", "XREVRANGE", "ZSCORE"}
    assert used - elsewhere <= COMMANDS.keys()
