"""What is asked of Redis is what its user is asked to be allowed."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

import celery_graceful
from celery_graceful.doctor.needs import CELERYS, KOMBUS, OURS
from celery_graceful.store.rights import COMMANDS

#: What a Redis client may call by its name, as far as we know of it, and what is near it.
ALL = (
    *COMMANDS,
    *OURS,
    *KOMBUS,
    *CELERYS,
    *("APPEND", "BLPOP", "COPY", "DECR", "HVALS", "INCRBY", "LINDEX", "LINSERT", "LMOVE", "LREM"),
    *("LSET", "MSET", "PERSIST", "RENAME", "SPOP", "TYPE", "ZINCRBY", "ZPOPMIN", "ZRANK"),
)

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
    # Not what only looks after batches, or what an operator asks, nor what writes the history: that
    # is said when it is refused, by the doctor too, and is no reason to do without the rest.
    assert used - OURS.keys() - {"CONFIG"} <= COMMANDS.keys()


@pytest.mark.parametrize(
    ("module", "known"), [("kombu.transport.redis", KOMBUS), ("celery.backends.redis", CELERYS)]
)
def test_every_command_of_theirs_is_tried_by_the_doctor(module: str, known: set[str]) -> None:
    text = Path(import_module(module).__file__ or "").read_text()
    commands = {"delete": "DEL", **{name.lower(): name for name in ALL}}
    called = set(re.findall(r"\b(?:client|c|pipe|pipeline|pubsub|_pubsub)\.(\w+)\(", text))
    used = {commands[name] for name in called & commands.keys()}
    used |= set(re.findall(r"redis\.call\('(\w+)'", text))
    assert len(used) > 5
    assert used <= known.keys() | COMMANDS.keys() | OURS.keys()
